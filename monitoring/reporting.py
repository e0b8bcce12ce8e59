"""What the health pages tell, composed once each: plain dictionaries, ready for JSON."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import redis
from django.conf import settings
from django.db import connection
from django.utils.timezone import now

from monitoring import baselining, health
from monitoring.models import Alert, Baseline, Service, Target

MOST_POINTS = 300
STALE_ROUNDS = 5
RANGES = {"1h": 1.0, "24h": 24.0, "7d": 168.0, "28d": 672.0}  # hours
# From the index alone: see HealthScore.
BINNED = """
    SELECT max(at), avg(score), min(score), max(score), count(score)
    FROM monitoring_healthscore
    WHERE service_id = %(service)s AND at > %(since)s AND at <= %(until)s
    GROUP BY date_bin(%(step)s, at, %(since)s) ORDER BY 1
"""


# Asking for what is not resolved lets the index of open alerts answer; those of the past are many.
NEWEST = """
    SELECT service.id, service.name, newest.at, newest.score, newest.status, newest.trend, newest.confidence,
           newest.components,
           EXISTS (SELECT FROM monitoring_alert alert WHERE alert.service_id = service.id AND alert.state = 'firing'
                   AND NOT (alert.state = 'resolved'))
    FROM monitoring_service service
    LEFT JOIN LATERAL (
        SELECT * FROM monitoring_healthscore WHERE service_id = service.id ORDER BY at DESC LIMIT 1
    ) newest ON true
    WHERE service.archived_at IS NULL AND {}
"""


@dataclass(frozen=True)
class Checked:
    """One dependency: `reason` says what is wrong where it is not `ok`."""

    name: str
    ok: bool
    milliseconds: float
    reason: str = ""


# More than fits into the memory that the connection gets for it, so that PostgreSQL sorts in a file, and leaves nothing
# behind: no rows to clean up, nothing for replicas.
SORTED_ON_DISK = "SELECT count(*) FROM (SELECT n FROM generate_series(1, 4000) n ORDER BY n DESC OFFSET 0) sorted"


def check_database(timeout_seconds: int = 2, *, writing: bool = False) -> None:
    """Ask PostgreSQL on a connection of its own, so that a hanging one is found within the timeout.

    With `writing` it has to write a short file too: one whose disk is full answers questions for hours.
    """
    parameters = connection.get_connection_params()
    wanted = {k: v for k, v in parameters.items() if k in {"dbname", "user", "password", "host", "port", "sslmode"}}
    options = f"-c statement_timeout={timeout_seconds * 1000} -c work_mem=64kB"
    with psycopg.connect(**wanted, connect_timeout=timeout_seconds, options=options) as asked:
        asked.execute(SORTED_ON_DISK if writing else "SELECT 1")


def check_valkey(timeout_seconds: float = 2.0) -> None:
    """Ask the queue's server for a sign of life."""
    client = redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=timeout_seconds, socket_connect_timeout=timeout_seconds
    )
    try:
        client.ping()
    finally:
        client.close()


CHECKS: dict[str, Callable[[], None]] = {"database": partial(check_database, writing=True), "queue": check_valkey}


def readiness() -> list[Checked]:
    """Every dependency without which RuneRogue can't work, each asked with a short timeout."""
    found = []
    for name, check in CHECKS.items():
        began = time.monotonic()
        reason = ""
        try:
            check()
        except (psycopg.Error, redis.RedisError, OSError) as error:
            wrong = "can't write to its disk" if "No space left on device" in str(error) else "does not answer"
            reason = f"{type(error).__name__}: the {name} {wrong}"
        found.append(Checked(name, not reason, round(1000 * (time.monotonic() - began), 1), reason))
    return found


@dataclass(frozen=True)
class Newest:
    """A service and its newest health score; all but the first two are None when there is none yet."""

    service_id: int
    name: str
    at: datetime | None
    score: float | None
    status: str | None
    trend: str | None
    confidence: float | None
    components: dict[str, Any] | None
    is_alerted: bool


def newest(name: str = "") -> Newest | None:
    """Of the watched service of that name, without one of RuneRogue; None when there is no such service.

    One statement of a few looks into indexes, however long the history: this is asked every few seconds.
    """
    with connection.cursor() as cursor:
        cursor.execute(NEWEST.format("service.name = %s" if name else "service.is_self"), [name] if name else [])
        row = cursor.fetchone()
    if row is None:
        return None
    service, known_as, at, value, status, trend, confidence, components, is_alerted = row
    if isinstance(components, str):  # the driver leaves JSON to Django, whose fields are not asked here
        components = json.loads(components)
    return Newest(service, known_as, at, value, status, trend, confidence, components, is_alerted)


def score(found: Newest) -> dict[str, Any]:
    """The newest health score with its components and the alerts that are open."""
    firing = Alert.objects.open().firing().filter(service=found.service_id).select_related("service")
    alerts = [alert_row(alert) for alert in firing] if found.is_alerted else []
    if found.at is None:
        return {
            "service": found.name,
            "overall_score": None,
            "status": "unknown",
            "trend": "unknown",
            "confidence": 0.0,
            "components": {},
            "alerts": alerts,
            "last_updated": None,
            "message": "Nothing has been collected yet.",
        }
    stale = now() - found.at > timedelta(seconds=STALE_ROUNDS * settings.METRICS_COLLECTION_INTERVAL)
    return {
        "service": found.name,
        # An old score is not today's health: collection stands still.
        "overall_score": None if stale else rounded(found.score),
        "status": "unknown" if stale else found.status,
        "trend": "unknown" if stale else found.trend,
        "confidence": round(found.confidence or 0.0, 2),
        "components": {name: component_row(part) for name, part in health.in_order(found.components or {}).items()},
        "alerts": alerts,
        "last_updated": found.at.isoformat(),
        "message": f"Nothing was collected since {found.at:%Y-%m-%d %H:%M:%S} UTC." if stale else "",
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
    """The score, RuneRogue's own dependencies, and the objectives, the baseline and every target of the service."""
    targets = Target.objects.active().filter(service=service).order_by("url")
    current = Baseline.objects.filter(service=service).select_related("made_by").order_by("-version").first()
    found = newest(service.name)
    return {
        **(score(found) if found else {}),
        "checks": {c.name: {"ok": c.ok, "milliseconds": c.milliseconds, "reason": c.reason} for c in readiness()},
        "objectives": service.parsed.slo.model_dump(),
        "baseline": version_row(current) if current else None,
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


@dataclass(frozen=True)
class Bin:
    """The scores of a short time as one point: its newest moment, and what they were. None where none was known."""

    at: datetime
    mean: float | None
    minimum: float | None
    maximum: float | None
    count: int


def binned(service: Service, *, hours: float, until: datetime) -> list[Bin]:
    """The scores of the last `hours` as at most MOST_POINTS bins and one. A time without scores has no bin."""
    span = timedelta(hours=hours)
    parameters: dict[str, Any] = {
        "service": service.pk,
        "since": until - span,
        "until": until,
        "step": span / MOST_POINTS,
    }
    with connection.cursor() as cursor:
        cursor.execute(BINNED, parameters)
        return [Bin(*row) for row in cursor.fetchall()]


def trends(service: Service, *, hours: float, until: datetime) -> dict[str, Any]:
    """The scores of the last `hours` and where they go, and the trend of every range of RANGES.

    Slopes are in points per hour with their 90 % interval. A point stands for all scores of its time.
    """
    asked = binned(service, hours=hours, until=until)
    known = [one for one in asked if one.mean is not None]
    total = sum(one.count for one in known)
    own = trend_row(asked)
    return {
        "service": service.name,
        "hours": hours,
        **own,
        "trends": {
            name: own if span == hours else trend_row(binned(service, hours=span, until=until))
            for name, span in RANGES.items()
        },
        "minimum": rounded(min((one.minimum for one in known if one.minimum is not None), default=None)),
        "mean": rounded(sum(one.mean * one.count for one in known if one.mean is not None) / total) if total else None,
        "maximum": rounded(max((one.maximum for one in known if one.maximum is not None), default=None)),
        "points": [
            {
                "at": one.at.isoformat(),
                "score": rounded(one.mean),
                "minimum": rounded(one.minimum),
                "status": health.status_of(one.mean),
            }
            for one in asked
        ],
    }


def trend_row(bins: Sequence[Bin]) -> dict[str, Any]:
    """The trend of these scores for JSON; None for what cannot be said."""
    known = [(one.at.timestamp(), one.mean) for one in bins if one.mean is not None]
    found = health.trend([at for at, _ in known], [score for _, score in known])

    def short(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.4g}")

    return {
        "trend": found.direction,
        "slope_per_hour": short(found.slope_per_hour),
        "low": short(found.low),
        "high": short(found.high),
    }


def baseline(service: Service, *, at: datetime, hours: float, whole: bool) -> dict[str, Any]:
    """The current baseline, its quantiles, and the last `hours` against them; with `whole` not those of each route."""
    versions = list(Baseline.objects.filter(service=service).select_related("made_by").order_by("-version")[:10])
    told: dict[str, Any] = {
        "service": service.name,
        "version": None,
        "message": "There is no baseline yet. One is set by itself after six hours in which all was well.",
        "hours": hours,
        "signals": [],
        "versions": [version_row(version) for version in versions],
    }
    if not versions:
        return told
    newest = versions[0]
    newest.service = service
    found = baselining.lines(newest, at=at, hours=hours, whole=whole)
    return (
        told | version_row(newest) | {"message": summary(found, hours), "signals": [line_row(line) for line in found]}
    )


def summary(found: Sequence[baselining.Line], hours: float) -> str:
    """What differs, in a sentence."""
    names = {kind: sorted({in_words(one) for one in found if one.verdict == kind}) for kind in ("worse", "better")}
    told = [f"{kind}: {', '.join(signals)}" for kind, signals in names.items() if signals]
    if told:
        text = "; ".join(told)
        return f"Against the baseline, the last {hours:g} h are {text}."
    compared = sum(one.verdict != "unknown" for one in found)
    return f"The last {hours:g} h are as in the baseline." if compared else "Too little was measured to compare."


def in_words(line: baselining.Line) -> str:
    where = ", ".join(value for name, value in sorted(line.labels.items()) if value != "*")
    return line.signal.replace("_", " ") + (f" of {where}" if where else "")


def version_row(found: Baseline) -> dict[str, Any]:
    return {
        "version": found.version,
        "made_at": found.made_at.isoformat(),
        "made_by": found.author,
        "reason": found.reason,
        "since": found.since.isoformat(),
        "until": found.until.isoformat(),
        "series": found.series_count,
    }


def line_row(line: baselining.Line) -> dict[str, Any]:
    quantiles, expected, compared = asdict(line.quantiles), asdict(line.expected), asdict(line.compared)
    return {
        "signal": line.signal,
        "labels": line.labels,
        "count": quantiles.pop("count"),
        "quantiles": quantiles,
        "expected_now": expected,
        "comparison": {"verdict": line.verdict, **compared},
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
    """To a tenth, downwards: 79.96 is degraded, and 80.0 would contradict that healthy begins at 80."""
    return None if value is None else math.floor(10 * value + 1e-6) / 10
