"""How soon the rules find what goes wrong, and how often they cry wolf: measured on simulated services.

A simulated service has a rhythm of day and week, quiet nights, log-normal noise from minute to minute and from day to
day, heavy-tailed latencies and rare failures. Its requests are thrown into the histogram buckets that a real one would
expose; quantiles come from `monitoring.derive` and verdicts from `monitoring.alerts`, the code that judges real rounds.
Nothing waits: a week is 10,080 rounds of arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring import deviation
from monitoring.alerts import (
    DEFAULT_RULES,
    HISTORY_SECONDS,
    PATTERN_SECONDS,
    Facts,
    Kind,
    Move,
    Rule,
    Track,
    Trail,
    advance,
    judge,
)
from monitoring.derive import Histogram, quantile

INTERVAL = 60.0
DAY = 86_400.0
WEEK = 7 * DAY
ROUNDS_A_WEEK = int(WEEK / INTERVAL)
LONGEST_ROUNDS = 60  # a fault that is not found by then is not found
NO_TRAIL = Trail()
MONDAY = 1_767_571_200.0  # 2026-01-05 00:00 UTC

# The buckets of django-prometheus in seconds: what Realm exposes. Coarse ones, as real services have.
BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 25.0, 50.0, 75.0, math.inf)
SLOW_SECONDS = 0.5  # the manifest's default slo.latency_ms, one of the bounds
AVAILABILITY, QUICK_SHARE = 0.999, 0.95  # the manifest's default [slo]

MINUTE_NOISE, DAY_NOISE = 0.15, 0.05  # standard deviations of log latency
LATENCY_SIGMA = 0.55  # of the log latency of requests within a minute
TAIL_SHARE, TAIL_POWER = 0.01, 1.5  # one request in a hundred is of a Pareto tail
TIMEOUT_SECONDS = 30.0
CLEAN_ERROR_RATIO = 0.0004


@dataclass(frozen=True)
class Fault:
    """What goes wrong. Latency is multiplied by `latency`; `ramp_intervals`: it comes on over so many intervals."""

    name: str
    latency: float = 1.0
    errors: float = 0.0
    ramp_intervals: float = 0.0
    is_down: bool = False
    is_silent: bool = False
    mean_target: float | None = None
    p95_target: float | None = None


FAULTS = (
    Fault("latency ×1.5", latency=1.5, mean_target=5),
    Fault("latency ×2", latency=2, mean_target=2, p95_target=4),
    Fault("latency ×5", latency=5, mean_target=2, p95_target=4),
    Fault("errors 5 %", errors=0.05, mean_target=2, p95_target=4),
    Fault("errors 20 %", errors=0.2, mean_target=2, p95_target=4),
    # Slower and slower over ten minutes, in the end with one request in ten given up.
    Fault("saturation", latency=10, errors=0.1, ramp_intervals=10, mean_target=5),
    Fault("crash", is_down=True, mean_target=5),
    Fault("silence of metrics", is_silent=True, mean_target=5),
)
FALSE_ALERTS_TARGET = 0.1  # per service and week


@dataclass(frozen=True)
class Profile:
    """One simulated service: mean requests per second by day, median latency in seconds, how deep its nights are."""

    per_second: float
    median_seconds: float
    night: float
    load_effect: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Profile:
        return cls(
            per_second=float(np.exp(rng.uniform(np.log(5), np.log(60)))),
            median_seconds=float(np.exp(rng.uniform(np.log(0.015), np.log(0.08)))),
            night=float(rng.uniform(0.05, 0.4)),
            load_effect=float(rng.uniform(0.0, 0.4)),
        )


@dataclass(frozen=True)
class Samples:
    """Rounds of one service, one row each: float64[n] per signal, NaN where nothing was measured."""

    at: NDArray[np.float64]
    signals: dict[str, NDArray[np.float64]]

    def until(self, rounds: int) -> Samples:
        return Samples(self.at[:rounds], {name: values[:rounds] for name, values in self.signals.items()})

    def then(self, more: Samples) -> Samples:
        return Samples(
            np.concatenate([self.at, more.at]),
            {name: np.concatenate([values, more.signals[name]]) for name, values in self.signals.items()},
        )


def simulate(
    profile: Profile,
    rng: np.random.Generator,
    *,
    first: int,
    rounds: int,
    fault: Fault | None = None,
    begins_at: float = math.inf,
) -> Samples:
    """`rounds` rounds from number `first` on (round r ends r + 1 intervals after a Monday's midnight).

    `fault` begins at the unix second `begins_at`, which may be inside an interval.
    """
    at = np.asarray(MONDAY + INTERVAL * (first + 1 + np.arange(rounds)), dtype=np.float64)
    clock = (at - MONDAY) % DAY / DAY
    weekend = (at - MONDAY) % WEEK >= 5 * DAY
    load = 0.5 - 0.5 * np.cos(2 * np.pi * (clock - 0.15))
    load = (profile.night + (1 - profile.night) * load) * np.where(weekend, 0.7, 1.0)
    # Where a day is quieter or busier than the last one, all of it is.
    day = ((at - MONDAY) // DAY).astype(int)
    by_day = np.random.default_rng([int(1e6 * profile.median_seconds), 7]).normal(0, 1, (day.max() + 1, 2))
    per_second = profile.per_second * load * np.exp(0.08 * by_day[day, 0] + rng.normal(0, 0.1, rounds))
    requests = rng.poisson(per_second * INTERVAL)
    noise = DAY_NOISE * by_day[day, 1] + rng.normal(0, MINUTE_NOISE, rounds)
    median = profile.median_seconds * (1 + profile.load_effect * load) * np.exp(noise)
    failing = np.minimum(CLEAN_ERROR_RATIO * np.exp(rng.normal(0, 0.3, rounds)), 1.0)

    missing = np.zeros(rounds, bool)
    up = np.ones(rounds)
    counts, seconds = np.zeros((rounds, len(BOUNDS)), int), np.zeros(rounds)
    if fault is not None:
        share = np.clip((at - begins_at) / INTERVAL, 0.0, 1.0)  # of the interval that the fault was there
        grown = np.clip((at - begins_at) / INTERVAL / fault.ramp_intervals, 0, 1) if fault.ramp_intervals else 1.0
        hit = rng.binomial(requests, share)
        counts, seconds = _served(rng, hit, median * (1 + (fault.latency - 1) * grown))
        failing = failing + share * fault.errors * grown
        broken = share > 0
        if fault.is_down:
            missing, up = broken, np.where(broken, 0.0, 1.0)
        if fault.is_silent:
            missing = broken
        healthy_counts, healthy_seconds = _served(rng, requests - hit, median)
    else:
        healthy_counts, healthy_seconds = _served(rng, requests, median)
    counts = np.cumsum(counts + healthy_counts, axis=1)
    seconds = seconds + healthy_seconds
    errors = rng.binomial(requests, np.minimum(failing, 1.0))
    asked = np.where(requests > 0, requests, np.nan)
    signals = {
        "requests_per_second": requests / INTERVAL,
        "error_ratio": errors / asked,
        "latency_mean_ms": 1000 * seconds / asked,
        "latency_p50_ms": _quantiles_ms(0.5, counts),
        "latency_p95_ms": _quantiles_ms(0.95, counts),
        "slow_ratio": 1 - counts[:, BOUNDS.index(SLOW_SECONDS)] / asked,
    }
    signals = {name: np.where(missing, np.nan, values) for name, values in signals.items()}
    signals["up"] = up
    # A process that grows until its worker is renewed; a disk that fills by a percent a day and is swept each week.
    signals["memory_bytes"] = 2e8 * (1 + 0.2 * clock + rng.normal(0, 0.02, rounds))
    signals["disk_used_percent"] = 60 + (at - MONDAY) % WEEK / DAY + rng.normal(0, 0.1, rounds)
    if fault is not None and fault.is_down:
        signals["memory_bytes"] = np.where(missing, np.nan, signals["memory_bytes"])
    return Samples(at, signals)


def _served(
    rng: np.random.Generator, requests: NDArray[np.int64], median: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """How many of `requests`[n] fell into each bucket, int[n, buckets], and the seconds that all of them took, [n].

    The many of the body as a multinomial and a normal sum, the few of the tail one by one.
    """
    from scipy.special import ndtr

    rounds = len(requests)
    late = rng.binomial(requests, TAIL_SHARE)
    below = ndtr(np.log(np.array(BOUNDS[:-1]) / median[:, None]) / LATENCY_SIGMA)
    counts = rng.multinomial(requests - late, np.diff(below, axis=1, prepend=0.0, append=1.0))
    mean = median * math.exp(LATENCY_SIGMA**2 / 2)
    deviation_of_one = mean * math.sqrt(math.expm1(LATENCY_SIGMA**2))
    body = requests - late
    seconds = np.maximum(body * mean + np.sqrt(body) * deviation_of_one * rng.normal(0, 1, rounds), 0.0)
    whose = np.repeat(np.arange(rounds), late)
    took = np.minimum(3 * median[whose] * (1 + rng.pareto(TAIL_POWER, len(whose))), TIMEOUT_SECONDS)
    np.add.at(counts, (whose, np.searchsorted(BOUNDS, took)), 1)
    return counts, seconds + np.bincount(whose, took, minlength=rounds)


def _quantiles_ms(q: float, cumulative: NDArray[np.int64]) -> NDArray[np.float64]:
    found = []
    for row in cumulative.tolist():
        seconds = quantile(q, Histogram(BOUNDS, tuple(row), 0.0, row[-1]))
        found.append(math.nan if seconds is None else 1000 * seconds)
    return np.array(found)


class Judge:
    """The rules over the samples of one service, round by round."""

    def __init__(self, samples: Samples, rules: Iterable[Rule] = DEFAULT_RULES) -> None:
        self.at = samples.at
        self.signals = samples.signals
        self.requests = samples.signals["requests_per_second"] * INTERVAL
        self.rules = [rule for rule in rules if rule.signal in samples.signals]
        self.tracks: dict[str, Track | None] = {}
        # A trail holds what was measured, and only that.
        self.trails = {}
        for name in {name for r in self.rules if r.kind in HISTORY_SECONDS for name in (r.signal, r.also) if name}:
            there = np.isfinite(samples.signals[name])
            self.trails[name] = Trail(self.at[there], samples.signals[name][there], np.nan_to_num(self.requests[there]))
        self.patterns: dict[tuple[str, float], deviation.Usual | None] = {}
        # The last day's usual of what a relative threshold compares with, by hour.
        self.usuals: dict[tuple[str, float], float | None] = {}
        self.last_seen = {
            name: np.maximum.accumulate(np.where(np.isfinite(values), self.at, -np.inf))
            for name, values in samples.signals.items()
        }

    def round(self, number: int) -> list[str]:
        """The names of the rules that begin to fire in the round at place `number` of the samples."""
        fired = []
        now = float(self.at[number])
        requests = float(self.requests[number])
        for rule in self.rules:
            facts = self._facts(rule, number, now, None if math.isnan(requests) else requests)
            move, self.tracks[rule.name] = advance(self.tracks.get(rule.name), rule, judge(rule, facts))
            if move == Move.FIRE:
                fired.append(rule.name)
        return fired

    def _facts(self, rule: Rule, number: int, now: float, requests: float | None) -> Facts:
        value: float | None = float(self.signals[rule.signal][number])
        if value is not None and math.isnan(value):
            value = None
        return Facts(
            now,
            INTERVAL,
            value=value,
            requests=requests if rule.minimum_requests else None,
            usual=self._usual(rule.signal, now) if rule.is_relative else None,
            pattern=self._pattern(rule.signal, now) if rule.kind == Kind.DEVIATION else None,
            trail=self._trail(rule.signal, rule, now),
            also_pattern=self._pattern(rule.also, now) if rule.also else None,
            also_trail=self._trail(rule.also, rule, now) if rule.also else NO_TRAIL,
            objective=QUICK_SHARE if rule.signal == "slow_ratio" else AVAILABILITY,
            silent_seconds=self._silent(rule, number) if rule.kind == Kind.MISSING else None,
        )

    def _trail(self, signal: str, rule: Rule, now: float) -> Trail:
        if rule.kind not in HISTORY_SECONDS:
            return NO_TRAIL
        whole = self.trails[signal]
        first, last = np.searchsorted(whole.at, (now - HISTORY_SECONDS[rule.kind], now), side="right")
        return Trail(whole.at[first:last], whole.value[first:last], whole.requests[first:last])

    def _silent(self, rule: Rule, number: int) -> float | None:
        if rule.signal != "up" and not self.signals["up"][number] > 0:
            return None
        return float(self.at[number] - self.last_seen[rule.signal][number])

    def _pattern(self, signal: str, now: float) -> deviation.Usual | None:
        at = now - now % PATTERN_SECONDS
        if (signal, at) not in self.patterns:
            whole = self.trails[signal]
            first = int(np.searchsorted(whole.at, at - WEEK - DAY))
            last = int(np.searchsorted(whole.at, at))
            self.patterns[signal, at] = deviation.usual(
                whole.at[first:last],
                whole.value[first:last],
                whole.requests[first:last],
                now=at,
                interval_seconds=INTERVAL,
                share=deviation.is_share(signal),
            )
        return self.patterns[signal, at]

    def _usual(self, signal: str, now: float) -> float | None:
        at = now - now % PATTERN_SECONDS
        if (signal, at) not in self.usuals:
            first = np.searchsorted(self.at, at - DAY)
            last = np.searchsorted(self.at, at - deviation.RECENT_INTERVALS * INTERVAL)
            values = self.signals[signal][first:last]
            values = values[np.isfinite(values)]
            self.usuals[signal, at] = float(np.median(values)) if len(values) >= 10 else None
        return self.usuals[signal, at]


# --- The drill ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detection:
    """How soon one fault was found, in collection intervals from its beginning. Not found counts as the longest."""

    fault: str
    runs: int
    found: int
    mean_intervals: float
    p95_intervals: float
    mean_target: float | None
    p95_target: float | None
    first_rules: dict[str, int] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return (self.mean_target is None or self.mean_intervals <= self.mean_target) and (
            self.p95_target is None or self.p95_intervals <= self.p95_target
        )


@dataclass(frozen=True)
class Clean:
    """False alerts on clean traffic. `low` and `high` are the exact 95 % interval of the rate, by Garwood (1936)."""

    weeks: int
    alerts: int
    per_week: float
    low: float
    high: float
    target: float
    by_rule: dict[str, int] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return self.per_week <= self.target


@dataclass(frozen=True)
class Report:
    seed: int
    interval_seconds: float
    detections: tuple[Detection, ...]
    clean: Clean

    @property
    def met(self) -> bool:
        return self.clean.met and all(detection.met for detection in self.detections)

    def plain(self) -> dict[str, Any]:
        """The report as JSON can say it."""
        found = asdict(self)
        for given, row in zip(self.detections, found["detections"], strict=True):
            row["met"] = given.met
        return {**found, "clean": {**found["clean"], "met": self.clean.met}, "met": self.met}


def drill(*, seed: int, runs: int, weeks: int, rules: Sequence[Rule] = DEFAULT_RULES) -> Report:
    """Inject every fault `runs` times and watch `weeks` clean service-weeks. The same seed gives the same report."""
    services = 10
    detections: dict[str, list[tuple[float, str]]] = {fault.name: [] for fault in FAULTS}
    for number in range(min(services, runs)):
        rng = np.random.default_rng([seed, 1, number])
        profile = Profile.drawn(rng)
        # A week to learn from, and one in whose course things go wrong.
        past = simulate(profile, rng, first=0, rounds=2 * ROUNDS_A_WEEK)
        for fault in FAULTS:
            for _ in range(number, runs, services):
                detections[fault.name].append(_one_run(past, profile, rng, fault, rules))
    return Report(
        seed,
        INTERVAL,
        tuple(_detection(fault, detections[fault.name]) for fault in FAULTS),
        _clean(seed, weeks, rules),
    )


def _one_run(
    past: Samples, profile: Profile, rng: np.random.Generator, fault: Fault, rules: Sequence[Rule]
) -> tuple[float, str]:
    """How many intervals it took, and the rule that found it; infinite and "" when none did."""
    first = int(rng.integers(ROUNDS_A_WEEK, 2 * ROUNDS_A_WEEK))
    begins_at = MONDAY + INTERVAL * (first + rng.uniform())
    during = simulate(profile, rng, first=first, rounds=LONGEST_ROUNDS, fault=fault, begins_at=begins_at)
    judged = Judge(past.until(first).then(during), rules)
    for number in range(first, first + LONGEST_ROUNDS):
        if fired := judged.round(number):
            return float((judged.at[number] - begins_at) / INTERVAL), fired[0]
    return math.inf, ""


def _detection(fault: Fault, found: Sequence[tuple[float, str]]) -> Detection:
    times = np.minimum([time for time, _ in found], LONGEST_ROUNDS)
    names = [name for _, name in found if name]
    return Detection(
        fault.name,
        len(found),
        len(names),
        round(float(np.mean(times)), 2),
        round(float(np.quantile(times, 0.95)), 2),
        fault.mean_target,
        fault.p95_target,
        {name: names.count(name) for name in sorted(set(names), key=lambda name: -names.count(name))},
    )


def _clean(seed: int, weeks: int, rules: Sequence[Rule]) -> Clean:
    by_rule: dict[str, int] = {}
    for number in range(weeks):
        rng = np.random.default_rng([seed, 2, number])
        profile = Profile.drawn(rng)
        judged = Judge(simulate(profile, rng, first=0, rounds=2 * ROUNDS_A_WEEK), rules)
        for place in range(ROUNDS_A_WEEK, 2 * ROUNDS_A_WEEK):
            for name in judged.round(place):
                by_rule[name] = by_rule.get(name, 0) + 1
    alerts = sum(by_rule.values())
    low, high = poisson_interval(alerts)
    return Clean(weeks, alerts, alerts / weeks, low / weeks, high / weeks, FALSE_ALERTS_TARGET, by_rule)


def poisson_interval(count: int) -> tuple[float, float]:
    """The exact 95 % interval of a Poisson mean of which `count` was seen: Garwood, Biometrika 28 (1936)."""
    from scipy.special import gammaincinv

    low = float(gammaincinv(count, 0.025)) if count else 0.0
    return low, float(gammaincinv(count + 1, 0.975))
