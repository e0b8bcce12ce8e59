"""Forecasts, and how sure they are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monitoring.alerts import DEFAULT_RULES, Facts, Trail, judge
from monitoring.forecasting import forecast

NOW = 1_000_000_000.0
FULL_SOON = next(rule for rule in DEFAULT_RULES if rule.name == "disk-full-soon")


def disk(level: float, percent_per_hour: float, *, noise: float = 0.05, hours: float = 6.0, jump: float = 0.0) -> Trail:
    rng = np.random.default_rng(5)
    at = NOW - 60.0 * np.arange(int(60 * hours))[::-1]
    value = level + percent_per_hour * (at - NOW) / 3600 + rng.normal(0, noise, len(at))
    value[at < NOW - 600] -= jump
    return Trail(at, value)


@pytest.mark.parametrize(
    ("trail", "held"),
    [
        (disk(90, 5), True),  # full in 2 h
        (disk(90, 2), False),  # in 5 h
        (disk(60, 15), True),
        (disk(70, 0), False),
        (disk(70, -5), False),
        (disk(60, 0.1, noise=1.0), False),
        (disk(85, 0, jump=20), False),  # a big file is not a trend
        (disk(90, 5, hours=0.5), None),  # too little to say
        (disk(86, 3.6, noise=3.0), False),  # likely within 4 h, but the slow end of the interval says no
    ],
)
def test_disk_full_within_hours(trail: Trail, held: bool | None) -> None:
    assert judge(FULL_SOON, Facts(NOW, 60.0, value=float(trail.value[-1]), trail=trail)).held is held


def test_slope_and_level() -> None:
    trail = disk(80, 4, noise=0.0)
    found = forecast(trail.at, trail.value)
    assert found is not None
    assert (found.level, found.per_second * 3600) == (pytest.approx(80), pytest.approx(4))
    assert found.seconds_until(100) == pytest.approx(5 * 3600)
    assert found.seconds_until(79) == 0.0


def test_the_slow_end_is_slower() -> None:
    trail = disk(80, 4, noise=1.0)
    found = forecast(trail.at, trail.value)
    assert found is not None
    assert found.slowest_per_second < found.per_second
    assert found.seconds_until(100, slowest=True) > found.seconds_until(100)


def test_what_does_not_grow_is_never_full() -> None:
    trail = disk(80, -1)
    found = forecast(trail.at, trail.value)
    assert found is not None
    assert math.isinf(found.seconds_until(100))


def test_some_points_are_no_forecast() -> None:
    assert forecast(np.arange(10.0), np.arange(10.0)) is None
