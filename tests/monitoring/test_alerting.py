"""Alerts over rounds of real rows."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import numpy as np
import pytest
from django.db import IntegrityError, connections

from approvals.models import AuditEntry
from monitoring import alerting, drilling, heartbeats, storing
from monitoring.alerting import KEEP_FIRED, MOVES, ensure_rules, evaluate, forget_old, move_to, row_of
from monitoring.alerts import DEFAULT_RULES, FLAP_CALM_INTERVALS, FLAP_TIMES, SILENT_INTERVALS, Kind
from monitoring.baselines import Profile, Quantiles
from monitoring.derive import Reading
from monitoring.models import (
    Alert,
    AlertRule,
    AlertState,
    Baseline,
    BaselineSeries,
    Heartbeat,
    Round,
    Service,
    Target,
)
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
    assert alert.message == "Too many requests fail: share of failed requests is 40.0%, the limit is above 5.0%."
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


# --- The kinds of rules over rows --------------------------------------------------------------------------------


def only(name: str) -> AlertRule:
    """All rules off but one."""
    AlertRule.objects.exclude(name=name).update(enabled=False)
    return AlertRule.objects.get(name=name)


def history(service: Service, samples: drilling.Samples, signals: tuple[str, ...], *, until: datetime) -> None:
    """The samples as rows, the last of them at `until`, many rounds in one statement."""
    from monitoring import partitions
    from monitoring.models import Sample, Series

    for signal in signals:
        labels = {} if signal in ("up", "disk_used_percent", "memory_bytes") else dict(WHOLE)
        series, _ = Series.objects.get_or_create(service=service, signal=signal, labels=labels)
        values = samples.signals[signal]
        rows = [
            Sample(series=series, at=until - (len(values) - 1 - number) * INTERVAL, value=value)
            for number, value in enumerate(values)
            if np.isfinite(value)
        ]
        for day in {partitions.day_of(row.at) for row in rows}:
            partitions.ensure(day)
        Sample.objects.bulk_create(rows, batch_size=5000)


def test_rows_and_plain_rules_say_the_same() -> None:
    for rule in DEFAULT_RULES:
        assert AlertRule.objects.get(name=rule.name).plain == rule
        row_of(rule, ServiceFactory()).full_clean()


@pytest.mark.parametrize(
    ("kind", "fields", "missing"),
    [
        (Kind.BURN_RATE, {}, "windows"),
        (Kind.FORECAST, {}, "horizon_seconds"),
        (Kind.BURN_RATE, {"windows": [[1, 5, 9]]}, "windows"),
    ],
)
def test_a_rule_that_could_not_work_is_refused(kind: Kind, fields: dict[str, object], missing: str) -> None:
    from django.core.exceptions import ValidationError

    with pytest.raises(ValidationError) as refused:
        AlertRule(name="x", summary="…", signal="error_ratio", kind=kind.value, **fields).full_clean()
    assert missing in refused.value.message_dict


def test_waits_for_calm_between_the_thresholds() -> None:
    AlertRule.objects.filter(name="error-ratio").update(clear_threshold=0.02, clear_intervals=2)
    only("error-ratio")
    service = ServiceFactory()
    alert = play(service, "error_ratio", 0.5, 0.5, 0.03, 0.03, 0.01)
    assert alert is not None
    assert (alert.state, alert.calm_intervals) == ("firing", 1)
    alert = play(service, "error_ratio", 0.01, start=T0 + 5 * INTERVAL)
    assert alert is not None
    assert (alert.state, alert.resolved_at) == ("resolved", T0 + 5 * INTERVAL)


def test_an_error_budget_that_burns_fires_with_its_numbers() -> None:
    only("error-budget-fast")
    service = ServiceFactory()
    moved = play(service, "error_ratio", *[0.0] * 10, *[0.04] * 6)
    assert moved is not None
    assert moved.state == "firing"
    assert "times the pace that the objective of 99.9% allows" in moved.message
    # The service's own objective decides.
    lax = ServiceFactory()
    lax.manifest = {**lax.manifest, "slo": {"availability": 0.95}}
    lax.save()
    assert play(lax, "error_ratio", *[0.0] * 10, *[0.04] * 6) is None


def test_a_deviation_is_found_as_soon_as_in_the_drill() -> None:
    """The same simulated incident through rows and through plain arithmetic fires in the same round."""
    rule = only("latency-deviates")
    rng = np.random.default_rng(4)
    profile = drilling.Profile(20.0, 0.04, 0.3, 0.2)
    first = 3 * 1440 + 700
    past = drilling.simulate(profile, rng, first=0, rounds=first)
    begins_at = drilling.MONDAY + drilling.INTERVAL * (first + 0.3)
    during = drilling.simulate(profile, rng, first=first, rounds=8, fault=drilling.FAULTS[1], begins_at=begins_at)
    judged = drilling.Judge(past.then(during), [rule.plain])
    expected = next(number for number in range(8) if judged.round(first + number))

    service = ServiceFactory()
    last = datetime.fromtimestamp(float(past.at[-1]), tz=T0.tzinfo)
    signals = ("requests_per_second", "latency_mean_ms", "latency_p50_ms")
    history(service, past, signals, until=last)
    fired = None
    for number in range(expected + 1):
        at = last + (number + 1) * INTERVAL
        rows = [(service, Reading(signal, WHOLE, float(during.signals[signal][number]))) for signal in signals]
        storing.store(rows, at=at)
        if evaluate(at):
            fired = number
    assert fired == expected
    assert "at this time of day is" in Alert.objects.get(service=service, state="firing").message


@pytest.mark.parametrize(("age_days", "by_baseline"), [(1, True), (15, False)])
def test_the_usual_is_that_of_the_baseline_while_it_is_fresh(age_days: int, by_baseline: bool) -> None:
    only("latency-deviates")
    service = ServiceFactory()
    hours = Quantiles(50.0, 90.0, 100.0, 110.0, 130.0, 140.0, 240)
    made = Profile(hours, dict.fromkeys(range(168), hours), dict.fromkeys(range(24), hours), np.array([100.0]))
    until = T0 - timedelta(days=age_days)
    baseline = Baseline.objects.create(
        service=service, version=1, since=until - timedelta(days=28), until=until, reason="All was well."
    )
    for signal in ("latency_mean_ms", "latency_p50_ms"):
        BaselineSeries.of(baseline, signal, dict(WHOLE), made).save()
    for number in range(2):
        at = T0 + number * INTERVAL
        readings = [(signal, 220.0) for signal in ("latency_mean_ms", "latency_p50_ms")]
        rows = [Reading(signal, WHOLE, value) for signal, value in [("requests_per_second", 10.0), *readings]]
        storing.store([(service, row) for row in rows], at=at)
        evaluate(at)
    fired = Alert.objects.firing().first()
    # Without it there is no past to tell what is usual.
    assert (fired is not None) is by_baseline
    if fired:
        assert "the usual at this hour of the week is 100 ms" in fired.message


def test_a_disk_that_fills_is_told_in_hours() -> None:
    only("disk-full-soon")
    service = ServiceFactory()
    alert = play(service, "disk_used_percent", *[70 + 0.1 * minute for minute in range(66)])
    assert alert is not None
    assert alert.state == "firing"
    assert "it reaches 100 % in 3." in alert.message


def test_a_series_that_falls_silent_fires_until_it_is_back() -> None:
    only("traffic-silent")
    service = ServiceFactory()
    rounds = [T0 + number * INTERVAL for number in range(45)]
    for number, at in enumerate(rounds):
        rows = [(service, Reading("up", (), 1.0))]
        if number < 40:
            rows.append((service, Reading("requests_per_second", WHOLE, 0.0)))
        storing.store(rows, at=at)
    fired = [number for number, at in enumerate(rounds) if evaluate(at)]
    assert fired == [42]
    assert Alert.objects.firing().get().message.endswith("it was last measured 5 min ago.")
    # Much later it is still missing.
    storing.store([(service, Reading("up", (), 1.0))], at=rounds[-1] + timedelta(days=3))
    evaluate(rounds[-1] + timedelta(days=3))
    assert Alert.objects.firing().exists()
    back = rounds[-1] + timedelta(days=3) + INTERVAL
    storing.store([(service, Reading("requests_per_second", WHOLE, 1.0))], at=back)
    evaluate(back)
    assert Alert.objects.get().state == "resolved"


def test_a_service_of_which_nothing_is_measured_any_more_is_absent() -> None:
    only("absent")
    service = ServiceFactory()
    play(service, "up", *[1.0] * 40)
    assert not Alert.objects.exists()
    for number in range(40, 43):
        evaluate(T0 + number * INTERVAL)
    assert [(alert.name, alert.severity) for alert in Alert.objects.firing()] == [("absent", "critical")]


@pytest.mark.parametrize("known", [0, 5], ids=["never", "for five minutes"])
def test_what_was_hardly_there_is_not_missed(known: int) -> None:
    only("absent")
    play(ServiceFactory(), "up", *[1.0] * known)
    for number in range(known, known + 5):
        evaluate(T0 + number * INTERVAL)
    assert not Alert.objects.exists()


def test_switching_a_rule_off_ends_its_alerts_in_the_next_round() -> None:
    service = ServiceFactory()
    play(service, "error_ratio", 0.5, 0.5)
    AlertRule.objects.filter(name="error-ratio").update(enabled=False)
    alert = play(service, "error_ratio", 0.5, start=T0 + 2 * INTERVAL)
    assert alert is not None
    assert (alert.state, alert.resolved_at) == ("resolved", T0 + 2 * INTERVAL)


def test_a_services_own_rule_that_is_off_switches_the_general_one_off() -> None:
    service = ServiceFactory()
    AlertRule.objects.create(service=service, name="error-ratio", summary="…", signal="error_ratio", enabled=False)
    only_general = AlertRule.objects.exclude(name="error-ratio")
    only_general.update(enabled=False)
    assert play(service, "error_ratio", 0.5, 0.5) is None


def test_a_changed_threshold_counts_from_the_next_round() -> None:
    service = ServiceFactory()
    only("error-ratio")
    play(service, "error_ratio", 0.5, 0.5)
    AlertRule.objects.filter(name="error-ratio").update(threshold=0.9)
    alert = play(service, "error_ratio", 0.5, start=T0 + 2 * INTERVAL)
    assert alert is not None
    assert alert.state == "resolved"


def test_judging_the_round_that_opened_an_alert_again_does_not_fire_it() -> None:
    service = ServiceFactory()
    only("error-ratio")
    play(service, "error_ratio", 0.5)
    evaluate(T0)
    assert Alert.objects.get().state == "pending"


def test_what_comes_and_goes_fires_on_until_it_is_calm() -> None:
    service = ServiceFactory()
    only("error-ratio")
    bouts = [0.5, 0.5, 0.0]
    alert = play(service, "error_ratio", *bouts * (FLAP_TIMES + 2))
    assert alert is not None
    assert (alert.state, alert.is_flapping) == ("firing", True)
    assert Alert.objects.count() == FLAP_TIMES
    actions = [entry.action for entry in AuditEntry.objects.filter(action__startswith="alert.").order_by("sequence")]
    assert actions == ["alert.firing", "alert.resolved"] * (FLAP_TIMES - 1) + ["alert.firing", "alert.flapping"]
    later = T0 + 3 * (FLAP_TIMES + 2) * INTERVAL
    alert = play(service, "error_ratio", *[0.0] * FLAP_CALM_INTERVALS, start=later)
    assert alert is not None
    assert alert.state == "resolved"


def test_keeps_what_fired_for_thirteen_months() -> None:
    service = ServiceFactory()

    def ended(name: str, ago: timedelta, *, fired: bool) -> None:
        Alert.objects.create(
            service=service, name=name, severity="warning", labels_key="{}", message="…", state="resolved",
            resolved_at=T0 - ago, fired_at=T0 - ago if fired else None,
        )  # fmt: skip

    ended("last year's", timedelta(days=395), fired=True)
    ended("older", KEEP_FIRED + timedelta(days=1), fired=True)
    ended("only pending", timedelta(days=2), fired=False)
    ended("pending today", timedelta(hours=2), fired=False)
    assert forget_old(T0) == 2
    assert set(Alert.objects.values_list("name", flat=True)) == {"last year's", "pending today"}
    assert forget_old(T0 + INTERVAL) == 0


def test_a_round_of_many_services_asks_little(django_assert_max_num_queries) -> None:
    services = ServiceFactory.create_batch(10)
    signals = (
        "requests_per_second",
        "error_ratio",
        "latency_mean_ms",
        "latency_p50_ms",
        "latency_p95_ms",
        "slow_ratio",
    )
    for number in range(3):
        rows = [(service, Reading(signal, WHOLE, 0.01)) for service in services for signal in signals]
        storing.store(rows, at=T0 + number * INTERVAL)
    evaluate(T0)
    # What is read once for a while has been read: no question per service or series is left.
    # Six for all: what serves, the round's samples, its sealed blocks, the rules, the open alerts, the services.
    # Ten more: `up` is not there, and each service is asked since when.
    with django_assert_max_num_queries(6 + 10):
        evaluate(T0 + INTERVAL)


def test_follows_what_another_worker_wrote() -> None:
    service = ServiceFactory()
    only("error-budget-fast")
    follower = alerting.Follower(60.0)
    alerting._follower = None
    for number in range(5):
        storing.store([(service, Reading("error_ratio", WHOLE, 0.1 * number))], at=T0 + number * INTERVAL)
    ask = {"service": service, "signal": "error_ratio", "labels": dict(WHOLE), "seconds": 3600.0}
    for number in (0, 1, 4):  # rounds 2 and 3 were done elsewhere
        at, value = follower.past(**ask, now=(T0 + number * INTERVAL).timestamp(), value=0.1 * number)
    assert value.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert np.diff(at).tolist() == [60.0] * 4


# --- The dead man's switch ---------------------------------------------------------------------------------------


@pytest.fixture
def own() -> Service:
    return ServiceFactory(name="runerogue", is_self=True)


def test_a_program_without_a_sign_of_life_is_told_and_forgiven(own: Service) -> None:
    for program in ("beat", "collector"):
        heartbeats.beat(program, T0)
    assert heartbeats.watch(T0 + timedelta(seconds=50)) == []
    heartbeats.beat("collector", T0 + timedelta(seconds=60))
    (alert,) = heartbeats.watch(T0 + timedelta(seconds=70))
    assert (alert.labels, alert.state, alert.severity) == ({"program": "beat"}, "firing", "critical")
    assert alert.message == (
        "One of RuneRogue's own programs gives no sign of life (beat): heartbeat, "
        "the last one was 70 s ago, the limit is 1 min."
    )
    heartbeats.beat("beat", T0 + timedelta(seconds=80))
    (alert,) = heartbeats.watch(T0 + timedelta(seconds=85))
    assert alert.state == "resolved"


def test_the_collectors_rounds_are_watched_too(own: Service) -> None:
    Round.objects.create(job="collect", period=1, started_at=T0)
    assert heartbeats.watch(T0 + 2 * INTERVAL) == []
    (alert,) = heartbeats.watch(T0 + 4 * INTERVAL)
    assert alert.labels == {"program": heartbeats.ROUNDS}


def test_a_program_that_takes_leave_is_not_missed(own: Service) -> None:
    heartbeats.beat("worker", T0)
    assert len(heartbeats.watch(T0 + 5 * INTERVAL)) == 1
    heartbeats.leave("worker")
    assert [alert.state for alert in heartbeats.watch(T0 + 6 * INTERVAL)] == ["resolved"]


def test_a_program_that_is_gone_for_a_day_is_forgotten(own: Service) -> None:
    heartbeats.beat("worker", T0)
    heartbeats.watch(T0 + INTERVAL * 5)
    heartbeats.watch(T0 + timedelta(days=2))
    assert not Heartbeat.objects.exists()
    assert Alert.objects.get().state == "resolved"


def test_watching_is_shared_and_waits_after_a_start(own: Service) -> None:
    heartbeats.beat("beat", T0)
    late = T0 + 5 * INTERVAL
    assert heartbeats.watch_if_due(late, running_seconds=10) == []
    assert len(heartbeats.watch_if_due(late, running_seconds=300)) == 1
    assert heartbeats.watch_if_due(late, running_seconds=300) == []


def test_the_rounds_leave_the_programs_alerts_alone(own: Service) -> None:
    heartbeats.beat("beat", T0)
    heartbeats.watch(T0 + 5 * INTERVAL)
    evaluate(T0 + 20 * INTERVAL)
    assert Alert.objects.firing().count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_thread_gives_signs_and_takes_leave() -> None:
    heartbeats.start("collector")
    try:
        for _ in range(1000):
            if Heartbeat.objects.filter(program="collector").exists():
                break
            threading.Event().wait(0.01)
        assert Heartbeat.objects.filter(program="collector").exists()
    finally:
        heartbeats.stop()
    assert not Heartbeat.objects.exists()
