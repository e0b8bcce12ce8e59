"""Sealed days and binary arrays, against their definitions."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import numpy as np
import pytest

from monitoring import blocks, copybinary

RNG = np.random.default_rng(7)
DAY_US = copybinary.microseconds(datetime(2026, 3, 2, tzinfo=UTC))
MINUTES = DAY_US + np.arange(1440) * 60_000_000


@pytest.mark.parametrize(
    ("values", "relative"),
    [
        (np.array([0.0]), 0),
        (np.array([-1.5, 0.0, 0.25]), 0),
        (np.array([2.0**53, 1.0, -(2.0**40) - 1]), 0),  # whole numbers of any size
        (np.array([1e300, 0.1]), 0),  # too large for a float32
        (np.array([1e-300, 0.1]), 0),  # too small
        (RNG.lognormal(3, 1, 1440), 1e-6),
        (np.full(1440, 0.1), 1e-6),
    ],
)
def test_values_come_back_exactly_or_to_20_bits(values: np.ndarray, relative: float) -> None:
    found = blocks.unpack_values(blocks.pack_values(values)).astype(float)
    np.testing.assert_allclose(found, values, rtol=relative, atol=0)


def test_a_day_of_noise_takes_less_than_three_bytes_a_sample_and_its_times_two() -> None:
    assert len(blocks.pack_values(50 * np.exp(RNG.normal(0, 0.15, 1440)))) < 2.75 * 1440
    jittered = MINUTES + RNG.integers(0, 20_000, 1440)
    np.testing.assert_array_equal(blocks.unpack_times(blocks.pack_times(jittered)), jittered)
    assert len(blocks.pack_times(jittered)) < 2.5 * 1440


@pytest.mark.parametrize("present", [np.ones(5, bool), np.array([1, 0, 1, 1, 0, 0, 0, 0, 1], bool), np.zeros(3, bool)])
def test_presence_comes_back(present: np.ndarray) -> None:
    body = blocks.pack_presence(present)
    np.testing.assert_array_equal(blocks.unpack_presence(body, len(present)), present)
    assert bool(body) != present.all()


def test_of_two_samples_at_one_time_the_first_stays() -> None:
    at, value = blocks.merged(
        (np.array([1, 3]), np.array([1.0, 3.0])), (np.array([0, 3, 4]), np.array([0.0, 9.0, 4.0]))
    )
    assert at.tolist() == [0, 1, 3, 4]
    assert value.tolist() == [0.0, 1.0, 3.0, 4.0]


@pytest.mark.parametrize("minutes", [1, 5, 60, 1440])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.002])
def test_folds_as_defined(minutes: int, share: float) -> None:
    kept = RNG.random(1440) < share
    kept[100] = True
    at, values = MINUTES[kept], RNG.lognormal(3, 1, kept.sum())
    step_us = minutes * 60_000_000
    folded = blocks.fold(at, values, step_us=step_us)
    groups = {
        start: values[at // step_us * step_us == start] for start in sorted(set((at // step_us * step_us).tolist()))
    }
    assert folded.start_us.tolist() == list(groups)
    for name, define in {
        "count": len,
        "mean": np.mean,
        "minimum": np.min,
        "maximum": np.max,
        "p50": lambda group: np.percentile(group, 50),
        "p95": lambda group: np.percentile(group, 95),
    }.items():
        np.testing.assert_allclose(getattr(folded, name), [define(group) for group in groups.values()], err_msg=name)
    if minutes in (5, 60):
        body = blocks.pack_folded(folded, day_us=DAY_US, step_us=step_us)
        again = blocks.unpack_folded(body, day_us=DAY_US, step_us=step_us)
        np.testing.assert_array_equal(again.start_us, folded.start_us)
        np.testing.assert_allclose(again.p95, folded.p95, rtol=2.0**-blocks.ROLLUP_BITS)
        np.testing.assert_array_equal(again.count, folded.count)


def test_coarser_steps_keep_count_mean_and_extremes() -> None:
    values = RNG.lognormal(3, 1, 1440)
    fine = blocks.fold(MINUTES, values, step_us=300_000_000)
    backwards = blocks.joined(
        [
            blocks.fold(MINUTES[720:], values[720:], step_us=300_000_000),
            blocks.fold(MINUTES[:720], values[:720], step_us=300_000_000),
        ]
    )
    np.testing.assert_array_equal(backwards.p95, fine.p95)
    coarse, defined = (
        blocks.coarsened(fine, step_us=7_200_000_000),
        blocks.fold(MINUTES, values, step_us=7_200_000_000),
    )
    for name in ("start_us", "count", "mean", "minimum", "maximum"):
        np.testing.assert_allclose(getattr(coarse, name), getattr(defined, name), err_msg=name)


def sent(oid: int, values: list[bytes], *, nulls: int = 0) -> bytes:
    """An array as array_send writes it: dimensions, nulls, element type, length, lower bound; then the elements."""
    return struct.pack(">5i", 1, nulls, oid, len(values), 1) + b"".join(struct.pack(">i", len(v)) + v for v in values)


def test_arrays_come_from_the_database_to_the_microsecond() -> None:
    at = datetime(2026, 3, 2, 12, 0, 0, 123_457, tzinfo=UTC)
    at_us = copybinary.microseconds(at)
    assert copybinary.moment(at_us) == at
    times = [struct.pack(">q", at_us + late - copybinary.EPOCH_US) for late in (0, 1)]
    assert copybinary.unpack_times(sent(copybinary.TIMESTAMPTZ, times)).tolist() == [at_us, at_us + 1]
    values = [0.1, -1e300]
    body = sent(copybinary.FLOAT8, [struct.pack(">d", value) for value in values])
    assert copybinary.unpack_values(body).tolist() == values


@pytest.mark.parametrize(
    "body",
    [
        sent(copybinary.TIMESTAMPTZ, [bytes(8)]),  # another type
        sent(copybinary.FLOAT8, [bytes(8)], nulls=1),
        sent(copybinary.FLOAT8, [bytes(4), bytes(12)]),  # other lengths
        sent(copybinary.FLOAT8, [bytes(8)] * 2)[:-12],  # cut off between elements
        sent(copybinary.FLOAT8, [bytes(8)])[:-3],  # and within one
        b"",
    ],
)
def test_other_bytes_are_no_array_of_numbers(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"array|buffer"):
        copybinary.unpack_values(body)
