"""The proxy's log: lines, folds, and the recorder with a real socket, HAProxy and a database that goes away."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import itertools
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from django.db import OperationalError, connection
from django.utils import timezone
from pytest_django.plugin import DjangoDbBlocker

from improvements import proxylog, traffic
from improvements.deployers import HaproxyDeployer
from improvements.models import Release, TrafficSlice
from improvements.proxylog import Buffer, Connection, Line, Map, Numbers, Recorder, Taken, parse, slices
from improvements.traffic import CLIENT_LEFT, NO_ANSWER
from monitoring.models import Service
from runerogue.stack import haproxy
from tests.audit_log import let_tests_flush
from tests.improvements import proxy_stack
from tests.improvements.proxy_stack import Client, commit, make_service, manifest

HEAD = b"77-1767571200 5 1767571300 in_svc0 "


def parsed(
    backend: str, server: str, status: int, latency_ms: float, method: str, *, number: int = 5, process: str = ""
) -> Line:
    frontend = "in_" + backend.removeprefix("in_")
    return Line(process or "77-1767571200", number, 1767571300, frontend, backend, server, status, latency_ms, method)


PARSED = {
    b"svc0 r0 200 12 -- GET\r": parsed("svc0", "r0", 200, 12.0, "GET"),
    b"svc0 r3 404 0 ---- PROPFIND": parsed("svc0", "r3", 404, 0.0, "PROPFIND"),
    b"svc0 r0 200 +12 -- GET": parsed("svc0", "r0", 200, 12.0, "GET"),
    b"svc0 r0 200 12 -- SOMETHINGLONG": parsed("svc0", "r0", 200, 12.0, "SOMETHIN"),
    b"svc0 r0 200 12 -- GET 1 more": parsed("svc0", "r0", 200, 12.0, "GET"),
    # The server died before it answered; in the middle of its answer; it was too slow.
    b"svc0 r1 502 3 SH GET": parsed("svc0", "r1", 502, 3.0, "GET"),
    b"svc0 r1 200 3 SD GET": parsed("svc0", "r1", NO_ANSWER, 3.0, "GET"),
    b"svc0 r1 504 60001 sH GET": parsed("svc0", "r1", 504, 60001.0, "GET"),
    # Nobody to send it to.
    b"svc0 <NOSRV> 503 0 SC GET": parsed("svc0", "<NOSRV>", 503, 0.0, "GET"),
    # The client went away: while it waited, while it read, before it had asked.
    b"svc0 r0 -1 4000 CH GET": parsed("svc0", "r0", CLIENT_LEFT, 4000.0, "GET"),
    b"svc0 r0 200 4000 CD GET": parsed("svc0", "r0", CLIENT_LEFT, 4000.0, "GET"),
    b"in_svc0 <NOSRV> 400 -1 CR <BADREQ>": parsed("in_svc0", "<NOSRV>", CLIENT_LEFT, math.nan, "<BADREQ>"),
    b"in_svc0 <NOSRV> 408 10000 cR <BADREQ>": parsed("in_svc0", "<NOSRV>", CLIENT_LEFT, 10000.0, "<BADREQ>"),
    # A refusal of the proxy's own is an answer.
    b"in_svc0 <NOSRV> 403 0 PR GET": parsed("in_svc0", "<NOSRV>", 403, 0.0, "GET"),
}
NO_REQUEST = [
    b"",
    b"hello",
    HEAD,
    b"Server svc0/r0 is UP (leaving forced drain) and some more words after it.",
    b"1765 events dropped",
    HEAD + b"svc0 r0 abc 12 -- GET",
    b"77-1 -5 1767571300 in_svc0 svc0 r0 200 12 -- GET",
    b"77-1 99999999999 1767571300 in_svc0 svc0 r0 200 12 -- GET",
    b"77-1 5 99999999999 in_svc0 svc0 r0 200 12 -- GET",
    b"\xff\xfe \x00 200",
    HEAD + b"svc0 r0 200 12 -- G\x00ET",
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
    assert line.latency_ms == pytest.approx(wanted.latency_ms, nan_ok=True)
    assert line._replace(latency_ms=0) == wanted._replace(latency_ms=0)


@pytest.mark.parametrize("text", NO_REQUEST)
def test_passes_over_what_is_no_request(text: bytes) -> None:
    assert parse(text) is None


NUMBERED = {
    # name: (numbers seen between one question and the next, lost according to each answer)
    "all came": ([[0, 1], [2]], [0, 0]),
    "none came": ([[], []], [0, 0]),
    "the first never came": ([[3], [4], []], [0, 3, 0]),
    "some never came": ([[0, 1, 5], [6], [7]], [0, 3, 0]),
    "one came late": ([[0, 2], [1, 3], []], [0, 0, 0]),
    "two threads took the same number": ([[0, 0], [2], [3]], [0, 0, 0]),
    "one late, another never": ([[0, 3], [1], []], [0, 1, 0]),
    "the counter begins again": ([[0, 2**31 - 1], [2**32 - 2], [0], [1]], [0, 2**31 - 2, 2**31 - 2, 1]),
}


@pytest.mark.parametrize("story", NUMBERED)
def test_knows_how_many_lines_never_came(story: str) -> None:
    numbers, told = Numbers(), []
    seen, wanted = NUMBERED[story]
    for numbered in seen:
        for number in numbered:
            numbers.see(parsed("svc0", "r0", 200, 1.0, "GET", number=number))
        told.append(numbers.lost()["in_svc0"])
    assert told == wanted


def test_numbers_each_process_and_goes_on_where_another_recorder_stopped() -> None:
    numbers = Numbers()
    for number in (0, 1, 4):
        numbers.see(parsed("svc0", "r0", 200, 1.0, "GET", number=number, process="77-1"))
    successor = Numbers(numbers.plain())
    # Two of the old process were missing and not told yet, one more is; the new process began at 0.
    successor.see(parsed("svc0", "r0", 200, 1.0, "GET", number=6, process="77-1"))
    successor.see(parsed("svc1", "r0", 200, 1.0, "GET", number=0, process="78-1"))
    assert successor.lost() == {}
    assert successor.lost() == {"in_svc0": 3}


def test_remembers_the_numbers_of_a_limited_number_of_processes() -> None:
    numbers = Numbers()
    for process in range(2 * proxylog.MOST_NUMBERED):
        numbers.see(parsed("svc0", "r0", 200, 1.0, "GET", number=3, process=f"{process}-1"))
    assert len(numbers.plain()) == proxylog.MOST_NUMBERED


def line(server: str = "r0", *, second: int = 1, number: int = 0, latency_ms: float = 1.0) -> Line:
    return Line("77-1", number, second, "in_svc0", "svc0", server, 200, latency_ms, "GET")


def test_buffer_keeps_the_newest_and_counts_what_it_drops_as_lost() -> None:
    buffer = Buffer(limit=5)
    for number in range(8):
        buffer.add([line(second=number // 2, number=number)])
    taken = buffer.take()
    assert taken.lost == {"svc0": 4}
    assert [key[0] for key in taken.folds] == [2, 3]
    assert buffer.take() == Taken(OrderedDict(), Counter(), {"77-1 in_svc0": 8})


def test_buffer_puts_back_in_front_and_in_order() -> None:
    buffer = Buffer(limit=5)
    buffer.add([line(second=1, number=0, latency_ms=1), line(second=2, number=1, latency_ms=2)])
    taken = buffer.take()
    buffer.add([line(second=2, number=2, latency_ms=3), line(second=3, number=3, latency_ms=4)])
    buffer.put_back(taken)
    assert [(key[0], fold.latencies_ms) for key, fold in buffer.take().folds.items()] == [
        (1, [1]),
        (2, [2, 3]),
        (3, [4]),
    ]


def test_buffer_keeps_its_limit_and_its_losses_when_something_is_put_back() -> None:
    buffer = Buffer(limit=3)
    buffer.add([line(number=number) for number in (2, 3, 4)])
    assert buffer.take().folds
    taken = buffer.take()
    assert taken.lost == {"in_svc0": 2}
    buffer.add([line(second=1, number=5), line(second=1, number=6)])
    buffer.put_back(replace(taken, folds=OrderedDict(buffer.take().folds)))
    buffer.add([line(second=2, number=7), line(second=2, number=8)])
    last = buffer.take()
    assert list(last.folds) == [(2, "svc0", "r0")]
    assert last.lost == {"in_svc0": 2, "svc0": 2}


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
    elsewhere = line()._replace(frontend="in_elsewhere", backend="elsewhere")
    buffer.add([line(second=7, latency_ms=1), line("<NOSRV>", second=7), line(second=7, latency_ms=2), elsewhere])
    buffer.add([line(second=8, latency_ms=3)])
    found = {(part.release_id, part.second): part.latencies_ms for part in slices(buffer.take(), places, second=9)}
    assert found == {(old.pk, 7): (1, 2), (None, 7): (1,), (old.pk, 8): (3,)}
    lost = slices(Taken(OrderedDict(), Counter({"in_svc0": 2, "svc0": 3, "in_elsewhere": 4}), {}), places, second=9)
    assert [(part.service_id, part.release_id, part.second, part.lost) for part in lost] == [
        (service.pk, None, 9, 2),
        (service.pk, None, 9, 3),
    ]


PATIENCE_SECONDS = 60  # for what happens at some time: starting a program takes twenty on a busy machine


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    thread = threading.Thread(target=recorder.run)
    thread.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if not probe.connect_ex(str(recorder.path)):
                break
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield recorder
    finally:
        recorder.stop()
        thread.join(10)
        assert not thread.is_alive()


NUMBERS: defaultdict[Path, Iterator[int]] = defaultdict(itertools.count)


def send(path: Path, *texts: bytes) -> None:
    """What HAProxy would send: one connection, and a number on each line."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sender:
        sender.settimeout(5)
        sender.connect(str(path))
        now = int(time.time())
        sender.sendall(b"".join(b"1-1 %d %d in_svc0 %s\n" % (next(NUMBERS[path]), now, text) for text in texts))


def wait_for_requests(count: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (seen := sum(len(row.statuses) for row in TrafficSlice.objects.all())) != count:
        assert time.monotonic() < deadline, f"{seen} of {count}"
        time.sleep(0.05)


@pytest.mark.django_db(transaction=True)
def test_records_until_stopped_and_replaces_a_stale_socket(tmp_path: Path) -> None:
    service = Service.objects.create(name="tiny", repository="/nowhere", manifest=manifest(), slot=0)
    old = Release.objects.create(service=service, commit="a" * 40, server="r0")
    path = tmp_path / "log.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(path))
    with recording(Recorder(path)):
        assert path.stat().st_mode & 0o077 == 0
        send(path, *[b"svc0 r0 200 5 -- GET"] * 300, b"svc0 <NOSRV> 503 0 SC POST")
    assert not path.exists()
    assert sum(len(row.statuses) for row in TrafficSlice.objects.filter(release=old)) == 300
    lost = TrafficSlice.objects.get(release=None, lost=0)
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
        send(recorder.path, b"svc0 r0 200 5 -- GET")
        wait_for_requests(1)
        away.set()
        send(recorder.path, *[b"svc0 r0 200 6 -- GET"] * 10)
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
    read = Connection.read

    def read_slowly(*arguments: object) -> bool:
        time.sleep(0.2)
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Connection, "read", read_slowly)
    with recording(Recorder(tmp_path / "log.sock")) as recorder:
        send(recorder.path, *[b"svc0 r0 200 5 -- GET"] * 8)
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
            send(recorder.path, *[b"svc0 r0 200 5 -- GET"] * 10)
            wait_for_requests(10 * (round_ + 1))
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND datname = current_database() AND usename = current_user"
                )
        send(recorder.path, b"svc0 r0 200 5 -- GET")
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
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not path.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        send(path, *[b"svc0 r0 200 5 -- GET"] * 50)
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
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not deployer.ready(release).ok:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        deployer.apply(service)
        with Client(deployer.base_url(service), threads=2) as reading:
            with Client(deployer.base_url(service), threads=1, posting=True) as posting:
                time.sleep(0.7)
        sent = reading.answers.total() + posting.answers.total()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while recorder.buffer.received < sent and time.monotonic() < deadline:
            time.sleep(0.05)
        wait_for_requests(sent)
        methods = [method for row in TrafficSlice.objects.filter(release=release) for method in row.methods]
        assert methods.count("POST") == posting.answers.total()
        assert not TrafficSlice.objects.exclude(lost=0).exists()


def burst(port: int, requests: int) -> None:
    """So many requests on a few connections, as fast as it goes. There is no server behind the proxy: 503."""

    def ask(count: int) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as asking:
            for _ in range(count):
                asking.request("GET", "/")
                assert asking.getresponse().read()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, [requests // 4] * 4))


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While it is set the recorder reads nothing, as if the machine did not let it run."""
    sleeping, awake, read = threading.Event(), threading.Event(), Connection.read

    def read_when_awake(connected: Connection, buffer: Buffer) -> bool:
        while sleeping.is_set():
            awake.wait(0.01)
        return read(connected, buffer)

    monkeypatch.setattr(Connection, "read", read_when_awake)
    yield sleeping
    sleeping.clear()


def told(service: Service) -> traffic.Totals:
    now = timezone.now()
    return traffic.totals(service, since=now - dt.timedelta(minutes=5), until=now + dt.timedelta(minutes=5))


def wait_until_accounted(service: Service, port: int, sent: int) -> traffic.Totals:
    """Until every request is recorded, or known to be lost: that shows in the number of a later line."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (seen := told(service)).requests + seen.lost != sent:
        assert seen.requests + seen.lost < sent, "nothing is told twice"
        assert time.monotonic() < deadline, (seen, sent)
        burst(port, 4)
        sent += 4
        time.sleep(0.2)
    return seen


@pytest.fixture
def tiny(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(proxylog, "FLUSH_SECONDS", 0.05)
    return Service.objects.create(name="tiny", repository="/nowhere", manifest=manifest(), slot=0)


def test_loses_nothing_of_a_burst_while_it_does_not_run(tiny: Service, asleep: threading.Event) -> None:
    with proxy_stack.running() as stack, recording(Recorder(stack.home.proxylog_socket)):
        asleep.set()
        burst(stack.ports[0], 2000)
        asleep.clear()
        wait_for_requests(2000)
    assert told(tiny) == traffic.Totals(requests=2000, failed=2000, unrouted=2000, lost=0)


def test_knows_what_it_lost_when_the_proxy_can_keep_no_more(
    tiny: Service, asleep: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(haproxy, "RING_BYTES", 16384)
    with proxy_stack.running() as stack, recording(Recorder(stack.home.proxylog_socket)):
        asleep.set()
        burst(stack.ports[0], 3000)
        asleep.clear()
        assert wait_until_accounted(tiny, stack.ports[0], 3000).lost > 0


def test_goes_on_where_another_recorder_stopped(tiny: Service) -> None:
    with proxy_stack.running() as stack:
        burst(stack.ports[0], 200)
        with recording(Recorder(stack.home.proxylog_socket)):
            wait_for_requests(200)
        burst(stack.ports[0], 200)
        with recording(Recorder(stack.home.proxylog_socket)):
            # HAProxy hands over some lines before it knows that the reader is gone.
            assert wait_until_accounted(tiny, stack.ports[0], 400).lost < 200


def test_sends_away_who_is_not_haproxy(tmp_path: Path) -> None:
    with contextlib.closing(proxylog.bind(tmp_path / "log.sock")) as listener:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
            stranger.connect(str(tmp_path / "log.sock"))
            connected = Connection.accepted(listener)
            assert connected is not None
            buffer = Buffer()
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n\xff\x00" + HEAD + b"svc0 r0 200 1 -- GET\n")
            assert connected.read(buffer)
            stranger.sendall(b"x" * (proxylog.LONGEST_LINE + 1))
            assert not connected.read(buffer)
            assert buffer.received == 0
            connected.finish(buffer)
