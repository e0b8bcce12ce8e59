"""What the proxy saw, as arms for a verdict."""

from __future__ import annotations

import datetime as dt
import math

import numpy as np
import pytest

from improvements import traffic
from improvements.models import Release, TrafficSlice
from improvements.traffic import CLIENT_LEFT, NO_ANSWER, Slice
from monitoring.models import Service
from tests.improvements.proxy_stack import manifest

pytestmark = pytest.mark.django_db

NOON = dt.datetime(2026, 3, 1, 12, 0, 0, tzinfo=dt.UTC)
SECOND = int(NOON.timestamp())


@pytest.fixture
def service() -> Service:
    return Service.objects.create(name="tiny", repository="/nowhere", manifest=manifest(), slot=0)


def release(service: Service, digit: str) -> Release:
    return Release.objects.create(service=service, commit=digit * 40)


def put(service: Service, release: Release | None, at: int, *requests: tuple[float, int]) -> None:
    times, statuses = zip(*requests, strict=True)
    pk = release.pk if release else None
    assert traffic.store([Slice(service.pk, pk, SECOND + at, times, statuses, ("GET",) * len(times))]) == 1


def test_gives_each_release_its_arm(service: Service) -> None:
    old, new = release(service, "a"), release(service, "b")
    put(service, old, 0, (5, 200), (7, 404))
    put(service, old, 1, (6, 500))
    put(service, new, 1, (3, 200), (math.nan, NO_ANSWER), (900, CLIENT_LEFT))
    put(service, None, 1, (0, 503))
    arms = traffic.arms(service, since=NOON, until=NOON + dt.timedelta(seconds=2))
    assert arms.keys() == {old.pk, new.pk}
    assert sorted(arms[old.pk].latencies_ms) == [5, 6, 7]
    assert (arms[old.pk].requests, arms[old.pk].errors) == (3, 1)
    # A client that left is no error, but what it waited for took at least that long.
    assert sorted(arms[new.pk].latencies_ms) == [3, 900]
    assert (arms[new.pk].requests, arms[new.pk].errors) == (3, 1)
    assert arms[new.pk].latencies_ms.dtype == np.float64


def test_looks_only_at_the_window_and_the_service(service: Service) -> None:
    old = release(service, "a")
    other = Service.objects.create(name="other", repository="/nowhere", manifest=manifest(), slot=1)
    for at in range(5):
        put(service, old, at, (at, 200))
    put(other, release(other, "c"), 2, (99, 200))
    arms = traffic.arms(service, since=NOON + dt.timedelta(seconds=1.5), until=NOON + dt.timedelta(seconds=3))
    # To the second: what began in the second that `since` is in counts.
    assert sorted(arms[old.pk].latencies_ms) == [1, 2]
    assert traffic.arms(service, since=NOON + dt.timedelta(hours=1), until=NOON + dt.timedelta(hours=2)) == {}


def test_counts_what_users_saw_fail_also_without_a_release(service: Service) -> None:
    old = release(service, "a")
    put(service, old, 0, (5, 200), (5, 502), (5, CLIENT_LEFT), (5, NO_ANSWER))
    put(service, None, 0, (0, 503), (0, 503))
    totals = traffic.totals(service, since=NOON, until=NOON + dt.timedelta(seconds=1))
    assert totals == traffic.Totals(requests=6, failed=4, unrouted=2)
    assert totals.lost_ratio == 0


def test_tells_what_is_not_known_beside_what_is(service: Service) -> None:
    put(service, None, 0, (0, 503), (0, 503))
    traffic.store([Slice(service.pk, None, SECOND + at, (), (), (), lost) for at, lost in ((0, 3), (1, 3), (2, 9))])
    totals = traffic.totals(service, since=NOON, until=NOON + dt.timedelta(seconds=2))
    assert totals == traffic.Totals(requests=2, failed=2, unrouted=2, lost=6)
    assert totals.lost_ratio == 0.75


@pytest.mark.parametrize(
    ("status", "error"), [(200, False), (404, False), (CLIENT_LEFT, False), (500, True), (503, True), (NO_ANSWER, True)]
)
def test_knows_an_error(status: int, error: bool) -> None:
    assert traffic.is_error(status) is error


def test_forgets_what_is_old(service: Service) -> None:
    old = release(service, "a")
    for at in range(4):
        put(service, old, at, (1, 200))
    assert traffic.prune(older_than=NOON + dt.timedelta(seconds=3)) == 3
    assert TrafficSlice.objects.count() == 1


def test_stores_nothing_when_there_is_nothing() -> None:
    assert traffic.store([]) == 0
