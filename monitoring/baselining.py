"""Baselines of services: made from the samples of a window, kept as versions, asked for what is normal now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser
from django.db import transaction
from django.db.models import Count, Max, Q
from numpy.typing import NDArray

from approvals import audit
from monitoring import backfilling, baselines, reading
from monitoring.baselines import Compared, Expected, Profile, Quantiles, hour_of_day, hour_of_week
from monitoring.models import Alert, Baseline, BaselineSeries, HealthScore, Service, Status, labels_key

# Signals that have a usual value. Those of one release are left out: a release has no weeks.
SIGNALS = (
    "requests_per_second",
    "error_ratio",
    "latency_mean_ms",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "queries_per_request",
    "repeats_per_request",
    "database_share",
    "apdex",
    "slow_ratio",
    "requests_in_flight",
    "cpu_percent",
    "memory_bytes",
    "open_fds",
    "threads",
    "host_cpu_percent",
    "host_memory_percent",
    "disk_used_percent",
    "dependency_calls_per_second",
    "dependency_latency_mean_ms",
    "dependency_latency_p95_ms",
    "dependency_error_ratio",
    "lcp_p75_ms",
    "inp_p75_ms",
    "cls_p75",
    "concurrent_users",
    "lint_violations",
    "test_seconds",
)
HIGHER_IS_BETTER = frozenset({"apdex"})
NEITHER_IS_BETTER = frozenset({"requests_per_second", "requests_in_flight", "concurrent_users", "threads"})
MOST_SERIES = 400
LONGEST = timedelta(days=28)
KEEP_VERSIONS = 12  # with their numbers; of older ones who made them and why

# The first version of its own accord needs six hours of data; then one follows whenever the data doubled, until there
# is one a week. Early ones know little of the rhythm, and are replaced soon.
FIRST_AFTER = timedelta(hours=6)
REFRESH_EVERY = timedelta(days=7)
FRESH = timedelta(days=14)  # older ones are still shown, but no alert rests on them
MADE_ITSELF = "Set by itself: all was well"
AROUND_ALERTS = timedelta(minutes=15)
HEALTHY_SHARE = 0.95  # of the scores in the window


class TooLittleData(Exception):
    """No series of the service has enough samples in the window. The message says how many are needed."""


@dataclass(frozen=True)
class Line:
    """One series of a baseline beside what it is now. `verdict` is better, worse, different, same or unknown."""

    signal: str
    labels: dict[str, str]
    quantiles: Quantiles
    expected: Expected
    compared: Compared
    verdict: str


def make(
    service: Service,
    *,
    since: datetime,
    until: datetime,
    reason: str,
    actor: AbstractBaseUser | None = None,
    at: datetime | None = None,
) -> Baseline:
    """Measure [since, until) and store it as the next version, with its audit entry.

    Times in which an alert fired are left out. Raises TooLittleData when nothing is left.
    """
    troubled = list(_troubled(service, since, until))
    found: list[tuple[str, dict[str, str], Profile]] = []
    for signal in SIGNALS:
        for series in reading.arrays(service, signal, since=since, until=until):
            if "release" in series.labels:
                continue
            well = _outside(series.at, troubled)
            made = baselines.profile(series.at[well], series.value[well])
            if made is not None:
                found.append((signal, series.labels, made))
    if not found:
        raise TooLittleData(
            f"No signal of {service} has {baselines.LEAST} samples between {since:%Y-%m-%d %H:%M} and "
            f"{until:%Y-%m-%d %H:%M} UTC outside of alerts. Wait for more rounds, or name a longer window."
        )
    found.sort(key=lambda one: (one[1].get("endpoint", "*") != "*", -one[2].overall.count))
    with transaction.atomic():
        # Two at once would take the same number.
        Service.objects.select_for_update().get(pk=service.pk)
        newest = Baseline.objects.filter(service=service).aggregate(newest=Max("version"))["newest"] or 0
        baseline = Baseline(
            service=service,
            version=newest + 1,
            since=since,
            until=until,
            made_by_id=actor.pk if actor else None,
            reason=reason,
            series_count=min(len(found), MOST_SERIES),
        )
        if at is not None:
            baseline.made_at = at
        baseline.save()
        BaselineSeries.objects.bulk_create(
            [BaselineSeries.of(baseline, signal, labels, made) for signal, labels, made in found[:MOST_SERIES]]
        )
        old = Baseline.objects.filter(service=service, version__lte=newest + 1 - KEEP_VERSIONS)
        BaselineSeries.objects.filter(baseline__in=old).delete()
        audit.record(
            "baseline.set",
            baseline,
            actor=actor,
            because=reason,
            was={"version": newest or None},
            became={"version": baseline.version, "since": since, "until": until, "series": baseline.series_count},
        )
    return baseline


def refresh(at: datetime) -> list[Baseline]:
    """Make the versions that are due by themselves. A service in trouble keeps the one it has."""
    current = {baseline.service_id: baseline for baseline in Baseline.objects.current()}
    made = []
    for service in Service.objects.active():
        window = _due_window(service, current.get(service.pk), at)
        if window is None:
            continue
        since, reason = window
        try:
            made.append(make(service, since=since, until=at, reason=reason, at=at))
        except TooLittleData:
            continue
    return made


def _due_window(service: Service, newest: Baseline | None, at: datetime) -> tuple[datetime, str] | None:
    """Where the window of the version that is due begins, and why it is made; None when none is due or all is not well.

    All is well when no alert fired in the window's last week and nearly every score of it was healthy.
    """
    first = HealthScore.objects.filter(service=service, at__gt=at - LONGEST).order_by("at").first()
    if first is None:
        return None
    past = backfilling.known_since(service)
    since = max(min(first.at, past or first.at), at - LONGEST)
    if newest is None:
        if at - since < FIRST_AFTER:
            return None
    elif at - newest.until < min(REFRESH_EVERY, newest.until - newest.since):
        return None
    judged = max(since, at - REFRESH_EVERY)
    if any(True for _ in _troubled(service, judged, at)):
        return None
    scores = HealthScore.objects.filter(service=service, at__gt=judged, at__lte=at).aggregate(
        known=Count("pk", filter=~Q(score=None)), healthy=Count("pk", filter=Q(status=Status.HEALTHY))
    )
    if not scores["known"] or scores["healthy"] < HEALTHY_SHARE * scores["known"]:
        return None
    return since, f"{MADE_ITSELF} for {_in_words(at - judged)}."


def _in_words(span: timedelta) -> str:
    hours = span.total_seconds() / 3600.0
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} hours"


def _troubled(service: Service, since: datetime, until: datetime) -> Iterator[tuple[float, float]]:
    """The times (unix seconds) in which an alert of the service fired, a little longer on both sides."""
    fired = Alert.objects.filter(service=service, fired_at__lt=until).filter(
        Q(resolved_at=None) | Q(resolved_at__gt=since)
    )
    margin = AROUND_ALERTS.total_seconds()
    for began, ended in fired.values_list("fired_at", "resolved_at"):
        if began is not None:
            yield began.timestamp() - margin, (ended or until).timestamp() + margin


def _outside(at: NDArray[np.float64], spans: Collection[tuple[float, float]]) -> NDArray[np.bool_]:
    well = np.ones(len(at), dtype=bool)
    for began, ended in spans:
        well &= (at < began) | (at > ended)
    return well


# --- What is normal ----------------------------------------------------------------------------------------------


def expected(service: Service, signal: str, key: str, at: datetime) -> Expected | None:
    """What is normal for one series (by its labels key) at `at`; None without a baseline of it."""
    return expectations([service], [signal], at).get((service.pk, signal, key))


def expectations(
    services: Collection[Service], signals: Collection[str], at: datetime
) -> dict[tuple[int, str, str], Expected]:
    """(service id, signal, labels key) → what is normal at `at`, of every series that the current baselines have.

    Two queries, however many: only the numbers of the hour are read.
    """
    current = Baseline.objects.current().filter(service__in=[service.pk for service in services])
    newest = dict(current.values_list("pk", "service_id"))
    moment = at.timestamp()
    rows = BaselineSeries.objects.filter(baseline__in=newest, signal__in=list(signals)).values_list(
        "baseline_id",
        "signal",
        "labels_key",
        *baselines.NAMES,
        "count",
        f"hours__week__{hour_of_week(moment)}",
        f"hours__day__{hour_of_day(moment)}",
    )
    found = {}
    for baseline, signal, key, *numbers, count, week, day in rows:
        by, own = "overall", Quantiles.of(numbers, count)
        for name, row in (("hour of day", day), ("hour of week", week)):
            if row:
                by, own = name, Quantiles.of(row[:-1], row[-1])
        found[newest[baseline], signal, key] = Expected(own.p50, own.spread, own.count, by)
    return found


def fresh_profile(service: Service, signal: str, key: str, at: datetime) -> Profile | None:
    """One series (by its labels key) of the current baseline; None when it has none, or is too old to alert by.

    It is renewed each week as long as all is well. A service that changed for good would otherwise alert for ever.
    """
    newest = Baseline.objects.filter(service=service).order_by("-version").values("pk")[:1]
    row = BaselineSeries.objects.filter(
        baseline__in=newest, baseline__until__gte=at - FRESH, signal=signal, labels_key=key
    ).first()
    return row.profile if row else None


def lines(baseline: Baseline, *, at: datetime, hours: float, whole: bool = True) -> list[Line]:
    """Every series of a baseline beside its last `hours` before `at`; with `whole`, not those of single routes."""
    by_signal: dict[str, list[BaselineSeries]] = defaultdict(list)
    for row in baseline.series.order_by("signal", "labels_key"):
        if not whole or is_whole(row.labels):
            by_signal[row.signal].append(row)
    interval = float(settings.METRICS_COLLECTION_INTERVAL)
    until = at + timedelta(seconds=interval / 2)
    found = []
    for signal, rows in by_signal.items():
        now = {
            labels_key(series.labels): series
            for series in reading.arrays(baseline.service, signal, since=at - timedelta(hours=hours), until=until)
        }
        for row in rows:
            made = row.profile
            series = now.get(row.labels_key)
            compared = baselines.compare(made, series.at if series else [], series.value if series else [])
            usual = baselines.expected(made, at.timestamp())
            found.append(Line(signal, row.labels, row.quantiles, usual, compared, verdict(signal, compared)))
    return found


def is_whole(labels: dict[str, str]) -> bool:
    """Whether a series tells of the whole service and not of one route or dependency."""
    return all(value == "*" for value in labels.values())


def verdict(signal: str, compared: Compared) -> str:
    """Better, worse, different, same or unknown: what a difference of this signal means."""
    if compared.direction in ("same", "unknown"):
        return compared.direction
    if signal in NEITHER_IS_BETTER:
        return "different"
    return "better" if (compared.direction == "higher") == (signal in HIGHER_IS_BETTER) else "worse"
