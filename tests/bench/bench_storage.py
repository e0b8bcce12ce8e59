"""Samples: what a round costs to write, how small a sealed day is, and how long four weeks take to read."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runerogue.stack.home import Home
from tests import engines
from tests.bench.rows import Row

if TYPE_CHECKING:
    from monitoring.models import Service

SERIES, DAYS = 200, 28
T0 = datetime(2026, 3, 2, tzinfo=UTC)
PER_DAY = 1440
Make = Callable[[np.ndarray, np.random.Generator], np.ndarray]
# What a sealed sample costs: blocks and their axes, with indexes and out-of-line storage.
SEALED = "SELECT pg_total_relation_size('monitoring_sealedblock') + pg_total_relation_size('monitoring_sealedaxis')"
ROLLED_UP = "SELECT pg_total_relation_size('monitoring_rollup')"


def bench() -> Iterator[Row]:
    with _engines():
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        yield from _writing()
        yield from _history()


@contextmanager
def _engines() -> Iterator[None]:
    """A private PostgreSQL and Valkey, as the tests have them, and Django that uses them."""
    import django
    from django.conf import settings
    from django.db import connections

    home, owner = engines.spawn()
    before = {name: os.environ.get(name) for name in ("DATABASE_URL", "REDIS_URL", "RUNEROGUE_HOME", "SECRET_KEY")}
    try:
        engines.demand(home)
        _use(home)
        django.setup()
        # Settings may have been read already by another benchmark of this run.
        connections.close_all()
        parts = {"HOST": str(home.postgres_sockets), "NAME": "runerogue", "USER": "runerogue"}
        password = home.secret("postgres_runerogue")
        connections["default"].settings_dict.update({**parts, "PASSWORD": password, "PORT": ""})
        assert settings.DATABASES
        yield
    finally:
        connections.close_all()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        engines.dismiss(owner)


def _use(home: Home) -> None:
    os.environ["DATABASE_URL"] = home.database_url()
    os.environ["REDIS_URL"] = home.redis_url()
    os.environ["RUNEROGUE_HOME"] = str(home.folder)
    os.environ["SECRET_KEY"] = home.secret("secret_key")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "runerogue.settings")


def _writing() -> Iterator[Row]:
    from monitoring import storing
    from monitoring.derive import Reading
    from monitoring.models import Service

    services = [Service.objects.create(name=f"written-{number}", repository="/x", manifest={}) for number in range(100)]
    rng = np.random.default_rng(1)
    labels = [(("endpoint", f"/e{number}"), ("method", "GET")) for number in range(500)]

    def rows() -> list[tuple[Service, Reading]]:
        values = iter(rng.lognormal(3, 1, 50_000).tolist())
        return [(s, Reading("latency_p95_ms", one, next(values))) for s in services for one in labels]

    began = time.perf_counter()
    storing.store(rows(), at=T0)
    yield Row("store: 50,000 new series and a sample of each", time.perf_counter() - began, "s")
    seconds = []
    for number in range(1, 8):
        given = rows()
        began = time.perf_counter()
        assert storing.store(given, at=T0 + number * timedelta(minutes=1)) == 50_000
        seconds.append(time.perf_counter() - began)
    yield Row("store: a round of 50,000 samples", statistics.median(seconds), "s", target=0.35)
    began = time.perf_counter()
    assert storing.store(given, at=T0 + 7 * timedelta(minutes=1)) == 0
    yield Row("store: the same round again", time.perf_counter() - began, "s")
    Service.objects.all().delete()


def _history() -> Iterator[Row]:
    from django.db import connection

    from monitoring import sealing
    from monitoring.models import Service

    generators: dict[str, tuple[Make, float, int]] = {"noisy": (_noisy, 4.0, DAYS), "smooth": (_smooth, 1.6, 7)}
    for kind, (make, target, days) in generators.items():
        service = Service.objects.create(name=kind, repository="/x", manifest={})
        with connection.cursor() as cursor:  # else the second would fill what room the first left in its pages
            cursor.execute("TRUNCATE monitoring_sealedaxis, monitoring_sealedblock, monitoring_rollup")
        before = _size(SEALED), _size(ROLLED_UP)
        seconds = 0.0
        for day in range(days):
            _write_day(service, T0 + day * timedelta(days=1), make)
            began = time.perf_counter()
            dropped, _ = sealing.seal_day((T0 + day * timedelta(days=1)).date())
            seconds += time.perf_counter() - began
            assert dropped
        samples = SERIES * days * PER_DAY
        yield Row(
            f"sealed: {kind}, 200 series × {days} days, with indexes",
            (_size(SEALED) - before[0]) / samples,
            "bytes/sample",
            target=target,
            peer="Prometheus" if (peer := _prometheus(make)) else None,
            peer_value=peer,
        )
        yield Row(f"sealed: {kind}, rollups of 5 min and 1 h", (_size(ROLLED_UP) - before[1]) / samples, "bytes/sample")
        yield Row(f"sealed: {kind}, sealing", samples / seconds, "samples/s", better="higher")

        if kind == "noisy":
            yield from _reading(service, samples)


def _reading(service: Service, samples: int) -> Iterator[Row]:
    from monitoring import reading

    since, until = T0, T0 + DAYS * timedelta(days=1)
    found, taken = _timed(lambda: reading.arrays(service, "x", since=since, until=until))
    assert sum(len(one.value) for one in found) == samples
    yield Row("read: 200 series × 4 weeks × 1 min into arrays", taken, "s", target=0.5)
    _, taken = _timed(lambda: reading.steps(service, "x", since=since, until=until, step_seconds=3600))
    yield Row("read: the same in steps of 1 h", taken, "s")
    one = {"endpoint": "/e7"}
    _, taken = _timed(lambda: reading.arrays(service, "x", since=since, until=until, labels=one))
    yield Row("read: one series × 4 weeks", 1000 * taken, "ms")


def _noisy(at: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A latency: a daily rhythm and 15 % of noise in every digit."""
    return 50 * (1 + 0.3 * np.sin(2 * np.pi * at / 86400)) * np.exp(rng.normal(0, 0.15, len(at)))


def _smooth(at: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A memory: it drifts by whole pages, and stands still for minutes."""
    steps = np.where(rng.random(len(at)) < 0.2, rng.normal(0, 20, len(at)), 0.0)
    return 2e8 + 4096 * np.rint(np.cumsum(steps) + 500 * np.sin(2 * np.pi * at / 86400))


def _write_day(service: Service, start: datetime, make: Make) -> None:
    """A day of rows as rounds leave them: a beat that jitters by some milliseconds, the same for all series."""
    from django.db import connection

    from monitoring import copybinary, partitions
    from monitoring.models import Series

    pks = list(Series.objects.filter(service=service).order_by("pk").values_list("pk", flat=True))
    if not pks:
        for number in range(SERIES):
            pks.append(Series.objects.create(service=service, signal="x", labels={"endpoint": f"/e{number}"}).pk)
    rng = np.random.default_rng(start.toordinal())
    jitter = np.abs(rng.normal(0, 5_000, PER_DAY)).astype(np.int64)
    times = copybinary.microseconds(start) + np.arange(PER_DAY) * 60_000_000 + jitter
    values = np.array([make(times / 1e6, rng) for _ in pks])
    partitions.ensure(start.date())
    # In the order of rounds, as the collector writes.
    body = copybinary.pack(np.tile(pks, PER_DAY), np.repeat(times, SERIES), values.T.ravel())
    with connection.cursor() as cursor:
        with cursor.copy("COPY monitoring_sample (series_id, at, value) FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(body)


def _prometheus(make: Make) -> float | None:
    """Bytes a sample of a day of such series in Prometheus' own blocks, chunks and index; None without promtool."""
    promtool = shutil.which("promtool")
    if not promtool:
        return None
    folder = Path(tempfile.mkdtemp(prefix="rr-promtool-", dir="/tmp"))
    try:
        rng = np.random.default_rng(T0.toordinal())
        milliseconds = (
            int(T0.timestamp() * 1000) + np.arange(PER_DAY) * 60_000 + np.abs(rng.normal(0, 5, PER_DAY)).astype(int)
        )
        with (folder / "day.txt").open("w") as text:
            text.write("# TYPE x gauge\n")
            for number in range(SERIES):
                for at, value in zip(milliseconds.tolist(), make(milliseconds / 1e3, rng).tolist(), strict=True):
                    text.write(f'x{{endpoint="/e{number}"}} {value!r} {at / 1000:.3f}\n')
            text.write("# EOF\n")
        blocks = folder / "blocks"
        command = [
            promtool,
            "tsdb",
            "create-blocks-from",
            "openmetrics",
            "--quiet",
            str(folder / "day.txt"),
            str(blocks),
        ]
        subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
        return sum(file.stat().st_size for file in blocks.rglob("*") if file.is_file()) / (SERIES * PER_DAY)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _size(query: str) -> int:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(query)
        return int(cursor.fetchone()[0])


def _timed(run: Callable[[], Any], times: int = 5) -> tuple[Any, float]:
    """What it gives, and its median seconds."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - began)
    return found, statistics.median(seconds)
