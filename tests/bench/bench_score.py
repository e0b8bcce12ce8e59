"""Does the score tell the truth, and how quickly: Realm is degraded in steps, and its users' requests are the judge.

A process of its own with engines of its own (`python -m tests.bench.bench_score`), because Django can be set up for one
database only.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from deploy.realm import load
from runerogue.stack.home import PROJECT
from runerogue.stack.ports import next_free
from tests import engines
from tests.bench.rows import Row

REALM = PROJECT / "deploy" / "realm"
PATHS = ("/api/players/1", "/api/items/search?q=ember", "/api/trades")
RATE = 15.0  # requests per second
CLEAN_ROUNDS = 32
ROUNDS_OF_STEP, SETTLING_ROUNDS = 6, 3
# So much more waiting loses a user 63 % of what the service is worth: where Apdex calls people frustrated, four times
# the objective of 500 ms.
BEARABLE_MS = 2000.0

# Milliseconds added to every request, and the share of them that fails.
STEPS = (
    *((0.0, 0.0), (0.0, 0.0)),
    *((latency_ms, 0.0) for latency_ms in (40.0, 100.0, 200.0, 400.0, 700.0, 1200.0)),
    *((0.0, error_ratio) for error_ratio in (0.05, 0.12, 0.25, 0.6)),
    *((60.0, 0.04), (150.0, 0.1), (300.0, 0.2), (600.0, 0.35)),
)


def bench() -> Iterator[Row]:
    home, owner = engines.spawn()
    try:
        engines.demand(home)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "RUNEROGUE_"))},
            "DATABASE_URL": home.database_url(),
            "REDIS_URL": home.redis_url(),
            "RUNEROGUE_HOME": str(home.folder),
            "SECRET_KEY": home.secret("secret_key"),
            "METRICS_COLLECTION_INTERVAL": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.bench_score"],
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=600,
        )
        if done.returncode:
            raise RuntimeError("the drill broke, see above")
        for row in json.loads(done.stdout):
            yield Row(**row)
    finally:
        engines.dismiss(owner)


@dataclass
class Users:
    """Requests that are sent when they are due, whatever becomes of the others; (due, seconds, failed) of each."""

    host: str
    port: int
    done: list[tuple[float, float, bool]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Users:
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join()

    async def _run(self) -> None:
        dice = random.Random(1)
        due = time.time()
        # Realm's own generator of load: several times cheaper than httpx, on two cores that also serve and collect.
        connections = load.Connections(self.host, self.port)
        tasks = set()
        while not self.stop.is_set():
            due += dice.expovariate(RATE)
            await asyncio.sleep(max(0.0, due - time.time()))
            task = asyncio.create_task(self._ask(connections, dice.choice(PATHS), due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        connections.close()

    async def _ask(self, connections: load.Connections, path: str, due: float) -> None:
        try:
            status, _ = await asyncio.wait_for(connections.send("GET", path), 10)
            failed = status >= 500
        except (OSError, load.Broken, TimeoutError):
            failed = True
        self.done.append((due, time.time() - due, failed))

    def damage(self, since: float, until: float, *, clean_ms: float) -> float:
        """What users lost of a perfect service, 0 to 1: all of a failed request, of a slow one more the slower."""
        lost = [
            1.0 if failed else 1.0 - float(np.exp(-max(0.0, 1000 * seconds - clean_ms) / BEARABLE_MS))
            for due, seconds, failed in list(self.done)
            if since <= due < until
        ]
        if not lost:
            raise RuntimeError("no request of this step was answered: is the machine overloaded?")
        return statistics.mean(lost)


def main() -> None:
    import django

    os.environ["DJANGO_SETTINGS_MODULE"] = "runerogue.settings"
    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    folder = Path(tempfile.mkdtemp(prefix="rr-score-", dir="/tmp"))
    try:
        rows = [*_drill(folder), *_server_time()]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(rows))


def _drill(folder: Path) -> Iterator[dict[str, Any]]:
    from django.utils.timezone import now
    from scipy import stats

    from monitoring import baselining, collecting, scoring
    from monitoring.manifest import parse
    from monitoring.models import ExternalService, HealthScore, Service, Target

    environment = _realm(folder)
    port = next_free("127.0.0.1", 18800)
    with (folder / "realm.log").open("wb") as log:
        realm = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "realm.wsgi", "--bind", f"127.0.0.1:{port}"],
            cwd=folder / "realm",
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/up")
        manifest = parse((REALM / "runerogue.toml").read_text()).model_dump(mode="json")
        service = Service.objects.create(name="realm", repository=str(folder / "realm"), manifest=manifest)
        Service.objects.create(name="runerogue", repository=str(folder), manifest=manifest, is_self=True)
        Target.objects.create(service=service, url=f"{address}/metrics")
        ExternalService.objects.create(
            host="127.0.0.1",
            port=port,
            allows_private=True,
            purpose="the drill's own Realm",
            approved_at=now(),
            approve_reason="It is ours.",
        )
        began = now()

        def rounds(count: int) -> list[float]:
            """The scores of so many rounds, one a second."""
            found = []
            for _ in range(count):
                due = time.time() + 1.0
                at = now()
                collecting.collect(at)
                scoring.score_all(at)
                found.append(HealthScore.objects.filter(service=service).latest().score or 0.0)
                time.sleep(max(0.0, due - time.time()))
            return found

        with Users("127.0.0.1", port) as users:
            rounds(CLEAN_ROUNDS)
            clean_ms = 1000 * statistics.median(seconds for _, seconds, _ in users.done)
            baselining.make(service, since=began, until=now() + timedelta(seconds=1), reason="All is well here.")
            steps = list(STEPS)
            random.Random(2).shuffle(steps)
            told, true = [], []
            for latency_ms, error_ratio in steps:
                faults = {"latency_ms": latency_ms, "error_ratio": error_ratio}
                (folder / "faults.json").write_text(json.dumps(faults))
                rounds(SETTLING_ROUNDS)
                since = time.time()
                found = rounds(ROUNDS_OF_STEP - SETTLING_ROUNDS)
                until = time.time()
                # The last requests of the step have to be answered before they can be judged.
                rounds(1 + round(latency_ms / 1000))
                told.append(found[-1])
                true.append(users.damage(since, until, clean_ms=clean_ms))
                print(
                    f"  +{latency_ms:4.0f} ms, {error_ratio:4.0%} errors: damage {true[-1]:.3f}, score {told[-1]:5.1f}",
                    file=sys.stderr,
                    flush=True,
                )
        count = len(users.done)
    finally:
        realm.terminate()
        realm.wait()
        _drop(environment["DATABASE_URL"])
    coefficient = -float(stats.spearmanr(told, true).statistic)
    yield {
        "what": f"score against true damage, Spearman (n = {len(steps)} steps, {count:,} requests)",
        "value": coefficient,
        "unit": "",
        "target": 0.9,
        "better": "higher",
    }


def _realm(folder: Path) -> dict[str, str]:
    """A copy of Realm with a database of its own and a small world; the environment to run it in."""
    shutil.copytree(REALM, folder / "realm", ignore=shutil.ignore_patterns("__pycache__", "faults.json"))
    server = conninfo_to_dict(os.environ["DATABASE_URL"])
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("CREATE DATABASE realm_drill")
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DATABASE_URL": make_conninfo("", **{**server, "dbname": "realm_drill"}),
        "SECRET_KEY": "only-for-this",
        "GUNICORN_THREADS": "32",
        "REALM_FAULTS_FILE": str(folder / "faults.json"),
    }
    seeded = ["seed", "--players=200", "--guilds=10", "--items=500", "--trades=50"]
    for command in (["migrate", "--verbosity=0"], seeded):
        subprocess.run(
            [sys.executable, "manage.py", *command],
            cwd=folder / "realm",
            env=environment,
            check=True,
            capture_output=True,
        )
    return environment


def _drop(url: str) -> None:
    name = str(conninfo_to_dict(url)["dbname"])
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _server_time() -> Iterator[dict[str, Any]]:
    """`/health/score` and the longest trend with thirteen months of scores, through all of Django but the socket."""
    from django.db import connection
    from django.test import Client
    from django.utils.timezone import now

    from monitoring.models import HealthScore, Service

    service = Service.objects.get(name="realm")
    newest = HealthScore.objects.filter(service=service).latest()
    until: datetime = newest.at - timedelta(hours=1)
    with connection.cursor() as cursor:
        # As large as they are for the four weeks that are asked for, empty before.
        cursor.execute(
            """
            INSERT INTO monitoring_healthscore (service_id, at, score, status, trend, confidence, components)
            SELECT %(service)s, moment, 90 + 5 * sin(extract(epoch FROM moment)::float8 / 86400),
                   'healthy', 'stable', 1,
                   CASE WHEN moment > %(until)s - interval '29 days' THEN %(components)s::jsonb ELSE '{}' END
            FROM generate_series(%(until)s - interval '395 days', %(until)s, interval '1 minute') AS moment
            """,
            {"service": service.pk, "until": until, "components": json.dumps(newest.components)},
        )
        cursor.execute("VACUUM ANALYZE monitoring_healthscore")
    count = HealthScore.objects.filter(service=service).count()
    client = Client(headers={"host": "127.0.0.1"})
    for path, query, times, target in (("/health/score", {}, 200, 5.0), ("/health/trends", {"hours": "672"}, 10, None)):
        spent, worked = [], []
        for _ in range(times + 3):
            HealthScore.objects.filter(pk=newest.pk).update(at=now())
            began, began_work = time.perf_counter(), time.process_time()
            answer = client.get(path, {"service": "realm", **query})
            spent.append(1000 * (time.perf_counter() - began))
            worked.append(1000 * (time.process_time() - began_work))
            assert answer.status_code == 200, answer.content
        # The first ones make connections and caches.
        yield {
            "what": f"{path} with {count:,} scores, median",
            "value": statistics.median(spent[3:]),
            "unit": "ms",
            "target": target,
        }
        # What a busy machine adds is waiting; this is the work.
        yield {"what": f"{path}, processor time of the web process", "value": statistics.median(worked), "unit": "ms"}
        yield {"what": f"{path}, 95th percentile", "value": float(np.quantile(spent[3:], 0.95)), "unit": "ms"}


if __name__ == "__main__":
    main()
