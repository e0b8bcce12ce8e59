"""Days that are over become blocks and rollups, and what is too old goes.

A row takes some 90 bytes, a sealed sample one to three. Each chunk of series is sealed in a transaction of its own, and
the day's rows are dropped at last, when all of them are known to be in blocks. Until then a reader finds them in both
places and takes them once, so a run that dies anywhere costs nothing but its work: the next one does it again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import numpy as np
import psycopg
from django.db import OperationalError, connection, transaction

from monitoring import blocks, partitions, reading
from monitoring.blocks import DAY_US, ROLLUP_STEPS_SECONDS, Times, Values
from monitoring.claiming import claim
from monitoring.copybinary import microseconds
from monitoring.models import Rollup, SealedAxis, SealedBlock, SealedDay

log = logging.getLogger(__name__)

# The last day stays in rows, where alerting and scoring look every round.
SEAL_AFTER = timedelta(days=1)
# Days on which anything was measured. Four weeks are promised; the week more lets a month be compared with itself.
KEEP_SAMPLES_DAYS = 35
# A quarter in steps of minutes; in hours, a year with the month before it, to compare a season with the last one.
KEEP_ROLLUPS_DAYS: Mapping[int, int] = {300: 92, 3600: 396}
DAYS_AHEAD = 2
CHUNK = 500  # series; with a sample a minute some 30 MB of rows, sealed in a second
TRIES = 5  # of 0.2 s each to get the lock for dropping a day


@dataclass(frozen=True)
class Sealed:
    """What a run did: `samples` read from rows, `days` whose rows are gone now, `forgotten` days of blocks."""

    days: list[date]
    samples: int
    forgotten: int


def run(at: datetime) -> Sealed | None:
    """Seal what is older than a day, forget what is too old, and make the partitions of the next days.

    Once an hour; None when somebody else has this hour.
    """
    if not claim("seal", at=at, interval_seconds=3600):
        return None
    today = partitions.day_of(at)
    for ahead in range(DAYS_AHEAD + 1):
        partitions.ensure(today + ahead * partitions.DAY)
    done, samples = [], 0
    for day in partitions.days():
        if partitions.midnight(day + partitions.DAY) <= at - SEAL_AFTER:
            dropped, rows = seal_day(day)
            samples += rows
            if dropped:
                done.append(day)
                log.info("Sealed %d samples of %s", rows, day)
    return Sealed(done, samples, forget_sealed())


def seal_day(day: date) -> tuple[bool, int]:
    """Whether the rows of `day` are in blocks and gone, and how many there were.

    False when some were written meanwhile, or the table was too busy to drop them: they wait for the next run.
    """
    series = _series_of(day)
    rows = sum(_seal_chunk(day, series[first : first + CHUNK]) for first in range(0, len(series), CHUNK))
    SealedDay.objects.get_or_create(day=day)
    for _ in range(TRIES):
        try:
            return partitions.drop_if_it_has(day, rows), rows
        except OperationalError as error:
            if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                raise
    log.info("The rows of %s are sealed; the table was too busy to drop them.", day)
    return False, rows


def forget_sealed() -> int:
    """Delete blocks and rollups of days beyond those that are kept. Returns how many days of blocks went.

    Whole days are counted, not the time since: a clock that jumps a year ahead must not cost the history.
    """
    days = list(SealedDay.objects.order_by("-day").values_list("day", flat=True))
    gone = days[KEEP_SAMPLES_DAYS:]
    forgotten = SealedBlock.objects.filter(day__in=gone).values("day").distinct().count() if gone else 0
    with transaction.atomic():
        if gone:
            SealedBlock.objects.filter(day__lte=gone[0])._raw_delete(using="default")
        # A day later: a reader may just have got the blocks that point to them.
        for day in gone[1:2]:
            SealedAxis.objects.filter(day__lte=day)._raw_delete(using="default")
        for step, keep in KEEP_ROLLUPS_DAYS.items():
            for day in days[keep : keep + 1]:
                Rollup.objects.filter(step_seconds=step, day__lte=day)._raw_delete(using="default")
        for day in days[max(KEEP_ROLLUPS_DAYS.values()) :][:1]:
            SealedDay.objects.filter(day__lte=day)._raw_delete(using="default")
    return forgotten


def _series_of(day: date) -> list[int]:
    """The series with rows on `day`, in order: one look into the index for each, not one for each row."""
    name = partitions.name_of(day)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH RECURSIVE found (id) AS (
                SELECT min(series_id) FROM {name}
                UNION ALL
                SELECT (SELECT min(series_id) FROM {name} WHERE series_id > found.id) FROM found WHERE id IS NOT NULL
            )
            SELECT id FROM found WHERE id IS NOT NULL
            """  # noqa: S608 (a name made of digits)
        )
        return [pk for (pk,) in cursor.fetchall()]


def _seal_chunk(day: date, series: Sequence[int]) -> int:
    """Seal the rows of `day` of these series, with what is sealed of them already. Returns how many rows there were."""
    name = partitions.name_of(day)
    day_us = microseconds(partitions.midnight(day))
    with transaction.atomic():
        with connection.cursor() as cursor:
            # Two that seal the same day would each merge with what they saw, and one would lose the other's.
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('monitoring.sealing'))")
            query = f"""
                SELECT series_id, array_send(array_agg(at)), array_send(array_agg(value)) FROM {name}
                WHERE series_id BETWEEN %(first)s AND %(last)s GROUP BY series_id
            """  # noqa: S608
        samples = reading.rows(query, {"first": series[0], "last": series[-1]})
        rows = sum(len(times) for times, _ in samples.values())
        for pk, before in reading.sealed(list(samples), day_us, day_us + DAY_US).items():
            samples[pk] = blocks.merged(before, samples[pk])
        if samples:
            _write(day, samples)
    return rows


def _write(day: date, samples: Mapping[int, tuple[Times, Values]]) -> None:
    # Those that are equal are one array: a chunk whose series were all measured together has a single one.
    distinct = {id(times): times for times, _ in samples.values()}
    axis = np.unique(np.concatenate(list(distinct.values())))
    present = {key: blocks.pack_presence(np.isin(axis, times)) for key, times in distinct.items()}
    pks = list(samples)
    day_us = microseconds(partitions.midnight(day))
    with reading.binary_cursor() as cursor:
        cursor.execute(
            "INSERT INTO monitoring_sealedaxis (day, body) VALUES (%s, %s) RETURNING id",
            [day, blocks.pack_times(axis)],
        )
        row = cursor.fetchone()
        assert row is not None
        cursor.execute(
            """
            INSERT INTO monitoring_sealedblock (series_id, day, axis_id, count, present, body)
            SELECT series_id, %s, %s, count, present, body
            FROM unnest(%s::bigint[], %s::int[], %s::bytea[], %s::bytea[]) AS new(series_id, count, present, body)
            ON CONFLICT (series_id, day) DO UPDATE
            SET axis_id = excluded.axis_id, count = excluded.count, present = excluded.present, body = excluded.body
            """,
            [
                day,
                row[0],
                pks,
                [len(times) for times, _ in samples.values()],
                [present[id(times)] for times, _ in samples.values()],
                [blocks.pack_values(values) for _, values in samples.values()],
            ],
        )
        for step in ROLLUP_STEPS_SECONDS:
            step_us = step * 1_000_000
            bodies = [
                blocks.pack_folded(blocks.fold(times, values, step_us=step_us), day_us=day_us, step_us=step_us)
                for times, values in samples.values()
            ]
            cursor.execute(
                """
                INSERT INTO monitoring_rollup (series_id, step_seconds, day, body)
                SELECT series_id, %s, %s, body FROM unnest(%s::bigint[], %s::bytea[]) AS new(series_id, body)
                ON CONFLICT (series_id, step_seconds, day) DO UPDATE SET body = excluded.body
                """,
                [step, day, pks, bodies],
            )
