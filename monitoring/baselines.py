"""What a signal looks like when all is well: quantiles over a window, by hour of the week where the data support it.

Hours are hours of UTC. An hour of the week begins on Monday, 0:00.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

NAMES = ("p05", "p25", "p50", "p75", "p95", "p99")
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
LEAST = 30  # samples that a series needs
LEAST_IN_HOUR = 20
LEAST_WEEKS, LEAST_DAYS = 3, 3  # one odd Monday is not what Mondays are like
MOST_KEPT = 256  # values kept of a window, for comparing with it later
HOUR, DAY, WEEK = 3600.0, 86_400.0, 604_800.0
MONDAY = 4 * DAY  # the first Monday of Unix time
DIGITS = 6  # significant ones, of what is kept

LEAST_NOW = 8
SURE = 0.01  # the largest p-value that counts
# Romano et al. (2006): below 0.147 negligible, 0.33 small, 0.474 medium, above large.
SIZES = ((0.147, "negligible"), (0.33, "small"), (0.474, "medium"), (math.inf, "large"))
COUNTS = 0.33  # the smallest effect that is called a difference: with a sample a minute anything is significant


@dataclass(frozen=True)
class Quantiles:
    """In the signal's unit, of `count` samples."""

    p05: float
    p25: float
    p50: float
    p75: float
    p95: float
    p99: float
    count: int

    @classmethod
    def of(cls, numbers: Sequence[float], count: float) -> Quantiles:
        """From six numbers in the order of LEVELS."""
        p05, p25, p50, p75, p95, p99 = (float(number) for number in numbers)
        return cls(p05, p25, p50, p75, p95, p99, int(count))

    @property
    def spread(self) -> float:
        """The standard deviation of a normal distribution that is as wide; the wider of its middle and its tails."""
        return max((self.p75 - self.p25) / 1.349, (self.p95 - self.p05) / 3.290)


@dataclass(frozen=True)
class Profile:
    """One series over a window. `weekly` is by hour of the week, 0 to 167, `daily` by hour of the day.

    Only hours with enough samples from enough different weeks (days) are there. `kept` are at most MOST_KEPT values of
    the window, sorted, freed from the rhythm of the hours: see `level`.
    """

    overall: Quantiles
    weekly: Mapping[int, Quantiles]
    daily: Mapping[int, Quantiles]
    kept: NDArray[np.float64]


@dataclass(frozen=True)
class Expected:
    """What is normal at one time: the median, the spread as a standard deviation, of how many samples, and by what.

    `by` is "hour of week", "hour of day" or "overall".
    """

    p50: float
    spread: float
    n: int
    by: str


@dataclass(frozen=True)
class Compared:
    """Values now against a baseline. `direction` is higher, lower, same or unknown; None where it is unknown.

    `delta` is Cliff's, −1 to 1: how much more often a value now is above one of the baseline than below. `shift` is
    Hodges' and Lehmann's in the signal's unit, with its 95 % interval.
    """

    direction: str
    words: str
    n_now: int
    n_baseline: int
    p_value: float | None = None
    delta: float | None = None
    shift: float | None = None
    low: float | None = None
    high: float | None = None


def quantiles(values: NDArray[np.float64]) -> Quantiles:
    """The quantiles of values[n], n ≥ 1."""
    return Quantiles.of(np.quantile(values, LEVELS).tolist(), len(values))


def hour_of_week(at: float) -> int:
    """0 to 167, from unix seconds."""
    return int((at - MONDAY) % WEEK // HOUR)


def hour_of_day(at: float) -> int:
    """0 to 23, from unix seconds."""
    return int(at % DAY // HOUR)


def profile(at: ArrayLike, values: ArrayLike) -> Profile | None:
    """What at[n] (unix seconds, rising) and values[n] look like; None with fewer than LEAST finite samples."""
    moments, found = np.asarray(at, dtype=float), np.asarray(values, dtype=float)
    finite = np.isfinite(found)
    moments, found = moments[finite], found[finite]
    if len(found) < LEAST:
        return None
    week = (moments - MONDAY) % WEEK // HOUR
    day = moments % DAY // HOUR
    weekly = _by_hour(found, week.astype(int), ((moments - MONDAY) // WEEK).astype(int), LEAST_WEEKS)
    daily = _by_hour(found, day.astype(int), (moments // DAY).astype(int), LEAST_DAYS)
    made = Profile(quantiles(found), weekly, daily, np.empty(0))
    flat = np.sort(level(made, moments, found))
    if len(flat) > MOST_KEPT:
        # Evenly spaced order statistics: what is kept has the same distribution, and no value was chosen by chance.
        flat = flat[np.linspace(0, len(flat) - 1, MOST_KEPT).round().astype(int)]
    return Profile(made.overall, weekly, daily, flat)


def _by_hour(
    values: NDArray[np.float64], hours: NDArray[np.int_], periods: NDArray[np.int_], least_periods: int
) -> dict[int, Quantiles]:
    order = np.argsort(hours, kind="stable")
    hours, values, periods = hours[order], values[order], periods[order]
    edges = np.flatnonzero(np.diff(hours)) + 1
    found = {}
    for hour, own, seen in zip(
        hours[np.concatenate(([0], edges))], np.split(values, edges), np.split(periods, edges), strict=True
    ):
        if len(own) >= LEAST_IN_HOUR and len(np.unique(seen)) >= least_periods:
            found[int(hour)] = quantiles(own)
    return found


def expected(made: Profile, at: float) -> Expected:
    """What is normal at `at` (unix seconds): of its hour of the week, else of its hour of the day, else overall."""
    for by, table, hour in (
        ("hour of week", made.weekly, hour_of_week(at)),
        ("hour of day", made.daily, hour_of_day(at)),
    ):
        if hour in table:
            return Expected(table[hour].p50, table[hour].spread, table[hour].count, by)
    return Expected(made.overall.p50, made.overall.spread, made.overall.count, "overall")


def level(made: Profile, at: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """values[n] at[n] without the rhythm of the hours: each less what its hour usually is, plus the overall median.

    A quiet night can then be compared with a busy day.
    """
    if not made.weekly and not made.daily:
        return values
    typical = np.full(168, made.overall.p50)
    for hour, usual in made.daily.items():
        typical[hour::24] = usual.p50
    for hour, usual in made.weekly.items():
        typical[hour] = usual.p50
    hours = ((at - MONDAY) % WEEK // HOUR).astype(int)
    return np.asarray(values - typical[hours] + made.overall.p50, dtype=float)


def compare(made: Profile, at: ArrayLike, values: ArrayLike) -> Compared:
    """Mann and Whitney's test of values[n] at[n] (unix seconds) against the baseline, with sizes of the difference.

    Both sides are freed from the rhythm of the hours first. A difference is one that is both sure (p < SURE) and large
    enough to matter (Cliff's delta ≥ COUNTS).
    """
    moments, found = np.asarray(at, dtype=float), np.asarray(values, dtype=float)
    finite = np.isfinite(found)
    now = level(made, moments[finite], found[finite])
    before = made.kept
    if len(now) < LEAST_NOW or len(before) < LEAST:
        words = f"Too little to compare: {len(now)} samples now, at least {LEAST_NOW} are needed."
        return Compared("unknown", words, len(now), len(before))
    if len(now) > MOST_KEPT:
        now = np.sort(now)[np.linspace(0, len(now) - 1, MOST_KEPT).round().astype(int)]
    p_value, delta = mann_whitney(now, before)
    shift, low, high = hodges_lehmann(now, before)
    size = next(word for limit, word in SIZES if abs(delta) < limit)
    direction = "same"
    if p_value < SURE and abs(delta) >= COUNTS:
        direction = "higher" if delta > 0 else "lower"
    chance = "less than 1 in 1,000" if p_value < 0.001 else f"{p_value:.2g}"
    if direction == "same":
        words = f"As in the baseline: the difference is {size} (Cliff's delta {delta:+.2f}, p {chance})."
    else:
        words = (
            f"{direction.capitalize()} than in the baseline by {abs(shift):.3g} ({min(abs(low), abs(high)):.3g} to "
            f"{max(abs(low), abs(high)):.3g}): a {size} difference (Cliff's delta {delta:+.2f}, p {chance})."
        )
    return Compared(direction, words, len(now), len(before), p_value, delta, shift, low, high)


def mann_whitney(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    """The two-sided p-value of Mann and Whitney's test of first[n] and second[m], and Cliff's delta.

    With the normal approximation, corrected for ties and continuity. scipy.stats.mannwhitneyu gives the same numbers,
    but importing it takes seconds, which is too long for a page.
    """
    n, m = len(first), len(second)
    ordered = np.sort(second)
    below = np.searchsorted(ordered, first, side="left").sum()
    not_above = np.searchsorted(ordered, first, side="right").sum()
    u = float(below + not_above) / 2.0
    ties = np.unique(np.concatenate([first, second]), return_counts=True)[1].astype(float)
    total = n + m
    variance = n * m / 12.0 * ((total + 1) - float(np.sum(ties**3 - ties)) / (total * (total - 1)))
    delta = 2.0 * u / (n * m) - 1.0
    if variance <= 0:
        return 1.0, delta
    z = max(abs(u - n * m / 2.0) - 0.5, 0.0) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2.0)), delta


def hodges_lehmann(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float, float]:
    """By how much first[n] is above second[m]: the median of all differences, and its 95 % interval.

    Hollander and Wolfe, Nonparametric Statistical Methods, 4.2 and 4.3. Costs n × m.
    """
    n, m = len(first), len(second)
    differences = np.sort((first[:, None] - second[None, :]).ravel())
    half_width = 1.959963984540054 * math.sqrt(n * m * (n + m + 1) / 12.0)
    place = max(math.floor(n * m / 2.0 - half_width), 0)
    return float(np.median(differences)), float(differences[place]), float(differences[n * m - 1 - place])


# --- As it is stored ---------------------------------------------------------------------------------------------


def packed_hours(made: Profile) -> dict[str, dict[str, list[float]]]:
    """The quantiles by hour as JSON can hold them: {"week": {"17": [p05, …, p99, count]}, "day": {…}}."""
    return {
        name: {
            str(hour): [*(_short(getattr(q, level)) for level in NAMES), q.count] for hour, q in sorted(table.items())
        }
        for name, table in (("week", made.weekly), ("day", made.daily))
    }


def unpacked(
    overall: Quantiles, hours: Mapping[str, Mapping[str, Any]], kept: NDArray[np.float64] | None = None
) -> Profile:
    """The profile of what `packed_hours` made. Raises KeyError and TypeError for anything else."""
    weekly, daily = (
        {int(hour): Quantiles.of(row[:-1], row[-1]) for hour, row in hours[name].items()} for name in ("week", "day")
    )
    return Profile(overall, weekly, daily, np.empty(0) if kept is None else kept)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
