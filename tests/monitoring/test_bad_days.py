"""Bad days on the real engines: what is there when it is over, and that nothing was counted twice."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from django.conf import settings as django_settings
from django.db import DatabaseError, connection, connections

from monitoring import collecting, rounds
from monitoring.manifest import parse
from monitoring.models import Round, Sample, Service, Target
from monitoring.scraping import MemorySource
from tests.monitoring.factories import (
    INTERVAL,
    MANIFEST,
    T0,
    ServiceFactory,
    TargetFactory,
    approve_loopback,
    exposition,
)


def target() -> Target:
    return TargetFactory(service__name="realm", service__is_self=True)


def answers(watched: Target, requests: int) -> MemorySource:
    return MemorySource({watched.url: exposition(requests=requests)})


def rates(service: Service) -> list[tuple[datetime, float]]:
    found = Sample.objects.filter(
        series__service=service, series__signal="requests_per_second", series__labels={"endpoint": "*", "method": "*"}
    )
    return list(found.order_by("at").values_list("at", "value"))


@pytest.mark.django_db
def test_valkey_is_emptied_and_the_next_round_goes_on() -> None:
    """Messages are hints: what a round needs is in PostgreSQL."""
    watched = target()
    rounds.run(T0, source=answers(watched, 0))
    queue = redis.Redis.from_url(django_settings.REDIS_URL)
    queue.flushdb()
    queue.close()
    rounds.run(T0 + INTERVAL, source=answers(watched, 60))
    rounds.run(T0 + 2 * INTERVAL, source=answers(watched, 180))
    assert [value for _, value in rates(watched.service)] == [1.0, 2.0]


@pytest.mark.django_db(transaction=True)
def test_beat_runs_twice_and_each_round_is_done_once() -> None:
    watched = target()
    rounds.run(T0, source=answers(watched, 0))
    done: list[object] = []
    ready = threading.Barrier(4)

    def another() -> None:
        ready.wait()
        try:
            done.append(rounds.run(T0 + INTERVAL + timedelta(seconds=1), source=answers(watched, 60)))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=another) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    assert len([one for one in done if one is not None]) == 1
    assert len(rates(watched.service)) == 1
    assert Round.objects.filter(job="collect").count() == 2


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("jumps", "expected"),
    [
        # The clock goes back into rounds that are done: what they stored stays, and the rate after is of its interval.
        ([(0, 0), (1, 60), (0, 120), (1, 180), (2, 300)], {1: 1.0, 2: 2.0}),
        # An hour ahead: too far to be called a rate; the gap stays a gap and the round after is right again.
        ([(0, 0), (1, 60), (61, 120), (62, 180)], {1: 1.0, 62: 1.0}),
        # Far ahead and back again: what was measured ahead is no earlier measurement.
        ([(0, 0), (1, 60), (600, 120), (2, 180), (3, 240)], {1: 1.0, 3: 1.0}),
    ],
)
def test_the_clock_jumps_and_no_number_is_made_up(jumps: list[tuple[int, int]], expected: dict[int, float]) -> None:
    watched = target()
    for minute, requests in jumps:
        rounds.run(T0 + minute * INTERVAL, source=answers(watched, requests))
    assert {round((at - T0) / INTERVAL): value for at, value in rates(watched.service)} == expected


class CutOff(MemorySource):
    """Ends every connection to the database while targets are asked, as a restart of PostgreSQL does."""

    def read(self, url: str, *, at: float, **more: Any) -> Any:
        with connections["default"].copy().temporary_connection() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        return super().read(url, at=at, **more)


@pytest.mark.django_db(transaction=True)
def test_postgresql_cuts_all_connections_in_a_round_and_the_next_one_covers_the_gap() -> None:
    watched = target()
    rounds.run(T0, source=answers(watched, 0))
    rounds.run(T0 + INTERVAL, source=answers(watched, 60))
    with pytest.raises(DatabaseError):
        rounds.run(T0 + 2 * INTERVAL, source=CutOff({watched.url: exposition(requests=120)}))
    connection.close()  # Celery's worker does this after each task
    assert rounds.run(T0 + 2 * INTERVAL, source=answers(watched, 120)) is None, "that round is a gap"
    rounds.run(T0 + 3 * INTERVAL, source=answers(watched, 180))
    assert [(round((at - T0) / INTERVAL), value) for at, value in rates(watched.service)] == [(1, 1.0), (3, 1.0)]


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
Say = Callable[[socket.socket, threading.Event], object]


def trickle(to: socket.socket, over: threading.Event) -> None:
    to.sendall(HEAD)
    while not over.wait(0.02):
        to.sendall(b"#")


def endless(to: socket.socket, over: threading.Event) -> None:
    to.sendall(HEAD)
    while not over.is_set():
        to.sendall(b"# " + b"x" * 65536 + b"\n")


@contextlib.contextmanager
def answering(say: Say) -> Iterator[str]:
    """A server on loopback that says what it likes to whoever connects; its address."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connected, _ = listener.accept()
                with connected:
                    connected.recv(65536)
                    say(connected, over)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"
        finally:
            over.set()
            thread.join(5)


@pytest.mark.django_db(transaction=True)
def test_targets_misbehave_in_every_way_and_the_good_one_beside_them_is_stored() -> None:
    bad: dict[str, Say] = {
        "trickles": trickle,
        "is silent": lambda to, over: over.wait(10),
        "sends an endless body": endless,
        "sends garbage": lambda to, over: to.sendall(bytes(range(256)) * 8),
        "sends garbage as metrics": lambda to, over: to.sendall(HEAD + bytes(range(1, 256)) * 8),
        "hangs up": lambda to, over: None,
    }
    quick = parse(MANIFEST + "[metrics]\ntimeout_seconds = 0.5\n").model_dump(mode="json")
    approve_loopback()
    with contextlib.ExitStack() as stack:
        for name, say in bad.items():
            url = stack.enter_context(answering(say))
            TargetFactory(service=ServiceFactory(name=name.replace(" ", "-"), manifest=quick), url=url)
        good = TargetFactory(
            service__name="realm",
            url=stack.enter_context(answering(lambda to, over: to.sendall(HEAD + exposition(requests=5).encode()))),
        )
        done = collecting.collect(T0, spread_seconds=0.0)
    assert done is not None
    assert set(Target.objects.filter(pk__in=done.failed)) == set(Target.objects.exclude(pk=good.pk))
    assert Sample.objects.get(series__service=good.service, series__signal="up").value == 1.0
    assert set(
        Sample.objects.filter(series__signal="up").exclude(series__service=good.service).values_list("value")
    ) == {(0.0,)}
    assert all(Target.objects.filter(pk__in=done.failed).values_list("last_error", flat=True))
