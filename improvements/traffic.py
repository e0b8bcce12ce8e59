"""What the proxy saw: each request's release, status and time, one row per release and second.

Rows are written by the `proxylog` command from the proxy's own log, so they are the same for every language of service,
and a candidate cannot report itself better than it is.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from django.db import connection, transaction
from django.utils import timezone
from numpy.typing import NDArray

from improvements.models import TrafficSlice
from improvements.verdict import Arm
from monitoring.models import Service

# The client went away before the answer was complete. Nginx writes the same number; no server sends it.
CLIENT_LEFT = 499
NO_ANSWER = -1

# Verdicts look back over the rollout, a bake and a watch, each a day at most. A request takes some 20 bytes.
KEPT = dt.timedelta(days=4)

NOTHING = Arm(np.empty(0), errors=0, requests=0)


@dataclass(frozen=True)
class Totals:
    """All requests to a service in a window, also those that no release got. `failed` is what users saw fail.

    `lost` more were noticed in it of which nothing else is known, because the proxy's line never came.
    """

    requests: int
    failed: int
    unrouted: int
    lost: int = 0

    @property
    def lost_ratio(self) -> float:
        return self.lost / (self.lost + self.requests) if self.lost else 0.0


def is_error(status: int) -> bool:
    """A failure of the service: 5xx, or no complete answer at all. A client that left is not one."""
    return status >= 500 or status == NO_ANSWER


def arms(service: Service, *, since: dt.datetime, until: dt.datetime) -> dict[int, Arm]:
    """What each release did from `since` up to `until` (exclusive, to the second): release id → Arm.

    Requests whose client left count as requests, and their time counts as one: the answer took at least that long.
    """
    latencies: dict[int, list[NDArray[np.float64]]] = {}
    statuses: dict[int, list[NDArray[np.int64]]] = {}
    rows = (
        TrafficSlice.objects.filter(service=service, second__gte=_second(since), second__lt=until)
        .exclude(release=None)
        .values_list("release_id", "latencies_ms", "statuses")
    )
    for release, times, codes in rows.iterator(chunk_size=500):
        latencies.setdefault(release, []).append(np.asarray(times, dtype=np.float64))
        statuses.setdefault(release, []).append(np.asarray(codes, dtype=np.int64))
    found = {}
    for release, parts in latencies.items():
        milliseconds, status = np.concatenate(parts), np.concatenate(statuses[release])
        errors = int(((status >= 500) | (status == NO_ANSWER)).sum())
        found[release] = Arm(milliseconds[~np.isnan(milliseconds)], errors=errors, requests=int(status.size))
    return found


def unanswered(service: Service, *, since: dt.datetime, until: dt.datetime) -> dict[int, int]:
    """Release id → requests that ended without an answer of its own: the proxy said so to the user."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT release_id, count(*) FROM improvements_trafficslice, unnest(statuses) AS status
            WHERE service_id = %s AND second >= %s AND second < %s AND status = ANY(%s) AND release_id IS NOT NULL
            GROUP BY release_id
            """,
            [service.pk, _second(since), until, [NO_ANSWER, 502, 503, 504]],
        )
        return dict(cursor.fetchall())


def totals(service: Service, *, since: dt.datetime, until: dt.datetime) -> Totals:
    """Requests sent to the service from `since` up to `until` (exclusive, to the second), and how many failed."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT count(*),
                   count(*) FILTER (WHERE status >= 500 OR status = %s),
                   count(*) FILTER (WHERE release_id IS NULL)
            FROM improvements_trafficslice, unnest(statuses) AS status
            WHERE service_id = %s AND second >= %s AND second < %s
            """,
            [NO_ANSWER, service.pk, _second(since), until],
        )
        requests, failed, unrouted = cursor.fetchone()
    noticed = TrafficSlice.objects.filter(service=service, second__gte=_second(since), second__lt=until, lost__gt=0)
    return Totals(requests, failed, unrouted, sum(noticed.values_list("lost", flat=True)))


@dataclass(frozen=True)
class Slice:
    """The requests of one release (None: of no release) in one second, as parallel tuples; NaN for no time.

    `lost`: so many more requests were missed in this second, whenever they ended.
    """

    service_id: int
    release_id: int | None
    second: int
    latencies_ms: tuple[float, ...]
    statuses: tuple[int, ...]
    methods: tuple[str, ...]
    lost: int = 0


def store(slices: Iterable[Slice], *, timeout_seconds: float = 10) -> int:
    """Write slices in one statement; all or none. Returns the number of rows. Raises the database's errors."""
    rows = [
        TrafficSlice(
            service_id=part.service_id,
            release_id=part.release_id,
            second=dt.datetime.fromtimestamp(part.second, dt.UTC),
            latencies_ms=list(part.latencies_ms),
            statuses=list(part.statuses),
            methods=list(part.methods),
            lost=part.lost,
        )
        for part in slices
    ]
    if not rows:
        return 0
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", [str(math.ceil(timeout_seconds * 1000))])
        TrafficSlice.objects.bulk_create(rows)
    return len(rows)


def prune(*, older_than: dt.datetime | None = None) -> int:
    """Delete what is older than that, or than `KEPT`. Returns the number of rows."""
    limit = timezone.now() - KEPT if older_than is None else older_than
    deleted, _ = TrafficSlice.objects.filter(second__lt=limit).delete()
    return deleted


def _second(moment: dt.datetime) -> dt.datetime:
    """The whole second that `moment` is in: rows carry the second in which their requests ended."""
    return moment.replace(microsecond=0)
