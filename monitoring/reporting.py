"""What the health pages tell, composed once each: plain dictionaries, ready for JSON."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import redis
from django.conf import settings
from django.db import connection
from django.utils.timezone import now

from monitoring import health
from monitoring.models import Alert, HealthScore, Service, Target

MOST_POINTS = 500
STALE_ROUNDS = 5


@dataclass(frozen=True)
class Checked:
    """One dependency: `reason` says what is wrong where it is not `ok`."""

    name: str
    ok: bool
    milliseconds: float
    reason: str = ""


def check_database(timeout_seconds: int = 2) -> None:
    """Ask PostgreSQL on a connection of its own, so that a hanging one is found within the timeout."""
    parameters = connection.get_connection_params()
    wanted = {k: v for k, v in parameters.items() if k in {"dbname", "user", "password", "host", "port", "sslmode"}}
    options = f"-c statement_timeout={timeout_seconds * 1000}"
    with psycopg.connect(**wanted, connect_timeout=timeout_seconds, options=options) as asked:
        asked.execute("SELECT 1")


def check_valkey(timeout_seconds: float = 2.0) -> None:
    """Ask the queue's server for a sign of life."""
    client = redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds
    )
    try:
        client.ping()
    finally:
        client.close()


CHECKS: dict[str, Callable[[], None]] = {"database": check_database, "queue": check_valkey}


def readiness() -> list[Checked]:
    """Every dependency without which RuneRogue can't work, each asked with a short timeout."""
    found = []
    for name, check in CHECKS.items():
        began = time.monotonic()
        reason = ""
        try:
            check()
        except (psycopg.Error, redis.RedisError, OSError) as error:
            reason = f"{type(error).__name__}: the {name} does not answer"
        found.append(Checked(name, not reason, round(1000 * (time.monotonic() - began), 1), reason))
    return found


def score(service: Service) -> dict[str, Any]:
    """The newest health score with its components and the alerts that are open."""
    newest = HealthScore.objects.filter(service=service).order_by("-at").first()
    alerts = [alert_row(alert) for alert in Alert.objects.firing().filter(service=service).select_related("service")]
    if newest is None:
        return {
            "service": service.name,
            "overall_score": None,
            "status": "unknown",
            "trend": "unknown",
            "confidence": 0.0,
            "components": {},
            "alerts": alerts,
            "last_updated": None,
            "message": "Nothing has been collected yet.",
        }
    stale = now() - newest.at > timedelta(seconds=STALE_ROUNDS * settings.METRICS_COLLECTION_INTERVAL)
    return {
        "service": service.name,
        # An old score is not today's health: collection stands still.
        "overall_score": None if stale else rounded(newest.score),
        "status": "unknown" if stale else newest.status,
        "trend": "unknown" if stale else newest.trend,
        "confidence": round(newest.confidence, 2),
        "components": {name: component_row(part) for name, part in newest.components.items()},
        "alerts": alerts,
        "last_updated": newest.at.isoformat(),
        "message": f"Nothing was collected since {newest.at:%Y-%m-%d %H:%M:%S} UTC." if stale else "",
    }


def component_row(part: dict[str, Any]) -> dict[str, Any]:
    return {
        "score": rounded(part["score"]),
        "status": part["status"],
        "message": part["message"],
        "confidence": round(part["confidence"], 2),
        "drivers": part["drivers"],
    }


def detailed(service: Service) -> dict[str, Any]:
    """The score, the dependencies of RuneRogue, and every target of the service."""
    targets = Target.objects.active().filter(service=service).order_by("url")
    return {
        **score(service),
        "checks": {c.name: {"ok": c.ok, "milliseconds": c.milliseconds, "reason": c.reason} for c in readiness()},
        "targets": [
            {
                "url": target.url,
                "release": target.release or None,
                "last_scraped_at": target.last_scraped_at and target.last_scraped_at.isoformat(),
                "error": target.last_error or None,
            }
            for target in targets
        ],
    }


def trends(service: Service, *, hours: float, until: datetime) -> dict[str, Any]:
    """The scores of the last `hours`, thinned to at most MOST_POINTS, and where they go."""
    since = until - timedelta(hours=hours)
    rows = list(
        HealthScore.objects.filter(service=service, at__gt=since, at__lte=until)
        .order_by("at")
        .values_list("at", "score", "status")
    )
    # The newest point is always one of those that are kept.
    step = max(1, -(-len(rows) // MOST_POINTS))
    points = rows[::-1][::step][::-1]
    known = [(at.timestamp(), value) for at, value, _ in points if value is not None]
    values = np.array([value for _, value in known], dtype=float)
    return {
        "service": service.name,
        "hours": hours,
        "trend": health.trend([at for at, _ in known], values),
        "minimum": rounded(float(values.min())) if values.size else None,
        "mean": rounded(float(values.mean())) if values.size else None,
        "maximum": rounded(float(values.max())) if values.size else None,
        "points": [{"at": at.isoformat(), "score": rounded(value), "status": status} for at, value, status in points],
    }


def alerts(service: Service | None) -> dict[str, Any]:
    """The alerts that fire, worst and newest first; of all services when `service` is None."""
    firing = Alert.objects.firing().filter(service__archived_at=None).select_related("service")
    if service is not None:
        firing = firing.filter(service=service)
    rows = [alert_row(alert) for alert in firing.order_by("severity", "-fired_at")]
    return {
        "alerts": rows,
        "total_count": len(rows),
        "critical_count": sum(row["severity"] == "critical" for row in rows),
        "warning_count": sum(row["severity"] == "warning" for row in rows),
    }


def alert_row(alert: Alert) -> dict[str, Any]:
    return {
        "id": alert.pk,
        "service": alert.service.name,
        "name": alert.name,
        "severity": alert.severity,
        "state": alert.state,
        "labels": alert.labels,
        "value": alert.value,
        "message": alert.message,
        "flapping": alert.is_flapping,
        "since": alert.since.isoformat(),
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
