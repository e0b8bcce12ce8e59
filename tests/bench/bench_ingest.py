"""One collection round of 100 services × 500 lines, and Prometheus taking in the same where it is there."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from runerogue.stack.ports import next_free
from tests import engines
from tests.bench.rows import Row

SERVICES = 100
LINES = 500
ROUNDS = 7

# A server of its own process. What it shows differs by service and grows with every request, as counters do.
SERVER = """
import asyncio, itertools
BOUNDS = "0.005 0.01 0.025 0.05 0.1 0.25 0.5 1.0 2.5 5.0 7.5 10.0 +Inf".split()
name, answers = "http_request_duration_seconds", "http_requests_total"
served = {}

def page(service):
    # 29 routes of 17 lines (histogram with sum and count, answers by status), and 7 of the process.
    n = served[service] = served.get(service, 0) + 50
    lines = [f"process_start_time_seconds 1.7e9", f"process_cpu_seconds_total {n / 100}",
             f"process_resident_memory_bytes {5e7 + n}", f"process_open_fds 12", f"process_max_fds 1024",
             f"http_requests_inprogress 3", f"python_gc_collections_total{{generation=\\"0\\"}} {n}"]
    for route in range(29):
        # Letters: a segment with digits could be anything, and is not kept.
        part = chr(97 + route % 26) * (1 + route // 26)
        labels = f'handler="/service-{chr(97 + service % 26)}/{chr(97 + service // 26)}/{{id}}/{part}",method="GET"'
        lines += [f'{name}_bucket{{{labels},le="{bound}"}} {n * (place + 1) // 13 + route}.0'
                  for place, bound in enumerate(BOUNDS)]
        lines += [f"{name}_sum{{{labels}}} {n * 0.37}", f"{name}_count{{{labels}}} {n + route}.0"]
        lines += [f'{answers}{{{labels},status="2xx"}} {n - n // 50}.0',
                  f'{answers}{{{labels},status="5xx"}} {n // 50}.0']
    return ("\\n".join(lines) + "\\n").encode()

async def answer(reader, writer):
    try:
        while (request := await reader.readuntil(b"\\r\\n\\r\\n")):
            service = int(request.split(b" ", 2)[1].split(b"/")[1])
            body = page(service)
            writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain; version=0.0.4\\r\\n")
            writer.write(b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=500)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def bench() -> Iterator[Row]:
    with _server() as address:
        with _engines():
            ours = _round(address)
        peer = _prometheus(address)
    whole, apart, cpu, samples, lines = ours
    shown = f"one round of {SERVICES} services × {LINES} lines"
    yield Row(f"ingest: {shown}: asked, parsed, derived, stored", whole, "s", target=1.0)
    yield Row("ingest: the same round without asking: parsed, derived, stored", apart, "s", target=1.0)
    yield Row(
        "ingest: lines per second of processor time, without PostgreSQL's",
        lines / cpu,
        "/s",
        better="higher",
        peer="Prometheus" if peer else None,
        peer_value=peer,
    )
    yield Row("ingest: samples of signals stored in a round", samples, "samples")


@contextmanager
def _server() -> Iterator[str]:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def _engines() -> Iterator[None]:
    """A private PostgreSQL and Valkey, as the tests have them, and Django that uses them."""
    import django

    home, owner = engines.spawn()
    names = ("DATABASE_URL", "REDIS_URL", "RUNEROGUE_HOME", "SECRET_KEY")
    before = {name: os.environ.get(name) for name in names}
    try:
        engines.demand(home)
        urls = (home.database_url(), home.redis_url(), str(home.folder), home.secret("secret_key"))
        os.environ.update(zip(names, urls, strict=True))
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "runerogue.settings")
        django.setup()
        from django.db import connections

        # Settings may have been read already by another benchmark of this run.
        connections.close_all()
        password = home.secret("postgres_runerogue")
        parts = {"HOST": str(home.postgres_sockets), "NAME": "runerogue", "USER": "runerogue", "PORT": ""}
        connections["default"].settings_dict.update({**parts, "PASSWORD": password})
        yield
        connections.close_all()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        engines.dismiss(owner)


def _round(address: str) -> tuple[float, float, float, int, int]:
    """Seconds of a round (median), without the network, of our processor time; samples stored, and lines read."""
    from django.core.management import call_command

    from monitoring import collecting
    from monitoring.manifest import parse
    from monitoring.models import ExternalService, Service, Target
    from monitoring.scraping import MemorySource

    manifest = parse(
        '[service]\nname = "bench"\n[run]\ncommand = "serve {port}"\nhealth = "/up"\n[test]\ncommand = "true"\n'
    ).model_dump(mode="json")
    call_command("migrate", verbosity=0)
    ExternalService.objects.create(
        host="127.0.0.1",
        allows_private=True,
        purpose="the benchmark's own server",
        approved_at=datetime.now(UTC),
        approve_reason="It is ours.",
    )
    services = Service.objects.bulk_create(
        Service(name=f"bench-{number}", repository=f"/bench/{number}", manifest=manifest) for number in range(SERVICES)
    )
    targets = Target.objects.bulk_create(
        Target(service=service, url=f"{address}/{number}/metrics") for number, service in enumerate(services)
    )
    at = datetime.now(UTC).replace(microsecond=0)
    whole, cpu, samples = [], [], 0
    for number in range(ROUNDS):
        began, used = time.perf_counter(), time.process_time()
        done = collecting.collect(at + timedelta(minutes=number), spread_seconds=0.0)
        if done is None or done.failed:
            reasons = sorted(set(done.failed.values()))[:3] if done else ["another had it"]
            raise RuntimeError(f"the round failed: {'; '.join(reasons)}")
        # The first has nothing to compare with, and understands all series for the first time.
        if number > 1:
            if done.samples < SERVICES * 29:
                raise RuntimeError(f"only {done.samples} samples were derived")
            whole.append(time.perf_counter() - began)
            cpu.append(time.process_time() - used)
            samples = done.samples
        time.sleep(0.6)  # what lies closer together than half a second is not compared
    apart, lines = [], 0
    for number in range(ROUNDS, ROUNDS + 4):
        texts = {target.url: _read(target.url) for target in targets}
        lines = sum(text.count("\n") for text in texts.values())
        began = time.perf_counter()
        collecting.collect(at + timedelta(minutes=number), source=MemorySource(texts))
        apart.append(time.perf_counter() - began)
    return statistics.median(whole), statistics.median(apart[1:]), statistics.median(cpu), samples, lines


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def _prometheus(address: str) -> float | None:
    """Samples that Prometheus takes in per second of its processor time."""
    binary = os.environ.get("PROMETHEUS_BINARY") or shutil.which("prometheus")
    if not binary:
        return None
    folder = Path(tempfile.mkdtemp(prefix="rr-prometheus-", dir="/tmp"))
    try:
        jobs = [
            {
                "job_name": f"bench-{number}",
                "metrics_path": f"/{number}/metrics",
                "static_configs": [{"targets": [address.removeprefix("http://")]}],
            }
            for number in range(SERVICES)
        ]
        settings = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(json.dumps(settings))  # JSON is YAML
        port = next_free("127.0.0.1", 19090)
        command = [
            binary,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 30
            own = f"http://127.0.0.1:{port}"
            while True:
                try:
                    _read(f"{own}/-/ready")
                    break
                except OSError:
                    if time.monotonic() > deadline or server.poll() is not None:
                        raise
                    time.sleep(0.05)
            time.sleep(3)
            before = _own(f"{own}/metrics")
            time.sleep(8)
            after = _own(f"{own}/metrics")
            cpu = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
            taken = sum(
                after[name] - before.get(name, 0.0)
                for name in after
                if name.startswith("prometheus_tsdb_head_samples_appended")
            )
            return taken / cpu
        finally:
            server.terminate()
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _own(url: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in _read(url).splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, _, value in lines}
