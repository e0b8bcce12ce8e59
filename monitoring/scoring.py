"""One health score per service and round, from the samples of the last rounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta

import numpy as np
from django.conf import settings

from monitoring import baselining, health, reading
from monitoring.alerting import WHOLE_KEY, is_private, serving_releases, usual_window
from monitoring.health import Health, Vitals
from monitoring.models import HealthScore, Series, Service, Target, labels_key

RECENT_ROUNDS = 3  # a vital sign is its mean over these: one slow scrape is not a change of health
EXPERIENCE_ROUNDS = 15  # visitors come now and then; a pause between two is not an end
TREND_WINDOW = timedelta(hours=1)
TREND_SCORES = 60
WHOLE_SIGNALS = ("latency_p95_ms", "error_ratio", "slow_ratio", "apdex")
# Signal → vital. A service that is measured on a host of its own has its own; the others share RuneRogue's.
HOST_SIGNALS = {
    "host_cpu_percent": "host_cpu_percent",
    "host_memory_percent": "host_memory_percent",
    "disk_used_percent": "disk_used_percent",
    "host_disk_used_percent": "disk_used_percent",
}
PROCESS_SIGNALS = ("cpu_percent", "memory_bytes")  # what all that serves uses together
FILE_SIGNALS = ("open_fds", "max_fds")
EXPERIENCE_SIGNALS = ("lcp_p75_ms", "inp_p75_ms", "cls_p75")
# Written when somebody reports: the newest value holds until the next one.
QUALITY_SIGNALS = ("test_coverage_percent", "test_success_ratio", "lint_violations", "vulnerabilities", "debt_ratio")
ALL_ROUTES_KEY = labels_key({"endpoint": "*"})
NO_LABELS_KEY = labels_key({})

Values = Mapping[str, Mapping[str, float]]  # signal → labels key → mean


def score_all(at: datetime) -> list[HealthScore]:
    """Score every watched service for the round `at`. Scoring a round again changes nothing."""
    services = list(Service.objects.active())
    recent = _recent(at)
    quality = _quality(services)
    host = next((_host(recent[service.pk]) for service in services if service.is_self), {})
    watched = set(Target.objects.serving().values_list("service_id", flat=True))
    usual = _Usual(services, at)
    scores = []
    for service in services:
        known = recent[service.pk] if service.pk in watched else {}
        scores.append(_row(service, health.assess(_vitals(service, known, quality[service.pk], host, usual)), at))
    return HealthScore.objects.bulk_create(scores, ignore_conflicts=True)


def _recent(at: datetime) -> dict[int, Values]:
    """Service → signal → labels key → mean over the last rounds, for what a score is made of."""
    interval = float(settings.METRICS_COLLECTION_INTERVAL)
    until = at + timedelta(microseconds=1)
    serving = serving_releases()
    found: dict[int, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for rounds, signals in (
        (RECENT_ROUNDS, (*WHOLE_SIGNALS, *HOST_SIGNALS, *PROCESS_SIGNALS, *FILE_SIGNALS, "up")),
        (EXPERIENCE_ROUNDS, EXPERIENCE_SIGNALS),
    ):
        for one in reading.recent(at - timedelta(seconds=(rounds - 0.5) * interval), until, signals):
            if not is_private(one.service_id, one.labels, serving):
                found[one.service_id][one.signal][one.labels_key].append(one.value)
    means: dict[int, Values] = defaultdict(dict)
    for service, by_signal in found.items():
        means[service] = {
            signal: {key: float(np.mean(values)) for key, values in by_key.items()}
            for signal, by_key in by_signal.items()
        }
    return means


def _quality(services: Iterable[Service]) -> dict[int, dict[str, float]]:
    """Service → signal → the newest that was reported."""
    named = {service.pk: service for service in services}
    reported = Series.objects.filter(signal__in=QUALITY_SIGNALS, service__in=named).values_list("service_id", "signal")
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for pk, signal in reported.distinct():
        newest = reading.latest(named[pk], signal)
        if newest is not None:
            found[pk][signal] = newest
    return found


def _host(known: Values) -> dict[str, float]:
    """The vitals of a host, of several hosts the worst."""
    return {vital: max(known[signal].values()) for signal, vital in HOST_SIGNALS.items() if known.get(signal)}


class _Usual:
    """What is usual at one time: by the baseline where there is one, else the median of the last day."""

    def __init__(self, services: Collection[Service], at: datetime) -> None:
        signals = ("latency_p95_ms", *PROCESS_SIGNALS, "lint_violations")
        self.window = usual_window(at)
        self.expected = baselining.expectations(services, signals, at)

    def of(self, service: Service, signal: str, key: str) -> float | None:
        expected = self.expected.get((service.pk, signal, key))
        if expected is not None:
            return expected.p50
        since, until = self.window
        return reading.usual(service, signal, since=since, until=until, labels_key=key)

    def together(self, service: Service, signal: str, keys: Collection[str]) -> float | None:
        """Of several series added up; None when one of them is not known."""
        values = [self.of(service, signal, key) for key in keys]
        return sum(v for v in values if v is not None) if values and None not in values else None


def _vitals(
    service: Service, known: Values, quality: Mapping[str, float], host: Mapping[str, float], usual: _Usual
) -> Vitals:
    whole = {signal: known[signal].get(WHOLE_KEY) for signal in WHOLE_SIGNALS if signal in known}
    used = {signal: known.get(signal, {}) for signal in PROCESS_SIGNALS}
    up = list(known.get("up", {}).values())
    lint = quality.get("lint_violations")
    # The first report has nothing to be compared with but itself.
    usual_lint = usual.of(service, "lint_violations", NO_LABELS_KEY) if lint is not None else None
    slo = service.parsed.slo
    return Vitals(
        p95_ms=whole.get("latency_p95_ms"),
        usual_p95_ms=usual.of(service, "latency_p95_ms", WHOLE_KEY) if known else None,
        slow_ratio=whole.get("slow_ratio"),
        **{**host, **_host(known)},
        cpu_percent=_together(used["cpu_percent"]),
        usual_cpu_percent=usual.together(service, "cpu_percent", used["cpu_percent"]),
        memory_bytes=_together(used["memory_bytes"]),
        usual_memory_bytes=usual.together(service, "memory_bytes", used["memory_bytes"]),
        open_fds_ratio=_fullest(known),
        up_ratio=float(np.mean(up)) if up else None,
        error_ratio=whole.get("error_ratio"),
        test_coverage_percent=quality.get("test_coverage_percent"),
        test_success_ratio=quality.get("test_success_ratio"),
        lint_violations=lint,
        usual_lint_violations=lint if usual_lint is None else usual_lint,
        vulnerabilities=quality.get("vulnerabilities"),
        debt_ratio=quality.get("debt_ratio"),
        apdex=whole.get("apdex"),
        lcp_p75_ms=_of_routes(known, "lcp_p75_ms"),
        inp_p75_ms=_of_routes(known, "inp_p75_ms"),
        cls_p75=_of_routes(known, "cls_p75"),
        latency_objective_ms=slo.latency_ms,
        slow_objective_ratio=1.0 - slo.latency_ratio,
        error_objective_ratio=1.0 - slo.availability,
    )


def _together(values: Mapping[str, float]) -> float | None:
    return sum(values.values()) if values else None


def _fullest(known: Values) -> float | None:
    """The share of its open files, of the process that has the fewest left."""
    most = known.get("max_fds", {})
    shares = [used / most[key] for key, used in known.get("open_fds", {}).items() if most.get(key, 0.0) > 0]
    return max(shares, default=None)


def _of_routes(known: Values, signal: str) -> float | None:
    """Of all routes together where that is measured, else of the worst route."""
    values = known.get(signal, {})
    for key in (ALL_ROUTES_KEY, WHOLE_KEY, NO_LABELS_KEY):
        if key in values:
            return values[key]
    return max(values.values(), default=None)


def _row(service: Service, found: Health, at: datetime) -> HealthScore:
    history = list(
        HealthScore.objects.filter(service=service, at__gt=at - TREND_WINDOW, at__lt=at)
        .exclude(score=None)
        .order_by("-at")
        .values_list("at", "score")[: TREND_SCORES - 1]
    )
    points = [(moment.timestamp(), score) for moment, score in reversed(history) if score is not None]
    trend = "unknown"
    if found.score is not None:
        points.append((at.timestamp(), found.score))
        trend = health.trend([t for t, _ in points], [s for _, s in points]).direction
    return HealthScore(
        service=service,
        at=at,
        score=found.score,
        status=found.status,
        trend=trend,
        confidence=found.confidence,
        components={
            component.name: {name: value for name, value in asdict(component).items() if name != "name"}
            for component in found.components
        },
    )
