"""Samples as PostgreSQL's binary COPY reads them and as its arrays come back, a whole array at a time.

Numbers have a fixed length, so that a row or an element is a record and no value passes through Python. The formats:
https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY and array_send in
https://github.com/postgres/postgres/blob/master/src/backend/utils/adt/arrayfuncs.c
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL counts microseconds from here
EPOCH_US = 946_684_800_000_000
HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = b"\xff\xff"
FLOAT8, TIMESTAMPTZ = 701, 1184  # their oids in pg_type
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


def unpack_times(body: bytes) -> NDArray[np.int64]:
    """What array_send wrote of timestamptz[n] without nulls, as microseconds since 1970. ValueError: something else."""
    return _elements(body, ">i8", TIMESTAMPTZ).astype(np.int64) + EPOCH_US


def unpack_values(body: bytes) -> NDArray[np.float64]:
    """What array_send wrote of float8[n] without nulls. ValueError when it is something else."""
    return _elements(body, ">f8", FLOAT8).astype(np.float64)


def _elements(body: bytes, kind: str, oid: int) -> NDArray[Any]:
    dimensions, nulls, element = np.frombuffer(body, ">i4", count=3).tolist()
    if (dimensions, nulls, element) != (1, 0, oid):
        raise ValueError(f"This is no array in one dimension, without nulls, of the type {oid}.")
    rows = np.frombuffer(body, np.dtype([("length", ">i4"), ("value", kind)]), offset=20)
    if (rows["length"] != 8).any() or len(rows) != int.from_bytes(body[12:16]):
        raise ValueError("The elements of this array are not 8 bytes each.")
    return rows["value"]
