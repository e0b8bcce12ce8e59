"""Samples out of the database, as NumPy arrays. Readers see series and need not know how they are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from django.db import connection
from numpy.typing import NDArray

from monitoring.models import Service

ARRAYS = """
    SELECT series.id, series.labels, array_agg(extract(epoch FROM sample.at)::float8 ORDER BY sample.at),
           array_agg(sample.value ORDER BY sample.at)
    FROM monitoring_series series JOIN monitoring_sample sample ON sample.series_id = series.id
    WHERE series.service_id = %(service)s AND series.signal = %(signal)s AND series.labels @> %(labels)s::jsonb
      AND sample.at >= %(since)s AND sample.at < %(until)s
    GROUP BY series.id ORDER BY series.labels_key
"""
# One look into the index per series, however long its history.
LATEST = """
    SELECT newest.value
    FROM monitoring_series series
    CROSS JOIN LATERAL (
        SELECT at, value FROM monitoring_sample WHERE series_id = series.id ORDER BY at DESC LIMIT 1
    ) newest
    WHERE series.service_id = %(service)s AND series.signal = %(signal)s AND series.labels @> %(labels)s::jsonb
    ORDER BY newest.at DESC, (SELECT count(*) FROM jsonb_object_keys(series.labels)), series.labels_key LIMIT 1
"""


@dataclass(frozen=True)
class SeriesArrays:
    """One series: `at` are unix seconds, rising, float64[n]; `value` is in the signal's unit, float64[n]."""

    labels: dict[str, str]
    at: NDArray[np.float64]
    value: NDArray[np.float64]


def arrays(
    service: Service, signal: str, *, since: datetime, until: datetime, labels: Mapping[str, str] | None = None
) -> list[SeriesArrays]:
    """Every series of `signal` that has all of `labels` and a sample in [since, until), ordered by labels."""
    parameters: dict[str, Any] = {
        "service": service.pk,
        "signal": signal,
        "labels": json.dumps(dict(labels or {})),
        "since": since,
        "until": until,
    }
    with connection.cursor() as cursor:
        cursor.execute(ARRAYS, parameters)
        rows = cursor.fetchall()
    return [
        SeriesArrays(
            json.loads(found) if isinstance(found, str) else found, np.array(at, float), np.array(value, float)
        )
        for _, found, at, value in rows
    ]


@dataclass(frozen=True)
class RoundValue:
    """One sample of one round, with whose it is."""

    service_id: int
    signal: str
    labels: dict[str, str]
    labels_key: str
    value: float
    at: datetime


def round_values(at: datetime) -> list[RoundValue]:
    """All samples of exactly the round `at`, of every service."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT series.service_id, series.signal, series.labels, series.labels_key, sample.value
            FROM monitoring_sample sample JOIN monitoring_series series ON series.id = sample.series_id
            WHERE sample.at = %s ORDER BY series.id
            """,
            [at],
        )
        rows = cursor.fetchall()
    return [
        RoundValue(service, signal, json.loads(labels) if isinstance(labels, str) else labels, key, float(value), at)
        for service, signal, labels, key, value in rows
    ]


def latest(service: Service, signal: str, **labels: str) -> float | None:
    """The newest value of `signal` among the series that have all of `labels`; None when there is none.

    Of equally new values it is that of the series with the fewest labels: the whole rather than a part. It may be old:
    ask `arrays` where that matters.
    """
    with connection.cursor() as cursor:
        cursor.execute(LATEST, {"service": service.pk, "signal": signal, "labels": json.dumps(labels)})
        row = cursor.fetchone()
    return float(row[0]) if row else None


def usual(
    service: Service, signal: str, *, since: datetime, until: datetime, labels_key: str, at_least: int = 10
) -> float | None:
    """The median of one series in [since, until); None with fewer than `at_least` samples."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY sample.value)
            FROM monitoring_sample sample JOIN monitoring_series series ON series.id = sample.series_id
            WHERE series.service_id = %s AND series.signal = %s AND series.labels_key = %s
              AND sample.at >= %s AND sample.at < %s
            """,
            [service.pk, signal, labels_key, since, until],
        )
        count, median = cursor.fetchone()
    return float(median) if count >= at_least else None
