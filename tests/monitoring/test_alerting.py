"""Alerts over rounds of real rows."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from django.db import IntegrityError, connections

from approvals.models import AuditEntry
from monitoring import storing
from monitoring.alerting import MOVES, ensure_rules, evaluate, move_to
from monitoring.alerts import DEFAULT_RULES, SILENT_INTERVALS
from monitoring.derive import Reading
from monitoring.models import Alert, AlertRule, AlertState, Service, Target
from tests.monitoring.factories import INTERVAL, T0, ServiceFactory, TargetFactory, samples

pytestmark = pytest.mark.django_db
WHOLE = (("endpoint", "*"), ("method", "*"))


@pytest.fixture(autouse=True)
def _rules(db: None) -> None:
    ensure_rules()


def play(
    service: Service, signal: str, *values: float | None, per_second: float = 10.0, start: datetime = T0
) -> Alert | None:
    """One round per value; the alert of the last one. None is a round in which the signal was not measured."""
    labels = () if signal in ("up", "disk_used_percent", "memory_bytes") else WHOLE
    for number, value in enumerate(values):
        rows = [(service, Reading("requests_per_second", WHOLE, per_second))]
        if value is not None:
            rows.append((service, Reading(signal, labels, value)))
        storing.store(rows, at=start + number * INTERVAL)
        evaluate(start + number * INTERVAL)
    return Alert.objects.filter(service=service).order_by("-pk").first()


def test_waits_fires_and_resolves() -> None:
    service = ServiceFactory()
    alert = play(service, "error_ratio", 0.5)
    assert alert is not None
    assert (alert.state, alert.fired_at) == ("pending", None)
    assert not Alert.objects.firing().exists()
    alert = play(service, "error_ratio", 0.4, start=T0 + INTERVAL)
    assert alert is not None
    assert (alert.state, alert.fired_at, alert.intervals, alert.severity) == ("firing", T0 + INTERVAL, 2, "critical")
    assert alert.message == "Too many requests fail: error ratio is 40.0%, the limit is above 5.0%."
    alert = play(service, "error_ratio", 0.0, start=T0 + 2 * INTERVAL)
    assert alert is not None
    assert (alert.state, alert.resolved_at) == ("resolved", T0 + 2 * INTERVAL)
    assert Alert.objects.count() == 1


def test_one_bad_round_never_fires() -> None:
    alert = play(ServiceFactory(), "error_ratio", 0.5, 0.0, 0.5, 0.0)
    assert alert is not None
    assert {a.state for a in Alert.objects.all()} == {"resolved"}
    assert not AuditEntry.objects.filter(action__startswith="alert.").exists()


def test_firing_and_resolving_are_audited() -> None:
    play(ServiceFactory(), "error_ratio", 0.5, 0.5, 0.5, 0.0)
    entries = AuditEntry.objects.filter(action__startswith="alert.").order_by("sequence")
    assert [entry.action for entry in entries] == ["alert.firing", "alert.resolved"]
    assert "50.0%" in entries[0].because


def test_a_round_without_a_value_changes_nothing_until_silence_is_long() -> None:
    service = ServiceFactory()
    alert = play(service, "error_ratio", 0.5, 0.5, *[None] * (SILENT_INTERVALS - 1))
    assert alert is not None
    assert alert.state == "firing"
    alert = play(service, "error_ratio", None, start=T0 + (SILENT_INTERVALS + 1) * INTERVAL)
    assert alert is not None
    assert alert.state == "resolved"


def test_few_requests_say_nothing() -> None:
    assert play(ServiceFactory(), "error_ratio", 1.0, 1.0, 1.0, per_second=1 / 60) is None


@pytest.mark.parametrize(
    ("signal", "value", "rule"),
    [
        ("latency_p95_ms", 2500.0, "latency-slow"),
        ("up", 0.0, "not-measured"),
        ("disk_used_percent", 95.0, "disk-filling"),
    ],
)
def test_default_rules(signal: str, value: float, rule: str) -> None:
    play(ServiceFactory(), signal, value, value)
    assert [alert.name for alert in Alert.objects.firing()] == [rule]


def test_a_release_that_serves_nobody_raises_no_alarm() -> None:
    live = TargetFactory(release="live")
    tried = TargetFactory(service=live.service, release="tried", serving=False)

    def rounds_without_answers(start: int) -> list[Alert]:
        for number in range(start, start + 2):
            rows = [(live.service, Reading("up", (("release", name),), 0.0)) for name in ("live", "tried")]
            storing.store(rows, at=T0 + number * INTERVAL)
            evaluate(T0 + number * INTERVAL)
        return list(Alert.objects.firing().order_by("pk"))

    assert [alert.labels for alert in rounds_without_answers(0)] == [{"release": "live"}]
    Target.objects.filter(pk=tried.pk).update(serving=True)
    assert [alert.labels["release"] for alert in rounds_without_answers(2)] == ["live", "tried"]


def test_unusual_is_a_multiple_of_the_last_day() -> None:
    service = ServiceFactory()
    samples(service, "latency_p95_ms", [20.0] * 60, until=T0, endpoint="*", method="*")
    alert = play(service, "latency_p95_ms", 150.0, 150.0)
    assert alert is not None
    assert (alert.name, alert.state) == ("latency-unusual", "firing")
    assert "7.5 times the usual 20 ms, the limit is 5 times" in alert.message


def test_unusual_says_nothing_without_a_past() -> None:
    assert play(ServiceFactory(), "latency_p95_ms", 150.0, 150.0) is None


def test_evaluating_a_round_twice_counts_it_once() -> None:
    service = ServiceFactory()
    play(service, "error_ratio", 0.5)
    storing.store([(service, Reading("error_ratio", WHOLE, 0.5))], at=T0 + INTERVAL)
    AlertRule.objects.filter(name="error-ratio").update(for_intervals=5)
    evaluate(T0 + INTERVAL)
    evaluate(T0 + INTERVAL)
    assert Alert.objects.get().intervals == 2


def test_a_service_has_its_own_rule_in_place_of_the_general_one() -> None:
    strict, other = ServiceFactory(), ServiceFactory()
    AlertRule.objects.create(
        service=strict, name="error-ratio", summary="Strict", signal="error_ratio", labels=dict(WHOLE), threshold=0.01
    )
    play(strict, "error_ratio", 0.02, 0.02)
    play(other, "error_ratio", 0.02, 0.02, start=T0 + 5 * INTERVAL)
    assert [alert.service for alert in Alert.objects.all()] == [strict]


def test_alerts_of_an_archived_service_resolve() -> None:
    service = ServiceFactory()
    play(service, "error_ratio", 0.5, 0.5)
    Service.objects.filter(pk=service.pk).update(archived_at=T0)
    evaluate(T0 + (SILENT_INTERVALS + 2) * INTERVAL)
    assert Alert.objects.get().state == "resolved"


def test_a_disabled_rule_is_silent() -> None:
    AlertRule.objects.update(enabled=False)
    assert play(ServiceFactory(), "error_ratio", 0.5, 0.5) is None


def test_default_rules_are_made_once_and_left_as_people_set_them() -> None:
    AlertRule.objects.filter(name="error-ratio").update(threshold=0.2)
    ensure_rules()
    assert AlertRule.objects.count() == len(DEFAULT_RULES)
    assert AlertRule.objects.get(name="error-ratio").threshold == 0.2


@pytest.mark.parametrize("origin", AlertState)
@pytest.mark.parametrize("target", AlertState)
def test_every_move_that_is_not_in_the_law_is_refused(origin: AlertState, target: AlertState) -> None:
    alert = Alert.objects.create(
        service=ServiceFactory(), name="x", severity="warning", labels_key="{}", state=origin, message="…"
    )
    if target in MOVES[origin]:
        assert move_to(alert, target, at=T0, because="…")
        assert Alert.objects.get().state == target
    else:
        with pytest.raises(ValueError, match="can't go"):
            move_to(alert, target, at=T0, because="…")


def test_the_database_allows_one_open_alert_per_rule_and_series() -> None:
    service = ServiceFactory()
    fields = {"service": service, "name": "x", "severity": "warning", "labels_key": "{}", "message": "…"}
    Alert.objects.create(**fields, state=AlertState.RESOLVED)
    Alert.objects.create(**fields)
    with pytest.raises(IntegrityError):
        Alert.objects.create(**fields, state=AlertState.FIRING)


@pytest.mark.django_db(transaction=True)
def test_of_racing_workers_exactly_one_fires_it() -> None:
    alert = Alert.objects.create(
        service=ServiceFactory(), name="x", severity="warning", labels_key="{}", message="…", seen_at=T0
    )
    start = threading.Barrier(4)

    def race(_: int) -> bool:
        try:
            mine = Alert.objects.get(pk=alert.pk)
            start.wait(10)
            return move_to(mine, AlertState.FIRING, at=T0, because="…")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(race, range(4))) == 1
    assert AuditEntry.objects.filter(action="alert.firing").count() == 1
