"""How sure a number is: 95 % intervals for shares, medians, and the change of a median."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution
EXACT_UP_TO = 200  # values; beyond that the binomial distribution is normal enough


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share of `hits` in `of` independent trials (Wilson 1927). Raises ValueError unless
    0 <= hits <= of and of > 0."""
    if not 0 <= hits <= of or of == 0:
        raise ValueError(f"{hits} of {of} is no share.")
    share, z2 = hits / of, Z95**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = Z95 / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    return 0.0 if hits == 0 else max(0.0, middle - half), 1.0 if hits == of else min(1.0, middle + half)


def of_median(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float] | None:
    """The interval of the median, of whatever distribution: two of the values themselves, found by counting
    (Thompson 1936). None where there are too few for this confidence: under 6 values for 95 %.
    """
    ordered, n = sorted(values), len(values)
    skip = _skipped(n, (1 - confidence) / 2)
    return (ordered[skip], ordered[n - 1 - skip]) if skip is not None else None


def _skipped(n: int, tail: float) -> int | None:
    """How many values may be left out at each end, so that the median lies beyond with probability `tail` at most."""
    if n > EXACT_UP_TO:
        z = Z95 if tail >= 0.025 else 2.2414027276049464  # 2.5 % or 1.25 % in each tail: what is asked for here
        return math.floor((n - z * math.sqrt(n)) / 2) - 1
    below, skip = 0.0, None
    for k in range(n // 2 + 1):
        below += math.comb(n, k) / 2**n
        if below > tail:
            break
        skip = k
    return skip


def of_change(before: Sequence[float], after: Sequence[float]) -> tuple[float, float] | None:
    """An interval of (median after / median before - 1), by at least 95 %: each median is known by 97.5 %, and the
    ratio is taken at the ends that are furthest apart. None with under 7 values on a side, or when before may be 0.
    """
    was, became = of_median(before, confidence=0.975), of_median(after, confidence=0.975)
    if was is None or became is None or was[0] <= 0:
        return None
    return became[0] / was[1] - 1, became[1] / was[0] - 1
