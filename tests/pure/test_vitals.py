"""Histograms of web vitals: against the definition, and their ratings."""

from __future__ import annotations

import math
import random

import pytest

from monitoring import vitals
from monitoring.vitals import VITALS


def by_definition(values: list[float], q: float = 0.75) -> float:
    """The nearest rank."""
    return sorted(values)[math.ceil(q * len(values)) - 1]


@pytest.mark.parametrize("name", VITALS)
@pytest.mark.parametrize("seed", range(5))
def test_finds_the_p75_within_two_percent(name: str, seed: int) -> None:
    vital, chance = VITALS[name], random.Random(seed)
    values = [min(vital.largest, vital.good * chance.lognormvariate(0, 1)) for _ in range(chance.randint(1, 400))]
    parts: list[dict[int, int]] = [{}, {}, {}]  # as if three minutes had counted them
    for value in values:
        part, bucket = chance.choice(parts), vitals.bucket_of(vital, value)
        part[bucket] = part.get(bucket, 0) + 1
    found = vitals.quantile(vital, vitals.merged(parts))
    assert found == pytest.approx(by_definition(values), rel=0.02)


@pytest.mark.parametrize("vital", VITALS.values(), ids=VITALS)
def test_a_bucket_ends_where_the_next_begins(vital: vitals.Vital) -> None:
    for bucket in range(1, 200):
        end = vital.smallest * vitals.GROWTH**bucket
        assert vitals.bucket_of(vital, end) == bucket
        assert vitals.bucket_of(vital, end * 1.001) == bucket + 1
    assert vitals.bucket_of(vital, 0.0) == 0
    assert vitals.quantile(vital, {0: 3}) == 0.0
    assert vitals.quantile(vital, {}) is None


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e12])
def test_counts_nothing_impossible(value: float) -> None:
    for vital in VITALS.values():
        with pytest.raises(ValueError, match=vital.name):
            vitals.bucket_of(vital, value)


@pytest.mark.parametrize(
    ("name", "p75", "rating"),
    [
        ("lcp_ms", 2500.0, "good"), ("lcp_ms", 2501.0, "needs improvement"), ("lcp_ms", 4001.0, "poor"),
        ("inp_ms", 200.0, "good"), ("inp_ms", 500.0, "needs improvement"), ("inp_ms", 501.0, "poor"),
        ("cls", 0.1, "good"), ("cls", 0.25, "needs improvement"), ("cls", 0.26, "poor"),
    ],
)  # fmt: skip
def test_rates_as_the_field_does(name: str, p75: float, rating: str) -> None:
    assert vitals.rating(VITALS[name], p75) == rating
