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

from monitoring import baselines
from monitoring.baselines import Profile, Quantiles

DAY = 86_400.0
DAYS = 7
HALF_HOUR = 1800.0
LEAST_DAYS = 3  # with fewer, the hour of the day can't be told from chance
LEAST_SAMPLES = 60
RECENT_INTERVALS = 10  # they may be the trouble already
MAD_TO_SIGMA = 1.4826
IQR, TOP = 1.349, 1.645  # p75 - p25 and p95 - p50 of a normal distribution, in standard deviations
USED_SECONDS = 600.0  # for so long it is used until it is worked out anew
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
class Together:
    """The z of the last `intervals` add up to more than `z` standard deviations of such a sum: z × √intervals."""

    intervals: int
    z: float


# One interval that is far out, two that are less so, or a small shift that stays: a doubled latency is found in its
# first or second interval, one and a half times in a few. The more intervals, the stricter: what is usual is itself
# only known to a tenth or so, and that adds up. Chosen on 150 simulated weeks; `manage.py drill` measures on others.
LIMITS = (
    Together(1, 4.7),
    Together(2, 4.25),
    Together(3, 4.37),
    Together(4, 4.49),
    Together(5, 4.61),
    Together(6, 4.73),
    Together(8, 4.97),
    Together(10, 5.21),
)
LONGEST = max(limit.intervals for limit in LIMITS)
LEAST_TOGETHER = 1.4  # several intervals are an incident only when they are slower by two fifths on average
LEAST_Z = 1.0  # below it the newest interval is none; nor does one count for more that does not count by itself
HELD_Z = 2.8  # above it an interval is held to be off, though it does not fire alone
CALM_Z = 1.5


@dataclass(frozen=True)
class Usual:
    """What is usual: `centre` in the signal's unit, `spread` on the scale of comparison, and when, in words (`since`).

    `core` is the spread without what sticks out of it. `days`: of how many it is the usual at this hour; 0: of the last
    day as a whole, because the hours of the earlier ones are not known yet; None: it is from a baseline.
    """

    centre: float
    spread: float
    core: float
    days: int | None
    since: str = "at this time of day"


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
    around = np.array([now - day * DAY for day in range(DAYS, 0, -1)])
    firsts, lasts = np.searchsorted(at, around - HALF_HOUR), np.searchsorted(at, around + HALF_HOUR, side="right")
    known_days = int(np.sum(lasts - firsts >= 0.5 * 2 * HALF_HOUR / interval_seconds))
    recent = now - RECENT_INTERVALS * interval_seconds
    if known_days >= LEAST_DAYS:
        chosen = np.concatenate([np.arange(first, last) for first, last in zip(firsts, lasts, strict=True)])
        hour = np.round((now - at[chosen]) / DAY)
    else:
        known_days = 0
        chosen = np.arange(np.searchsorted(at, now - DAY), np.searchsorted(at, recent))
        hour = np.floor((now - at[chosen]) / 3600.0)
    if len(chosen) < LEAST_SAMPLES:
        return None
    if share:
        return _usual_share(value[chosen], requests[chosen], known_days)
    logs = np.log(np.maximum(value[chosen], 1e-9))
    centre = float(np.median(logs))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(logs - centre)))
    # The median over hours, so that the incidents of fewer than half of them don't widen what is usual.
    starts = np.flatnonzero(np.diff(hour, prepend=np.nan))
    highest = float(np.median(np.maximum.reduceat(logs, starts))) - centre
    today = value[np.searchsorted(at, recent - LEVEL_SECONDS) : np.searchsorted(at, recent)]
    if known_days and len(today) >= LEAST_SAMPLES / 2:
        level = float(np.median(np.log(np.maximum(today, 1e-9)))) - centre
        centre += float(np.clip(level, -MOST_LEVEL_LOG, MOST_LEVEL_LOG))
    core = max(spread, LEAST_SPREAD_LOG)
    return Usual(math.exp(centre), max(core, highest / HIGHEST_OF_HOUR), core, known_days, _since(known_days))


def _usual_share(value: NDArray[np.float64], requests: NDArray[np.float64], days: int) -> Usual | None:
    if requests.sum() <= 0:
        return None
    # Without its worst twentieth: an incident of yesterday is not what is usual.
    calm = value <= np.quantile(value, 0.95)
    centre = max(float(value[calm] @ requests[calm] / max(requests[calm].sum(), 1.0)), LEAST_USUAL_RATIO)
    off = _anscombe(value * requests) - _anscombe(centre * requests)
    # Counts that vary more than chance (1) let it: bursts, retries.
    spread = max(1.0, MAD_TO_SIGMA * float(np.median(np.abs(off - np.median(off)))))
    return Usual(centre, spread, spread, days, _since(days))


def _since(days: int) -> str:
    return "at this time of day" if days else "in the last day"


@dataclass(frozen=True)
class Hours:
    """A baseline of sizes by hour of the week, made ready for `usual_by_hour`: logarithms, NaN where nothing is known.

    `logs` are those of p05 to p99, [168, 6]; `core` is the spread of each hour without what sticks out of it, [168].
    """

    logs: NDArray[np.float64]
    core: NDArray[np.float64]
    is_weekly: NDArray[np.bool_]

    @classmethod
    def of(cls, made: Profile) -> Hours:
        daily = np.array([_logs(made.daily.get(hour % 24)) for hour in range(168)])
        weekly = np.array([_logs(made.weekly.get(hour)) for hour in range(168)])
        is_weekly = np.isfinite(weekly[:, 2])
        logs = np.where(is_weekly[:, None], weekly, daily)
        # Of all days there are more samples, so that chance makes no hour look calmer than it is.
        wide = np.fmax(logs[:, 3] - logs[:, 1], daily[:, 3] - daily[:, 1]) / IQR
        return cls(logs, np.maximum(LEAST_SPREAD_LOG, wide), is_weekly)


def _logs(found: Quantiles | None) -> tuple[float, ...]:
    if found is None:
        return (math.nan,) * len(baselines.NAMES)
    return tuple(math.log(max(getattr(found, name), 1e-9)) for name in baselines.NAMES)


def usual_by_hour(
    hours: Hours, at: NDArray[np.float64], value: NDArray[np.float64], *, now: float, interval_seconds: float
) -> Usual | None:
    """What is usual in the ten minutes from `now` on by a baseline; None where it does not know these hours.

    Its medians are those of whole hours, so between the middles of two hours it lies between them. `at`[n] are unix
    seconds, rising, with `value`[n], of the last hours: today's own level is made allowance for, as in `usual`.
    """
    medians, moment = hours.logs[:, 2], now + USED_SECONDS / 2
    centre = float(_between(medians, np.array([moment]))[0])
    hour = baselines.hour_of_week(moment)
    if not math.isfinite(centre):
        return None
    _, low, middle, high, top, _ = hours.logs[hour]
    recent = now - RECENT_INTERVALS * interval_seconds
    first, last = np.searchsorted(at, (recent - LEVEL_SECONDS, recent))
    off = np.log(np.maximum(value[first:last], 1e-9)) - _between(medians, at[first:last])
    off = off[np.isfinite(off)]
    if len(off) >= LEAST_SAMPLES / 2:
        centre += float(np.clip(np.median(off), -MOST_LEVEL_LOG, MOST_LEVEL_LOG))
    spread = max(LEAST_SPREAD_LOG, float(high - low) / IQR, float(top - middle) / TOP)
    since = "at this hour of the week" if hours.is_weekly[hour] else "at this time of day"
    return Usual(math.exp(centre), spread, float(hours.core[hour]), None, since)


def _between(by_hour: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """by_hour[168] at unix seconds moments[n], by linear interpolation between the middles of the hours."""
    hours = ((moments - baselines.MONDAY) % baselines.WEEK) / baselines.HOUR - 0.5
    around = np.concatenate([by_hour[-1:], by_hour, by_hour[:1]])
    return np.asarray(np.interp(hours, np.arange(-1, 169), around), dtype=float)


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
    first = int(np.searchsorted(at, now - (LONGEST - 0.5) * interval_seconds))
    last = int(np.searchsorted(at, now, side="right"))
    at, value, requests = at[first:last], value[first:last], requests[first:last]
    if not len(at) or now - at[-1] > 0.5 * interval_seconds or requests[-1] < least_requests:
        return None
    if share:
        off = _anscombe(value * requests) - _anscombe(usual.centre * requests)
        z, counts, least_together = off / (usual.spread * strictness), value > least, -math.inf
    else:
        # What sticks out of the usual is the other signal's business where there is one.
        spread = usual.spread if also is None else usual.core
        off = np.log(np.maximum(value, 1e-9) / usual.centre)
        z, counts, least_together = off / (spread * strictness), value > least * usual.centre, math.log(LEAST_TOGETHER)
    # What was too quiet to be judged is no evidence for anything.
    counts &= requests >= least_requests
    if also is not None:
        z = np.minimum(z, also[first:last] + AGREEMENT_Z)
    newest = float(z[-1])
    if not counts[-1] or newest <= LEAST_Z:
        return Deviation(newest, float(value[-1]), False, False)
    z = np.where(counts, z, np.minimum(z, LEAST_Z))
    age = np.round((now - at) / interval_seconds)
    for limit in LIMITS:
        inside = age < limit.intervals
        together = float(z[inside].sum()) / math.sqrt(limit.intervals)
        if together > limit.z and (limit.intervals == 1 or float(off[inside].mean()) > least_together):
            why = f" ({limit.intervals} intervals together {together:.1f})" if limit.intervals > 1 else ""
            return Deviation(newest, float(value[-1]), True, True, why)
    return Deviation(newest, float(value[-1]), newest > HELD_Z, False)


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
