"""The health score: continuous, monotone, honest about what it does not know."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from monitoring.health import SCORECARD, WORDS, Component, Vitals, assess, slope_with_interval, trend

WELL = Vitals(
    p95_ms=40.0,
    usual_p95_ms=38.0,
    slow_ratio=0.0,
    host_cpu_percent=20.0,
    host_memory_percent=40.0,
    disk_used_percent=50.0,
    cpu_percent=30.0,
    usual_cpu_percent=28.0,
    memory_bytes=2e8,
    usual_memory_bytes=1.9e8,
    open_fds_ratio=0.1,
    up_ratio=1.0,
    error_ratio=0.0,
    test_coverage_percent=90.0,
    test_success_ratio=1.0,
    lint_violations=5.0,
    usual_lint_violations=5.0,
    vulnerabilities=0.0,
    debt_ratio=0.02,
    apdex=0.98,
    lcp_p75_ms=1500.0,
    inp_p75_ms=100.0,
    cls_p75=0.02,
)
# From good to bad, for each input alone.
WORSENING: dict[str, np.ndarray] = {
    "p95_ms": np.geomspace(1, 60_000, 400),
    "usual_p95_ms": np.geomspace(200, 1, 400),
    "slow_ratio": np.linspace(0, 1, 400),
    "host_cpu_percent": np.linspace(0, 100, 400),
    "host_memory_percent": np.linspace(0, 100, 400),
    "disk_used_percent": np.linspace(0, 100, 400),
    "cpu_percent": np.geomspace(1, 3200, 400),
    "usual_cpu_percent": np.geomspace(300, 1, 400),
    "memory_bytes": np.geomspace(1e6, 1e11, 400),
    "usual_memory_bytes": np.geomspace(1e11, 1e6, 400),
    "open_fds_ratio": np.linspace(0, 1, 400),
    "up_ratio": np.linspace(1, 0, 400),
    "error_ratio": np.linspace(0, 1, 400),
    "test_coverage_percent": np.linspace(100, 0, 400),
    "test_success_ratio": np.linspace(1, 0, 400),
    "lint_violations": np.geomspace(1, 1e5, 400),
    "usual_lint_violations": np.geomspace(20, 1, 400),
    "vulnerabilities": np.arange(0, 100, 0.25),
    "debt_ratio": np.linspace(0, 2, 400),
    "apdex": np.linspace(1, 0, 400),
    "lcp_p75_ms": np.linspace(0, 20_000, 400),
    "inp_p75_ms": np.linspace(0, 3000, 400),
    "cls_p75": np.linspace(0, 2, 400),
}
OBJECTIVES = {
    "latency_objective_ms": np.geomspace(10_000, 10, 400),
    "slow_objective_ratio": np.linspace(1, 0, 400),
    "error_objective_ratio": np.geomspace(0.5, 1e-6, 400),
}
MOST_PER_STEP = 4.0  # points for a 400th of the whole range of any input


def score(vitals: Vitals) -> float:
    found = assess(vitals).score
    assert found is not None
    return found


def component(vitals: Vitals, name: str) -> Component:
    (found,) = (c for c in assess(vitals).components if c.name == name)
    return found


def anyhow(dice: np.random.Generator, unknown: float) -> Vitals:
    """Random vitals over the whole range, a share of them unknown."""
    values = {name: float(dice.choice(path)) if dice.random() > unknown else None for name, path in WORSENING.items()}
    objectives = {name: float(dice.choice(path)) for name, path in OBJECTIVES.items()}
    return Vitals(**values, **objectives)  # type: ignore[arg-type]


def test_the_table_of_this_test_knows_every_vital() -> None:
    assert [field.name for field in fields(Vitals)] == [*WORSENING, *OBJECTIVES]
    assert set(WORSENING) == set(WORDS)
    assert {name for part in SCORECARD.values() for given in part.inputs for name in given.needs} == {
        *WORSENING,
        *OBJECTIVES,
    }


def test_all_known_and_all_well_is_a_hundred() -> None:
    found = assess(WELL)
    assert (found.score, found.status, found.confidence) == (100.0, "healthy", pytest.approx(1.0))
    assert {c.message for c in found.components} == {"All well."}
    assert [c.name for c in found.components] == ["performance", "system", "availability", "quality", "experience"]


@pytest.mark.parametrize("name", WORSENING)
def test_worse_is_never_better_and_never_a_cliff(name: str) -> None:
    scores = np.array([score(replace(WELL, **{name: float(value)})) for value in WORSENING[name][::2]])
    steps = np.diff(scores)
    assert (steps <= 1e-9).all()
    assert steps.min() > -2 * MOST_PER_STEP
    assert scores[0] == 100.0
    assert scores[-1] < 97.0 or name.startswith("usual")


@pytest.mark.parametrize("unknown", [0.0, 0.3, 0.7])
def test_worse_is_never_better_nor_a_cliff_whatever_else_is_wrong_or_unknown(unknown: float) -> None:
    dice = np.random.default_rng(4)
    ranges = WORSENING | OBJECTIVES
    for _ in range(500):
        start = anyhow(dice, unknown)
        name = str(dice.choice(list(ranges)))
        if getattr(start, name) is None:
            continue
        place = int(dice.integers(0, len(ranges[name]) - 1))
        here = assess(replace(start, **{name: float(ranges[name][place])})).score
        worse = assess(replace(start, **{name: float(ranges[name][place + 1])})).score
        assert (here is None) == (worse is None)
        if here is not None and worse is not None:
            assert -1e-9 <= here - worse < MOST_PER_STEP, (name, start)


@pytest.mark.parametrize("unknown", [0.0, 0.3, 0.7, 0.95])
def test_scores_and_confidence_keep_their_bounds(unknown: float) -> None:
    dice = np.random.default_rng(5)
    for _ in range(300):
        vitals = anyhow(dice, unknown)
        found = assess(vitals)
        assert 0.0 <= found.confidence <= 1.0
        assert found.score is None or 0.0 <= found.score <= 100.0 - 10.0 * (1.0 - found.confidence) + 1e-9
        assert all(math.isfinite(driver.points) for c in found.components for driver in c.drivers)
        assert all(driver.points >= 0.0 for c in found.components for driver in c.drivers)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
@pytest.mark.parametrize("missing", WORSENING)
def test_missing_data_lowers_confidence_and_never_scores_a_hundred(missing: str, value: float | None) -> None:
    found = assess(replace(WELL, **{missing: value}))
    assert found.score is not None
    assert found.score < 100.0
    assert found.confidence < 1.0
    (told,) = [c.message for c in found.components if "Not known" in c.message]
    assert WORDS[missing] in told


def without(*names: str) -> dict[str, Any]:
    """Every vital of these components unknown."""
    needed = {n for name in names for given in SCORECARD[name].inputs for n in given.needs}
    return dict.fromkeys(needed & set(WORSENING))


def test_a_source_that_a_service_does_not_have_is_shown_and_does_not_drag_it_down() -> None:
    found = assess(replace(WELL, **without("quality", "experience")))
    assert (found.score, found.status) == (pytest.approx(97.5), "healthy")
    assert found.confidence == pytest.approx(0.75)
    for name in ("quality", "experience"):
        part = component(replace(WELL, **without(name)), name)
        assert (part.score, part.status, part.confidence) == (None, "unknown", 0.0)
        assert part.message.startswith("Not known: ")


def test_what_is_expected_and_unknown_counts_as_no_better_than_the_worst_that_is_known() -> None:
    for name in ("performance", "system"):
        assert score(replace(WELL, **without(name))) < 91
    failing = replace(WELL, error_ratio=0.3)
    assert score(replace(failing, **without("performance"))) < score(failing) - 10


def test_code_alone_makes_no_service_unhealthy() -> None:
    worst = {name: float(path[-1]) for name, path in WORSENING.items()}
    untidy = replace(WELL, **{name: worst[name] for name in without("quality") if not name.startswith("usual")})
    assert component(untidy, "quality").score == 0.0
    assert assess(untidy).status == "healthy"
    assert score(untidy) < 85
    slow_pages = replace(WELL, **{name: worst[name] for name in without("experience")})
    assert assess(slow_pages).status == "degraded"


def test_nothing_known_is_unknown_and_so_are_the_host_and_the_code_alone() -> None:
    assert (assess(Vitals()).score, assess(Vitals()).status) == (None, "unknown")
    alone = replace(WELL, **without("performance", "availability", "experience"))
    assert (assess(alone).score, assess(alone).status) == (None, "unknown")


@pytest.mark.parametrize(
    ("vitals", "status"),
    [
        (replace(WELL, **without("performance"), error_ratio=None), "healthy"),
        (replace(WELL, **without("performance"), error_ratio=None, up_ratio=0.0), "unhealthy"),
        (replace(WELL, error_ratio=0.01), "healthy"),
        (replace(WELL, error_ratio=0.05), "degraded"),
        (replace(WELL, error_ratio=0.05, error_objective_ratio=0.05), "healthy"),
        (replace(WELL, error_ratio=0.004, error_objective_ratio=0.00001), "degraded"),
        (replace(WELL, error_ratio=0.5), "unhealthy"),
        (replace(WELL, p95_ms=3000.0, slow_ratio=0.4), "unhealthy"),
        (replace(WELL, p95_ms=900.0, usual_p95_ms=880.0), "healthy"),
        (replace(WELL, p95_ms=9000.0, usual_p95_ms=9000.0, latency_objective_ms=10_000.0), "healthy"),
        (replace(WELL, disk_used_percent=90.0), "degraded"),
        (replace(WELL, disk_used_percent=97.0), "unhealthy"),
        (replace(WELL, lcp_p75_ms=4000.0, inp_p75_ms=500.0), "degraded"),
        (replace(WELL, memory_bytes=8e8), "degraded"),
        (replace(WELL, open_fds_ratio=0.99), "unhealthy"),
    ],
    ids=[
        "idle",
        "down",
        "1 % errors",
        "5 % errors",
        "5 % errors allowed",
        "0.4 % errors where hardly any may be",
        "half fails",
        "80 times slower",
        "always slow",
        "slow by promise",
        "disk filling",
        "disk full",
        "slow pages",
        "memory grown four times",
        "no files left",
    ],
)
def test_status_is_what_a_person_would_say(vitals: Vitals, status: str) -> None:
    assert assess(vitals).status == status, score(vitals)


def test_drivers_say_in_words_what_costs_how_many_points() -> None:
    found = assess(replace(WELL, error_ratio=0.05))
    part = component(replace(WELL, error_ratio=0.05), "availability")
    (driver,) = part.drivers
    assert driver.what == "5.0% of the requests fail, 0.10% may"
    assert driver.points == pytest.approx(100.0 - (found.score or 0.0), abs=0.1)
    assert part.message.startswith("5.0% of the requests fail, 0.10% may (−")


def test_the_reasons_together_cost_what_is_missing_to_a_hundred() -> None:
    vitals = replace(WELL, p95_ms=900.0, slow_ratio=0.3, error_ratio=0.05, lcp_p75_ms=5000.0, vulnerabilities=2.0)
    drivers = [driver for c in assess(vitals).components for driver in c.drivers]
    assert len(drivers) == 6
    assert sum(driver.points for driver in drivers) == pytest.approx(100.0 - score(vitals), abs=0.4)
    assert all(driver.points > 0.5 for driver in drivers)
    # The worse of two costs more, whatever component it is in.
    assert drivers[0].what.startswith("p95 latency is 23.7 times")


def test_not_knowing_has_its_share_of_the_missing_points() -> None:
    vitals = replace(WELL, error_ratio=0.05, **without("quality", "experience", "performance"))
    (driver,) = (driver for c in assess(vitals).components for driver in c.drivers)
    assert 0 < driver.points < 100.0 - score(vitals) - 5


def test_weights_sum_to_one() -> None:
    assert sum(part.weight for part in SCORECARD.values()) == pytest.approx(1.0)


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
        (np.where(MINUTES < 900, 90.0, 50.0) + NOISE, "degrading"),
    ],
    ids=["flat", "noise", "falling", "rising", "too little to matter", "one outlier", "a sudden fall"],
)
def test_trend(scores: np.ndarray, expected: str) -> None:
    found = trend(MINUTES, scores)
    assert found.direction == expected
    assert found.slope_per_hour is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.slope_per_hour <= found.high


def test_the_slope_is_in_points_per_hour() -> None:
    found = trend(MINUTES, 90 - MINUTES / 60)
    assert (found.slope_per_hour, found.low, found.high) == (pytest.approx(-60.0),) * 3
    assert found.points == 30


def test_scores_that_repeat_each_other_are_less_sure() -> None:
    dice = np.random.default_rng(8)
    wrong = dict.fromkeys((False, True), 0)
    at = np.arange(60) * 60.0
    for _ in range(200):
        shocks = dice.normal(0, 3.0, 60)
        remembered = np.zeros(60)
        for number in range(1, 60):
            remembered[number] = 0.5 * remembered[number - 1] + shocks[number]
        _, low, high = slope_with_interval(at, remembered)
        wrong[False] += not low <= 0 <= high
        found = trend(at, remembered)
        wrong[True] += not (found.low or 0) <= 0 <= (found.high or 0)
    assert wrong[False] > 0.2 * 200
    assert wrong[True] < 0.17 * 200


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
    found = trend(MINUTES[:count], np.linspace(100, 0, count))
    assert (found.direction, found.slope_per_hour, found.points) == ("unknown", None, count)


def test_scores_of_one_moment_have_no_trend() -> None:
    assert trend(np.zeros(10), np.arange(10.0)).direction == "unknown"
