"""Burn rates against the definition, and the guards."""

from __future__ import annotations

import numpy as np
import pytest

from monitoring import burnrate
from monitoring.burnrate import FAST, SLOW, Window, burning

NOW = 1_000_000_000.0


def week(ratio_now: float, minutes: float, *, per_minute: float = 600.0, before: float = 0.0):
    """Four days of minutes; in the last `minutes` the bad share is `ratio_now`."""
    at = NOW - 60.0 * np.arange(5760)[::-1]
    ratio = np.where(at > NOW - 60 * minutes, ratio_now, before)
    return at, ratio, np.full(len(at), per_minute)


@pytest.mark.parametrize(
    ("ratio", "minutes", "windows", "factor"),
    [
        (0.02, 60, FAST, 14.4),
        (0.02, 10, FAST, None),  # only the short window burns
        (0.2, 10, FAST, 14.4),  # a tenfold failure spends in ten minutes what the other does in an hour
        (0.0145, 60, FAST, 14.4),
        (0.0065, 6 * 60, FAST, 6.0),
        (0.004, 6 * 60, FAST, None),
        (0.0035, 24 * 60, SLOW, 3.0),
        (0.0012, 3 * 24 * 60, SLOW, 1.0),
        (0.0009, 3 * 24 * 60, SLOW, None),
    ],
)
def test_fires_when_both_windows_agree(
    ratio: float, minutes: float, windows: tuple[Window, ...], factor: float | None
) -> None:
    found = burning(*week(ratio, minutes), now=NOW, objective=0.999, windows=windows)
    assert (found.window.factor if found else None) == factor


def test_ends_soon_after_the_failures_do() -> None:
    at, ratio, requests = week(0.1, 60)
    ratio[at > NOW - 360] = 0.0
    assert burning(at, ratio, requests, now=NOW, objective=0.999, windows=FAST[:1]) is None


def test_weighs_by_requests_as_the_definition_does() -> None:
    rng = np.random.default_rng(3)
    at, _, _ = week(0.0, 0)
    requests = rng.poisson(200, len(at)).astype(float)
    bad = rng.binomial(requests.astype(int), 0.03)
    ratio = bad / np.maximum(requests, 1)
    found = burning(at, ratio, requests, now=NOW, objective=0.999, windows=FAST)
    hour = at > NOW - 3600
    assert found is not None
    assert found.long == pytest.approx(bad[hour].sum() / requests[hour].sum() / 0.001)
    assert (found.bad, found.requests) == (pytest.approx(bad[hour].sum()), requests[hour].sum())


def test_a_quiet_minute_that_failed_is_outweighed() -> None:
    at, ratio, requests = week(0.0, 0)
    ratio[-5:], requests[-5:] = 1.0, 1.0
    requests[-4] = 10_000.0
    ratio[-4] = 0.0
    assert burning(at, ratio, requests, now=NOW, objective=0.999, windows=FAST) is None


@pytest.mark.parametrize(("least_requests", "least_bad", "fires"), [(0, 0, True), (20, 0, False), (0, 10, False)])
def test_little_traffic_is_no_incident(least_requests: float, least_bad: float, fires: bool) -> None:
    at, ratio, requests = week(1.0, 5, per_minute=1.0)
    found = burning(
        at,
        ratio,
        requests,
        now=NOW,
        objective=0.999,
        windows=FAST[:1],
        least_requests=least_requests,
        least_bad=least_bad,
    )
    assert (found is not None) is fires


def test_waits_for_as_much_history_as_the_short_window_has() -> None:
    at, ratio, requests = (part[-3:] for part in week(0.5, 60))
    assert burning(at, ratio, requests, now=NOW, objective=0.999, windows=FAST) is None


@pytest.mark.parametrize("objective", [0.0, 1.0, 99.9])
def test_refuses_an_objective_without_a_budget(objective: float) -> None:
    with pytest.raises(ValueError, match="no error budget"):
        burning(*week(0, 0), now=NOW, objective=objective, windows=FAST)


def test_says_what_a_period_spent_and_when_it_is_back():
    at = np.arange(1.0, 101.0)
    ratio, requests = np.zeros(100), np.full(100, 10.0)
    ratio[[9, 49, 89]] = 0.8  # 24 of 1,000; 10 may fail
    found = burnrate.spent(at, ratio, requests, now=101.0, objective=0.99, period_seconds=100.0)
    assert found.share == pytest.approx(2.4)
    assert (found.requests, found.bad) == (1000.0, pytest.approx(24.0))
    # The slow truth: with as many requests, so many failures are left when the oldest intervals have left.
    slow = next(one for one in at if 24.0 - 8.0 * (np.array([10.0, 50.0, 90.0]) <= one).sum() < 10.0)
    assert found.back_at == slow + 100.0


@pytest.mark.parametrize(("bad", "gone"), [(0.0, False), (0.009, False), (0.011, True), (1.0, True)])
def test_knows_a_budget_that_is_gone(bad, gone):
    found = burnrate.spent(
        np.arange(10.0), np.full(10, bad), np.full(10, 99.0), now=10.0, objective=0.99, period_seconds=10.0
    )
    assert (found.back_at is not None) is gone
    assert (found.share >= 1) is gone


def test_stops_nothing_for_a_few_failures_and_knows_nothing_without_requests():
    at, ones = np.arange(10.0), np.ones(10)
    assert burnrate.spent(at, ones, ones, now=10.0, objective=0.99, period_seconds=10.0, least_bad=11.0).back_at is None
    assert burnrate.spent(at, ones, np.zeros(10), now=10.0, objective=0.99, period_seconds=10.0) is None
    with pytest.raises(ValueError, match="leaves no error budget"):
        burnrate.spent(at, ones, ones, now=10.0, objective=1.0, period_seconds=10.0)


def test_gives_a_young_service_the_budget_of_its_whole_period():
    """14.4 times too fast for an hour spends 2 % of the budget of thirty days, whatever was before."""
    at = 60.0 * np.arange(60)
    given = (at, np.full(60, 0.0144), np.full(60, 600.0))
    found = burnrate.spent(*given, now=3600.0, objective=0.999, period_seconds=30 * 86_400.0)
    assert found.share == pytest.approx(0.02)
    assert found.back_at is None
