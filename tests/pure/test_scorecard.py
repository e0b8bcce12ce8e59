"""The arithmetic of the scorecard and its intervals."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import pytest
from scipy import stats

from improvements import intervals
from improvements.governance import scorecard
from improvements.governance.scorecard import DEFINITIONS, Trend, Unit, Value


@pytest.mark.parametrize(("hits", "of"), [(0, 5), (5, 5), (1, 10), (7, 10), (50, 100), (999, 1000), (123_456, 123_500)])
def test_intervals_of_shares_are_wilsons(hits: int, of: int) -> None:
    slow = stats.binomtest(hits, of).proportion_ci(method="wilson")
    assert intervals.wilson(hits, of) == pytest.approx((slow.low, slow.high), abs=1e-12)


@pytest.mark.parametrize(("hits", "of"), [(0, 0), (2, 1), (-1, 3)])
def test_no_share_of_nothing(hits: int, of: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        intervals.wilson(hits, of)


@pytest.mark.parametrize(
    ("count", "expected"),
    # Ranks of the 95 % interval of a median, as printed in tables (Conover, Practical Nonparametric Statistics).
    [(5, None), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (10, (2, 9)), (20, (6, 15)), (50, (18, 33)), (100, (40, 61))],
)
def test_intervals_of_medians_have_the_ranks_of_the_tables(count: int, expected: tuple[int, int] | None) -> None:
    values = list(range(1, count + 1))
    random.Random(count).shuffle(values)
    assert intervals.of_median(values) == expected


def test_the_normal_ranks_continue_the_exact_ones() -> None:
    for count in (201, 500, 2001):
        low, high = intervals.of_median(range(1, count + 1)) or (0, 0)
        exact = stats.binom.ppf(0.025, count, 0.5)
        assert abs(low - exact) <= 1
        assert low + high == count + 1


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([100.0] * 7, [50.0] * 7, (-0.5, -0.5)),
        ([90.0, 100, 100, 100, 100, 100, 110], [45.0, 50, 50, 50, 50, 50, 55], (45 / 110 - 1, 55 / 90 - 1)),
        ([100.0] * 6, [50.0] * 7, None),  # too few
        ([0.0] * 7, [1.0] * 7, None),  # no ratio
    ],
)
def test_the_interval_of_a_change(before: list[float], after: list[float], expected: object) -> None:
    assert intervals.of_change(before, after) == (None if expected is None else pytest.approx(expected))


def test_the_interval_of_a_change_holds_what_it_promises() -> None:
    draw, true, missed = random.Random(7), 0.8 - 1, 0
    for _ in range(400):
        before = [draw.lognormvariate(4, 0.3) for _ in range(20)]
        after = [0.8 * draw.lognormvariate(4, 0.3) for _ in range(12)]
        low, high = intervals.of_change(before, after) or (0.0, 0.0)
        missed += not low <= true <= high
    assert missed <= 0.05 * 400


@pytest.mark.parametrize(
    ("changes", "helped"),
    [
        ({}, False),
        ({"p95_ms": [-0.5, -0.1]}, True),
        ({"p95_ms": [-0.5, 0.1]}, False),
        ({"p95_ms": [-0.5, -0.1], "error_ratio": [-0.2, 0.3]}, True),
        ({"p95_ms": [-0.5, -0.1], "error_ratio": [0.1, 0.3]}, False),  # quicker, and fails more often
        ({"queries_per_request": [-0.9, -0.9]}, True),
        ({"p95_ms": [-0.5, 0.0]}, False),
    ],
)
def test_helped_means_a_sure_gain_and_no_sure_loss(changes: dict[str, list[float]], helped: bool) -> None:
    assert scorecard.has_helped(changes) is helped


@pytest.mark.parametrize("name", DEFINITIONS)
def test_says_that_there_is_not_enough_data(name: str) -> None:
    wanted = DEFINITIONS[name]
    few = wanted.fewest - 1
    if wanted.unit is Unit.SHARE:
        told = scorecard.of_share(name, few, few)
        enough = scorecard.of_share(name, few, wanted.fewest)
    else:
        told = scorecard.of_times(name, [1.0] * few)
        enough = scorecard.of_times(name, [1.0] * wanted.fewest)
    assert (told.value, told.low, told.high, told.cases) == (None, None, None, few)
    assert told.note == f"Not enough data: {few} {wanted.cases}, {wanted.fewest} are needed."
    assert None not in (enough.value, enough.low, enough.high)


def test_says_so_when_there_is_nothing() -> None:
    assert scorecard.of_share("incidents", 0, 0).note == "Not enough data: no rollouts, 5 are needed."


def test_times_are_their_median() -> None:
    seconds = [60.0, 120.0, 60.0, 600.0, 180.0, 120.0]
    told = scorecard.of_times("time_to_detect", seconds)
    assert (told.value, told.low, told.high) == (statistics.median(seconds), 60.0, 600.0)


def between(low: float | None, high: float | None) -> Value:
    return Value(0.5, low, high, 1, 10)


@pytest.mark.parametrize(
    ("name", "now", "before", "expected"),
    [
        ("helped", (0.6, 0.9), (0.1, 0.5), Trend.BETTER),
        ("helped", (0.1, 0.5), (0.6, 0.9), Trend.WORSE),
        ("helped", (0.4, 0.9), (0.1, 0.5), Trend.UNCLEAR),
        ("incidents", (0.6, 0.9), (0.1, 0.5), Trend.WORSE),
        ("incidents", (0.1, 0.5), (0.6, 0.9), Trend.BETTER),
        ("time_to_detect", (10.0, 20.0), (30.0, 40.0), Trend.BETTER),
        ("uptime", (None, None), (0.1, 0.5), Trend.UNKNOWN),
        ("uptime", (0.1, 0.5), (None, None), Trend.UNKNOWN),
    ],
)
def test_a_trend_is_told_only_when_it_is_sure(name: str, now: tuple, before: tuple, expected: Trend) -> None:
    assert scorecard.trend(name, between(*now), between(*before)) is expected


def test_the_documentation_has_every_metric_with_its_fewest_cases() -> None:
    page = (Path(__file__).parents[2] / "docs" / "governance.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines()]
    told = {row[1]: row[-2] for row in rows if len(row) == 6}
    for wanted in DEFINITIONS.values():
        assert told[wanted.title] == str(wanted.fewest)
