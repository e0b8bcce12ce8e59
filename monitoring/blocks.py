"""Sealed samples: how a series' day becomes a few bytes per sample, and how it is folded into steps.

Values go through `pcodec`. What has no more than the 24 significant bits of a float32, and whole numbers of any size,
come back exactly; any other series is rounded to 20 bits (a relative error of at most one in a million, far below what
a latency or a ratio is measured to), because the bits after them are noise that no codec can make smaller.

The times of a round are shared by all of its series, so they are kept once as an *axis*; a series only says which
points of the axis it has. Times are whole microseconds since 1970.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

DAY_US = 86_400_000_000
ROLLUP_STEPS_SECONDS = (300, 3600)
# A noisy day then fits into two of PostgreSQL's out-of-line pieces of 2 kB; with 24 bits it takes three.
VALUE_BITS = 20
# Of the numbers of a step: to one part in 8,000, finer than a line on a chart. Counts up to 4,096 stay exact.
ROLLUP_BITS = 12
LEVEL = 4  # of pcodec's 12: as small as the default to within 1 %, in a third of the time

Times = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Folded:
    """A series in steps. `start_us` int64[n] rises: where each step begins. Steps without samples are not there.

    The others are float64[n] over the samples of the step; percentiles are interpolated between samples.
    """

    start_us: Times
    count: Values
    mean: Values
    minimum: Values
    maximum: Values
    p50: Values
    p95: Values


COLUMNS = tuple(field.name for field in fields(Folded) if field.name != "start_us")


def pack_values(values: Values) -> bytes:
    """Finite `values` float64[n], n ≥ 1, compressed."""
    short = narrowed(values)
    return _compress(short if np.array_equal(short, values) else rounded(short, bits=VALUE_BITS))


def unpack_values(body: bytes) -> NDArray[Any]:
    """The values of `pack_values` as float32[n] or float64[n], whichever they were kept as."""
    return _decompress(body)


def narrowed(values: Values) -> NDArray[Any]:
    """As float32, or as they are where that would lose digits of a whole number, overflow, or lose a small value."""
    with np.errstate(over="ignore", under="ignore"):
        short = values.astype(np.float32)
    if np.array_equal(short, values):
        return short
    size = np.abs(values[values != 0])
    # Below 1.2e-38 a float32 has fewer than 24 bits.
    if size.max() > np.finfo(np.float32).max or size.min() < np.finfo(np.float32).tiny:
        return values
    return values if np.array_equal(values, np.rint(values)) else short


def rounded(values: NDArray[Any], *, bits: int) -> NDArray[Any]:
    """float32[n] to `bits` significant bits, a relative error of at most 2^-bits; float64[n] as it is."""
    if values.dtype != np.float32:
        return values
    # The integer behind a float rises with its size, so rounding the one rounds the other, carry included.
    unit = np.uint32(1 << (24 - bits))
    return ((values.view(np.uint32) + unit // 2) // unit * unit).view(np.float32)


def pack_times(at_us: Times) -> bytes:
    """Rising times int64[n], n ≥ 1, compressed."""
    return _compress(np.asarray(at_us, np.int64))


def unpack_times(body: bytes) -> Times:
    return _decompress(body)


def pack_presence(present: NDArray[np.bool_]) -> bytes:
    """Which points of its axis a series has; all of them take nothing."""
    return b"" if present.all() else zlib.compress(np.packbits(present).tobytes(), 9)


def unpack_presence(body: bytes, points: int) -> NDArray[np.bool_]:
    """bool[points]."""
    if not body:
        return np.ones(points, bool)
    return np.unpackbits(np.frombuffer(zlib.decompress(body), np.uint8), count=points).astype(bool)


def merged(first: tuple[Times, Values], second: tuple[Times, Values]) -> tuple[Times, Values]:
    """Both in order of time; where both have a sample at one time, that of `first` stays."""
    at, value = np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])
    at, kept = np.unique(at, return_index=True)  # the index of the first of equals
    return at, value[kept]


def fold(at_us: Times, values: Values, *, step_us: int) -> Folded:
    """Samples in order of time in steps of `step_us`, which begin at multiples of it since 1970."""
    start = at_us // step_us * step_us
    # By value inside each step: the percentiles are then at known places.
    order = np.lexsort((values, start))
    values = values[order]
    starts, first, count = np.unique(start, return_index=True, return_counts=True)
    if not len(starts):
        nothing = np.empty(0)
        return Folded(starts, nothing, nothing, nothing, nothing, nothing, nothing)
    return Folded(
        start_us=starts,
        count=count.astype(np.float64),
        mean=np.add.reduceat(values, first) / count,
        minimum=values[first],
        maximum=values[first + count - 1],
        p50=_percentile(values, first, count, 0.5),
        p95=_percentile(values, first, count, 0.95),
    )


def _percentile(values: Values, first: NDArray[np.intp], count: NDArray[np.intp], share: float) -> Values:
    place = (count - 1) * share
    below = np.floor(place).astype(np.intp)
    above = np.minimum(below + 1, count - 1)
    low, high = values[first + below], values[first + above]
    between: Values = low + (high - low) * (place - below)
    return between


def pack_folded(folded: Folded, *, day_us: int, step_us: int) -> bytes:
    """The steps of one day that begins at `day_us`; at least one."""
    present = np.zeros(DAY_US // step_us, bool)
    present[(folded.start_us - day_us) // step_us] = True
    columns = rounded(narrowed(np.concatenate([getattr(folded, name) for name in COLUMNS])), bits=ROLLUP_BITS)
    return np.packbits(present).tobytes() + _compress(columns)


def unpack_folded(body: bytes, *, day_us: int, step_us: int) -> Folded:
    """The inverse of `pack_folded`, with values of ROLLUP_BITS significant bits."""
    steps = DAY_US // step_us
    length = -(-steps // 8)
    present = np.unpackbits(np.frombuffer(body[:length], np.uint8), count=steps)
    columns = _decompress(body[length:]).astype(np.float64).reshape(len(COLUMNS), -1)
    return Folded(day_us + np.flatnonzero(present) * step_us, *columns)


def joined(parts: list[Folded]) -> Folded:
    """Several stretches without overlap, in any order, as one in order of time."""
    whole = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Folded)}
    order = np.argsort(whole["start_us"], kind="stable")
    return Folded(**{name: column[order] for name, column in whole.items()})


def coarsened(folded: Folded, *, step_us: int) -> Folded:
    """The same in steps of `step_us`, a multiple of what it has. Percentiles become means weighted by count."""
    start = folded.start_us // step_us * step_us
    starts, first = np.unique(start, return_index=True)
    if len(starts) == len(start):
        return Folded(starts, *(getattr(folded, name) for name in COLUMNS))
    count = np.add.reduceat(folded.count, first)
    mean, p50, p95 = (
        np.add.reduceat(column * folded.count, first) / count for column in (folded.mean, folded.p50, folded.p95)
    )
    return Folded(
        start_us=starts,
        count=count,
        mean=mean,
        minimum=np.minimum.reduceat(folded.minimum, first),
        maximum=np.maximum.reduceat(folded.maximum, first),
        p50=p50,
        p95=p95,
    )


def _compress(numbers: NDArray[Any]) -> bytes:
    from pcodec import ChunkConfig, standalone

    return bytes(standalone.simple_compress(numbers, ChunkConfig(compression_level=LEVEL)))


def _decompress(body: bytes) -> NDArray[Any]:
    from pcodec import standalone

    found: NDArray[Any] = standalone.simple_decompress(body)
    return found
