"""How fast a service spends its error budget: multi-window, multi-burn-rate alerting.

Beyer et al., The Site Reliability Workbook (2018), chapter 5, "6: Multiwindow, Multi-Burn-Rate Alerts". A burn rate of
1 spends exactly the budget of the objective's period; 14.4 spends 2 % of a month's budget in one hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """Both windows must burn at `factor` or faster: the long one says it matters, the short one that it goes on."""

    factor: float
    long_seconds: float
    short_seconds: float


FAST = (Window(14.4, 3600, 300), Window(6.0, 21_600, 1800))  # worth waking somebody
SLOW = (Window(3.0, 86_400, 7200), Window(1.0, 259_200, 21_600))  # worth a look this week


@dataclass(frozen=True)
class Burn:
    """What one pair of windows says. `long` and `short` are burn rates; `requests` and `bad` count the long window."""

    window: Window
    long: float
    short: float
    requests: float
    bad: float


@dataclass(frozen=True)
class Spent:
    """How much of an error budget is gone: `share` is 1 when all of it is.

    `back_at` (unix seconds) is when enough of the failures will have left the period, if nothing more fails and as
    many ask as did; None while the budget is not gone.
    """

    share: float
    requests: float
    bad: float
    back_at: float | None


def spent(
    at: NDArray[np.float64],
    ratio: NDArray[np.float64],
    requests: NDArray[np.float64],
    *,
    now: float,
    objective: float,
    period_seconds: float,
    least_bad: float = 0.0,
) -> Spent | None:
    """What the intervals of the period that ends `now` spent of its budget; None when nobody asked anything.

    `at`, `ratio` and `requests` as in `burning`. The budget is that of the whole period: of a service that is measured
    for less, as many are taken to ask in all of it. With fewer than `least_bad` bad requests the budget is never gone:
    a few failures in a quiet month are no reason to stop. Raises ValueError for an objective outside (0, 1).
    """
    if not 0 < objective < 1:
        raise ValueError(f"An objective of {objective} leaves no error budget; give a share such as 0.999.")
    failed = ratio * requests
    asked, bad = float(requests.sum()), float(failed.sum())
    if asked <= 0:
        return None
    budget = (1.0 - objective) * asked * max(period_seconds / max(now - float(at[0]), 1.0), 1.0)
    allowed = max(budget, least_bad)
    back_at = None
    if bad >= allowed:
        left = bad - np.cumsum(failed)  # after each interval has left the period
        enough = int(np.argmax(left < allowed))
        back_at = float(at[enough]) + period_seconds
    return Spent(bad / budget, asked, bad, back_at)


def burning(
    at: NDArray[np.float64],
    ratio: NDArray[np.float64],
    requests: NDArray[np.float64],
    *,
    now: float,
    objective: float,
    windows: Sequence[Window],
    least_requests: float = 0.0,
    least_bad: float = 0.0,
) -> Burn | None:
    """The first of `windows` in which both windows burn too fast; None when none does.

    `at` are unix seconds[n], rising, of intervals that ended then; `ratio`[n] is the share of bad requests of each and
    `requests`[n] how many it had, so that a quiet minute weighs little. `objective` is the good share, such as 0.999.
    A pair is not believed with fewer than `least_requests` in its short or `least_bad` bad ones in its long window
    (one failure at night is no incident), nor before there is history for its short window.
    Raises ValueError for an objective outside (0, 1).
    """
    if not 0 < objective < 1:
        raise ValueError(f"An objective of {objective} leaves no error budget; give a share such as 0.999.")
    budget = 1.0 - objective
    for window in windows:
        asked, bad = _sums(at, ratio, requests, since=now - window.short_seconds, until=now)
        if asked <= 0 or asked < least_requests or bad < window.factor * budget * asked:
            continue
        if at[0] > now - 0.9 * window.short_seconds:
            continue
        short = bad / asked / budget
        asked, bad = _sums(at, ratio, requests, since=now - window.long_seconds, until=now)
        if bad >= least_bad and bad >= window.factor * budget * asked:
            return Burn(window, bad / asked / budget, short, asked, bad)
    return None


def _sums(
    at: NDArray[np.float64],
    ratio: NDArray[np.float64],
    requests: NDArray[np.float64],
    *,
    since: float,
    until: float,
) -> tuple[float, float]:
    """Requests, and bad ones among them, of the samples in (since, until]."""
    first, last = np.searchsorted(at, (since, until), side="right")
    return float(requests[first:last].sum()), float(ratio[first:last] @ requests[first:last])
