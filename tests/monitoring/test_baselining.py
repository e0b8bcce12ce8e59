"""Baselines in the database: set by people and by themselves, never of bad times, asked for what is normal."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext

from approvals.models import AuditEntry
from monitoring import baselines, baselining
from monitoring.baselines import Compared
from monitoring.models import Alert, AlertState, Baseline, BaselineSeries, HealthScore, Service, labels_key
from tests.monitoring.factories import T0, ServiceFactory, samples

pytestmark = pytest.mark.django_db
WHOLE = {"endpoint": "*", "method": "*"}
KEY = labels_key(WHOLE)


def measured(service: Service, values: list[float], *, until: datetime = T0, **labels: str) -> None:
    samples(service, "latency_p95_ms", values, until=until, **(labels or WHOLE))


def healthy(service: Service, hours: float, *, until: datetime = T0, status: str = "healthy") -> None:
    score = {"healthy": 95.0, "degraded": 60.0, "unknown": None}[status]
    HealthScore.objects.bulk_create(
        HealthScore(service=service, at=until - timedelta(minutes=10 * n), score=score, status=status)
        for n in range(int(hours * 6) + 1)
    )


def fired(service: Service, at: datetime, *, resolved: datetime | None) -> None:
    Alert.objects.create(
        service=service,
        name="slow",
        severity="warning",
        labels_key="{}",
        state=AlertState.RESOLVED if resolved else AlertState.FIRING,
        fired_at=at,
        resolved_at=resolved,
        message="Slow.",
    )


def make(service: Service, hours: float = 24, **more: object) -> Baseline:
    return baselining.make(service, since=T0 - timedelta(hours=hours), until=T0, reason="Because.", **more)  # type: ignore[arg-type]


# --- Setting -----------------------------------------------------------------------------------------------------


def test_a_person_sets_it_with_a_reason_and_the_log_says_so(bob: User) -> None:
    service = ServiceFactory()
    measured(service, [float(n) for n in range(40)])
    made = make(service, actor=bob)
    (row,) = made.series.all()
    assert (made.version, made.author, row.signal, row.count, row.p50) == (1, "bob", "latency_p95_ms", 40, 19.5)
    entry = AuditEntry.objects.get(action="baseline.set")
    assert (entry.actor, entry.because) == ("bob", "Because.")
    assert make(service).version == 2
    assert make(service).author == "RuneRogue"


def test_too_little_data_are_no_baseline_and_say_what_is_needed() -> None:
    service = ServiceFactory()
    measured(service, [1.0] * 29)
    with pytest.raises(baselining.TooLittleData, match="30 samples between"):
        make(service)
    assert not Baseline.objects.exists()
    assert not AuditEntry.objects.filter(action="baseline.set").exists()


def test_releases_have_no_baseline_and_routes_have_one() -> None:
    service = ServiceFactory()
    for labels in (WHOLE, {"endpoint": "players", "method": "GET"}, {"endpoint": "*", "method": "*", "release": "a"}):
        measured(service, [1.0] * 30, **labels)
    assert {row.labels["endpoint"] for row in make(service).series.all()} == {"*", "players"}
    assert not any("release" in row.labels for row in BaselineSeries.objects.all())


def test_times_in_which_an_alert_fired_are_left_out() -> None:
    service = ServiceFactory()
    measured(service, [10.0] * 100 + [500.0] * 30)
    fired(service, T0 - timedelta(minutes=28), resolved=None)
    assert make(service).series.get().p99 == 10.0


def test_old_versions_keep_their_reason_and_not_their_numbers() -> None:
    service = ServiceFactory()
    measured(service, [1.0] * 30)
    for _ in range(baselining.KEEP_VERSIONS + 2):
        make(service)
    kept = BaselineSeries.objects.values_list("baseline__version", flat=True)
    assert (min(kept), len(kept)) == (3, baselining.KEEP_VERSIONS)
    assert Baseline.objects.count() == baselining.KEEP_VERSIONS + 2


# --- By itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hours", "status", "alert_hours_ago", "made"),
    [
        (7, "healthy", None, 1),
        (5, "healthy", None, 0),
        (7, "degraded", None, 0),
        (7, "unknown", None, 0),
        (7, "healthy", 3, 0),
        (200, "healthy", 190, 1),
    ],
    ids=["six hours", "too soon", "not healthy", "not known", "an alert fired", "an alert fired long ago"],
)
def test_the_first_is_set_once_there_is_enough_and_all_was_well(
    hours: float, status: str, alert_hours_ago: float | None, made: int
) -> None:
    service = ServiceFactory()
    measured(service, [1.0] * 40)
    healthy(service, hours, status=status)
    if alert_hours_ago:
        began = T0 - timedelta(hours=alert_hours_ago)
        fired(service, began, resolved=began + timedelta(minutes=5))
    found = baselining.refresh(T0)
    assert len(found) == made
    assert all(one.reason.startswith("Set by itself") and one.made_by is None for one in found)


def test_the_next_comes_when_the_data_doubled_and_then_every_week() -> None:
    service = ServiceFactory()
    measured(service, [1.0] * 40, until=T0 + timedelta(hours=1))
    healthy(service, 24 * 27, until=T0 + timedelta(days=27))
    steps = [T0 + timedelta(hours=6 * n) for n in range(1, 27 * 4)]
    made = [one for at in steps for one in baselining.refresh(at)]
    assert [(one.until - T0) / timedelta(hours=1) for one in made] == [6, 12, 24, 48, 96, 192, 360, 528]


def test_nothing_is_set_twice_at_once() -> None:
    service = ServiceFactory()
    measured(service, [1.0] * 40)
    healthy(service, 7)
    assert len(baselining.refresh(T0)) == 1
    assert baselining.refresh(T0) == []


def test_archived_services_and_those_without_data_get_none() -> None:
    archived, empty = ServiceFactory(archived_at=T0), ServiceFactory()
    measured(archived, [1.0] * 40)
    for service in (archived, empty):
        healthy(service, 7)
    assert baselining.refresh(T0) == []


# --- Asking ------------------------------------------------------------------------------------------------------


def stored(service: Service, by_hour: bool) -> Baseline:
    """A baseline whose latency is 100 ms plus the hour of the week, or without hours 100 ms."""
    at = T0.timestamp() - np.arange(28 * 24 * 12, 0, -1) * 300.0
    if not by_hour:
        at = at[-100:]
    hours = (at - baselines.MONDAY) % 604_800 // 3600
    made = baselines.profile(at, 100.0 + (hours if by_hour else 0.0 * hours))
    assert made is not None
    newest = Baseline.objects.filter(service=service).count()
    row = Baseline.objects.create(service=service, version=newest + 1, since=T0 - timedelta(days=28), until=T0)
    BaselineSeries.of(row, "latency_p95_ms", WHOLE, made).save()
    return row


def test_expects_what_the_hour_of_the_newest_version_says() -> None:
    service, flat, none = ServiceFactory(), ServiceFactory(), ServiceFactory()
    stored(service, by_hour=False)
    stored(service, by_hour=True)
    stored(flat, by_hour=False)
    # T0 is a Monday, 12:00.
    found = baselining.expected(service, "latency_p95_ms", KEY, T0 + timedelta(days=1, minutes=59))
    assert found is not None
    assert (found.p50, found.spread, found.n, found.by) == (136.0, 0.0, 48, "hour of week")
    overall = baselining.expected(flat, "latency_p95_ms", KEY, T0)
    assert overall is not None
    assert (overall.p50, overall.by) == (100.0, "overall")
    assert baselining.expected(none, "latency_p95_ms", KEY, T0) is None
    assert baselining.expected(service, "latency_p95_ms", "{}", T0) is None
    assert baselining.expected(service, "error_ratio", KEY, T0) is None


def test_what_is_expected_costs_two_queries_for_all_services() -> None:
    services = [ServiceFactory() for _ in range(3)]
    for service in services:
        stored(service, by_hour=True)
    with CaptureQueriesContext(connection) as queries:
        found = baselining.expectations(services, ["latency_p95_ms"], T0)
    assert (len(found), len(queries)) == (3, 2)


def test_the_stored_profile_is_the_one_that_was_made() -> None:
    row = stored(ServiceFactory(), by_hour=True).series.get()
    for hours in range(0, 168, 13):
        at = T0 + timedelta(hours=hours)
        assert baselines.expected(row.profile, at.timestamp()) == baselining.expected(
            row.baseline.service, "latency_p95_ms", KEY, at
        )


def test_now_is_compared_series_by_series() -> None:
    service = ServiceFactory()
    baseline = stored(service, by_hour=True)
    measured(service, [300.0] * 30, until=T0 + timedelta(hours=5))
    (line,) = baselining.lines(baseline, at=T0 + timedelta(hours=5), hours=1)
    assert (line.verdict, line.compared.n_now) == ("worse", 30)
    assert line.expected.by == "hour of week"
    (unknown,) = baselining.lines(baseline, at=T0 + timedelta(hours=9), hours=1)
    assert unknown.verdict == "unknown"


@pytest.mark.parametrize(
    ("signal", "direction", "verdict"),
    [
        ("latency_p95_ms", "higher", "worse"),
        ("latency_p95_ms", "lower", "better"),
        ("apdex", "lower", "worse"),
        ("apdex", "higher", "better"),
        ("requests_per_second", "lower", "different"),
        ("error_ratio", "same", "same"),
        ("error_ratio", "unknown", "unknown"),
    ],
)
def test_a_difference_is_called_what_it_means(signal: str, direction: str, verdict: str) -> None:
    assert baselining.verdict(signal, Compared(direction, "", 10, 100)) == verdict
