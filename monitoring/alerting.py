"""Alert rows: opened, fired and resolved here and nowhere else, each move with its audit entry."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import IntegrityError, transaction

from approvals import audit
from monitoring import reading
from monitoring.alerts import DEFAULT_RULES, Move, Rule, holds, next_move
from monitoring.models import Alert, AlertRule, AlertState, Comparison, Sample, Service, Target, labels_key

S = AlertState
MOVES: dict[AlertState, frozenset[AlertState]] = {
    S.PENDING: frozenset({S.FIRING, S.RESOLVED}),
    S.FIRING: frozenset({S.RESOLVED}),
    S.RESOLVED: frozenset(),
}
WHOLE_KEY = labels_key({"endpoint": "*", "method": "*"})


@dataclass(frozen=True)
class Measured:
    """One series of one service in one round."""

    signal: str
    labels: dict[str, str]
    key: str
    value: float


def ensure_rules() -> None:
    """Make the default rules that are missing. Those that exist stay as an operator left them."""
    for rule in DEFAULT_RULES:
        AlertRule.objects.get_or_create(
            service=None,
            name=rule.name,
            defaults={
                "summary": rule.summary,
                "signal": rule.signal,
                "labels": dict(rule.labels),
                "comparison": Comparison.BELOW if rule.is_below else Comparison.ABOVE,
                "threshold": rule.threshold,
                "is_relative": rule.is_relative,
                "minimum_requests": rule.minimum_requests,
                "for_intervals": rule.for_intervals,
                "severity": rule.severity,
            },
        )


def serving_releases() -> set[tuple[int, str]]:
    """(service id, release) of what users get answers from."""
    return set(Target.objects.serving().values_list("service_id", "release"))


def is_private(service_id: int, labels: Mapping[str, str], serving: set[tuple[int, str]]) -> bool:
    """Whether a series tells of a release that serves nobody: it is being tried out, or was taken back."""
    return "release" in labels and (service_id, labels["release"]) not in serving


def evaluate(at: datetime) -> list[Alert]:
    """Compare the samples of the round `at` with the rules. Returns the alerts that began or ceased to fire."""
    measured: dict[int, list[Measured]] = defaultdict(list)
    serving = serving_releases()
    for sample in Sample.objects.filter(at=at).select_related("series"):
        series = sample.series
        if is_private(series.service_id, series.labels, serving):
            continue
        measured[series.service_id].append(Measured(series.signal, series.labels, series.labels_key, sample.value))
    rules = list(AlertRule.objects.filter(enabled=True))
    opened: dict[int, dict[tuple[str, str], Alert]] = defaultdict(dict)
    for alert in Alert.objects.open().select_related("service", "rule"):
        opened[alert.service_id][alert.name, alert.labels_key] = alert
    moved = []
    for service in Service.objects.active():
        own = [rule for rule in rules if rule.service_id in (None, service.pk)]
        moved += _evaluate_service(service, own, measured[service.pk], opened.pop(service.pk, {}), at)
    for left in opened.values():
        for alert in left.values():
            moved += _resolve(alert, at, because="The service is no longer watched.")
    return moved


def _evaluate_service(
    service: Service,
    rules: list[AlertRule],
    measured: list[Measured],
    opened: dict[tuple[str, str], Alert],
    at: datetime,
) -> list[Alert]:
    interval = float(settings.METRICS_COLLECTION_INTERVAL)
    rates = [m.value for m in measured if m.signal == "requests_per_second" and m.key == WHOLE_KEY]
    requests = rates[0] * interval if rates else None
    moved: list[Alert] = []
    # A service's own rule takes the place of the general one of that name.
    for row in {row.name: row for row in sorted(rules, key=lambda row: row.service_id is not None)}.values():
        rule = _plain(row)
        wanted_key = labels_key(dict(rule.labels))
        for m in measured:
            if m.signal != rule.signal or (rule.labels and m.key != wanted_key):
                continue
            usual = _usual(service, m, at) if rule.is_relative else None
            held = holds(rule, m.value, usual=usual, requests=requests if rule.minimum_requests else None)
            alert = opened.pop((rule.name, m.key), None)
            moved += _apply(service, row, rule, alert, m, held, usual, at)
    for alert in opened.values():
        moved += _silent(alert, at, because="It is no longer measured, or the rule is gone.")
    return moved


def _apply(
    service: Service,
    row: AlertRule,
    rule: Rule,
    alert: Alert | None,
    m: Measured,
    held: bool | None,
    usual: float | None,
    at: datetime,
) -> list[Alert]:
    if held is None:
        return _silent(alert, at, because="There is too little to judge it by.") if alert else []
    message = describe(rule, m.value, usual=usual, labels=m.labels)
    move = next_move(
        state=alert.state if alert else None,
        held=held,
        intervals=alert.intervals if alert else 0,
        for_intervals=rule.for_intervals,
    )
    if move == Move.NONE:
        return []
    if move == Move.RESOLVE:
        assert alert is not None
        return _resolve(alert, at, because=message)
    if alert is None:
        alert = _open(service, row, m, message, at)
        if alert is None:
            return []
    elif at > alert.seen_at:
        Alert.objects.filter(pk=alert.pk).exclude(state=S.RESOLVED).update(
            intervals=alert.intervals + 1, value=m.value, message=message, seen_at=at
        )
    if move == Move.FIRE and move_to(alert, S.FIRING, at=at, because=message):
        return [alert]
    return []


def _open(service: Service, row: AlertRule, m: Measured, message: str, at: datetime) -> Alert | None:
    """A pending alert; None when another worker opened it just now."""
    try:
        with transaction.atomic():
            return Alert.objects.create(
                service=service,
                rule=row,
                name=row.name,
                severity=row.severity,
                labels=m.labels,
                labels_key=m.key,
                state_since=at,
                opened_at=at,
                seen_at=at,
                value=m.value,
                message=message,
            )
    except IntegrityError:
        return None


def _silent(alert: Alert, at: datetime, *, because: str) -> list[Alert]:
    silent = (at - alert.seen_at).total_seconds() / float(settings.METRICS_COLLECTION_INTERVAL)
    move = next_move(state=alert.state, held=None, intervals=alert.intervals, for_intervals=1, silent_intervals=silent)
    return _resolve(alert, at, because=because) if move == Move.RESOLVE else []


def _resolve(alert: Alert, at: datetime, *, because: str) -> list[Alert]:
    was_firing = alert.state == S.FIRING
    return [alert] if move_to(alert, S.RESOLVED, at=at, because=because) and was_firing else []


def move_to(alert: Alert, target: AlertState, *, at: datetime, because: str) -> bool:
    """The one writer of an alert's state. False when another worker moved it first.

    What never fired leaves no audit entry: a pending alert is only an observation.
    """
    origin = AlertState(alert.state)
    if target not in MOVES[origin]:
        raise ValueError(f"An alert can't go from {origin} to {target}.")
    stamp = {"fired_at": at} if target == S.FIRING else {"resolved_at": at}
    with transaction.atomic():
        won = Alert.objects.filter(pk=alert.pk, state=origin).update(state=target, state_since=at, **stamp)
        if not won:
            return False
        alert.refresh_from_db(
            fields=["state", "state_since", "fired_at", "resolved_at", "value", "message", "intervals"]
        )
        if target == S.FIRING or origin == S.FIRING:
            audit.record(f"alert.{target}", alert, because=because, was=origin, became=target)
    return True


def _plain(row: AlertRule) -> Rule:
    return Rule(
        name=row.name,
        summary=row.summary,
        signal=row.signal,
        labels=tuple(sorted(row.labels.items())),
        is_below=row.comparison == Comparison.BELOW,
        threshold=row.threshold,
        is_relative=row.is_relative,
        minimum_requests=row.minimum_requests,
        for_intervals=row.for_intervals,
        severity=row.severity,
    )


def _usual(service: Service, m: Measured, at: datetime) -> float | None:
    since, until = usual_window(at)
    return reading.usual(service, m.signal, since=since, until=until, labels_key=m.key)


def usual_window(at: datetime) -> tuple[datetime, datetime]:
    """The time that tells what is usual: the last day, but not the last ten intervals: they may be the trouble."""
    return at - timedelta(days=1), at - timedelta(seconds=10 * settings.METRICS_COLLECTION_INTERVAL)


def describe(rule: Rule, value: float, *, usual: float | None, labels: dict[str, str]) -> str:
    """One sentence for a person: what, how much, against what."""
    release = f" (release {labels['release']})" if labels.get("release") else ""
    than = "below" if rule.is_below else "above"
    if rule.is_relative and usual:
        times = value / usual if usual else math.inf
        limit = f"{times:.1f} times the usual {in_words(rule.signal, usual)}, the limit is {rule.threshold:g} times"
    else:
        limit = f"the limit is {than} {in_words(rule.signal, rule.threshold)}"
    return f"{rule.summary}{release}: {rule.signal.replace('_', ' ')} is {in_words(rule.signal, value)}, {limit}."[:500]


def in_words(signal: str, value: float) -> str:
    """A value with its unit."""
    if signal.endswith("_ms"):
        return f"{value:,.0f} ms"
    if signal.endswith("_ratio"):
        return f"{value:.1%}"
    if signal.endswith("_percent"):
        return f"{value:.0f} %"
    if signal.endswith("_bytes"):
        return f"{value / 1024 / 1024:,.0f} MB"
    return f"{value:g}"
