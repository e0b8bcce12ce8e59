"""The health score: continuous, monotone, honest about what it does not know."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import stats

from monitoring.health import SCORECARD, Vitals, assess, slope_with_interval, trend

WELL = Vitals(
    p95_ms=40.0,
    usual_p95_ms=38.0,
    error_ratio=0.0,
    up_ratio=1.0,
    host_cpu_percent=20.0,
    host_memory_percent=40.0,
    disk_used_percent=50.0,
)
# From good to bad, for each input alone.
WORSENING = {
    "p95_ms": np.geomspace(1, 60_000, 400),
    "error_ratio": np.linspace(0, 1, 400),
    "up_ratio": np.linspace(1, 0, 400),
    "host_cpu_percent": np.linspace(0, 100, 400),
    "host_memory_percent": np.linspace(0, 100, 400),
    "disk_used_percent": np.linspace(0, 100, 400),
}


def score(vitals: Vitals) -> float:
    found = assess(vitals).score
    assert found is not None
    return found


def test_all_known_and_all_well_is_a_hundred() -> None:
    found = assess(WELL)
    assert (found.score, found.status, found.confidence) == (100.0, "healthy", pytest.approx(1.0))
    assert {c.message for c in found.components} == {"All well."}


@pytest.mark.parametrize("name", WORSENING)
def test_worse_is_never_better_and_never_a_cliff(name: str) -> None:
    scores = np.array([score(replace(WELL, **{name: float(value)})) for value in WORSENING[name]])
    steps = np.diff(scores)
    assert (steps <= 1e-9).all()
    assert steps.min() > -5.0
    assert scores[0] == 100.0
    assert scores[-1] < 95.0


@pytest.mark.parametrize("name", WORSENING)
def test_worse_is_never_better_whatever_else_is_wrong_or_unknown(name: str) -> None:
    other = {"p95_ms": [None, 40.0, 3000.0], "error_ratio": [None, 0.0, 0.1], "up_ratio": [None, 0.5, 1.0]}
    other.pop(name, None)
    for values in itertools.product(*other.values()):
        start = replace(WELL, **dict(zip(other, values, strict=True)))
        found = [assess(replace(start, **{name: float(value)})).score for value in WORSENING[name][::40]]
        known = [value for value in found if value is not None]
        assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(known))


@pytest.mark.parametrize("missing", [field.name for field in fields(Vitals)])
def test_missing_data_lowers_confidence_and_never_scores_a_hundred(missing: str) -> None:
    found = assess(replace(WELL, **{missing: None}))
    assert found.score is not None
    assert found.score < 100.0
    assert found.confidence < 1.0
    assert any("Not known" in component.message for component in found.components)


def test_nothing_known_is_unknown_and_so_is_the_host_alone() -> None:
    assert (assess(Vitals()).score, assess(Vitals()).status) == (None, "unknown")
    host = Vitals(host_cpu_percent=1.0, host_memory_percent=1.0, disk_used_percent=1.0)
    assert (assess(host).score, assess(host).status) == (None, "unknown")


@pytest.mark.parametrize(
    ("vitals", "status"),
    [
        (replace(WELL, p95_ms=None, usual_p95_ms=None, error_ratio=None), "healthy"),
        (replace(WELL, p95_ms=None, usual_p95_ms=None, error_ratio=None, up_ratio=0.0), "unhealthy"),
        (replace(WELL, error_ratio=0.01), "healthy"),
        (replace(WELL, error_ratio=0.05), "degraded"),
        (replace(WELL, error_ratio=0.5), "unhealthy"),
        (replace(WELL, p95_ms=3000.0), "unhealthy"),
        (replace(WELL, p95_ms=900.0, usual_p95_ms=880.0), "healthy"),
        (replace(WELL, disk_used_percent=90.0), "degraded"),
        (replace(WELL, disk_used_percent=97.0), "unhealthy"),
    ],
    ids=[
        "idle",
        "down",
        "1 % errors",
        "5 % errors",
        "half fails",
        "80 times slower",
        "always slow",
        "disk filling",
        "disk full",
    ],
)
def test_status_is_what_a_person_would_say(vitals: Vitals, status: str) -> None:
    assert assess(vitals).status == status


def test_drivers_say_in_words_what_costs_how_many_points() -> None:
    found = assess(replace(WELL, error_ratio=0.05))
    (component,) = [c for c in found.components if c.name == "availability"]
    (driver,) = component.drivers
    assert driver.what == "5.0% of the requests fail"
    assert driver.points == pytest.approx(100.0 - (found.score or 0.0), abs=0.1)
    assert component.message.startswith("5.0% of the requests fail (−")


def test_weights_sum_to_one() -> None:
    assert sum(weight for weight, _ in SCORECARD.values()) == pytest.approx(1.0)


# --- Trend -------------------------------------------------------------------------------------------------------

MINUTES = np.arange(30) * 60.0
NOISE = np.random.default_rng(3).normal(0, 1.0, 30)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (90 + 0 * MINUTES, "stable"),
        (90 + NOISE, "stable"),
        (90 - MINUTES / 60 + NOISE, "degrading"),
        (60 + MINUTES / 60 + NOISE, "improving"),
        (90 - MINUTES / 60 / 20, "stable"),
        (np.where(MINUTES == 600, 10.0, 90.0), "stable"),
    ],
    ids=["flat", "noise", "falling", "rising", "too little to matter", "one outlier"],
)
def test_trend(scores: np.ndarray, expected: str) -> None:
    assert trend(MINUTES, scores) == expected


def test_the_slope_agrees_with_scipys() -> None:
    dice = np.random.default_rng(9)
    for number in range(200):
        n = int(dice.integers(5, 60))
        x = np.cumsum(dice.integers(1, 5, n)).astype(float)
        # Every second time with many ties.
        y = dice.normal(0, 1, n).cumsum() if number % 2 else dice.integers(0, 4, n).astype(float)
        median, _, low, high = stats.theilslopes(y, x, alpha=0.9)
        assert slope_with_interval(x, y) == pytest.approx((median, low, high))


@pytest.mark.parametrize("count", [0, 1, 4])
def test_few_scores_have_no_trend(count: int) -> None:
    assert trend(MINUTES[:count], np.linspace(100, 0, count)) == "unknown"


def test_scores_of_one_moment_have_no_trend() -> None:
    assert trend(np.zeros(10), np.arange(10.0)) == "unknown"
