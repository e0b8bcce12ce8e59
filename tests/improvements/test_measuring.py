"""What a change was worth, from stored samples."""

from __future__ import annotations

from datetime import timedelta

import pytest

from improvements.measuring import benefit
from improvements.models import Improvement, Rollout
from tests.improvements.factories import ImprovementFactory, ReleaseFactory
from tests.monitoring.factories import INTERVAL, T0, samples

pytestmark = pytest.mark.django_db
OLD, NEW = "a" * 12, "b" * 12
FULL = T0 - 10 * INTERVAL


@pytest.fixture
def rollout() -> Rollout:
    improvement = ImprovementFactory()
    current, candidate = (
        ReleaseFactory(service=improvement.service, commit=short.ljust(40, "0")) for short in (OLD, NEW)
    )
    return Rollout.objects.create(
        service=improvement.service,
        improvement=improvement,
        current=current,
        candidate=candidate,
        started_at=FULL - timedelta(minutes=5),
        full_since=FULL,
    )


def method(improvement: Improvement, name: str, release: str, *, rate: float, p95_ms: float) -> None:
    until = FULL if release == OLD else T0
    labels = {"endpoint": "player-list", "method": name, "release": release}
    samples(improvement.service, "requests_per_second", [rate] * 5, until=until, **labels)
    samples(improvement.service, "latency_p95_ms", [p95_ms] * 5, until=until, **labels)


def test_the_busiest_method_tells_the_endpoint_whatever_the_others_do(rollout: Rollout) -> None:
    improvement = rollout.improvement
    method(improvement, "GET", OLD, rate=10.0, p95_ms=400.0)
    method(improvement, "GET", NEW, rate=10.0, p95_ms=100.0)
    for name in ("HEAD", "POST"):
        method(improvement, name, OLD, rate=0.1, p95_ms=5.0)
        method(improvement, name, NEW, rate=0.1, p95_ms=900.0)
    told = benefit(improvement, rollout, now=T0).content
    assert (told["before"]["p95_ms"], told["after"]["p95_ms"]) == (400.0, 100.0)
    assert told["change"]["p95_ms"] == -0.75
    assert told["interval"] == {}  # five samples on a side are too few


def test_both_sides_are_told_by_the_same_method(rollout: Rollout) -> None:
    improvement = rollout.improvement
    method(improvement, "GET", OLD, rate=10.0, p95_ms=400.0)
    method(improvement, "POST", OLD, rate=1.0, p95_ms=50.0)
    method(improvement, "GET", NEW, rate=2.0, p95_ms=100.0)
    method(improvement, "POST", NEW, rate=3.0, p95_ms=60.0)
    told = benefit(improvement, rollout, now=T0).content
    assert (told["before"]["p95_ms"], told["after"]["p95_ms"]) == (400.0, 100.0)


def test_queries_per_request_are_those_of_each_release(rollout: Rollout) -> None:
    service = rollout.service
    samples(service, "queries_per_request", [40.0] * 3, until=FULL, release=OLD)
    samples(service, "queries_per_request", [4.0] * 3, until=T0, release=NEW)
    samples(service, "queries_per_request", [22.0] * 3, until=T0)
    found = benefit(rollout.improvement, rollout, now=T0)
    assert (found.content["before"]["queries_per_request"], found.content["after"]["queries_per_request"]) == (40, 4)
    assert found.summary == "player-list: queries per request 40 → 4 (-90%)."


def test_says_between_what_the_change_surely_lies(rollout: Rollout) -> None:
    service = rollout.service
    samples(service, "queries_per_request", [38.0, 40.0, 40.0, 40.0, 40.0, 40.0, 42.0], until=FULL, release=OLD)
    samples(service, "queries_per_request", [4.0] * 6 + [5.0], until=T0, release=NEW)
    found = benefit(rollout.improvement, rollout, now=T0).content
    assert found["interval"] == {"queries_per_request": [round(4 / 42 - 1, 4), round(5 / 38 - 1, 4)]}


def test_a_gap_stays_a_gap(rollout: Rollout) -> None:
    method(rollout.improvement, "GET", OLD, rate=1.0, p95_ms=400.0)
    found = benefit(rollout.improvement, rollout, now=T0)
    assert (found.content["after"]["p95_ms"], found.content["change"]["p95_ms"]) == (None, None)
    assert "could not be measured" in found.summary
