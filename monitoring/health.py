"""The health score: 0 to 100 from what was measured, with reasons.

Every input costs points by a continuous, monotone function: a little worse is never a cliff and never an improvement.
The overall score is half the weighted mean of the components and half the worst of them: one broken part shows, however
well the others do. What is unknown counts as no better than ASSUMED and no better than the worst that is known, so
missing data never scores 100, and the confidence says how much was known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

ASSUMED = 80.0
HEALTHY_FROM, DEGRADED_FROM = 80.0, 50.0
TREND_POINTS = 3.0  # a smaller change over the window is not called a trend
TREND_LEAST = 5  # scores that a trend needs
NORMAL_95 = 1.6448536269514722  # the 95 % quantile of the normal distribution: a two-sided 90 % interval


@dataclass(frozen=True)
class Vitals:
    """What is known about a service at one time. None is unknown. Ratios are 0 to 1, percentages 0 to 100."""

    p95_ms: float | None = None
    usual_p95_ms: float | None = None
    error_ratio: float | None = None
    up_ratio: float | None = None
    host_cpu_percent: float | None = None
    host_memory_percent: float | None = None
    disk_used_percent: float | None = None


@dataclass(frozen=True)
class Driver:
    """One reason for a score below 100. `points` is what the overall score would gain without it."""

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
    """One row of the scorecard: which vitals, what they cost (0 to 100 points of the component), and in words."""

    needs: tuple[str, ...]
    cost: Callable[..., float]
    words: Callable[..., str]


def between(value: float, good: float, bad: float) -> float:
    """0 up to `good`, 100 from `bad`, straight in between."""
    return 100.0 * min(1.0, max(0.0, (value - good) / (bad - good)))


def between_factors(value: float, good: float, bad: float) -> float:
    """As `between`, but each doubling costs the same: people feel latency in ratios."""
    return 0.0 if value <= good else between(math.log(value), math.log(good), math.log(bad))


def of_errors(ratio: float) -> float:
    """1 % costs 13 points, 5 % 51, 20 % 94: the first errors matter most."""
    return 100.0 * (1.0 - math.exp(-max(0.0, ratio) / 0.07))


def beyond_usual(p95_ms: float, usual_p95_ms: float) -> float:
    # Twice a usual 5 ms is noise that nobody feels, so the comparison starts at 20 ms.
    return between_factors(max(p95_ms, 20.0) / max(usual_p95_ms, 20.0), 1.3, 10.0)


SCORECARD: dict[str, tuple[float, tuple[Input, ...]]] = {
    "performance": (
        0.4,
        (
            Input(("p95_ms",), lambda p: between_factors(p, 500.0, 10_000.0), lambda p: f"p95 latency is {p:,.0f} ms"),
            Input(
                ("p95_ms", "usual_p95_ms"),
                beyond_usual,
                lambda p, u: f"p95 latency is {p / max(u, 0.001):.1f} times its usual {u:,.0f} ms",
            ),
        ),
    ),
    "system": (
        0.2,
        (
            Input(
                ("host_cpu_percent",),
                lambda c: 0.6 * between(c, 75.0, 100.0),
                lambda c: f"the host's CPU is {c:.0f} % busy",
            ),
            Input(
                ("host_memory_percent",),
                lambda m: between(m, 80.0, 99.0),
                lambda m: f"the host's memory is {m:.0f} % full",
            ),
            Input(("disk_used_percent",), lambda d: between(d, 80.0, 98.0), lambda d: f"the disk is {d:.0f} % full"),
        ),
    ),
    "availability": (
        0.4,
        (
            Input(
                ("up_ratio",),
                lambda up: between(1.0 - up, 0.0, 1.0),
                lambda up: f"{1 - up:.0%} of the attempts to measure it failed",
            ),
            Input(("error_ratio",), of_errors, lambda e: f"{e:.1%} of the requests fail"),
        ),
    ),
}


def assess(vitals: Vitals) -> Health:
    """The health that follows from `vitals`."""
    score, _ = _overall(vitals)
    components = tuple(_component(name, vitals, score) for name in SCORECARD)
    confidence = sum(SCORECARD[c.name][0] * c.confidence for c in components)
    # System alone is the host's health, not the service's.
    if all(c.score is None for c in components if c.name != "system"):
        return Health(None, "unknown", confidence, components)
    return Health(score, status_of(score), confidence, components)


def status_of(score: float | None) -> str:
    if score is None:
        return "unknown"
    return "healthy" if score >= HEALTHY_FROM else "degraded" if score >= DEGRADED_FROM else "unhealthy"


def _known(given: Input, vitals: Vitals) -> tuple[float, ...] | None:
    values = tuple(getattr(vitals, name) for name in given.needs)
    return None if any(value is None or not math.isfinite(value) for value in values) else values


def _score(name: str, vitals: Vitals, *, without: Input | None = None) -> float | None:
    """The component's score; `without` leaves the cost of one input out, as if all were well with it."""
    costs = [
        0.0 if given is without else given.cost(*values)
        for given in SCORECARD[name][1]
        if (values := _known(given, vitals)) is not None
    ]
    return max(0.0, 100.0 - sum(costs)) if costs else None


def _overall(vitals: Vitals, *, without: Input | None = None) -> tuple[float, dict[str, float]]:
    scores = {name: _score(name, vitals, without=without) for name in SCORECARD}
    known = [score for score in scores.values() if score is not None]
    assumed = min([ASSUMED, *known])
    filled = {name: assumed if score is None else score for name, score in scores.items()}
    mean = sum(weight * filled[name] for name, (weight, _) in SCORECARD.items())
    # An input that is missing inside a known component leaves room for doubt as well, up to ten points.
    doubt = 10.0 * (1.0 - sum(weight * _confidence(name, vitals) for name, (weight, _) in SCORECARD.items()))
    return max(0.0, min(0.5 * mean + 0.5 * min(filled.values()), 100.0 - doubt)), filled


def _confidence(name: str, vitals: Vitals) -> float:
    inputs = SCORECARD[name][1]
    return sum(_known(given, vitals) is not None for given in inputs) / len(inputs)


def _component(name: str, vitals: Vitals, overall: float) -> Component:
    score, confidence = _score(name, vitals), _confidence(name, vitals)
    drivers = []
    for given in SCORECARD[name][1]:
        values = _known(given, vitals)
        if values is None or given.cost(*values) < 0.5:
            continue
        gain = _overall(vitals, without=given)[0] - overall
        drivers.append(Driver(given.words(*values), round(gain, 1)))
    drivers.sort(key=lambda driver: -driver.points)
    missing = sorted({n for given in SCORECARD[name][1] for n in given.needs if getattr(vitals, n) is None})
    return Component(name, score, status_of(score), _message(score, drivers, missing), confidence, tuple(drivers))


def _message(score: float | None, drivers: Sequence[Driver], missing: Sequence[str]) -> str:
    unknown = f"Not known: {', '.join(name.replace('_', ' ') for name in missing)}." if missing else ""
    if score is None:
        return unknown
    if drivers:
        told = "; ".join(f"{driver.what} (−{driver.points:.0f} points)" for driver in drivers)
        return f"{told[0].upper()}{told[1:]}. {unknown}".strip()
    return f"All well. {unknown}".strip()


def trend(at: ArrayLike, scores: ArrayLike) -> str:
    """improving, stable, degrading or unknown, by Theil and Sen's slope; it counts when its 90 % interval excludes 0.

    `at` are unix seconds[n], rising; `scores`[n]. Fewer than TREND_LEAST scores, or all at one time, are unknown.
    """
    times, values = np.asarray(at, dtype=float), np.asarray(scores, dtype=float)
    if len(values) < TREND_LEAST or times[-1] <= times[0]:
        return "unknown"
    slope, low, high = slope_with_interval(times, values)
    change = slope * (times[-1] - times[0])
    if change >= TREND_POINTS and low > 0:
        return "improving"
    if change <= -TREND_POINTS and high < 0:
        return "degrading"
    return "stable"


def slope_with_interval(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float]:
    """Theil and Sen's slope of y[n] over x[n] (rising) and its 90 % interval, by Sen, JASA 63 (1968).

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
    half_width = NORMAL_95 * math.sqrt(max(variance, 0.0))
    last = len(slopes) - 1
    low = max(round((len(slopes) - half_width) / 2.0) - 1, 0)
    high = min(round((len(slopes) + half_width) / 2.0), last)
    return float(np.median(slopes)), float(slopes[low]), float(slopes[high])
