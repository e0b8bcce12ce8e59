"""What is usual, and how far is too far."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monitoring import baselines
from monitoring.deviation import DAY, HALF_HOUR, Hours, Usual, apart, deviation, usual, usual_by_hour

NOW = 1_767_571_200.0 + 9 * DAY + 12 * 3600
INTERVAL = 60.0


def days(count: float) -> np.ndarray:
    return NOW - INTERVAL * np.arange(1, int(count * 1440))[::-1]


def latency(at: np.ndarray, seed: int = 1) -> np.ndarray:
    """50 ms at midnight, 150 ms at noon."""
    noise = np.random.default_rng(seed).normal(0, 0.15, len(at))
    return (100 - 50 * np.cos(2 * np.pi * at / DAY)) * np.exp(noise)


def judged(values: list[float], requests: list[float] | None = None, **given: object):
    at = NOW - INTERVAL * np.arange(len(values))[::-1]
    asked = np.array(requests or [600.0] * len(values))
    options = {"usual": Usual(100.0, 0.15, 0.15, 7), "least": 1.2, "least_requests": 20, "share": False, **given}
    return deviation(at, np.array(values), asked, now=NOW, interval_seconds=INTERVAL, **options)


def test_usual_is_that_of_this_hour() -> None:
    at = days(8)
    found = usual(at, latency(at), np.zeros(len(at)), now=NOW, interval_seconds=INTERVAL, share=False)
    assert found is not None
    assert found.days == 7
    assert found.centre == pytest.approx(150, rel=0.05)
    assert found.core == pytest.approx(0.15, rel=0.1)


def test_usual_agrees_with_its_definition() -> None:
    at = days(8)
    value = latency(at)
    found = usual(at, value, np.zeros(len(at)), now=NOW, interval_seconds=INTERVAL, share=False)
    chosen = [
        math.log(v)
        for t, v in zip(at, value, strict=True)
        if any(abs(t - (NOW - day * DAY)) <= HALF_HOUR for day in range(1, 8))
    ]
    level = np.median([math.log(v) for t, v in zip(at, value, strict=True) if 600 < NOW - t <= 6000])
    centre = np.median(chosen) + np.clip(level - np.median(chosen), -0.1, 0.1)
    assert found is not None
    assert math.log(found.centre) == pytest.approx(centre)
    assert found.core == pytest.approx(1.4826 * np.median(np.abs(chosen - np.median(chosen))))


def test_without_enough_days_it_is_the_last_one() -> None:
    at = days(1.5)
    found = usual(at, latency(at), np.zeros(len(at)), now=NOW, interval_seconds=INTERVAL, share=False)
    assert found is not None
    assert found.days == 0
    assert found.centre == pytest.approx(100, rel=0.1)


def test_without_an_hour_of_samples_nothing_is_known() -> None:
    at = days(0.04)
    assert usual(at, latency(at), np.zeros(len(at)), now=NOW, interval_seconds=INTERVAL, share=False) is None


def test_an_incident_of_yesterday_is_not_usual() -> None:
    at = days(8)
    value = latency(at)
    clean = usual(at, value, np.zeros(len(at)), now=NOW, interval_seconds=INTERVAL, share=False)
    value[np.abs(at - (NOW - DAY)) < 3600] *= 10
    found = usual(at, value, np.zeros(len(at)), now=NOW, interval_seconds=INTERVAL, share=False)
    assert clean is not None
    assert found is not None
    assert found.centre == pytest.approx(clean.centre, rel=0.1)
    assert found.spread < 1.6 * clean.spread


@pytest.mark.parametrize(
    ("values", "held", "fires"),
    [
        ([100, 100, 100, 100, 101], False, False),
        ([100, 100, 100, 100, 300], True, True),  # one that is far out
        ([100, 100, 100, 100, 180], True, False),  # one that is not
        ([100, 100, 180, 100, 180], True, True),
        ([100, 100, 180, 180, 100], False, False),  # it is over already
        ([100, 150, 150, 150, 150, 150, 150, 150], False, True),  # a little, but for long
        ([115] * 12, False, False),  # nobody would feel it
    ],
)
def test_latency(values: list[float], held: bool, fires: bool) -> None:
    found = judged(values)
    assert found is not None
    assert found.fires is fires
    assert found.held or not held


def test_strictness_takes_more() -> None:
    assert judged([180.0, 180.0]).fires
    assert not judged([180.0, 180.0], strictness=1.5).fires


@pytest.mark.parametrize(
    ("ratios", "requests", "fires"),
    [
        ([0.0, 0.0, 0.05], 1200, True),
        ([0.0, 0.0, 0.05], 100, False),  # five failures, once
        ([0.0, 0.05, 0.05], 100, True),
        ([0.0, 0.0, 0.1], 10, False),  # one failure at night
        ([0.0, 0.1, 0.1], 10, False),
        ([0.008] * 5, 10_000, False),  # sure, but below what counts
        ([0.2] * 2, 60, True),
    ],
)
def test_shares_are_judged_as_counts(ratios: list[float], requests: float, fires: bool) -> None:
    found = judged(
        ratios, [requests] * len(ratios), usual=Usual(0.0005, 1.0, 1.0, 7), least=0.01, least_requests=5, share=True
    )
    assert found is not None
    assert found.fires is fires


@pytest.mark.parametrize("requests", [[600.0, 600.0, 5.0], [5.0, 5.0, 600.0]])
def test_quiet_intervals_are_no_evidence(requests: list[float]) -> None:
    found = judged([180.0, 180.0, 180.0], requests)
    assert found is None or not found.fires


def test_says_nothing_of_a_round_that_was_not_measured() -> None:
    at = NOW - INTERVAL * np.arange(1, 5)[::-1]
    found = deviation(
        at, np.full(4, 500.0), np.full(4, 600.0), now=NOW, interval_seconds=INTERVAL,
        usual=Usual(100.0, 0.15, 0.15, 7), least=1.2, least_requests=0, share=False,
    )  # fmt: skip
    assert found is None


def test_another_signal_must_agree() -> None:
    assert judged([100.0, 400.0, 400.0], also=np.array([0.0, 3.0, 3.0])).fires
    assert not judged([100.0, 400.0, 400.0], also=np.array([0.0, 1.0, 1.0])).fires
    assert not judged([100.0, 400.0, 400.0], also=np.full(3, -np.inf)).fires


def test_apart_is_minus_infinity_where_nothing_is_known() -> None:
    at, value = np.array([1.0, 2.0, 4.0]), np.array([100.0, 200.0, 200.0])
    found = apart(np.array([2.0, 3.0, 4.0]), at, value, Usual(100.0, 0.5, 0.4, 7))
    assert found.tolist() == [pytest.approx(math.log(2) / 0.5), -math.inf, pytest.approx(math.log(2) / 0.5)]
    assert np.isneginf(apart(at, at, value, None)).all()


# --- From a baseline ---------------------------------------------------------------------------------------------


def by_hour(weeks: float, *, slow_hour: int | None = None, today: float = 1.0) -> Usual | None:
    """The usual at NOW (12:00 on a Wednesday) by a baseline of so many weeks that ends a day before."""
    at = days(7 * weeks + 1)
    value = latency(at)
    if slow_hour is not None:
        value[((at - baselines.MONDAY) % baselines.WEEK // 3600).astype(int) == slow_hour] *= 2
    value[at > NOW - DAY] *= today
    made = baselines.profile(at[at <= NOW - DAY], value[at <= NOW - DAY])
    assert made is not None
    return usual_by_hour(Hours.of(made), at, value, now=NOW, interval_seconds=INTERVAL)


def test_a_baseline_knows_the_hour_of_the_week() -> None:
    found = by_hour(4)
    assert found is not None
    assert found.since == "at this hour of the week"
    assert found.centre == pytest.approx(147, rel=0.03)
    assert found.core == pytest.approx(0.15, rel=0.15)


def test_what_is_slow_each_week_at_this_hour_is_usual() -> None:
    hour = baselines.hour_of_week(NOW)
    plain, slow = by_hour(4), by_hour(4, slow_hour=hour)
    assert plain is not None
    assert slow is not None
    # The middle of the hour is half an hour away: what lies between the two medians.
    assert slow.centre > 1.3 * plain.centre


def test_young_baselines_know_the_hour_of_the_day_or_nothing() -> None:
    found = by_hour(1)
    assert found is not None
    assert found.since == "at this time of day"
    assert by_hour(0.2) is None


@pytest.mark.parametrize(("today", "times"), [(1.05, 1.05), (0.97, 0.97), (2.0, math.exp(0.1))])
def test_todays_level_is_made_allowance_for_a_little(today: float, times: float) -> None:
    plain, shifted = by_hour(4), by_hour(4, today=today)
    assert plain is not None
    assert shifted is not None
    assert shifted.centre / plain.centre == pytest.approx(times, rel=0.005 if today < 1.5 else 0.03)
