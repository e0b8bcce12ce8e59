"""When something that grows reaches its limit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monitoring.health import slope_with_interval

LEAST_POINTS = 20
MOST_POINTS = 90  # pairs grow with the square; medians of bins lose nothing that a slope over hours needs


@dataclass(frozen=True)
class Forecast:
    """`level` now; `per_second` is the slope, `slowest_per_second` the slow end of its 90 % interval."""

    level: float
    per_second: float
    slowest_per_second: float

    def seconds_until(self, limit: float, *, slowest: bool = False) -> float:
        """Seconds until `limit` is reached; infinite when it is not being approached."""
        slope = self.slowest_per_second if slowest else self.per_second
        if self.level >= limit:
            return 0.0
        return (limit - self.level) / slope if slope > 0 else math.inf


def forecast(at: NDArray[np.float64], value: NDArray[np.float64]) -> Forecast | None:
    """The straight way on from `value`[n] at unix seconds `at`[n], rising, by Theil and Sen's slope.

    None with fewer than LEAST_POINTS samples or when all are of one time: a jump is not yet a trend.
    """
    if len(at) < LEAST_POINTS or at[-1] <= at[0]:
        return None
    now = float(at[-1])
    if len(at) > MOST_POINTS:
        at, value = _thinned(at, value)
    slope, low, _ = slope_with_interval(at, value)
    # The newest values, as the line has them: one odd sample must not move the start.
    newest = slice(-5, None)
    level = float(np.median(value[newest] + slope * (now - at[newest])))
    return Forecast(level, slope, low)


def _thinned(at: NDArray[np.float64], value: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    parts = np.array_split(np.arange(len(at)), MOST_POINTS)
    return np.array([np.median(at[part]) for part in parts]), np.array([np.median(value[part]) for part in parts])
