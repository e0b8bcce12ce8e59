"""Baselines: what is usual at which hour, and whether now differs from it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy import stats

from monitoring import baselines
from monitoring.baselines import (
    Quantiles,
    compare,
    expected,
    hodges_lehmann,
    hour_of_week,
    mann_whitney,
    packed_hours,
    profile,
    unpacked,
)

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)


def minutes(days: float, *, since: datetime = MONDAY, step: int = 300) -> np.ndarray:
    return since.timestamp() + np.arange(0, days * 86_400, step, dtype=float)


def rhythm(at: np.ndarray, *, weekend: float = 1.0) -> np.ndarray:
    """100 at night, 300 in the afternoon; times `weekend` on Saturdays and Sundays."""
    busy = 200 - 100 * np.cos(at % 86_400 / 86_400 * 2 * np.pi)
    quiet = (at - baselines.MONDAY) % 604_800 >= 5 * 86_400
    return busy * np.where(quiet, weekend, 1.0)


@pytest.mark.parametrize(
    ("moment", "hour"),
    [
        (MONDAY, 0),
        (MONDAY + timedelta(hours=23, minutes=59), 23),
        (MONDAY + timedelta(days=6, hours=23), 167),
        (MONDAY + timedelta(days=7), 0),
        (datetime(1970, 1, 1, tzinfo=UTC), 72),
    ],
)
def test_the_week_begins_on_monday(moment: datetime, hour: int) -> None:
    assert hour_of_week(moment.timestamp()) == hour


@pytest.mark.parametrize(
    ("days", "by"),
    [(0.5, "overall"), (1.9, "overall"), (4, "hour of day"), (14, "hour of day"), (21, "hour of week")],
)
def test_the_hours_count_only_where_the_data_support_them(days: float, by: str) -> None:
    at = minutes(days)
    made = profile(at, rhythm(at))
    assert made is not None
    assert expected(made, at[-1] + 300).by == by


def test_an_hour_of_the_week_falls_back_to_the_day_and_then_to_all() -> None:
    at = minutes(28)
    # One hour of the week was never measured, and one hour of the day neither.
    hours = (at - baselines.MONDAY) % 604_800 // 3600
    kept = (hours != 30) & (hours % 24 != 9)
    made = profile(at[kept], rhythm(at[kept]))
    assert made is not None

    def by(hour: int) -> str:
        return expected(made, MONDAY.timestamp() + hour * 3600).by

    assert (by(29), by(30), by(33)) == ("hour of week", "hour of day", "overall")


def test_expects_of_a_saturday_what_saturdays_are_like() -> None:
    at = minutes(28)
    dice = np.random.default_rng(1)
    made = profile(at, rhythm(at, weekend=0.3) * dice.lognormal(0, 0.1, len(at)))
    assert made is not None
    noon = MONDAY.timestamp() + 12 * 3600
    weekday, saturday = expected(made, noon + 1800), expected(made, noon + 1800 + 5 * 86_400)
    assert weekday.p50 == pytest.approx(300, rel=0.05)
    assert saturday.p50 == pytest.approx(90, rel=0.05)
    assert weekday.spread == pytest.approx(30, rel=0.4)
    assert made.overall.spread > 2 * weekday.spread
    assert weekday.n == 48


def test_the_quantiles_are_numpys() -> None:
    values = np.random.default_rng(2).normal(10, 2, 1000)
    made = profile(minutes(10)[:1000], values)
    assert made is not None
    assert [getattr(made.overall, name) for name in baselines.NAMES] == pytest.approx(
        list(np.quantile(values, baselines.LEVELS))
    )
    assert made.overall.spread == pytest.approx(2, rel=0.1)


def test_few_or_no_finite_values_are_no_baseline() -> None:
    assert profile(minutes(1)[:29], np.ones(29)) is None
    assert profile([], []) is None
    broken = np.full(100, np.nan)
    broken[:29] = 1.0
    assert profile(minutes(1)[:100], broken) is None


def test_what_is_stored_is_what_was_made() -> None:
    at = minutes(28)
    made = profile(at, rhythm(at))
    assert made is not None
    text = json.dumps(packed_hours(made))
    assert len(text) < 20_000
    again = unpacked(made.overall, json.loads(text), made.kept)
    for moment in at[::97]:
        assert expected(again, moment).p50 == pytest.approx(expected(made, moment).p50, rel=1e-5)
    assert len(made.kept) == baselines.MOST_KEPT


# --- Comparing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
def test_the_test_and_the_shift_agree_with_scipys(ties: bool) -> None:
    dice = np.random.default_rng(3)
    for _ in range(100):
        first, second = dice.normal(0.3, 1, dice.integers(8, 60)), dice.normal(0, 1, dice.integers(30, 300))
        if ties:
            first, second = np.round(first), np.round(second)
        p_value, delta = mann_whitney(first, second)
        theirs = stats.mannwhitneyu(first, second, method="asymptotic")
        assert p_value == pytest.approx(theirs.pvalue)
        assert delta == pytest.approx(2 * theirs.statistic / (len(first) * len(second)) - 1)
        signs = np.sign(first[:, None] - second[None, :])
        assert delta == pytest.approx(signs.mean())


def test_the_shift_covers_the_truth() -> None:
    dice = np.random.default_rng(4)
    inside = 0
    for _ in range(300):
        shift, low, high = hodges_lehmann(dice.normal(5, 1, 30), dice.normal(3, 1, 100))
        assert low <= shift <= high
        inside += low <= 2 <= high
    assert inside > 0.92 * 300


NIGHT = MONDAY + timedelta(days=28, hours=2)


@pytest.mark.parametrize(
    ("factor", "direction"), [(1.0, "same"), (1.02, "same"), (1.5, "higher"), (3.0, "higher"), (0.5, "lower")]
)
def test_now_is_compared_with_its_own_hours(factor: float, direction: str) -> None:
    dice = np.random.default_rng(5)
    at = minutes(28)
    made = profile(at, rhythm(at) * dice.lognormal(0, 0.1, len(at)))
    assert made is not None
    now = minutes(2 / 24, since=NIGHT, step=60)
    found = compare(made, now, factor * rhythm(now) * dice.lognormal(0, 0.1, len(now)))
    assert found.direction == direction, found
    if direction == "same":
        assert found.words.startswith("As in the baseline")
    else:
        assert found.shift == pytest.approx((factor - 1) * 115, rel=0.25)
        assert found.words.startswith(f"{direction.capitalize()} than in the baseline by ")


def test_the_same_value_always_is_no_difference() -> None:
    made = profile(minutes(1), np.zeros(288))
    assert made is not None
    found = compare(made, minutes(0.1), np.zeros(29))
    assert (found.direction, found.p_value, found.delta) == ("same", 1.0, 0.0)
    assert compare(made, minutes(0.1), np.ones(29)).direction == "higher"


def test_too_little_is_said_to_be_too_little() -> None:
    made = profile(minutes(1), np.arange(288.0))
    assert made is not None
    found = compare(made, minutes(0.1)[:3], np.ones(3))
    assert (found.direction, found.p_value, found.n_now) == ("unknown", None, 3)
    assert "Too little" in found.words


def test_false_differences_are_rare() -> None:
    dice = np.random.default_rng(6)
    called = 0
    for _ in range(200):
        made = profile(minutes(1), dice.lognormal(0, 0.3, 288))
        assert made is not None
        called += compare(made, minutes(0.2), dice.lognormal(0, 0.3, 58)).direction != "same"
    assert called <= 4


def test_the_spread_sees_heavy_tails() -> None:
    assert Quantiles(0, 9, 10, 11, 20, 30, 100).spread == pytest.approx(20 / 3.29)
