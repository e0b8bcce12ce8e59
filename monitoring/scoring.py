"""One health score per service and round, from the samples of the last rounds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict
from datetime import datetime, timedelta

import numpy as np
from django.conf import settings

from monitoring import health, reading
from monitoring.alerting import WHOLE_KEY, is_private, serving_releases, usual_window
from monitoring.health import Health, Vitals
from monitoring.models import HealthScore, Sample, Service, Target

RECENT_ROUNDS = 3  # a vital sign is its mean over these: one slow scrape is not a change of health
TREND_WINDOW = timedelta(hours=1)
TREND_SCORES = 60
WHOLE_SIGNALS = ("latency_p95_ms", "error_ratio")
HOST_SIGNALS = ("host_cpu_percent", "host_memory_percent", "disk_used_percent")


def score_all(at: datetime) -> list[HealthScore]:
    """Score every watched service for the round `at`. Scoring a round again changes nothing."""
    services = list(Service.objects.active())
    recent = _recent(at)
    host = {s: v for service in services if service.is_self for s, v in recent[service.pk].items() if s in HOST_SIGNALS}
    watched = set(Target.objects.serving().values_list("service_id", flat=True))
    scores = []
    for service in services:
        vitals = _vitals(service, recent[service.pk] if service.pk in watched else {}, host, at)
        scores.append(_row(service, health.assess(vitals), at))
    return HealthScore.objects.bulk_create(scores, ignore_conflicts=True)


def _recent(at: datetime) -> dict[int, dict[str, float]]:
    """Service → signal → mean over the last rounds, for what a score is made of."""
    since = at - timedelta(seconds=(RECENT_ROUNDS - 0.5) * settings.METRICS_COLLECTION_INTERVAL)
    values: dict[tuple[int, str], list[float]] = defaultdict(list)
    rows = Sample.objects.filter(at__gt=since, at__lte=at).filter(
        series__signal__in=(*WHOLE_SIGNALS, *HOST_SIGNALS, "up")
    )
    serving = serving_releases()
    for service, signal, key, labels, value in rows.values_list(
        "series__service_id", "series__signal", "series__labels_key", "series__labels", "value"
    ):
        if key == WHOLE_KEY if signal in WHOLE_SIGNALS else not is_private(service, labels, serving):
            values[service, signal].append(value)
    means: dict[int, dict[str, float]] = defaultdict(dict)
    for (service, signal), found in values.items():
        means[service][signal] = float(np.mean(found))
    return means


def _vitals(service: Service, known: dict[str, float], host: dict[str, float], at: datetime) -> Vitals:
    since, until = usual_window(at)
    usual = reading.usual(service, "latency_p95_ms", since=since, until=until, labels_key=WHOLE_KEY)
    return Vitals(
        p95_ms=known.get("latency_p95_ms"),
        usual_p95_ms=usual,
        error_ratio=known.get("error_ratio"),
        up_ratio=known.get("up"),
        host_cpu_percent=host.get("host_cpu_percent"),
        host_memory_percent=host.get("host_memory_percent"),
        disk_used_percent=host.get("disk_used_percent"),
    )


def _row(service: Service, found: Health, at: datetime) -> HealthScore:
    history = list(
        HealthScore.objects.filter(service=service, at__gt=at - TREND_WINDOW, at__lt=at)
        .exclude(score=None)
        .order_by("-at")
        .values_list("at", "score")[: TREND_SCORES - 1]
    )
    points = [(moment.timestamp(), score) for moment, score in reversed(history) if score is not None]
    if found.score is not None:
        points.append((at.timestamp(), found.score))
    return HealthScore(
        service=service,
        at=at,
        score=found.score,
        status=found.status,
        trend=health.trend([t for t, _ in points], [s for _, s in points]) if found.score is not None else "unknown",
        confidence=found.confidence,
        components={
            component.name: {name: value for name, value in asdict(component).items() if name != "name"}
            for component in found.components
        },
    )
