"""The proxy's log: lines, folds, and the recorder with a real socket, HAProxy and a database that goes away."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import OperationalError, connection
from pytest_django.plugin import DjangoDbBlocker

from improvements import proxylog, traffic
from improvements.deployers import HaproxyDeployer
from improvements.models import Release, TrafficSlice
from improvements.proxylog import Buffer, Line, Map, Recorder, parse, slices
from improvements.traffic import CLIENT_LEFT, NO_ANSWER
from monitoring.models import Service
from tests.audit_log import let_tests_flush
from tests.improvements import proxy_stack
from tests.improvements.proxy_stack import Client, commit, make_service, manifest

HEAD = b"<134>Nov 22 14:54:01 haproxy[6507]: "
PARSED = {
    b"svc0 r0 200 12 9 GET 0 --\n": Line("svc0", "r0", 200, 12.0, "GET"),
    b"svc1 r3 404 0 0 PROPFIND 1 ----": Line("svc1", "r3", 404, 0.0, "PROPFIND"),
    b"svc0 r0 200 +12 9 GET 0 --": Line("svc0", "r0", 200, 12.0, "GET"),
    b"svc0 r0 200 12 9 SOMETHINGLONG 0 --": Line("svc0", "r0", 200, 12.0, "SOMETHIN"),
    b"svc0 r0 200 12 9 GET 0 -- 1 more": Line("svc0", "r0", 200, 12.0, "GET"),
    # The server died before it answered; in the middle of its answer; it was too slow.
    b"svc0 r1 502 3 -1 GET 0 SH": Line("svc0", "r1", 502, 3.0, "GET"),
    b"svc0 r1 200 3 1 GET 0 SD": Line("svc0", "r1", NO_ANSWER, 3.0, "GET"),
    b"svc0 r1 504 60001 -1 GET 0 sH": Line("svc0", "r1", 504, 60001.0, "GET"),
    # Nobody to send it to.
    b"svc0 <NOSRV> 503 0 -1 GET -1 SC": Line("svc0", "<NOSRV>", 503, 0.0, "GET"),
    # The client went away: while it waited, while it read, before it had asked.
    b"svc0 r0 -1 4000 -1 GET 0 CH": Line("svc0", "r0", CLIENT_LEFT, 4000.0, "GET"),
    b"svc0 r0 200 4000 3 GET 0 CD": Line("svc0", "r0", CLIENT_LEFT, 4000.0, "GET"),
    b"in_svc0 <NOSRV> 400 -1 -1 <BADREQ> -1 CR": Line("in_svc0", "<NOSRV>", CLIENT_LEFT, math.nan, "<BADREQ>"),
    b"in_svc0 <NOSRV> 408 10000 -1 <BADREQ> -1 cR": Line("in_svc0", "<NOSRV>", CLIENT_LEFT, 10000.0, "<BADREQ>"),
    # A refusal of the proxy's own is an answer.
    b"in_svc0 <NOSRV> 403 0 -1 GET -1 PR": Line("in_svc0", "<NOSRV>", 403, 0.0, "GET"),
}
NO_REQUEST = [
    b"",
    b"\n",
    b"hello",
    HEAD,
    HEAD + b"Server svc0/r0 is UP (leaving forced drain).\n",
    HEAD + b"Server svc0/r2 is DOWN, reason: Layer4 connection problem, info: refused, check duration: 0ms.\n",
    b"svc0 r0 200 12 9 GET 0 --",
    HEAD + b"svc0 r0 abc 12 9 GET 0 --",
    HEAD + b"\xff\xfe \x00 200",
]


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> None:
    with django_db_blocker.unblock():
        let_tests_flush()


@pytest.mark.parametrize("text", PARSED)
def test_reads_a_line(text: bytes) -> None:
    line = parse(HEAD + text)
    assert line is not None
    wanted = PARSED[text]
    assert (line.backend, line.server, line.status, line.method) == (
        wanted.backend,
        wanted.server,
        wanted.status,
        wanted.method,
    )
    assert line.latency_ms == pytest.approx(wanted.latency_ms, nan_ok=True)


@pytest.mark.parametrize("datagram", NO_REQUEST)
def test_passes_over_what_is_no_request(datagram: bytes) -> None:
    assert parse(datagram) is None


def line(server: str = "r0", *, latency_ms: float = 1.0) -> Line:
    return Line("svc0", server, 200, latency_ms, "GET")


def test_buffer_keeps_the_newest_and_counts_what_it_drops() -> None:
    buffer = Buffer(limit=5)
    for second in range(4):
        buffer.add([line(), line()], second)
    assert buffer.dropped == 4
    assert [key[0] for key in buffer.take()] == [2, 3]
    assert not buffer.take()


def test_buffer_puts_back_in_front_and_in_order() -> None:
    buffer = Buffer(limit=5)
    buffer.add([line(latency_ms=1)], 1)
    buffer.add([line(latency_ms=2)], 2)
    taken = buffer.take()
    buffer.add([line(latency_ms=3)], 2)
    buffer.add([line(latency_ms=4)], 3)
    buffer.put_back(taken)
    assert [(key[0], fold.latencies_ms) for key, fold in buffer.take().items()] == [(1, [1]), (2, [2, 3]), (3, [4])]


def test_buffer_keeps_its_limit_when_something_is_put_back() -> None:
    buffer = Buffer(limit=3)
    buffer.add([line()] * 3, 1)
    taken = buffer.take()
    buffer.add([line()] * 2, 2)
    buffer.put_back(taken)
    assert list(buffer.take()) == [(2, "svc0", "r0")]
    assert buffer.dropped == 3


@pytest.mark.django_db
def test_knows_which_release_answered() -> None:
    service = Service.objects.create(name="tiny", repository="/nowhere", manifest=manifest(), slot=0)
    old = Release.objects.create(service=service, commit="a" * 40, server="r0")
    places = Map()
    places.refresh()
    assert places.place("svc0", "r0") == (service.pk, old.pk)
    assert places.place("svc0", "<NOSRV>") == (service.pk, None)
    assert places.place("in_svc0", "<NOSRV>") == (service.pk, None)
    assert places.place("svc3", "r0") is None
    # Freed: its last lines are still its own, until somebody else has the server.
    Release.objects.filter(pk=old.pk).update(server="")
    places.refresh()
    assert places.place("svc0", "r0") == (service.pk, old.pk)
    new = Release.objects.create(service=service, commit="b" * 40, server="r0")
    places.refresh()
    assert places.place("svc0", "r0") == (service.pk, new.pk)
    # The slot goes to another service.
    Service.objects.filter(pk=service.pk).update(slot=None)
    other = Service.objects.create(name="other", repository="/nowhere", manifest=manifest(), slot=0)
    places.refresh()
    assert places.place("svc0", "r0") == (other.pk, None)


@pytest.mark.django_db
def test_one_slice_per_release_and_second() -> None:
    service = Service.objects.create(name="tiny", repository="/nowhere", manifest=manifest(), slot=0)
    old = Release.objects.create(service=service, commit="a" * 40, server="r0")
    places = Map()
    places.refresh()
    buffer = Buffer()
    buffer.add([line(latency_ms=1), line("<NOSRV>"), line(latency_ms=2), Line("elsewhere", "r0", 200, 1.0, "GET")], 7)
    buffer.add([line(latency_ms=3)], 8)
    found = {(part.release_id, part.second): part.latencies_ms for part in slices(buffer.take(), places)}
    assert found == {(old.pk, 7): (1, 2), (None, 7): (1,), (old.pk, 8): (3,)}


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    thread = threading.Thread(target=recorder.run)
    thread.start()
    deadline = time.monotonic() + 5
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        while probe.connect_ex(str(recorder.path)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    try:
        yield recorder
    finally:
        recorder.stop()
        thread.join(10)
        assert not thread.is_alive()


def send(path: Path, *texts: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(5)
        for text in texts:
            sender.sendto(HEAD + text, str(path))  # waits while the queue is full, unlike HAProxy


def wait_for_requests(count: int) -> None:
    deadline = time.monotonic() + 10
    while (seen := sum(len(row.statuses) for row in TrafficSlice.objects.all())) != count:
        assert time.monotonic() < deadline, f"{seen} of {count}"
        time.sleep(0.05)


@pytest.mark.django_db(transaction=True)
def test_records_until_stopped_and_replaces_a_stale_socket(tmp_path: Path) -> None:
    service = Service.objects.create(name="tiny", repository="/nowhere", manifest=manifest(), slot=0)
    old = Release.objects.create(service=service, commit="a" * 40, server="r0")
    path = tmp_path / "log.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
        stale.bind(str(path))
    with recording(Recorder(path)):
        assert path.stat().st_mode & 0o077 == 0
        send(path, *[b"svc0 r0 200 5 4 GET 0 --"] * 300, b"svc0 <NOSRV> 503 0 -1 POST -1 SC")
    assert not path.exists()
    assert sum(len(row.statuses) for row in TrafficSlice.objects.filter(release=old)) == 300
    lost = TrafficSlice.objects.get(release=None)
    assert (lost.service_id, lost.statuses, lost.methods) == (service.pk, [503], ["POST"])


def test_does_not_remove_what_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "log.sock").write_text("precious")
    with pytest.raises(FileExistsError, match="is not a socket"):
        proxylog.bind(tmp_path / "log.sock")


@pytest.mark.django_db(transaction=True)
def test_keeps_requests_while_the_database_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service.objects.create(name="tiny", repository="/nowhere", manifest=manifest(), slot=0)
    Release.objects.create(service=service, commit="a" * 40, server="r0")
    caplog.set_level(logging.INFO)
    away = threading.Event()
    store = traffic.store

    def refuse(rows: list[traffic.Slice]) -> int:
        if away.is_set():
            raise OperationalError("the database system is shutting down")
        return store(rows)

    monkeypatch.setattr(proxylog.traffic, "store", refuse)
    monkeypatch.setattr(proxylog, "FLUSH_SECONDS", 0.05)
    with recording(Recorder(tmp_path / "log.sock")) as recorder:
        send(recorder.path, b"svc0 r0 200 5 4 GET 0 --")
        wait_for_requests(1)
        away.set()
        send(recorder.path, *[b"svc0 r0 200 6 4 GET 0 --"] * 10)
        time.sleep(0.3)
        assert TrafficSlice.objects.count() == 1
        away.clear()
        wait_for_requests(11)
    said = [record.message for record in caplog.records if record.name == "improvements.proxylog"]
    assert len(said) == 2, "once when it goes away, once when it is back"


@pytest.mark.django_db(transaction=True)
def test_writes_what_was_read_after_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping wakes both threads; the writer must wait for what the reader still takes from the socket."""
    service = Service.objects.create(name="tiny", repository="/nowhere", manifest=manifest(), slot=0)
    Release.objects.create(service=service, commit="a" * 40, server="r0")
    read = proxylog.read

    def read_slowly(*arguments: object) -> int:
        time.sleep(0.2)
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(proxylog, "read", read_slowly)
    with recording(Recorder(tmp_path / "log.sock")) as recorder:
        send(recorder.path, *[b"svc0 r0 200 5 4 GET 0 --"] * 8)
        recorder.stop()
    wait_for_requests(8)


@pytest.mark.django_db(transaction=True)
def test_survives_connections_that_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a restart of PostgreSQL does to it: every connection is gone in the middle."""
    service = Service.objects.create(name="tiny", repository="/nowhere", manifest=manifest(), slot=0)
    Release.objects.create(service=service, commit="a" * 40, server="r0")
    monkeypatch.setattr(proxylog, "FLUSH_SECONDS", 0.05)
    with recording(Recorder(tmp_path / "log.sock")) as recorder:
        for round_ in range(3):
            send(recorder.path, *[b"svc0 r0 200 5 4 GET 0 --"] * 10)
            wait_for_requests(10 * (round_ + 1))
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND datname = current_database() AND usename = current_user"
                )
        send(recorder.path, b"svc0 r0 200 5 4 GET 0 --")
        wait_for_requests(31)


@pytest.mark.django_db(transaction=True)
def test_the_command_writes_what_it_has_when_it_is_stopped(tmp_path: Path) -> None:
    service = Service.objects.create(name="tiny", repository="/nowhere", manifest=manifest(), slot=0)
    Release.objects.create(service=service, commit="a" * 40, server="r0")
    path = tmp_path / "log.sock"
    name = connection.settings_dict["NAME"]
    url = os.environ["DATABASE_URL"]
    scheme, _, rest = url.partition("://")
    login, _, tail = rest.partition("/")
    parameters = tail.partition("?")[2]
    process = subprocess.Popen(
        [sys.executable, "manage.py", "proxylog", "--socket", str(path)],
        env={**os.environ, "DATABASE_URL": f"{scheme}://{login}/{name}" + (f"?{parameters}" if parameters else "")},
        cwd=Path(__file__).parents[2],
    )
    try:
        deadline = time.monotonic() + 20
        while not path.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        send(path, *[b"svc0 r0 200 5 4 GET 0 --"] * 50)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    wait_for_requests(50)


@pytest.mark.django_db(transaction=True)
def test_sees_every_request_of_a_real_proxy(tmp_path: Path) -> None:
    commit(tmp_path / "repository", "one")
    with proxy_stack.running() as stack, recording(Recorder(stack.home.proxylog_socket)) as recorder:
        service = make_service(tmp_path / "repository")
        deployer = HaproxyDeployer()
        release = Release.objects.create(service=service, commit=commit(tmp_path / "repository", "seen"), share=100)
        deployer.install(release)
        deployer.start(release)
        deadline = time.monotonic() + 15
        while not deployer.ready(release).ok:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        deployer.apply(service)
        with Client(deployer.base_url(service), threads=2) as reading:
            with Client(deployer.base_url(service), threads=1, posting=True) as posting:
                time.sleep(0.7)
        sent = reading.answers.total() + posting.answers.total()
        deadline = time.monotonic() + 5
        while recorder.buffer.received < sent and time.monotonic() < deadline:
            time.sleep(0.05)
        wait_for_requests(sent)
        methods = [method for row in TrafficSlice.objects.filter(release=release) for method in row.methods]
        assert methods.count("POST") == posting.answers.total()
        assert recorder.buffer.dropped == 0
