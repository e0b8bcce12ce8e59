"""Web vitals: histograms that can be merged, the 75th percentile that a rating is made of, and the rating.

LCP (largest contentful paint) and INP (interaction to next paint) are in milliseconds, CLS (cumulative layout shift) is
a score without a unit. The limits are those of https://web.dev/articles/defining-core-web-vitals-thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

GROWTH = 1.04  # from one bucket to the next: a quantile is right to 2 %
Q = 0.75


@dataclass(frozen=True)
class Vital:
    """One metric. Up to `smallest` all values are one bucket; above `largest` a value is a mistake."""

    name: str
    signal: str
    good: float
    poor: float
    smallest: float
    largest: float


VITALS: Mapping[str, Vital] = {
    vital.name: vital
    for vital in (
        Vital("lcp_ms", "lcp_p75_ms", good=2500.0, poor=4000.0, smallest=1.0, largest=600_000.0),
        Vital("inp_ms", "inp_p75_ms", good=200.0, poor=500.0, smallest=1.0, largest=600_000.0),
        Vital("cls", "cls_p75", good=0.1, poor=0.25, smallest=0.0001, largest=1000.0),
    )
}


def bucket_of(vital: Vital, value: float) -> int:
    """The bucket that counts `value`: 0 up to `smallest`, then each GROWTH times wider than the one before.

    Raises ValueError for what no page can measure: negative, not finite, beyond `largest`.
    """
    if not (math.isfinite(value) and 0.0 <= value <= vital.largest):
        raise ValueError(f"{vital.name} = {value} is not between 0 and {vital.largest:g}.")
    # A value on a boundary belongs to the bucket that ends there, in spite of rounding.
    return max(0, math.ceil(math.log(value / vital.smallest, GROWTH) - 1e-9)) if value > vital.smallest else 0


def merged(histograms: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """Several histograms (bucket → count) as one."""
    total: dict[int, int] = {}
    for histogram in histograms:
        for bucket, count in histogram.items():
            total[bucket] = total.get(bucket, 0) + count
    return total


def quantile(vital: Vital, histogram: Mapping[int, int], q: float = Q) -> float | None:
    """The q-quantile in the vital's unit, the middle of its bucket: within 2 % of the nearest rank. None when empty."""
    rank = math.ceil(q * sum(histogram.values()))
    if rank <= 0:
        return None
    passed = 0
    for bucket in sorted(histogram):
        passed += histogram[bucket]
        if passed >= rank:
            return vital.smallest * GROWTH ** (bucket - 0.5) if bucket else 0.0
    raise AssertionError("the counts add up to their sum")


def rating(vital: Vital, p75: float) -> str:
    """What p75 means to people: good, needs improvement or poor."""
    return "good" if p75 <= vital.good else "needs improvement" if p75 <= vital.poor else "poor"
