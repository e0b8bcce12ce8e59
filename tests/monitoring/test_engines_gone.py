"""Engines that are really killed, emptied and filled up, under the real collector, clock and web processes."""

from __future__ import annotations

import math
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import httpx
import psycopg
import pytest
from django.db import connection
from psycopg.conninfo import make_conninfo

from monitoring.models import ExternalService, Service
from runerogue.stack import ports, postgres
from tests.forked_programs import ForkedPrograms
from tests.monitoring.factories import TargetFactory, approve_loopback, exposition
from tests.own_engines import OwnEngines, eventually, own_engines

pytestmark = [pytest.mark.slow, pytest.mark.django_db, pytest.mark.xdist_group("engines-gone")]

PER_SECOND = 10_000.0
VIEWS = 40  # so many that a round does not fit into what is left on a page
FOREIGN = ("RUNEROGUE_TEST_HOME", "PYTEST_XDIST_WORKER", "PROMETHEUS_MULTIPROC_DIR", "SECRET_KEY")
RATES = """
    SELECT extract(epoch FROM sample.at)::float, sample.value FROM monitoring_sample sample
    JOIN monitoring_series series ON series.id = sample.series_id
    WHERE series.signal = 'requests_per_second' AND series.labels = '{"method": "*", "endpoint": "*"}'
    ORDER BY sample.at
"""
COUNTS = """
    SELECT sample.at, count(*) FROM monitoring_sample sample
    JOIN monitoring_series series ON series.id = sample.series_id
    WHERE series.signal = 'requests_per_second' GROUP BY sample.at ORDER BY sample.at
"""


class Counting(BaseHTTPRequestHandler):
    """A service with ten thousand requests a second, by the clock that nobody sets."""

    def do_GET(self) -> None:
        each = int(PER_SECOND * time.monotonic()) // VIEWS
        texts = [exposition(requests=each, view=f"view-{number}") for number in range(VIEWS)]
        body = "\n".join(dict.fromkeys("".join(texts).split("\n"))).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


class Product:
    """The collector, beat and the web side as `make run` starts them, on engines of their own."""

    def __init__(self, engines: OwnEngines) -> None:
        self.engines = engines
        home = engines.home
        self.port = ports.next_free("127.0.0.1", 21000 + os.getpid() % 5000)
        environment = {name: value for name, value in os.environ.items() if name not in FOREIGN} | {
            "RUNEROGUE_PORT": str(self.port),
            "DATABASE_URL": home.database_url(),
            "REDIS_URL": home.redis_url(),
            "WEB_CONCURRENCY": "1",
            "METRICS_COLLECTION_INTERVAL": "1",
            "TICK_SECONDS": "300",
            "NOTIFY_SECONDS": "60",
        }
        self.programs = ForkedPrograms(home, ["collector", "beat", "web"], environment)

    def health(self, what: str) -> tuple[int, dict[str, Any]]:
        answer = httpx.get(f"http://127.0.0.1:{self.port}/health/{what}", timeout=5, trust_env=False)
        return answer.status_code, answer.json()

    def is_ready(self) -> bool:
        try:
            return self.health("ready")[0] == 200
        except httpx.HTTPError:
            return False

    def rates(self) -> list[tuple[float, float]]:
        with psycopg.connect(self.engines.home.database_url()) as asked:
            return asked.execute(RATES).fetchall()

    def collects_after(self, moment: float) -> None:
        """Return when a round that began after `moment` is stored."""
        eventually(lambda: bool(self.rounds_within(moment, math.inf)), "a round", seconds=60)

    def counts(self) -> list[tuple[float, int]]:
        """Round → how many rates were stored."""
        with psycopg.connect(self.engines.home.database_url()) as asked:
            return asked.execute(COUNTS).fetchall()

    def counted_once(self) -> None:
        """Every request of the service is in at most one number, and no round was done twice."""
        rates = self.rates()
        assert all(later - earlier > 0.5 for (earlier, _), (later, _) in pairwise(rates)), rates
        assert all(0 < rate < 1.9 * PER_SECOND for _, rate in rates), rates

    def gaps(self) -> int:
        """How many rounds the collector said it could not store."""
        return self.engines.log("collector").count("was not stored and is a gap: ")

    def rounds_within(self, began: float, ended: float) -> list[float]:
        return [at for at, _ in self.rates() if began < at < ended]


@pytest.fixture(scope="module")
def product(django_db_setup: None, django_db_blocker: Any) -> Iterator[Product]:
    """All of it running, and the service measured twice."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    with own_engines() as engines:
        with django_db_blocker.unblock():
            schema = copied(server.server_port)
        superuser = engines.home.database_url(role="postgres", database="runerogue")
        load = [postgres.binaries() / "psql", "-q", "-1", "-o", os.devnull, "-v", "ON_ERROR_STOP=1", superuser]
        subprocess.run(load, input=schema, check=True)
        product = Product(engines)
        try:
            eventually(product.is_ready, "the web side is ready", seconds=60)
            product.collects_after(0.0)
            yield product
        finally:
            product.programs.stop()
            server.shutdown()
            server.server_close()


def copied(port: int) -> bytes:
    """The test database with a service on `port` as SQL. Running the migrations once more would take ten seconds."""
    try:
        TargetFactory(service__name="realm", url=f"http://127.0.0.1:{port}/metrics")
        approve_loopback()
        given = connection.get_connection_params()
        where = make_conninfo(**{name: given[name] for name in ("dbname", "user", "password", "host") if name in given})
        dump = [postgres.binaries() / "pg_dump", "--extension=plpgsql", where]
        return subprocess.run(dump, check=True, capture_output=True).stdout
    finally:
        Service.objects.all().delete()
        ExternalService.objects.all().delete()
        connection.close()


def test_postgresql_is_killed_and_comes_back(product: Product) -> None:
    ended = product.programs.ended()
    gaps = product.gaps()
    product.engines.kill("postgres")
    began = time.time()
    assert product.health("live")[0] == 200
    status, said = product.health("ready")
    assert (status, said["reasons"]) == (503, {"database": "OperationalError: the database does not answer"})
    eventually(lambda: product.gaps() > gaps, "a round fails")
    product.engines.start_postgres()
    back = time.time()
    assert "redo done" in product.engines.log("postgres"), "it recovered from its log of changes"
    eventually(product.is_ready, "ready again")
    product.collects_after(back)
    product.counted_once()
    assert not product.rounds_within(began, back), "the gap is a gap"
    assert product.programs.ended() == ended, "they went on by themselves"


def test_valkey_is_killed_and_comes_back_empty(product: Product) -> None:
    """Beat and the web side go on; a worker that holds a message then may end and is started again, see kombu."""
    product.engines.kill("valkey")
    assert product.health("live")[0] == 200
    status, said = product.health("ready")
    assert (status, said["reasons"]) == (503, {"queue": "ConnectionError: the queue does not answer"})
    product.engines.empty_valkey()
    product.engines.start_valkey()
    back = time.time()
    eventually(product.is_ready, "ready again")
    product.collects_after(back)
    product.counted_once()
    assert {line.partition(":")[0] for line in product.programs.ended()} <= {"collector"}


def test_the_disk_is_full_for_a_while(product: Product) -> None:
    disk = product.engines.disk
    if disk is None:
        pytest.skip(f"a disk that may be filled up can't be had: {product.engines.why_no_disk}")
    failed = r"was not stored and is a gap: .*No space left on device"
    disk.fill()
    try:
        eventually(lambda: bool(re.search(failed, product.engines.log("collector"))), "a round fails")
        assert product.health("live")[0] == 200
        status, said = product.health("ready")
        assert status == 503
        assert "the database can't write to its disk" in said["reasons"]["database"]
    finally:
        disk.free()
    back = time.time()
    eventually(product.is_ready, "ready again")
    product.collects_after(back)
    product.counted_once()
    assert {count for _, count in product.counts()} == {VIEWS + 1}, "a round is stored whole or not at all"
