"""Samples into the database, and out of it when they are old."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Q

from monitoring.claiming import claim
from monitoring.derive import Reading
from monitoring.models import HealthScore, Sample, Service, Target, labels_key

KEEP_DAYS = 14  # samples
KEEP_SCORES_DAYS = 30
KEEP_TARGETS_DAYS = 30  # of those that are no longer scraped


def store(rows: Sequence[tuple[Service, Reading]], *, at: datetime) -> int:
    """Write one sample per reading; a reading that is stored already stays. Returns how many were new."""
    rows = [(service, reading) for service, reading in rows if math.isfinite(reading.value)]
    columns: list[list[Any]] = [
        [service.pk for service, _ in rows],
        [reading.signal for _, reading in rows],
        [labels_key(dict(reading.labels)) for _, reading in rows],
    ]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO monitoring_series (service_id, signal, labels_key, labels)
            SELECT service_id, signal, labels_key, labels_key::jsonb
            FROM unnest(%s::bigint[], %s::text[], %s::text[]) AS wanted(service_id, signal, labels_key)
            WHERE NOT EXISTS (
                SELECT FROM monitoring_series known
                WHERE (known.service_id, known.signal, known.labels_key)
                    = (wanted.service_id, wanted.signal, wanted.labels_key)
            )
            ON CONFLICT DO NOTHING
            """,
            columns,
        )
        cursor.execute(
            """
            INSERT INTO monitoring_sample (series_id, at, value)
            SELECT series.id, %s, wanted.value
            FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::float8[])
                 AS wanted(service_id, signal, labels_key, value)
            JOIN monitoring_series series USING (service_id, signal, labels_key)
            ON CONFLICT DO NOTHING
            """,
            [at, *columns, [reading.value for _, reading in rows]],
        )
        return int(cursor.rowcount)


def forget_old(at: datetime) -> int:
    """Delete what is too old to be asked for, at most once an hour. Returns how many samples went."""
    if not claim("forget", at=at, interval_seconds=3600):
        return 0
    # Not the ORM's delete: it would first read every row to look for what hangs on it, and nothing does.
    gone = int(Sample.objects.filter(at__lt=at - timedelta(days=KEEP_DAYS))._raw_delete(using="default"))
    HealthScore.objects.filter(at__lt=at - timedelta(days=KEEP_SCORES_DAYS))._raw_delete(using="default")
    _forget_empty_series()
    with transaction.atomic():
        # Locked first: a release that is started again right now must not lose the target it has just got back.
        old = Target.objects.select_for_update().filter(
            Q(last_scraped_at=None) | Q(last_scraped_at__lt=at - timedelta(days=KEEP_TARGETS_DAYS)), active=False
        )
        Target.objects.filter(pk__in=[target.pk for target in old]).delete()
    return gone


def _forget_empty_series() -> None:
    """Delete the series without samples: each release leaves its own behind."""
    with transaction.atomic(), connection.cursor() as cursor:
        # `store` looks a series up before it writes the sample; this lock lets it do both before or after.
        cursor.execute("LOCK TABLE monitoring_series IN SHARE ROW EXCLUSIVE MODE")
        # A scalar subquery is one look into the index per series; NOT EXISTS may read all samples instead.
        cursor.execute(
            """
            DELETE FROM monitoring_series series
            WHERE (SELECT id FROM monitoring_sample WHERE series_id = series.id LIMIT 1) IS NULL
            """
        )
