"""Samples as PostgreSQL's binary COPY writes and reads them, a whole array at a time.

All three columns have a fixed length, so that a row is a record and no value passes through Python. The format:
https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL counts microseconds from here
EPOCH_US = 946_684_800_000_000
HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = b"\xff\xff"
# The number of fields, then each field behind its length.
ROW = np.dtype(
    [
        ("fields", ">i2"),
        ("series_length", ">i4"),
        ("series", ">i8"),
        ("at_length", ">i4"),
        ("at", ">i8"),
        ("value_length", ">i4"),
        ("value", ">f8"),
    ]
)


def microseconds(at: datetime) -> int:
    """`at` in whole microseconds since 1970."""
    return (at - EPOCH) // timedelta(microseconds=1) + EPOCH_US


def moment(at_us: int) -> datetime:
    """The inverse of `microseconds`."""
    return EPOCH + timedelta(microseconds=at_us - EPOCH_US)


def pack(series: NDArray[np.int64], at_us: NDArray[np.int64] | int, value: NDArray[np.float64]) -> bytes:
    """Rows (bigint, timestamptz, float8) for COPY FROM; `at_us` are microseconds since 1970, or one for all rows."""
    rows = np.empty(len(series), ROW)
    rows["fields"] = 3
    rows["series_length"] = rows["at_length"] = rows["value_length"] = 8
    rows["series"] = series
    rows["at"] = np.asarray(at_us) - EPOCH_US
    rows["value"] = value
    return HEADER + rows.tobytes() + TRAILER


def unpack(body: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """What COPY TO wrote of (bigint, timestamptz, float8), none of them null: series, microseconds since 1970, value.

    ValueError when it is something else.
    """
    rows = np.frombuffer(body, ROW, offset=len(HEADER), count=(len(body) - len(HEADER) - len(TRAILER)) // ROW.itemsize)
    lengths = (rows["series_length"], rows["at_length"], rows["value_length"])
    if not body.startswith(HEADER[:11]) or not body.endswith(TRAILER) or any((length != 8).any() for length in lengths):
        raise ValueError("This is not a binary COPY of (bigint, timestamptz, float8) without nulls.")
    return rows["series"].astype(np.int64), rows["at"].astype(np.int64) + EPOCH_US, rows["value"].astype(np.float64)
