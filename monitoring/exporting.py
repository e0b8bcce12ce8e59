"""RuneRogue's own `/metrics`: what its web processes counted, and the state that its database holds."""

from __future__ import annotations

import os
from collections.abc import Iterator

import prometheus_client
from django.db import DatabaseError
from django.db.models import Count, Max, Q
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from monitoring.models import Alert, HealthScore, Service, Severity, Target

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition() -> bytes:
    """Prometheus text. With PROMETHEUS_MULTIPROC_DIR it holds the sum of all web processes."""
    state = CollectorRegistry()
    state.register(State())
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        counted = CollectorRegistry()
        MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
    else:
        counted = prometheus_client.REGISTRY
    return bytes(generate_latest(counted) + generate_latest(state))


class State(Collector):
    """Gauges read from the database at the moment they are asked for, so that every process gives the same."""

    def collect(self) -> Iterator[Metric]:
        reachable = GaugeMetricFamily("runerogue_database_up", "Whether the database answered: 1 or 0.")
        try:
            found = list(self._from_database())
        except DatabaseError:
            # The HTTP numbers are needed most on such a day.
            found = []
            reachable.add_metric([], 0)
        else:
            reachable.add_metric([], 1)
        yield reachable
        yield from found

    def _from_database(self) -> Iterator[Metric]:
        score = GaugeMetricFamily("runerogue_health_score", "Health of a service, 0 to 100.", labels=["service"])
        confidence = GaugeMetricFamily(
            "runerogue_health_confidence_ratio", "Share of a service's vital signs that is known.", labels=["service"]
        )
        for name, value, sure in (
            HealthScore.objects.filter(service__archived_at=None)
            .order_by("service_id", "-at")
            .distinct("service_id")
            .values_list("service__name", "score", "confidence")
        ):
            confidence.add_metric([name], sure)
            if value is not None:
                score.add_metric([name], value)
        yield score
        yield confidence

        firing = GaugeMetricFamily("runerogue_alerts_firing", "Alerts that fire now.", labels=["service", "severity"])
        services = Service.objects.active().order_by("name")
        for severity in Severity:
            counts = dict(
                Alert.objects.firing().filter(severity=severity).values_list("service_id").annotate(Count("pk"))
            )
            for service in services:
                firing.add_metric([service.name, str(severity)], counts.get(service.pk, 0))
        yield firing

        failing = GaugeMetricFamily(
            "runerogue_targets_failing", "Targets whose last scrape failed.", labels=["service"]
        )
        rows = Target.objects.active().values("service__name").order_by("service__name")
        for row in rows.annotate(failing=Count("pk", filter=~Q(last_error=""))):
            failing.add_metric([row["service__name"]], row["failing"])
        yield failing

        last = GaugeMetricFamily(
            "runerogue_last_collection_timestamp_seconds",
            "When a target was last scraped with success.",
        )
        newest = Target.objects.active().aggregate(newest=Max("last_scraped_at"))["newest"]
        if newest is not None:
            last.add_metric([], newest.timestamp())
        yield last
