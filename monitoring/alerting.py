"""Alert rows: opened, fired and resolved here and nowhere else, each move with its audit entry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q

from approvals import audit
from monitoring import reading
from monitoring.alerts import (
    DEFAULT_RULES,
    FLAP_WINDOW_SECONDS,
    HISTORY_SECONDS,
    Facts,
    Judgement,
    Kind,
    Move,
    Rule,
    Trail,
    clear_intervals_of,
    flaps,
    in_words,
    judge,
    named,
    next_move,
)
from monitoring.claiming import claim
from monitoring.following import Follower, aligned
from monitoring.models import Alert, AlertRule, AlertState, Comparison, Service, Target, labels_key
from monitoring.reading import RoundValue

S = AlertState
MOVES: dict[AlertState, frozenset[AlertState]] = {
    S.PENDING: frozenset({S.FIRING, S.RESOLVED}),
    S.FIRING: frozenset({S.RESOLVED}),
    S.RESOLVED: frozenset(),
}
WHOLE_KEY = labels_key({"endpoint": "*", "method": "*"})
KEEP_FIRED = timedelta(days=396)  # thirteen months: last year's incident can still be looked at
KEEP_NEVER_FIRED = timedelta(days=1)
MISSED = timedelta(days=1)  # a series that was there so long ago can be missing
REGULAR_SECONDS = 3600.0  # one that was there in half of the intervals of its last hour is missed


@dataclass(frozen=True)
class Measured:
    """What one service told in one round."""

    service: Service
    at: datetime
    values: dict[str, list[RoundValue]]  # signal → its series
    requests: float | None  # of all users in the interval
    follower: Follower

    @property
    def now(self) -> float:
        return self.at.timestamp()


# One per process; it holds nothing that is not in the database.
_follower: Follower | None = None


def _following() -> Follower:
    global _follower
    interval = float(settings.METRICS_COLLECTION_INTERVAL)
    if _follower is None or _follower.interval_seconds != interval:
        _follower = Follower(interval)
    return _follower


def ensure_rules() -> None:
    """Make the default rules that are missing. Those that exist stay as an operator left them."""
    known = set(AlertRule.objects.filter(service=None).values_list("name", flat=True))
    AlertRule.objects.bulk_create(
        [row_of(rule) for rule in DEFAULT_RULES if rule.name not in known], ignore_conflicts=True
    )


def row_of(rule: Rule, service: Service | None = None) -> AlertRule:
    """The row of a plain rule, not saved."""
    fields = asdict(rule)
    comparison = Comparison.BELOW if fields.pop("is_below") else Comparison.ABOVE
    windows = [[window.factor, window.long_seconds, window.short_seconds] for window in rule.windows]
    return AlertRule(
        service=service,
        **{**fields, "labels": dict(rule.labels), "windows": windows, "kind": str(rule.kind)},
        comparison=comparison,
    )


def serving_releases() -> set[tuple[int, str]]:
    """(service id, release) of what users get answers from."""
    return set(Target.objects.serving().values_list("service_id", "release"))


def is_private(service_id: int, labels: Mapping[str, str], serving: set[tuple[int, str]]) -> bool:
    """Whether a series tells of a release that serves nobody: it is being tried out, or was taken back."""
    return "release" in labels and (service_id, labels["release"]) not in serving


def effective_rules(rules: Sequence[AlertRule], service: Service) -> list[AlertRule]:
    """The rules that judge `service`: its own take the place of the general ones of that name, switched off or not."""
    own = [rule for rule in rules if rule.service_id in (None, service.pk)]
    chosen = {rule.name: rule for rule in sorted(own, key=lambda rule: rule.service_id is not None)}
    return [rule for rule in chosen.values() if rule.enabled]


def evaluate(at: datetime) -> list[Alert]:
    """Compare the samples of the round `at` with the rules. Returns the alerts that began or ceased to fire."""
    interval = float(settings.METRICS_COLLECTION_INTERVAL)
    values: dict[int, dict[str, list[RoundValue]]] = defaultdict(lambda: defaultdict(list))
    serving = serving_releases()
    for found in reading.round_values(at):
        if not is_private(found.service_id, found.labels, serving):
            values[found.service_id][found.signal].append(found)
    rules = list(AlertRule.objects.select_related("service"))
    opened: dict[int, dict[tuple[str, str], Alert]] = defaultdict(dict)
    for alert in Alert.objects.open().select_related("service", "rule"):
        opened[alert.service_id][alert.name, alert.labels_key] = alert
    follower = _following()
    moved = []
    for service in Service.objects.active():
        known = values[service.pk]
        rates = [found.value for found in known["requests_per_second"] if found.labels_key == WHOLE_KEY]
        measured = Measured(service, at, known, rates[0] * interval if rates else None, follower)
        moved += _evaluate_service(measured, effective_rules(rules, service), opened.pop(service.pk, {}))
    for left in opened.values():
        for alert in left.values():
            moved += _resolve(alert, at, because="The service is no longer watched.")
    follower.forget_unused(at.timestamp())
    return moved


def _evaluate_service(
    measured: Measured, rules: Sequence[AlertRule], opened: dict[tuple[str, str], Alert]
) -> list[Alert]:
    moved: list[Alert] = []
    service, at = measured.service, measured.at
    plain = {row.name: row.plain for row in rules}
    for row in rules:
        rule = plain[row.name]
        if rule.kind == Kind.HEARTBEAT:  # judged by `monitoring.heartbeats`, also when no round comes
            opened = {key: alert for key, alert in opened.items() if key[0] != rule.name}
            continue
        for labels, facts in FACTS.get(rule.kind, _facts_of_each)(rule, measured, opened):
            alert = opened.pop((rule.name, labels_key(labels)), None)
            moved += apply(service, row, rule, alert, labels, facts.value, judge(rule, facts), at)
    for (name, key), alert in opened.items():
        gone = plain.get(name)
        if gone is None or (gone.labels and key != labels_key(dict(gone.labels))):
            moved += _resolve(alert, at, because="The rule was switched off or changed.")
        else:
            moved += _silent(alert, at, because="It is no longer measured.")
    return moved


# --- What is known, for each kind of rule ------------------------------------------------------------------------

Opened = Mapping[tuple[str, str], Alert]
EachFacts = list[tuple[dict[str, str], Facts]]


def _series(rule: Rule, measured: Measured) -> list[RoundValue]:
    wanted = labels_key(dict(rule.labels))
    return [found for found in measured.values.get(rule.signal, ()) if not rule.labels or found.labels_key == wanted]


def _facts_of_each(rule: Rule, measured: Measured, opened: Opened) -> EachFacts:
    """The facts of every series that the rule is about."""
    follower, service, now = measured.follower, measured.service, measured.now
    return [
        (
            found.labels,
            Facts(
                now,
                follower.interval_seconds,
                value=found.value,
                requests=measured.requests if rule.minimum_requests else None,
                usual=follower.usual(service, found.signal, found.labels, now=now) if rule.is_relative else None,
            ),
        )
        for found in _series(rule, measured)
    ]


def _facts_with_past(rule: Rule, measured: Measured, opened: Opened) -> EachFacts:
    each = []
    for (labels, facts), found in zip(_facts_of_each(rule, measured, opened), _series(rule, measured), strict=True):
        facts = replace(facts, trail=_trail(rule, measured, rule.signal, labels, found.value))
        if rule.kind == Kind.BURN_RATE:
            slo = measured.service.parsed.slo
            facts = replace(facts, objective=slo.latency_ratio if rule.signal == "slow_ratio" else slo.availability)
        if rule.kind == Kind.DEVIATION:
            pattern = measured.follower.pattern(measured.service, rule.signal, labels, now=measured.now)
            facts = replace(facts, pattern=pattern)
        if rule.also:
            facts = replace(
                facts,
                also_pattern=measured.follower.pattern(measured.service, rule.also, labels, now=measured.now),
                also_trail=_trail(rule, measured, rule.also, labels, _value_of(measured, rule.also, labels)),
            )
        each.append((labels, facts))
    return each


def _trail(rule: Rule, measured: Measured, signal: str, labels: dict[str, str], value: float | None) -> Trail:
    """The past of a series, with the requests of each of its intervals where the labels have some."""
    seconds = HISTORY_SECONDS[rule.kind]
    follower, now = measured.follower, measured.now
    at, values = follower.past(measured.service, signal, labels, now=now, value=value, seconds=seconds)
    if rule.kind == Kind.FORECAST:
        return Trail(at, values)
    rate = _value_of(measured, "requests_per_second", labels)
    rates = follower.past(measured.service, "requests_per_second", labels, now=now, value=rate, seconds=seconds)
    return Trail(at, values, follower.interval_seconds * aligned(at, *rates))


def _value_of(measured: Measured, signal: str, labels: dict[str, str]) -> float | None:
    key = labels_key(labels)
    return next((found.value for found in measured.values.get(signal, ()) if found.labels_key == key), None)


def _facts_of_missing(rule: Rule, measured: Measured, opened: Opened) -> EachFacts:
    labels = dict(rule.labels)
    alert = opened.get((rule.name, labels_key(labels)))
    facts = Facts(measured.now, measured.follower.interval_seconds)
    if there := _series(rule, measured):
        return [(labels, replace(facts, value=there[0].value))] if alert else []
    # That nothing can be read is told by `up`; what it would have said is then no news of its own.
    if rule.signal != "up" and not any(found.value > 0 for found in measured.values.get("up", ())):
        return []
    silent = _silent_seconds(measured, rule)
    if silent is None and alert:
        silent = (measured.at - alert.opened_at).total_seconds()
    return [] if silent is None else [(labels, replace(facts, silent_seconds=silent))]


def _silent_seconds(measured: Measured, rule: Rule) -> float | None:
    """For how long a series that was there regularly has been silent; None when none was."""
    past = reading.arrays(
        measured.service, rule.signal, since=measured.at - MISSED, until=measured.at, labels=dict(rule.labels)
    )
    enough = 0.5 * REGULAR_SECONDS / measured.follower.interval_seconds
    last = [
        series.at[-1]
        for series in past
        if len(series.at) and (series.at > series.at[-1] - REGULAR_SECONDS).sum() >= enough
    ]
    return measured.now - float(max(last)) if last else None


FACTS: Mapping[str, Callable[[Rule, Measured, Opened], EachFacts]] = {
    Kind.BURN_RATE: _facts_with_past,
    Kind.DEVIATION: _facts_with_past,
    Kind.FORECAST: _facts_with_past,
    Kind.MISSING: _facts_of_missing,
}


# --- Moves -------------------------------------------------------------------------------------------------------


def apply(
    service: Service,
    row: AlertRule,
    rule: Rule,
    alert: Alert | None,
    labels: dict[str, str],
    value: float | None,
    judged: Judgement,
    at: datetime,
) -> list[Alert]:
    """Do what the judgement of a round means for an alert. Returns it when it began or ceased to fire."""
    interval = timedelta(seconds=settings.METRICS_COLLECTION_INTERVAL)
    # A round that is judged again must not count twice. A clock that was set back far is another matter.
    if alert and at <= alert.seen_at <= at + interval:
        return []
    if judged.held is None:
        return _silent(alert, at, because="There is too little to judge it by.") if alert else []
    message = describe(rule, value if judged.value is None else judged.value, limit=judged.limit, labels=labels)
    move = next_move(
        state=alert.state if alert else None,
        held=judged.held,
        intervals=alert.intervals if alert else 0,
        for_intervals=rule.for_intervals,
        fires=judged.fires,
        is_clear=judged.is_clear,
        calm_intervals=alert.calm_intervals if alert else 0,
        clear_intervals=clear_intervals_of(rule, is_flapping=alert.is_flapping if alert else False),
    )
    if move == Move.NONE:
        return []
    if alert is None:
        alert = _open(service, row, labels, value, message, at)
        if alert is None:
            return []
    elif move == Move.RESOLVE:
        return [] if _keeps_flapping(alert, at) else _resolve(alert, at, because=message)
    elif move == Move.CALM:
        _seen(alert, at, value=value, calm_intervals=alert.calm_intervals + 1)
        return []
    else:
        if judged.held:
            _seen(alert, at, value=value, calm_intervals=0, intervals=alert.intervals + 1, message=message)
        else:  # between the two thresholds
            _seen(alert, at, value=value, calm_intervals=0)
    if move == Move.FIRE and move_to(alert, S.FIRING, at=at, because=message):
        return [alert]
    return []


def _seen(alert: Alert, at: datetime, **fields: object) -> None:
    Alert.objects.filter(pk=alert.pk).exclude(state=S.RESOLVED).update(seen_at=at, **fields)


def _open(
    service: Service, row: AlertRule, labels: dict[str, str], value: float | None, message: str, at: datetime
) -> Alert | None:
    """A pending alert; None when another worker opened it just now."""
    try:
        with transaction.atomic():
            return Alert.objects.create(
                service=service,
                rule=row,
                name=row.name,
                severity=row.severity,
                labels=labels,
                labels_key=labels_key(labels),
                state_since=at,
                opened_at=at,
                seen_at=at,
                value=value,
                message=message,
            )
    except IntegrityError:
        return None


def _silent(alert: Alert, at: datetime, *, because: str) -> list[Alert]:
    silent = (at - alert.seen_at).total_seconds() / float(settings.METRICS_COLLECTION_INTERVAL)
    move = next_move(state=alert.state, held=None, intervals=alert.intervals, for_intervals=1, silent_intervals=silent)
    return _resolve(alert, at, because=because) if move == Move.RESOLVE else []


def _keeps_flapping(alert: Alert, at: datetime) -> bool:
    """Whether an alert that would end goes on instead, because it came and went too often. Audited once."""
    if alert.state != S.FIRING or alert.is_flapping:
        return False
    fired = Alert.objects.filter(
        service=alert.service_id,
        name=alert.name,
        labels_key=alert.labels_key,
        fired_at__gt=at - timedelta(seconds=FLAP_WINDOW_SECONDS),
    ).values_list("fired_at", flat=True)
    if not flaps([moment.timestamp() for moment in fired if moment], now=at.timestamp()):
        return False
    because = f"It fired {len(fired)} times within {FLAP_WINDOW_SECONDS / 3600:g} h, so it goes on until it is calm."
    with transaction.atomic():
        marked = Alert.objects.filter(pk=alert.pk, state=S.FIRING, is_flapping=False).update(
            is_flapping=True, calm_intervals=1, seen_at=at
        )
        if marked:
            audit.record("alert.flapping", alert, because=because)
    return True


def _resolve(alert: Alert, at: datetime, *, because: str) -> list[Alert]:
    was_firing = alert.state == S.FIRING
    return [alert] if move_to(alert, S.RESOLVED, at=at, because=because) and was_firing else []


def move_to(alert: Alert, target: AlertState, *, at: datetime, because: str) -> bool:
    """The one writer of an alert's state. False when another worker moved it first.

    The audit log is the history of what fired. What never fired leaves no entry: a pending alert is only an
    observation.
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


def forget_old(at: datetime) -> int:
    """Delete alerts that ended so long ago that nobody asks for them, at most once an hour. Returns how many."""
    if not claim("forget alerts", at=at, interval_seconds=3600):
        return 0
    old = Q(resolved_at__lt=at - KEEP_FIRED) | Q(resolved_at__lt=at - KEEP_NEVER_FIRED, fired_at=None)
    return Alert.objects.filter(old, state=S.RESOLVED).delete()[0]


def usual_window(at: datetime) -> tuple[datetime, datetime]:
    """The time that tells what is usual: the last day, but not the last ten intervals: they may be the trouble."""
    return at - timedelta(days=1), at - timedelta(seconds=10 * settings.METRICS_COLLECTION_INTERVAL)


def describe(rule: Rule, value: float | None, *, limit: str, labels: Mapping[str, str]) -> str:
    """One sentence for a person: what, where, how much, against what."""
    where = [f"release {labels['release']}"] if labels.get("release") else []
    where += [labels[name] for name in ("program", "method", "endpoint") if labels.get(name, "*") != "*"]
    about = f" ({', '.join(where)})" if where else ""
    found = f" is {in_words(rule.signal, value)}" if value is not None and rule.kind != Kind.HEARTBEAT else ""
    return f"{rule.summary}{about}: {named(rule.signal)}{found}, {limit}."[:500]
