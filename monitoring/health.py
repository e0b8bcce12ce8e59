"""The health score: 0 to 100 from what was measured, with reasons.

Every input costs points by a continuous, monotone function: a little worse is never a cliff and never an improvement.
The overall score is half the weighted mean of the components and half the worst of them: one broken part shows, however
well the others do. How far a component alone can pull the worst half down is its `reach`: untidy code hurts nobody
tonight, so quality reaches less far than availability.

What is unknown:

- Performance, system and availability are expected of every service. Where one is unknown it counts as no better than
  ASSUMED and no better than the worst that is known.
- Quality and experience need a source of their own (reports of CI, a script in the pages), which a good service may
  not have. Unknown, they are left out of the score and shown as unknown.
- Either way the confidence says how much was known, and a score is at most 100 − 10 × (1 − confidence): missing data
  never scores 100.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

T = TypeVar("T")

ASSUMED = 80.0
LEAST_COST = 0.5  # points of a component; less is no reason worth a word
DOUBT = 10.0  # points that nothing but missing data can cost
HEALTHY_FROM, DEGRADED_FROM = 80.0, 50.0
TREND_POINTS = 3.0  # a smaller change over the window is not called a trend
TREND_LEAST = 5  # scores that a trend needs
TREND_MEMORY = 0.6  # the most that one score is thought to repeat the one before
NORMAL_95 = 1.6448536269514722  # the 95 % quantile of the normal distribution: a two-sided 90 % interval


@dataclass(frozen=True)
class Vitals:
    """What is known about a service at one time. None is unknown. Ratios are 0 to 1, percentages 0 to 100.

    `usual_…` is the same signal when all is well at this time of the week. The `…_objective…` are what the service
    promises; they are always there.
    """

    p95_ms: float | None = None
    usual_p95_ms: float | None = None
    slow_ratio: float | None = None  # share of requests slower than latency_objective_ms
    host_cpu_percent: float | None = None
    host_memory_percent: float | None = None
    disk_used_percent: float | None = None
    cpu_percent: float | None = None  # of the service's processes, 100 is one core
    usual_cpu_percent: float | None = None
    memory_bytes: float | None = None
    usual_memory_bytes: float | None = None
    open_fds_ratio: float | None = None  # of those the process may open
    up_ratio: float | None = None
    error_ratio: float | None = None
    test_coverage_percent: float | None = None
    test_success_ratio: float | None = None
    lint_violations: float | None = None
    usual_lint_violations: float | None = None
    vulnerabilities: float | None = None
    debt_ratio: float | None = None
    apdex: float | None = None
    lcp_p75_ms: float | None = None
    inp_p75_ms: float | None = None
    cls_p75: float | None = None

    latency_objective_ms: float = 500.0
    slow_objective_ratio: float = 0.05
    error_objective_ratio: float = 0.001


# What a person reads where a vital is not known.
WORDS = {
    "p95_ms": "p95 latency",
    "usual_p95_ms": "usual p95 latency",
    "slow_ratio": "share of slow requests",
    "host_cpu_percent": "host CPU",
    "host_memory_percent": "host memory",
    "disk_used_percent": "disk",
    "cpu_percent": "CPU of the service",
    "usual_cpu_percent": "usual CPU of the service",
    "memory_bytes": "memory of the service",
    "usual_memory_bytes": "usual memory of the service",
    "open_fds_ratio": "open files",
    "up_ratio": "success of scrapes",
    "error_ratio": "error ratio",
    "test_coverage_percent": "test coverage",
    "test_success_ratio": "test success",
    "lint_violations": "lint violations",
    "usual_lint_violations": "usual lint violations",
    "vulnerabilities": "vulnerabilities",
    "debt_ratio": "technical debt",
    "apdex": "Apdex",
    "lcp_p75_ms": "LCP",
    "inp_p75_ms": "INP",
    "cls_p75": "CLS",
}


@dataclass(frozen=True)
class Driver:
    """One reason for a score below 100. `points` is its share of the points that are missing to 100.

    The missing points are shared out in proportion to what each reason, and not knowing, would cost alone: together
    they are 100 less the score, and the second reason in a component that is at 0 already is not called harmless.
    """

    what: str
    points: float


@dataclass(frozen=True)
class Component:
    """`score` is None when nothing about the component is known; `confidence` is the share of its inputs that is."""

    name: str
    score: float | None
    status: str
    message: str
    confidence: float
    drivers: tuple[Driver, ...] = ()


@dataclass(frozen=True)
class Health:
    score: float | None
    status: str
    confidence: float
    components: tuple[Component, ...]


@dataclass(frozen=True)
class Input:
    """One thing that costs points: which vitals, how many points of the component (0 to 100), and in words."""

    needs: tuple[str, ...]
    cost: Callable[..., float]
    words: Callable[..., str]


@dataclass(frozen=True)
class Part:
    """One component of the scorecard: its share of the mean, how far it alone pulls down, and what it is made of."""

    weight: float
    reach: float
    is_expected: bool
    inputs: tuple[Input, ...]


def between(value: float, good: float, bad: float) -> float:
    """0 up to `good`, 100 from `bad`, straight in between."""
    return 100.0 * min(1.0, max(0.0, (value - good) / (bad - good)))


def between_factors(value: float, good: float, bad: float) -> float:
    """As `between`, but each doubling costs the same: people feel latency in ratios."""
    return 0.0 if value <= good else between(math.log(value), math.log(good), math.log(bad))


def saturating(value: float, scale: float) -> float:
    """0 at 0, 63 at `scale`, towards 100: the first ones matter most."""
    return 100.0 * (1.0 - math.exp(-max(0.0, value) / scale))


def of_errors(ratio: float, objective_ratio: float) -> float:
    """Beyond what the objective allows, 1 % costs 9 points, 5 % 39, 20 % 86 with an objective of 0.1 %.

    The scale follows the root of the objective: 20 % of failures stay a disaster for a service that promised little,
    and 0.1 % stays visible for one that promised much.
    """
    allowed = min(max(objective_ratio, 1e-6), 0.5)
    return saturating(ratio - allowed, 0.1 * math.sqrt(allowed / 0.001))


def beyond_usual(p95_ms: float, usual_p95_ms: float) -> float:
    # Twice a usual 5 ms is noise that nobody feels, so the comparison starts at 20 ms. Slower than usual and still
    # within the objective is a warning and no disaster: at most 60 points.
    return 0.6 * between_factors(max(p95_ms, 20.0) / max(usual_p95_ms, 20.0), 1.3, 20.0)


def vital(name: str, good: float, poor: float, what: str, unit: str) -> Input:
    """A web vital: nothing up to what Google calls good, half of its points where it is called poor.

    Thresholds: https://web.dev/articles/defining-core-web-vitals-thresholds
    """
    return Input(
        (name,),
        lambda value: 0.8 * between(value, good, 2.0 * poor - good),
        lambda value: f"{what} is {value:,.{0 if unit else 2}f}{unit} at p75, good is up to {good:g}{unit}",
    )


SCORECARD: dict[str, Part] = {
    "performance": Part(
        0.3,
        1.0,
        True,
        (
            Input(
                ("p95_ms", "latency_objective_ms"),
                lambda p, objective: between_factors(p, objective, 10.0 * objective),
                lambda p, objective: f"p95 latency is {p:,.0f} ms, the objective is {objective:,.0f} ms",
            ),
            Input(
                ("p95_ms", "usual_p95_ms"),
                beyond_usual,
                lambda p, u: f"p95 latency is {p / max(u, 0.001):.1f} times its usual {u:,.0f} ms",
            ),
            Input(
                ("slow_ratio", "slow_objective_ratio"),
                lambda slow, allowed: 0.5 * saturating(slow - allowed, 0.3),
                lambda slow, allowed: f"{slow:.0%} of the requests are slower than the objective, {allowed:.0%} may be",
            ),
        ),
    ),
    "system": Part(
        0.15,
        1.0,
        True,
        (
            Input(
                ("host_cpu_percent",),
                # A host that is busy harms nobody by that alone: what it slows down shows in the latency.
                lambda c: 0.35 * between(c, 75.0, 100.0),
                lambda c: f"the host's CPU is {c:.0f} % busy",
            ),
            Input(
                ("host_memory_percent",),
                lambda m: between(m, 80.0, 99.0),
                lambda m: f"the host's memory is {m:.0f} % full",
            ),
            Input(("disk_used_percent",), lambda d: between(d, 80.0, 98.0), lambda d: f"the disk is {d:.0f} % full"),
            Input(
                ("cpu_percent", "usual_cpu_percent"),
                # Below a tenth of a core a multiple says nothing. More traffic than usual is no disaster either.
                lambda c, u: 0.2 * between_factors(max(c, 10.0) / max(u, 10.0), 2.0, 20.0),
                lambda c, u: f"its processes use {c / 100:.1f} cores, usual are {u / 100:.1f}",
            ),
            Input(
                ("memory_bytes", "usual_memory_bytes"),
                lambda m, u: 0.6 * between_factors(max(m, 1.0) / max(u, 1.0), 1.5, 6.0),
                lambda m, u: f"its memory grew to {m / 2**20:,.0f} MB, {m / max(u, 1.0):.1f} times the usual",
            ),
            Input(
                ("open_fds_ratio",),
                lambda share: between(share, 0.7, 1.0),
                lambda share: f"{share:.0%} of the files that it may open are open",
            ),
        ),
    ),
    "availability": Part(
        0.3,
        1.0,
        True,
        (
            Input(
                ("up_ratio",),
                lambda up: between(1.0 - up, 0.0, 1.0),
                lambda up: f"{1 - up:.0%} of the attempts to measure it failed",
            ),
            Input(
                ("error_ratio", "error_objective_ratio"),
                of_errors,
                lambda e, allowed: f"{e:.1%} of the requests fail, {allowed:.2%} may",
            ),
        ),
    ),
    "quality": Part(
        0.1,
        0.3,
        False,
        (
            Input(
                ("test_coverage_percent",),
                lambda covered: 0.5 * between(100.0 - covered, 20.0, 100.0),
                lambda covered: f"tests cover {covered:.0f} % of the code",
            ),
            Input(
                ("test_success_ratio",),
                lambda passed: saturating(1.0 - passed, 0.1),
                lambda passed: f"{1 - passed:.1%} of the tests fail",
            ),
            Input(
                ("lint_violations", "usual_lint_violations"),
                # The first ten are nothing to speak of, whatever they are a multiple of.
                lambda v, u: 0.4 * between_factors(max(v, 10.0) / max(u, 10.0), 1.05, 4.0),
                lambda v, u: f"there are {v:,.0f} lint violations, usual are {u:,.0f}",
            ),
            Input(
                ("vulnerabilities",),
                lambda v: saturating(v, 4.0),
                lambda v: f"its dependencies have {v:,.0f} known vulnerabilities",
            ),
            Input(
                ("debt_ratio",),
                lambda debt: 0.6 * between(debt, 0.05, 0.5),
                lambda debt: f"the technical debt is {debt:.0%} of the cost of writing it anew",
            ),
        ),
    ),
    "experience": Part(
        0.15,
        0.7,
        False,
        (
            Input(
                ("apdex",),
                lambda apdex: between(1.0 - apdex, 0.06, 0.7),
                lambda apdex: f"Apdex is {apdex:.2f}, excellent begins at 0.94",
            ),
            vital("lcp_p75_ms", 2500.0, 4000.0, "the largest content of a page", " ms"),
            vital("inp_p75_ms", 200.0, 500.0, "the answer to a click", " ms"),
            vital("cls_p75", 0.1, 0.25, "the shift of the layout", ""),
        ),
    ),
}

ALL_WELL = dict.fromkeys(SCORECARD, 100.0)


def in_order(components: Mapping[str, T]) -> dict[str, T]:
    """In the order of the scorecard, what it does not know last: a database may keep an order of its own."""
    known = [name for name in SCORECARD if name in components]
    return {name: components[name] for name in (*known, *sorted(components.keys() - SCORECARD.keys()))}


def assess(vitals: Vitals) -> Health:
    """The health that follows from `vitals`."""
    costs = {name: _costs(part, vitals) for name, part in SCORECARD.items()}
    confidence = sum(part.weight * len(costs[name]) / len(part.inputs) for name, part in SCORECARD.items())
    scores = {name: _score([cost for _, _, cost in known]) for name, known in costs.items()}
    score = _overall(scores, confidence)
    alone = {
        (name, number): 100.0 - _overall({**ALL_WELL, name: _score([cost])}, 1.0)
        for name, known in costs.items()
        for number, (_, _, cost) in enumerate(known)
    }
    unknown = 100.0 - _overall({name: ALL_WELL[name] if known else None for name, known in costs.items()}, confidence)
    blamed = sum(alone.values()) + unknown
    per_point = (100.0 - score) / blamed if blamed > 0 else 0.0
    components = []
    for name, part in SCORECARD.items():
        drivers = [
            Driver(given.words(*values), round(per_point * alone[name, number], 1))
            for number, (given, values, cost) in enumerate(costs[name])
            if cost >= LEAST_COST
        ]
        drivers.sort(key=lambda driver: -driver.points)
        own = scores[name]
        message = _message(own, drivers, _missing(part, vitals))
        sure = len(costs[name]) / len(part.inputs)
        components.append(Component(name, own, status_of(own), message, sure, tuple(drivers)))
    # System is mostly the host's health, and quality the repository's: neither says whether the service serves.
    if all(own is None for name, own in scores.items() if name not in ("system", "quality")):
        return Health(None, "unknown", confidence, tuple(components))
    return Health(score, status_of(score), confidence, tuple(components))


def status_of(score: float | None) -> str:
    if score is None:
        return "unknown"
    return "healthy" if score >= HEALTHY_FROM else "degraded" if score >= DEGRADED_FROM else "unhealthy"


def _costs(part: Part, vitals: Vitals) -> list[tuple[Input, tuple[float, ...], float]]:
    """The inputs of a component that are known, with their values and what they cost."""
    found = []
    for given in part.inputs:
        values = tuple(getattr(vitals, name) for name in given.needs)
        if all(_is_known(value) for value in values):
            found.append((given, values, given.cost(*values)))
    return found


def _missing(part: Part, vitals: Vitals) -> list[str]:
    names = dict.fromkeys(name for given in part.inputs for name in given.needs)
    return [name for name in names if not _is_known(getattr(vitals, name))]


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _score(costs: Sequence[float]) -> float | None:
    return max(0.0, 100.0 - sum(costs)) if costs else None


def _overall(scores: Mapping[str, float | None], confidence: float) -> float:
    known = {name: score for name, score in scores.items() if score is not None}
    assumed = min([ASSUMED, *known.values()])
    filled = {name: known.get(name, assumed) for name, part in SCORECARD.items() if part.is_expected or name in known}
    weight = sum(SCORECARD[name].weight for name in filled)
    mean = sum(SCORECARD[name].weight * score for name, score in filled.items()) / weight
    worst = min(100.0 - SCORECARD[name].reach * (100.0 - score) for name, score in filled.items())
    return max(0.0, min(0.5 * mean + 0.5 * worst, 100.0 - DOUBT * (1.0 - confidence)))


def _message(score: float | None, drivers: Sequence[Driver], missing: Sequence[str]) -> str:
    unknown = f"Not known: {', '.join(WORDS[name] for name in missing)}." if missing else ""
    if score is None:
        return unknown
    if drivers:
        told = "; ".join(f"{driver.what} (−{driver.points:.0f} points)" for driver in drivers)
        return f"{told[0].upper()}{told[1:]}. {unknown}".strip()
    return f"All well. {unknown}".strip()


# --- Trend -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trend:
    """Where scores go: `direction` is improving, stable, degrading or unknown.

    `slope_per_hour` is in points; its 90 % interval is `low` to `high`. All three are None when the direction is
    unknown. `points` says how many scores it rests on.
    """

    direction: str
    slope_per_hour: float | None
    low: float | None
    high: float | None
    points: int


def trend(at: ArrayLike, scores: ArrayLike) -> Trend:
    """The trend by Theil and Sen's slope; it counts when its 90 % interval excludes 0 and it makes TREND_POINTS.

    `at` are unix seconds[n], rising; `scores`[n]. Fewer than TREND_LEAST scores, or all at one time, are unknown.
    Costs n²: give it a few hundred.
    """
    times, values = np.asarray(at, dtype=float), np.asarray(scores, dtype=float)
    if len(values) < TREND_LEAST or times[-1] <= times[0]:
        return Trend("unknown", None, None, None, len(values))
    hours = (times - times[0]) / 3600.0
    slope, _, _ = slope_with_interval(hours, values)
    slope, low, high = slope_with_interval(hours, values, inflation=_memory(values - slope * hours))
    change = slope * hours[-1]
    direction = "stable"
    if change >= TREND_POINTS and low > 0:
        direction = "improving"
    elif change <= -TREND_POINTS and high < 0:
        direction = "degrading"
    return Trend(direction, slope, low, high, len(values))


def _memory(residuals: NDArray[np.float64]) -> float:
    """By how much scores that resemble the one before widen the variance of a slope: (1 + r) / (1 − r).

    As Hamed and Rao, J. Hydrology 204 (1998), with the first autocorrelation r alone. It is bounded because a sudden
    fall leaves residuals that look like memory, and it is a trend all the same.
    """
    centred = residuals - residuals.mean()
    power = float(centred @ centred)
    if power <= 1e-9:
        return 1.0
    repeated = min(max(float(centred[1:] @ centred[:-1]) / power, 0.0), TREND_MEMORY)
    return (1.0 + repeated) / (1.0 - repeated)


def slope_with_interval(
    x: NDArray[np.float64], y: NDArray[np.float64], *, inflation: float = 1.0
) -> tuple[float, float, float]:
    """Theil and Sen's slope of y[n] over x[n] (rising) and its 90 % interval, by Sen, JASA 63 (1968).

    `inflation` multiplies the variance of Kendall's S, for values that are not independent. Without it
    scipy.stats.theilslopes gives the same numbers, but importing it takes seconds at the start of a process.
    """
    first, second = np.triu_indices(len(x), k=1)
    run = x[second] - x[first]
    apart = run > 0
    slopes = np.sort((y[second] - y[first])[apart] / run[apart])
    # The variance of Kendall's S, with the correction for tied values.
    n = len(y)
    ties = np.unique(y, return_counts=True)[1].astype(float)
    variance = (n * (n - 1) * (2 * n + 5) - np.sum(ties * (ties - 1) * (2 * ties + 5))) / 18.0
    half_width = NORMAL_95 * math.sqrt(max(variance * inflation, 0.0))
    last = len(slopes) - 1
    low = max(round((len(slopes) - half_width) / 2.0) - 1, 0)
    high = min(round((len(slopes) + half_width) / 2.0), last)
    return float(np.median(slopes)), float(slopes[low]), float(slopes[high])
