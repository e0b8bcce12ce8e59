"""Samples into the database, and what hangs on them out of it when it is old. `monitoring.sealing` takes it on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
from django.db import IntegrityError, connection, transaction
from django.db.models import Q
from numpy.typing import NDArray

from monitoring import copybinary, partitions
from monitoring.blocks import DAY_US
from monitoring.claiming import claim
from monitoring.derive import Reading
from monitoring.models import HealthScore, Service, Target, labels_key
from monitoring.prometheus import Labels

KEEP_SCORES_DAYS = 30
KEEP_TARGETS_DAYS = 30  # of those that are no longer scraped
MOST_CACHED = 500_000  # series; some 100 MB

Key = tuple[int, str, Labels]

# The ids of committed series. A series may be forgotten by another process: `store` asks whether they are still there.
_known: dict[Key, int] = {}


def store(rows: Sequence[tuple[Service, Reading]], *, at: datetime) -> int:
    """Write one sample per reading, all or none; a reading that is stored already stays. Returns how many were new.

    What isn't finite is left out. On a day that is sealed already, a reading counts as new and is told from what was
    there when the day is sealed again.
    """
    value = np.fromiter((reading.value for _, reading in rows), np.float64, len(rows))
    finite = np.isfinite(value)
    if not finite.all():
        rows, value = [row for row, kept in zip(rows, finite.tolist(), strict=True) if kept], value[finite]
    if not rows:
        return 0
    keys = [(service.id, reading.signal, reading.labels) for service, reading in rows]
    times = np.full(len(rows), copybinary.microseconds(at))
    return _write(keys, slice(None), times, value, [partitions.day_of(at)])


def store_past(service: Service, found: Iterable[tuple[datetime, Sequence[Reading]]]) -> int:
    """Write what `service` measured at several times, all or none; what is stored already stays.

    Returns how many were new, as `store` counts them.
    """
    rows = [
        (copybinary.microseconds(at), reading) for at, part in found for reading in part if math.isfinite(reading.value)
    ]
    if not rows:
        return 0
    times = np.fromiter((at_us for at_us, _ in rows), np.int64, len(rows))
    value = np.fromiter((reading.value for _, reading in rows), np.float64, len(rows))
    keys: dict[Key, int] = {}
    places = [keys.setdefault((service.id, reading.signal, reading.labels), len(keys)) for _, reading in rows]
    days = [partitions.day_of(copybinary.moment(day_us)) for day_us in np.unique(times // DAY_US * DAY_US).tolist()]
    return _write(list(keys), np.array(places, np.intp), times, value, days)


def _write(
    keys: Sequence[Key],
    places: NDArray[np.intp] | slice,
    at_us: NDArray[np.int64],
    value: NDArray[np.float64],
    days: Iterable[date],
) -> int:
    """One sample per place[n] in `keys`, at_us[n] (microseconds since 1970) and value[n], all or none."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            # From here on no series is forgotten and no day is dropped until this is committed.
            cursor.execute("LOCK TABLE monitoring_series, ONLY monitoring_sample IN ROW EXCLUSIVE MODE")
        for day in days:
            partitions.ensure(day)
        series = _series_ids(keys)[places]
        # In one order for everybody: two that store the same round must not wait for each other in a circle.
        order = np.lexsort((at_us, series))
        series, at_us, value = series[order], at_us[order], value[order]
        try:
            # Django knows nothing of COPY: without the second its errors would be psycopg's own.
            with transaction.atomic(), connection.wrap_database_errors, connection.cursor() as cursor:
                with cursor.copy("COPY monitoring_sample (series_id, at, value) FROM STDIN (FORMAT BINARY)") as copy:
                    copy.write(copybinary.pack(series, at_us, value))
                return int(cursor.rowcount)
        except IntegrityError:  # part of the round is there: COPY is all or nothing
            return _add_missing(series, at_us, value)


def _add_missing(series: NDArray[np.int64], at_us: NDArray[np.int64], value: NDArray[np.float64]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO monitoring_sample (series_id, at, value)
            SELECT series_id, timestamptz 'epoch' + at_us * interval '1 microsecond', value
            FROM unnest(%s::bigint[], %s::bigint[], %s::float8[]) AS wanted(series_id, at_us, value)
            ON CONFLICT DO NOTHING
            """,
            [series.tolist(), at_us.tolist(), value.tolist()],
        )
        return int(cursor.rowcount)


def _series_ids(keys: Sequence[Key]) -> NDArray[np.int64]:
    """The id of each series, int64[n]; those that are new are inserted."""
    try:
        found = np.fromiter(map(_known.__getitem__, keys), np.int64, len(keys))
    except KeyError:
        return _looked_up(keys)
    wanted = set(found.tolist())
    with connection.cursor() as cursor:
        # As text: a list of 50,000 numbers would take longer to adapt than to look up.
        listed = "{" + ",".join(map(str, wanted)) + "}"
        cursor.execute("SELECT count(*) FROM monitoring_series WHERE id = ANY(%s::bigint[])", [listed])
        there = cursor.fetchone()[0]
    if there == len(wanted):
        return found
    _known.clear()
    return _looked_up(keys)


def _looked_up(keys: Sequence[Key]) -> NDArray[np.int64]:
    rows = [(service, signal, labels_key(dict(labels))) for service, signal, labels in keys]
    found = _select(rows)
    missing = [row for row, pk in zip(rows, found, strict=True) if pk is None]
    if missing:
        with connection.cursor() as cursor:
            # In one order for everybody, as the samples.
            cursor.execute(
                """
                INSERT INTO monitoring_series (service_id, signal, labels_key, labels)
                SELECT wanted.service_id, wanted.signal, wanted.labels_key, wanted.labels_key::jsonb
                FROM unnest(%s::bigint[], %s::text[], %s::text[]) AS wanted(service_id, signal, labels_key)
                ORDER BY wanted.service_id, wanted.signal, wanted.labels_key
                ON CONFLICT DO NOTHING
                """,
                _columns(missing),
            )
        inserted = iter(_select(missing))
        found = [next(inserted) if pk is None else pk for pk in found]
    ids = [pk for pk in found if pk is not None]

    def remember() -> None:
        if len(_known) + len(keys) > MOST_CACHED:
            _known.clear()
        _known.update(zip(keys, ids, strict=True))

    # Not before: a transaction that is rolled back takes its series along.
    transaction.on_commit(remember)
    return np.array(ids, np.int64)


def _select(rows: Sequence[tuple[int, str, str]]) -> list[int | None]:
    """The ids of (service, signal, labels key), in that order; None for what is not there."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT series.id
            FROM unnest(%s::bigint[], %s::text[], %s::text[])
                 WITH ORDINALITY AS wanted(service_id, signal, labels_key, place)
            LEFT JOIN monitoring_series series USING (service_id, signal, labels_key)
            ORDER BY place
            """,
            _columns(rows),
        )
        return [pk for (pk,) in cursor.fetchall()]


def _columns(rows: Sequence[tuple[int, str, str]]) -> list[Any]:
    return [list(column) for column in zip(*rows, strict=True)]


def forget_old(at: datetime) -> int:
    """Delete what hangs on samples and is too old to be asked for, at most once an hour. How many series went.

    Samples go in whole days: see `monitoring.sealing`.
    """
    if not claim("forget", at=at, interval_seconds=3600):
        return 0
    # Not the ORM's delete: it would first read every row to look for what hangs on it, and nothing does.
    HealthScore.objects.filter(at__lt=at - timedelta(days=KEEP_SCORES_DAYS))._raw_delete(using="default")
    gone = _forget_empty_series()
    with transaction.atomic():
        # Locked first: a release that is started again right now must not lose the target it has just got back.
        old = Target.objects.select_for_update().filter(
            Q(last_scraped_at=None) | Q(last_scraped_at__lt=at - timedelta(days=KEEP_TARGETS_DAYS)), active=False
        )
        Target.objects.filter(pk__in=[target.pk for target in old]).delete()
    return gone


# Scalar subqueries are one look into each index per series; NOT EXISTS may read all samples instead.
EMPTY = """
    (SELECT series_id FROM monitoring_sample WHERE series_id = series.id LIMIT 1) IS NULL
    AND (SELECT series_id FROM monitoring_sealedblock WHERE series_id = series.id LIMIT 1) IS NULL
    AND (SELECT series_id FROM monitoring_rollup WHERE series_id = series.id LIMIT 1) IS NULL
"""


def _forget_empty_series() -> int:
    """Delete the series without samples in any tier: each release leaves its own behind."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id FROM monitoring_series series WHERE {EMPTY}")  # noqa: S608 (a constant)
        empty = [pk for (pk,) in cursor.fetchall()]
    if not empty:
        return 0
    with transaction.atomic(), connection.cursor() as cursor:
        # `store` looks a series up before it writes the sample; this lock lets it do both before or after. Only those
        # found above are looked at again, so it is held for an instant.
        cursor.execute("LOCK TABLE monitoring_series IN SHARE ROW EXCLUSIVE MODE")
        cursor.execute(f"DELETE FROM monitoring_series series WHERE id = ANY(%s) AND {EMPTY}", [empty])  # noqa: S608
        return int(cursor.rowcount)
