"""Samples out of the database, as NumPy arrays. Readers see series and need not know how they are kept.

There are three tiers: the rows of recent days, a sealed block for each series and older day, and rollups in steps of
minutes and hours for days whose samples are gone. A gap in any of them stays a gap: nothing is filled in.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
from django.db import connection
from numpy.typing import NDArray

from monitoring import blocks, copybinary
from monitoring.blocks import DAY_US, ROLLUP_STEPS_SECONDS, Folded, Times, Values
from monitoring.copybinary import microseconds, moment
from monitoring.models import Service
from monitoring.partitions import day_of, midnight

FIND = """
    SELECT series.id, series.labels
    FROM monitoring_series series
    WHERE series.service_id = %(service)s AND series.signal = %(signal)s AND series.labels @> %(labels)s::jsonb
    ORDER BY series.labels_key
"""
# A row for each series and not for each sample: rows are what the way from PostgreSQL into arrays costs.
LIVE = """
    SELECT series_id, array_send(array_agg(at)), array_send(array_agg(value)) FROM monitoring_sample
    WHERE series_id = ANY(%(series)s::bigint[]) AND at >= %(since)s AND at < %(until)s
    GROUP BY series_id
"""
SEALED = """
    SELECT series_id, day, axis_id, present, body FROM monitoring_sealedblock
    WHERE series_id = ANY(%(series)s::bigint[]) AND day >= %(first)s AND day <= %(last)s
    ORDER BY series_id, day
"""
ROLLUPS = """
    SELECT series_id, day, body FROM monitoring_rollup
    WHERE series_id = ANY(%(series)s::bigint[]) AND step_seconds = %(step)s AND day >= %(first)s AND day <= %(last)s
    ORDER BY series_id, day
"""
# One look into each index per series, however long its history.
LATEST = """
    SELECT series.id, series.labels_key, (SELECT count(*) FROM jsonb_object_keys(series.labels)), live.at, live.value,
           (SELECT max(day) FROM monitoring_sealedblock WHERE series_id = series.id)
    FROM monitoring_series series
    LEFT JOIN LATERAL (
        SELECT at, value FROM monitoring_sample WHERE series_id = series.id ORDER BY at DESC LIMIT 1
    ) live ON true
    WHERE series.service_id = %(service)s AND series.signal = %(signal)s AND series.labels @> %(labels)s::jsonb
"""


@dataclass(frozen=True)
class SeriesArrays:
    """One series: `at` are unix seconds, rising, float64[n]; `value` is in the signal's unit, float64[n].

    `at` may be shared with other series and can't be written to.
    """

    labels: dict[str, str]
    at: NDArray[np.float64]
    value: NDArray[np.float64]


@dataclass(frozen=True)
class SeriesSteps:
    """One series in steps: `at` is the beginning of each, unix seconds; the rest over its samples, all float64[n]."""

    labels: dict[str, str]
    at: NDArray[np.float64]
    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    minimum: NDArray[np.float64]
    maximum: NDArray[np.float64]
    p50: NDArray[np.float64]
    p95: NDArray[np.float64]


@dataclass(frozen=True)
class RoundValue:
    """One sample with all that says what it is of."""

    service_id: int
    signal: str
    labels: dict[str, str]
    labels_key: str
    value: float
    at: datetime


def arrays(
    service: Service,
    signal: str,
    *,
    since: datetime,
    until: datetime,
    labels: Mapping[str, str] | None = None,
    step_seconds: int | None = None,
) -> list[SeriesArrays]:
    """Every series of `signal` that has all of `labels` and a sample in [since, until), ordered by labels.

    Samples are kept for `sealing.KEEP_SAMPLES_DAYS`. With `step_seconds` the values are the means of `steps`.
    """
    if step_seconds is not None:
        return [
            SeriesArrays(found.labels, found.at, found.mean)
            for found in steps(service, signal, since=since, until=until, step_seconds=step_seconds, labels=labels)
        ]
    found = _find(service, signal, labels or {})
    if not found:
        return []
    samples = _samples(list(found), since, until)
    return [SeriesArrays(found[pk], *samples[pk]) for pk in found if pk in samples]


def steps(
    service: Service,
    signal: str,
    *,
    since: datetime,
    until: datetime,
    step_seconds: int,
    labels: Mapping[str, str] | None = None,
) -> list[SeriesSteps]:
    """As `arrays`, in steps that begin at multiples of `step_seconds` since 1970 and overlap [since, until).

    Steps without samples are not there. Multiples of 300 and 3600 s are read from rollups, which reach further back
    than samples (`sealing.KEEP_ROLLUPS_DAYS`) and keep 12 significant bits; in a step made of several rollups,
    percentiles are the mean of theirs, weighted by count. ValueError when `step_seconds` is not positive.
    """
    if step_seconds <= 0:
        raise ValueError(f"step_seconds={step_seconds}: a step takes at least a second")
    step_us = step_seconds * 1_000_000
    since_us = microseconds(since) // step_us * step_us
    until_us = -(-microseconds(until) // step_us) * step_us
    found = _find(service, signal, labels or {})
    pks = list(found)
    tier = next((tier for tier in sorted(ROLLUP_STEPS_SECONDS, reverse=True) if step_seconds % tier == 0), None)
    if tier is None:
        samples = _samples_us(pks, since_us, until_us)
        parts = {pk: [blocks.fold(times, values, step_us=step_us)] for pk, (times, values) in samples.items()}
    else:
        parts = _folded(pks, since_us, until_us, tier)
    answer = []
    for pk, own_labels in found.items():
        if pk not in parts:
            continue
        whole = blocks.coarsened(blocks.joined(parts[pk]), step_us=step_us)
        inside = (whole.start_us >= since_us) & (whole.start_us < until_us)
        if inside.any():
            columns = {name: getattr(whole, name)[inside] for name in blocks.COLUMNS}
            answer.append(SeriesSteps(own_labels, whole.start_us[inside] / 1e6, **columns))
    return answer


def latest(service: Service, signal: str, **labels: str) -> float | None:
    """The newest value of `signal` among the series that have all of `labels`; None when there is none.

    Of equally new values it is that of the series with the fewest labels: the whole rather than a part. It may be old:
    ask `arrays` where that matters.
    """
    with connection.cursor() as cursor:
        cursor.execute(LATEST, {"service": service.pk, "signal": signal, "labels": json.dumps(labels)})
        rows = cursor.fetchall()
    candidates = [(-microseconds(at), size, key, value) for _, key, size, at, value, _ in rows if at is not None]
    newest_us = max((-at for at, *_ in candidates), default=0)
    # A day that is newer than all rows can only be seen when its series has ended; else nothing is unpacked here.
    newest_day = max((day for *_, day in rows if day is not None), default=None)
    if newest_day is not None and microseconds(midnight(newest_day)) + DAY_US > newest_us:
        described = {pk: (size, key) for pk, key, size, _, _, day in rows if day == newest_day}
        first_us = microseconds(midnight(newest_day))
        for pk, (times, values) in sealed(list(described), first_us, first_us + DAY_US).items():
            candidates.append((-int(times[-1]), *described[pk], float(values[-1])))
    return float(min(candidates)[-1]) if candidates else None


def usual(
    service: Service, signal: str, *, since: datetime, until: datetime, labels_key: str, at_least: int = 10
) -> float | None:
    """The median of one series in [since, until); None with fewer than `at_least` samples."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM monitoring_series WHERE service_id = %s AND signal = %s AND labels_key = %s",
            [service.pk, signal, labels_key],
        )
        row = cursor.fetchone()
    if row is None:
        return None
    samples = _samples(row, since, until)
    if not samples or len(samples[row[0]][1]) < at_least:
        return None
    return float(np.median(samples[row[0]][1]))


def round_values(at: datetime) -> list[RoundValue]:
    """All samples of exactly the round `at`, of every service."""
    return recent(at, at, None)


def recent(since: datetime, until: datetime, signals: Collection[str] | None) -> list[RoundValue]:
    """All samples of `signals` (None: of all) from `since` to `until`, both included, in order of time.

    For the last few rounds: it makes an object of every sample.
    """
    wanted = None if signals is None else list(signals)
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT series.id, series.service_id, series.signal, series.labels, series.labels_key, sample.value,
                   sample.at
            FROM monitoring_sample sample JOIN monitoring_series series ON series.id = sample.series_id
            WHERE sample.at BETWEEN %(since)s AND %(until)s
              AND (%(signals)s::text[] IS NULL OR series.signal = ANY(%(signals)s::text[]))
            """,
            {"since": since, "until": until, "signals": wanted},
        )
        rows = cursor.fetchall()
    found = {
        (pk, at): RoundValue(service, signal, _labels(labels), key, float(value), at)
        for pk, service, signal, labels, key, value, at in rows
    }
    known = _sealed_series(day_of(since), day_of(until), wanted)
    samples = sealed(list(known), microseconds(since), microseconds(until) + 1)
    for pk, (times, values) in samples.items():
        for at_us, value in zip(times.tolist(), values.tolist(), strict=True):
            found[pk, moment(at_us)] = RoundValue(*known[pk], float(value), moment(at_us))
    return sorted(found.values(), key=lambda one: one.at)


def _sealed_series(
    first: date, last: date, signals: list[str] | None
) -> dict[int, tuple[int, str, dict[str, str], str]]:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT DISTINCT ON (series.id) series.id, series.service_id, series.signal, series.labels, series.labels_key
            FROM monitoring_sealedblock block JOIN monitoring_series series ON series.id = block.series_id
            WHERE block.day BETWEEN %(first)s AND %(last)s
              AND (%(signals)s::text[] IS NULL OR series.signal = ANY(%(signals)s::text[]))
            """,
            {"first": first, "last": last, "signals": signals},
        )
        return {pk: (service, signal, _labels(labels), key) for pk, service, signal, labels, key in cursor.fetchall()}


def _labels(found: Any) -> dict[str, str]:
    labels: dict[str, str] = json.loads(found) if isinstance(found, str) else found
    return labels


def _find(service: Service, signal: str, labels: Mapping[str, str]) -> dict[int, dict[str, str]]:
    """Id → labels of the series of `signal` that have all of `labels`, ordered by labels."""
    with connection.cursor() as cursor:
        cursor.execute(FIND, {"service": service.pk, "signal": signal, "labels": json.dumps(dict(labels))})
        return {pk: _labels(found) for pk, found in cursor.fetchall()}


def _samples(pks: Sequence[int], since: datetime, until: datetime) -> dict[int, tuple[Values, Values]]:
    """Unix seconds and values of each series that has any in [since, until)."""
    shared: dict[int, tuple[Times, Values]] = {}

    def seconds(times: Times) -> Values:
        # Held with its result: an id is only good for as long as its array is there.
        if id(times) not in shared:
            result = times / 1e6
            result.flags.writeable = False
            shared[id(times)] = times, result
        return shared[id(times)][1]

    found = _samples_us(pks, microseconds(since), microseconds(until))
    return {pk: (seconds(times), values) for pk, (times, values) in found.items()}


def _samples_us(pks: Sequence[int], since_us: int, until_us: int) -> dict[int, tuple[Times, Values]]:
    """Of the sealed and the recent days together. Series with the same times share one array of them."""
    live = _live(pks, since_us, until_us)  # first: a day that is sealed meanwhile is seen twice, not never
    samples = sealed(pks, since_us, until_us)
    shared: dict[tuple[int, int], tuple[Times, Times, Times]] = {}
    for pk, (times, values) in live.items():
        if pk not in samples:
            samples[pk] = times, values
            continue
        before, sealed_values = samples[pk]
        if times[0] <= before[-1]:  # written late, or sealed and about to be dropped
            samples[pk] = blocks.merged((before, sealed_values), (times, values))
            continue
        key = id(before), id(times)
        if key not in shared:
            shared[key] = before, times, np.concatenate([before, times])
        samples[pk] = shared[key][2], np.concatenate([sealed_values, values])
    return samples


def _folded(pks: Sequence[int], since_us: int, until_us: int, step_seconds: int) -> dict[int, list[Folded]]:
    """Of each series the rollups of its sealed days, and its rows of other days folded alike."""
    step_us = step_seconds * 1_000_000
    live = _live(pks, since_us, until_us)  # first: a day that is sealed meanwhile is seen twice, not never
    parts: dict[int, dict[int, Folded]] = defaultdict(dict)
    for pk, day, body in _rows(ROLLUPS, pks, since_us, until_us, step=step_seconds):
        day_us = microseconds(midnight(day))
        parts[pk][day_us] = blocks.unpack_folded(body, day_us=day_us, step_us=step_us)
    for pk, (times, values) in live.items():
        for day_us in np.unique(times // DAY_US * DAY_US).tolist():
            first, end = np.searchsorted(times, [day_us, day_us + DAY_US]).tolist()
            whole = times[first:end], values[first:end]
            if day_us in parts[pk]:  # written late: its rollup does not know of these rows yet
                before = sealed([pk], day_us, day_us + DAY_US)
                whole = blocks.merged(before[pk], whole) if pk in before else whole
            parts[pk][day_us] = blocks.fold(*whole, step_us=step_us)
    return {pk: list(days.values()) for pk, days in parts.items()}


def _live(pks: Sequence[int], since_us: int, until_us: int) -> dict[int, tuple[Times, Values]]:
    return rows(LIVE, {"series": _listed(pks), "since": moment(since_us), "until": moment(until_us)})


def rows(query: str, parameters: Mapping[str, object]) -> dict[int, tuple[Times, Values]]:
    """Of each series its samples in order of time; equal times are one array.

    `query` gives the id of each series with its times and values, as LIVE does.
    """
    with connection.wrap_database_errors, binary_cursor() as cursor:
        cursor.execute(query.encode(), parameters)
        found = cursor.fetchall()
    same: dict[bytes, Times] = {}
    samples = {}
    for pk, at, value in found:
        times, values = copybinary.unpack_times(at), copybinary.unpack_values(value)
        if (np.diff(times) < 0).any():  # written late, or in the order of an index
            order = np.argsort(times)
            times, values = times[order], values[order]
        samples[pk] = same.setdefault(times.tobytes(), times), values
    return samples


def sealed(pks: Sequence[int], since_us: int, until_us: int) -> dict[int, tuple[Times, Values]]:
    """Of each series with sealed samples in [since, until): their times (microseconds since 1970) and values."""
    if not pks:
        return {}
    rows = _rows(SEALED, pks, since_us, until_us)
    axes = _axes({axis for _, _, axis, _, _ in rows})
    kept: dict[int, list[tuple[tuple[int, bytes], bytes]]] = defaultdict(list)
    for pk, _, axis, present, body in rows:
        kept[pk].append(((axis, present), body))
    # Most series have every point of the same axes: their times are put together once.
    shared: dict[tuple[tuple[int, bytes], ...], tuple[Times, slice]] = {}
    found = {}
    for pk, days in kept.items():
        key = tuple(place for place, _ in days)
        if key not in shared:
            shared[key] = _times(key, axes, since_us, until_us)
        times, inside = shared[key]
        if len(times):
            values = np.concatenate([blocks.unpack_values(body) for _, body in days], dtype=np.float64)
            found[pk] = times, values[inside]
    return found


def _times(
    places: Iterable[tuple[int, bytes]], axes: Mapping[int, Times], since_us: int, until_us: int
) -> tuple[Times, slice]:
    times = np.concatenate([axes[axis][blocks.unpack_presence(present, len(axes[axis]))] for axis, present in places])
    first, end = np.searchsorted(times, [since_us, until_us]).tolist()
    return times[first:end], slice(first, end)


def _axes(pks: Collection[int]) -> dict[int, Times]:
    if not pks:
        return {}
    with binary_cursor() as cursor:
        cursor.execute("SELECT id, body FROM monitoring_sealedaxis WHERE id = ANY(%s::bigint[])", [_listed(pks)])
        return {pk: blocks.unpack_times(body) for pk, body in cursor.fetchall()}


def _rows(query: str, pks: Sequence[int], since_us: int, until_us: int, **more: int) -> list[tuple[Any, ...]]:
    parameters = {
        "series": _listed(pks),
        "first": day_of(moment(since_us)),
        "last": day_of(moment(until_us) - timedelta(microseconds=1)),
        **more,
    }
    with binary_cursor() as cursor:
        cursor.execute(query.encode(), parameters)
        return cursor.fetchall()


def binary_cursor() -> psycopg.Cursor[tuple[Any, ...]]:
    """A cursor that gets its answers as bytes: Django's own would get every block as hexadecimal text."""
    connection.ensure_connection()
    cursor: psycopg.Cursor[tuple[Any, ...]] = psycopg.Cursor(connection.connection)
    cursor.format = psycopg.pq.Format.BINARY
    return cursor


def _listed(pks: Iterable[int]) -> str:
    return "{" + ",".join(map(str, pks)) + "}"
