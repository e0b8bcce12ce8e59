"""What people feel: web vitals from their browsers, folded into histograms at once and written as p75 every round.

A measurement adds one to a counter in Valkey, in a hash per service and minute that expires. Nothing about the person
or the single visit is kept, not even for a moment.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

import redis
from django.conf import settings

from approvals.limits import valkey
from monitoring import privacy, reading, storing, vitals
from monitoring.derive import ALL, MOST_ROUTES, Reading
from monitoring.models import Service

log = logging.getLogger(__name__)

KEEP_SECONDS = 3600
WINDOW_MINUTES = 15  # a p75 looks back this far …
ENOUGH = 20  # … unless fewer minutes hold so many measurements
LEAST = 5  # fewer than this in the whole window say nothing
OTHER = "other"


def may_report(service: Service, origin: str, *, own_origin: str) -> bool:
    """Whether pages of `origin` report about `service`: one of its manifest's, or RuneRogue's own about itself."""
    return origin in service.parsed.experience.origins or (service.is_self and origin == own_origin)


def route_of(endpoint: str, path: str) -> str:
    """The route to count under: what the page calls itself, else the template of its path. No people are in either."""
    if endpoint:
        return privacy.safe_label(endpoint) or OTHER
    return privacy.route_template(urlsplit(path).path if path.startswith("/") else "/")


def record(service: Service, measured: Mapping[str, float], *, endpoint: str, at: datetime) -> None:
    """Count one page's vitals (name → value) under `endpoint`. Raises ValueError for impossible values, RedisError."""
    buckets = {name: vitals.bucket_of(vitals.VITALS[name], value) for name, value in measured.items()}
    client = valkey()
    endpoint = _bounded(client, service, endpoint, at)
    key = _key(service, int(at.timestamp()) // 60)
    with client.pipeline(transaction=False) as pipe:
        for name, bucket in buckets.items():
            pipe.hincrby(key, f"{name} {bucket} {endpoint}", 1)
        pipe.expire(key, KEEP_SECONDS)
        pipe.execute()


def _bounded(client: redis.Redis, service: Service, endpoint: str, at: datetime) -> str:
    """At most MOST_ROUTES names a day: whoever invents routes must not fill the memory."""
    key = f"runerogue:vitals:{service.pk}:routes:{at:%Y%m%d}"
    with client.pipeline(transaction=False) as pipe:
        pipe.sismember(key, endpoint)
        pipe.scard(key)
        is_known, count = pipe.execute()
    if is_known:
        return endpoint
    if count >= MOST_ROUTES:
        return OTHER
    with client.pipeline(transaction=False) as pipe:
        pipe.sadd(key, endpoint)
        pipe.expire(key, 2 * 86_400)
        pipe.execute()
    return endpoint


def _key(service: Service, minute: int) -> str:
    return f"runerogue:vitals:{service.pk}:{minute}"


Counts = dict[tuple[str, str], dict[int, int]]  # (vital, endpoint) → bucket → count


def _minutes(service: Service, last_minute: int) -> list[Counts]:
    """The histograms of the last WINDOW_MINUTES minutes, the newest first."""
    with valkey().pipeline(transaction=False) as pipe:
        for back in range(WINDOW_MINUTES):
            pipe.hgetall(_key(service, last_minute - back))
        answers = pipe.execute()
    found: list[Counts] = []
    for answer in answers:
        counts: Counts = defaultdict(dict)
        for field, count in answer.items():
            name, bucket, endpoint = field.decode().split(" ", 2)
            counts[name, endpoint][int(bucket)] = int(count)
        found.append(counts)
    return found


def write_round(at: datetime) -> int:
    """Write the p75 of every vital and route as samples of the round `at`. Returns how many.

    Each looks back until it has ENOUGH measurements, WINDOW_MINUTES at most. A route that nobody measured since the
    last round is silent: an old number is not a new one. Without Valkey this round has none.
    """
    try:
        return _write_round(at)
    except redis.RedisError as error:
        log.warning("Web vitals are not known in this round: %s", type(error).__name__)
        return 0


def _write_round(at: datetime) -> int:
    rows: list[tuple[Service, Reading]] = []
    fresh_minutes = 1 + -(-int(settings.METRICS_COLLECTION_INTERVAL) // 60)
    for service in Service.objects.active():
        minutes = [_with_whole(counts) for counts in _minutes(service, int(at.timestamp()) // 60)]
        for name, endpoint in sorted({key for counts in minutes[:fresh_minutes] for key in counts}):
            vital = vitals.VITALS[name]
            histogram: dict[int, int] = {}
            for counts in minutes:
                histogram = vitals.merged([histogram, counts.get((name, endpoint), {})])
                if sum(histogram.values()) >= ENOUGH:
                    break
            p75 = vitals.quantile(vital, histogram)
            if p75 is not None and sum(histogram.values()) >= LEAST:
                rows.append((service, Reading(vital.signal, (("endpoint", endpoint),), p75)))
    return storing.store(rows, at=at) if rows else 0


def _with_whole(counts: Counts) -> Counts:
    whole: Counts = defaultdict(dict)
    for (name, _), histogram in counts.items():
        whole[name, ALL] = vitals.merged([whole[name, ALL], histogram])
    return {**counts, **whole}


@dataclass(frozen=True)
class Felt:
    """One vital of one route: its p75 in the vital's unit and what that means."""

    vital: str
    endpoint: str
    p75: float
    rating: str


def felt(service: Service, *, since: datetime, until: datetime) -> list[Felt]:
    """The newest p75 of every vital and route in [since, until): the whole service first, then worst first."""
    found = []
    for vital in vitals.VITALS.values():
        for series in reading.arrays(service, vital.signal, since=since, until=until):
            p75 = float(series.value[-1])
            found.append(Felt(vital.name, series.labels.get("endpoint", ALL), p75, vitals.rating(vital, p75)))
    return sorted(found, key=lambda one: (one.endpoint != ALL, -one.p75 / vitals.VITALS[one.vital].poor))


def all_origins() -> Iterable[str]:
    """The origins that the manifests of the watched services name."""
    for service in Service.objects.active():
        yield from service.parsed.experience.origins
