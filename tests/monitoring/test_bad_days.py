"""Bad days on the real engines: what is there when it is over, and that nothing was counted twice."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from django.conf import settings as django_settings
from django.db import DatabaseError, connection, connections

from monitoring import rounds
from monitoring.models import Round, Sample, Service, Target
from monitoring.scraping import MemorySource
from tests.monitoring.factories import INTERVAL, T0, TargetFactory, exposition


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
