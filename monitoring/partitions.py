"""The days of the samples' table: each is a partition, made before it is needed and dropped whole."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

# Whoever waits for the table's exclusive lock makes all others wait behind it, so nobody does so for longer.
LOCK_TIMEOUT = "200ms"
DAY = timedelta(days=1)


def day_of(at: datetime) -> date:
    """The day in UTC."""
    return at.astimezone(UTC).date()


def midnight(day: date) -> datetime:
    """When `day` begins."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def name_of(day: date) -> str:
    return f"monitoring_sample_{day:%Y%m%d}"


def days() -> list[date]:
    """The days that have a partition, the oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'monitoring_sample'::regclass"
        )
        names = [name for (name,) in cursor.fetchall()]
    return sorted(datetime.strptime(name[-8:], "%Y%m%d").replace(tzinfo=UTC).date() for name in names)


def ensure(day: date) -> None:
    """Make the partition of `day` unless it is there. It blocks neither readers nor writers of other days."""
    name = name_of(day)
    with transaction.atomic(), connection.cursor() as cursor:
        if _is_there(cursor, name):
            return
        # One after the other: two that make the same table at once would both fail to see it.
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('monitoring.partitions'))")
        if _is_there(cursor, name):
            return
        # CREATE … PARTITION OF would wait for every reader of the whole table; ATTACH does not.
        cursor.execute(f"CREATE TABLE {name} (LIKE monitoring_sample INCLUDING ALL)")
        cursor.execute(
            f"ALTER TABLE monitoring_sample ATTACH PARTITION {name} FOR VALUES FROM (%s) TO (%s)",
            [midnight(day), midnight(day + DAY)],
        )


def _is_there(cursor: CursorWrapper, name: str) -> bool:
    # Not to_regclass(): within a transaction it remembers that there was no such table, and waiting for a lock that is
    # not a table's does not make it look again. A query reads what is committed when it begins.
    cursor.execute(
        "SELECT 1 FROM pg_class WHERE relname = %s AND relnamespace ="
        " (SELECT relnamespace FROM pg_class WHERE oid = 'monitoring_sample'::regclass)",
        [name],
    )
    return cursor.fetchone() is not None


def drop_if_it_has(day: date, rows: int) -> bool:
    """Drop the partition of `day` if it holds exactly `rows` rows; False when somebody has added some meanwhile.

    Raises OperationalError (lock timeout) when the table is too busy right now.
    """
    name = name_of(day)
    with transaction.atomic(), connection.cursor() as cursor:
        # Writers of this day wait, and those of other days don't, while it is counted.
        cursor.execute(f"LOCK TABLE ONLY {name} IN SHARE MODE")
        cursor.execute(f"SELECT count(*) FROM {name}")  # noqa: S608 (a name made of digits)
        if cursor.fetchone()[0] != rows:
            return False
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", [LOCK_TIMEOUT])
        cursor.execute(f"DROP TABLE {name}")
    return True
