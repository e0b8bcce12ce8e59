"""How far a series is from what is usual for it at this time of day, in robust standard deviations.

Latencies are compared on a logarithmic scale, where their noise is even. Shares of requests are compared as counts
after Anscombe's transform (Biometrika 35, 1948), whose noise is 1 whatever the traffic: one failure among ten requests
at night says less than fifty among a thousand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DAY = 86_400.0
DAYS = 7
HALF_HOUR = 1800.0
LEAST_DAYS = 3  # with fewer, the hour of the day can't be told from chance
LEAST_SAMPLES = 60
RECENT_INTERVALS = 10  # they may be the trouble already
MAD_TO_SIGMA = 1.4826
# The largest of an hour's 60 normal values lies so many standard deviations out on average. Quantiles of coarse
# buckets jump from one to the next and means follow single requests: the median absolute deviation does not see that.
HIGHEST_OF_HOUR = 2.32
# A signal that another one must agree with counts for at most so much more than that one.
AGREEMENT_Z = 0.3
# A day that is a little slower than others as a whole is no incident, and what is left of it would add up to one.
LEVEL_SECONDS = 5400.0
MOST_LEVEL_LOG = 0.1
LEAST_SPREAD_LOG = 0.08  # a series that hardly moves would alarm at differences that nobody feels
LEAST_USUAL_RATIO = 0.0005


@dataclass(frozen=True)
class Step:
    """`times` of the last `of` intervals beyond `z` robust standard deviations."""

    times: int
    of: int
    z: float


@dataclass(frozen=True)
class Sum:
    """Page's cumulative sum (Biometrika 41, 1954): what exceeds `allowance` adds up to more than `limit`.

    Only the last `of` intervals count, and none with more than `most` z: it is there for small shifts that stay.
    """

    of: int
    allowance: float
    limit: float
    most: float


# One interval that is far out, some that are less so, or a small shift that stays: a doubled latency is found in its
# second interval, one and a half times in a few, and false alarms stay rarer than one in ten weeks. Chosen on thirty
# simulated weeks; `manage.py drill` measures on others.
STEPS = (Step(1, 1, 4.3), Step(2, 3, 2.8))
SUM = Sum(12, 1.15, 4.6, 4.0)
CALM_Z = 1.5


@dataclass(frozen=True)
class Usual:
    """What is usual: `centre` in the signal's unit, `spread` on the scale of comparison, from how many `days`.

    `core` is the spread without what sticks out of it. `days` 0: the last day as a whole, because the hours of the
    earlier ones are not known yet.
    """

    centre: float
    spread: float
    core: float
    days: int


@dataclass(frozen=True)
class Deviation:
    """`z` of the newest interval; `held` when it is beyond; `fires` when it is confirmed, `why` in words."""

    z: float
    value: float
    held: bool
    fires: bool
    why: str = ""


def is_share(signal: str) -> bool:
    return signal.endswith("_ratio")


def usual(
    at: NDArray[np.float64],
    value: NDArray[np.float64],
    requests: NDArray[np.float64],
    *,
    now: float,
    interval_seconds: float,
    share: bool,
) -> Usual | None:
    """What is usual at `now`: half an hour around this time on the last days, else the last day; None: not known.

    `at` are unix seconds[n], rising; `value`[n] is a latency or other positive size, or with `share` a share of
    `requests`[n] (per interval; only used then).
    """
    age = now - at
    away = np.abs((age + DAY / 2) % DAY - DAY / 2)
    same_hour = (away <= HALF_HOUR) & (age > DAY / 2) & (age <= DAYS * DAY + HALF_HOUR)
    days = np.unique(np.round(age[same_hour] / DAY), return_counts=True)[1]
    known_days = int(np.sum(days >= 0.5 * 2 * HALF_HOUR / interval_seconds))
    if known_days >= LEAST_DAYS:
        chosen, hour = same_hour, np.round(age / DAY)
    else:
        known_days = 0
        chosen, hour = (age <= DAY) & (age > RECENT_INTERVALS * interval_seconds), np.floor(age / 3600.0)
    if int(chosen.sum()) < LEAST_SAMPLES:
        return None
    if share:
        return _usual_share(value[chosen], requests[chosen], known_days)
    logs = np.log(np.maximum(value[chosen], 1e-9))
    centre = float(np.median(logs))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(logs - centre)))
    # The median over hours, so that the incidents of fewer than half of them don't widen what is usual.
    starts = np.flatnonzero(np.diff(hour[chosen], prepend=np.nan))
    highest = float(np.median(np.maximum.reduceat(logs, starts))) - centre
    before = RECENT_INTERVALS * interval_seconds
    today = value[(age > before) & (age <= before + LEVEL_SECONDS)]
    if known_days and len(today) >= LEAST_SAMPLES / 2:
        level = float(np.median(np.log(np.maximum(today, 1e-9)))) - centre
        centre += float(np.clip(level, -MOST_LEVEL_LOG, MOST_LEVEL_LOG))
    core = max(spread, LEAST_SPREAD_LOG)
    return Usual(math.exp(centre), max(core, highest / HIGHEST_OF_HOUR), core, known_days)


def _usual_share(value: NDArray[np.float64], requests: NDArray[np.float64], days: int) -> Usual | None:
    if requests.sum() <= 0:
        return None
    # Without its worst twentieth: an incident of yesterday is not what is usual.
    calm = value <= np.quantile(value, 0.95)
    centre = max(float(value[calm] @ requests[calm] / max(requests[calm].sum(), 1.0)), LEAST_USUAL_RATIO)
    off = _anscombe(value * requests) - _anscombe(centre * requests)
    # Counts that vary more than chance (1) let it: bursts, retries.
    spread = max(1.0, MAD_TO_SIGMA * float(np.median(np.abs(off - np.median(off)))))
    return Usual(centre, spread, spread, days)


def _anscombe(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(2.0 * np.sqrt(counts + 0.375), dtype=float)


def deviation(
    at: NDArray[np.float64],
    value: NDArray[np.float64],
    requests: NDArray[np.float64],
    *,
    now: float,
    interval_seconds: float,
    usual: Usual,
    least: float,
    least_requests: float,
    share: bool,
    also: NDArray[np.float64] | None = None,
    strictness: float = 1.0,
) -> Deviation | None:
    """How far above the usual the interval that ended at `now` is; None when it was not measured or too quiet.

    Only a value above `least` counts as beyond: `least` is a share, or a multiple of the usual for other signals.
    Where `also`[n] is given, the z of another signal (see `apart`), it must agree. `strictness` divides every z.
    Arrays as in `usual`; only the intervals of the sum are looked at.
    """
    first = int(np.searchsorted(at, now - (SUM.of - 0.5) * interval_seconds))
    last = int(np.searchsorted(at, now, side="right"))
    at, value, requests = at[first:last], value[first:last], requests[first:last]
    if not len(at) or now - at[-1] > 0.5 * interval_seconds or requests[-1] < least_requests:
        return None
    if share:
        z = (_anscombe(value * requests) - _anscombe(usual.centre * requests)) / (usual.spread * strictness)
        counts = value > least
    else:
        # What sticks out of the usual is the other signal's business where there is one.
        spread = usual.spread if also is None else usual.core
        z = np.log(np.maximum(value, 1e-9) / usual.centre) / (spread * strictness)
        counts = value > least * usual.centre
    # What was too quiet to be judged is no evidence for anything.
    counts &= requests >= least_requests
    if also is not None:
        z = np.minimum(z, also[first:last] + AGREEMENT_Z)
    newest = float(z[-1])
    if not counts[-1] or newest <= SUM.allowance:
        return Deviation(newest, float(value[-1]), False, False)
    age = np.round((now - at) / interval_seconds)
    for step in STEPS:
        beyond = counts & (z > step.z) & (age < step.of)
        if beyond[-1] and int(beyond.sum()) >= step.times:
            why = f" ({step.times} of {step.of} intervals beyond {step.z:g})" if step.of > 1 else ""
            return Deviation(newest, float(value[-1]), True, True, why)
    total = 0.0
    for one, counted in zip(np.minimum(z, SUM.most).tolist(), counts.tolist(), strict=True):
        total = max(0.0, total + (one if counted else min(one, SUM.allowance)) - SUM.allowance)
    if total > SUM.limit:
        return Deviation(newest, float(value[-1]), True, True, " (by a little, but for long)")
    # Held, and not only clear no more, from where a few such intervals would fire.
    return Deviation(newest, float(value[-1]), newest > STEPS[-1].z, False)


def apart(
    wanted_at: NDArray[np.float64], at: NDArray[np.float64], value: NDArray[np.float64], usual: Usual | None
) -> NDArray[np.float64]:
    """How far a size is from its usual at each of the unix seconds `wanted_at`[n]: z[n], -inf where not known.

    It corroborates another signal: one stuck request moves the mean of a quiet minute, but not its median.
    """
    if usual is None or not len(at):
        return np.full(len(wanted_at), -np.inf)
    place = np.minimum(np.searchsorted(at, wanted_at), len(at) - 1)
    z = np.log(np.maximum(value[place], 1e-9) / usual.centre) / usual.spread
    return np.where(at[place] == wanted_at, z, -np.inf)
