"""How soon the rules find what goes wrong, and how often they cry wolf: measured on simulated services.

A simulated service has a rhythm of day and week, quiet nights, log-normal noise from minute to minute and from day to
day, heavy-tailed latencies and rare failures. Its requests are thrown into the histogram buckets that a real one would
expose; quantiles come from `monitoring.derive` and verdicts from `monitoring.alerts`, the code that judges real rounds.
Nothing waits: a week is 10,080 rounds of arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitoring import baselines, deviation
from monitoring.alerts import (
    DEFAULT_RULES,
    HISTORY_LEAST_SECONDS,
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
LEARNT_WEEKS = 4  # what a baseline is made of
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
WARMING_SECONDS = 30.0


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
class Job:
    """Work of its own that slows a service down by `latency` for so long, each time `every_seconds` come round."""

    every_seconds: float
    begins_seconds: float  # after Monday's (or the day's) midnight
    lasts_seconds: float
    latency: float

    @classmethod
    def drawn(cls, rng: np.random.Generator, *, every_seconds: float, within_seconds: float) -> Job:
        return cls(
            every_seconds,
            float(rng.uniform(0, within_seconds)),
            float(rng.uniform(20, 120)) * 60.0,
            float(rng.uniform(1.1, 1.4)),
        )


@dataclass(frozen=True)
class Profile:
    """One simulated service: mean requests per second by day, median latency in seconds, how deep its nights are."""

    per_second: float
    median_seconds: float
    night: float
    load_effect: float
    jobs: tuple[Job, ...] = ()
    deploys_a_week: float = 0.0

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Profile:
        """A third of them have a job each night, a third one a week, and all are deployed now and then."""
        nightly = Job.drawn(rng, every_seconds=DAY, within_seconds=DAY / 4)
        weekly = Job.drawn(rng, every_seconds=WEEK, within_seconds=WEEK - 7200.0)
        return cls(
            per_second=float(np.exp(rng.uniform(np.log(5), np.log(60)))),
            median_seconds=float(np.exp(rng.uniform(np.log(0.015), np.log(0.08)))),
            night=float(rng.uniform(0.05, 0.4)),
            load_effect=float(rng.uniform(0.0, 0.4)),
            jobs=tuple(job for job in (nightly, weekly) if rng.uniform() < 1 / 3),
            deploys_a_week=float(rng.uniform(0, 5)),
        )

    @property
    def undisturbed(self) -> Profile:
        """The same with its rhythm of day and week alone: no jobs, no deploys."""
        return replace(self, jobs=(), deploys_a_week=0.0)

    @property
    def seed(self) -> int:
        """What happens to it on a day is the same in whatever pieces its time is simulated."""
        return int(1e6 * self.median_seconds)

    def slowed(self, at: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """What its jobs and deploys multiply the latency of the intervals that end at[n] by; which were not scraped.

        A new release answers half as fast for its first half minute, and one scrape in four finds nobody there.
        """
        factor, missed = np.ones(len(at)), np.zeros(len(at), bool)
        for job in self.jobs:
            number = ((at - MONDAY) // job.every_seconds).astype(int)
            late = np.random.default_rng([self.seed, 8]).normal(0, 60.0, int(number.max()) + 1)[number]
            since = (at - MONDAY) % job.every_seconds - job.begins_seconds - late
            there = np.clip(np.minimum(since, job.lasts_seconds + INTERVAL - since) / INTERVAL, 0.0, 1.0)
            factor *= 1.0 + (job.latency - 1.0) * there
        for week in range(int((at[0] - MONDAY) // WEEK), int((at[-1] - MONDAY) // WEEK) + 1):
            rng = np.random.default_rng([self.seed, 9, week])
            for _ in range(rng.poisson(self.deploys_a_week)):
                # Within working hours.
                begins = MONDAY + week * WEEK + rng.integers(5) * DAY + rng.uniform(9, 17) * 3600.0
                until = np.minimum(at, begins + WARMING_SECONDS)
                factor += np.maximum(until - np.maximum(at - INTERVAL, begins), 0.0) / INTERVAL
                if rng.uniform() < 0.25:
                    missed |= (at >= begins) & (at < begins + INTERVAL)
        return factor, missed


@dataclass(frozen=True)
class Samples:
    """Rounds of one service, one row each: float64[n] per signal, NaN where nothing was measured."""

    at: NDArray[np.float64]
    signals: dict[str, NDArray[np.float64]]

    def between(self, first: int, last: int) -> Samples:
        return Samples(self.at[first:last], {name: values[first:last] for name, values in self.signals.items()})

    def until(self, rounds: int) -> Samples:
        return self.between(0, rounds)

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
    by_day = np.random.default_rng([profile.seed, 7]).normal(0, 1, (day.max() + 1, 2))
    per_second = profile.per_second * load * np.exp(0.08 * by_day[day, 0] + rng.normal(0, 0.1, rounds))
    requests = rng.poisson(per_second * INTERVAL)
    noise = DAY_NOISE * by_day[day, 1] + rng.normal(0, MINUTE_NOISE, rounds)
    slowed, missing = profile.slowed(at)
    median = profile.median_seconds * (1 + profile.load_effect * load) * np.exp(noise) * slowed
    failing = np.minimum(CLEAN_ERROR_RATIO * np.exp(rng.normal(0, 0.3, rounds)), 1.0)

    up = np.where(missing, 0.0, 1.0)
    counts, seconds = np.zeros((rounds, len(BOUNDS)), int), np.zeros(rounds)
    if fault is not None:
        share = np.clip((at - begins_at) / INTERVAL, 0.0, 1.0)  # of the interval that the fault was there
        grown = np.clip((at - begins_at) / INTERVAL / fault.ramp_intervals, 0, 1) if fault.ramp_intervals else 1.0
        hit = rng.binomial(requests, share)
        counts, seconds = _served(rng, hit, median * (1 + (fault.latency - 1) * grown))
        failing = failing + share * fault.errors * grown
        broken = share > 0
        if fault.is_down:
            up = np.where(broken, 0.0, up)
        if fault.is_down or fault.is_silent:
            missing = missing | broken
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


def _objective(rule: Rule) -> float:
    return QUICK_SHARE if rule.signal == "slow_ratio" else AVAILABILITY


class Judge:
    """The rules over the samples of one service, round by round."""

    def __init__(
        self, samples: Samples, rules: Iterable[Rule] = DEFAULT_RULES, usual: Mapping[str, deviation.Hours] = {}
    ) -> None:
        self.at = samples.at
        self.signals = samples.signals
        self.usual = usual
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

    def watch(self, first: int, last: int) -> list[tuple[int, str]]:
        """(place, rule) of all that begins to fire in the rounds [first, last), as `round` after `round` finds it.

        Rules don't see each other, so each is played on its own, and what can't begin an alert is left out.
        """
        fired = []
        for rule in self.rules:
            places = first + np.flatnonzero(MAY_HOLD[rule.kind](self, rule, slice(first, last)))
            number = first
            while number < last:
                track = self.tracks.get(rule.name)
                if track is None:
                    following = int(np.searchsorted(places, number))
                    if following == len(places):
                        break
                    number = int(places[following])
                requests = float(self.requests[number])
                facts = self._facts(rule, number, float(self.at[number]), None if math.isnan(requests) else requests)
                move, self.tracks[rule.name] = advance(track, rule, judge(rule, facts))
                if move == Move.FIRE:
                    fired.append((number, rule.name))
                number += 1
        return sorted(fired)

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
            objective=_objective(rule),
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
            self.patterns[signal, at] = self._by_baseline(signal, at) or self._by_samples(signal, at)
        return self.patterns[signal, at]

    def _by_baseline(self, signal: str, at: float) -> deviation.Usual | None:
        if signal not in self.usual:
            return None
        whole = self.trails[signal]
        return deviation.usual_by_hour(self.usual[signal], whole.at, whole.value, now=at, interval_seconds=INTERVAL)

    def _by_samples(self, signal: str, at: float) -> deviation.Usual | None:
        whole = self.trails[signal]
        first, last = np.searchsorted(whole.at, (at - WEEK - DAY, at))
        return deviation.usual(
            whole.at[first:last],
            whole.value[first:last],
            whole.requests[first:last],
            now=at,
            interval_seconds=INTERVAL,
            share=deviation.is_share(signal),
        )

    def _usual(self, signal: str, now: float) -> float | None:
        at = now - now % PATTERN_SECONDS
        if (signal, at) not in self.usuals:
            first = np.searchsorted(self.at, at - DAY)
            last = np.searchsorted(self.at, at - deviation.RECENT_INTERVALS * INTERVAL)
            values = self.signals[signal][first:last]
            values = values[np.isfinite(values)]
            self.usuals[signal, at] = float(np.median(values)) if len(values) >= 10 else None
        return self.usuals[signal, at]


# --- What can't begin an alert: bounds that cost little for all rounds at once ------------------------------------


def _threshold_may(judged: Judge, rule: Rule, places: slice) -> NDArray[np.bool_]:
    values = judged.signals[rule.signal]
    if rule.is_below:
        return values[places] < (math.inf if rule.is_relative else rule.threshold)
    # The median of a day is no less than the least of all values.
    factor = float(np.nanmin(values)) if rule.is_relative else 1.0
    return values[places] > rule.threshold * factor


def _burn_rate_may(judged: Judge, rule: Rule, places: slice) -> NDArray[np.bool_]:
    trail, at, budget = judged.trails[rule.signal], judged.at[places], 1.0 - _objective(rule)
    asked, bad = (np.append(0.0, np.cumsum(each)) for each in (trail.requests, trail.value * trail.requests))
    last = np.searchsorted(trail.at, at, side="right")
    may = np.zeros(len(at), bool)
    for window in rule.windows:
        first = np.searchsorted(trail.at, at - window.short_seconds, side="right")
        # A little less than what is needed: cumulative sums are rounded otherwise than short ones.
        may |= bad[last] - bad[first] >= ALMOST * window.factor * budget * (asked[last] - asked[first]) - 1e-6
    return may


def _deviation_may(judged: Judge, rule: Rule, places: slice) -> NDArray[np.bool_]:
    values, at = judged.signals[rule.signal][places], judged.at[places]
    if deviation.is_share(rule.signal):
        return values > rule.threshold
    limits = []
    for moment in np.unique(at - at % PATTERN_SECONDS):
        usual = judged._pattern(rule.signal, float(moment))
        spread = 0.0 if usual is None else rule.strictness * (usual.core if rule.also else usual.spread)
        limits.append(math.inf if usual is None else usual.centre * math.exp(deviation.LEAST_Z * spread))
    block = np.unique(at - at % PATTERN_SECONDS, return_inverse=True)[1]
    return values > ALMOST * np.array(limits)[block]


def _forecast_may(judged: Judge, rule: Rule, places: slice) -> NDArray[np.bool_]:
    """A value that would need a steeper rise than the whole span of the past holds: see `alerts._forecast`."""
    values = judged.signals[rule.signal]
    past = int(HISTORY_SECONDS[rule.kind] / INTERVAL)
    padded = np.concatenate([np.full(past, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, past + 1)[places]
    span = np.nanmax(windows, axis=1) - np.nanmin(windows, axis=1)
    needed = (rule.threshold - values[places]) * HISTORY_LEAST_SECONDS / rule.horizon_seconds
    return np.asarray(3.0 * span >= needed, dtype=bool)


def _missing_may(judged: Judge, rule: Rule, places: slice) -> NDArray[np.bool_]:
    return np.isnan(judged.signals[rule.signal][places])


ALMOST = 1.0 - 1e-9
MAY_HOLD: Mapping[str, Callable[[Judge, Rule, slice], NDArray[np.bool_]]] = {
    Kind.THRESHOLD: _threshold_may,
    Kind.BURN_RATE: _burn_rate_may,
    Kind.DEVIATION: _deviation_may,
    Kind.FORECAST: _forecast_may,
    Kind.MISSING: _missing_may,
}


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

    weeks: float
    alerts: int
    per_week: float
    low: float
    high: float
    target: float | None
    by_rule: dict[str, int] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return self.target is None or self.per_week <= self.target


@dataclass(frozen=True)
class Report:
    seed: int
    interval_seconds: float
    detections: tuple[Detection, ...]
    clean: Clean
    subject: str = "simulated services"

    @property
    def met(self) -> bool:
        return self.clean.met and all(detection.met for detection in self.detections)

    def plain(self) -> dict[str, Any]:
        """The report as JSON can say it."""
        found = asdict(self)
        for given, row in zip(self.detections, found["detections"], strict=True):
            row["met"] = given.met
        return {**found, "clean": {**found["clean"], "met": self.clean.met}, "met": self.met}


def learned(samples: Samples, *, rules: Sequence[Rule] = DEFAULT_RULES) -> dict[str, deviation.Hours]:
    """The baseline that the first four weeks of `samples` give: signal → profile, of those it is used for."""
    wanted = {name for rule in rules if rule.kind == Kind.DEVIATION for name in (rule.signal, rule.also) if name}
    known = samples.until(LEARNT_WEEKS * ROUNDS_A_WEEK)
    made = {name: baselines.profile(known.at, known.signals[name]) for name in wanted if not deviation.is_share(name)}
    return {name: deviation.Hours.of(profile) for name, profile in made.items() if profile is not None}


def drill(
    *, seed: int, runs: int, weeks: int, rules: Sequence[Rule] = DEFAULT_RULES, is_disturbed: bool = True
) -> Report:
    """Inject every fault `runs` times and watch `weeks` clean service-weeks. The same seed gives the same report.

    Without `is_disturbed` the services have no jobs and no deploys.
    """
    services = 10
    detections: dict[str, list[tuple[float, str]]] = {fault.name: [] for fault in FAULTS}
    for number in range(min(services, runs)):
        rng = np.random.default_rng([seed, 1, number])
        profile = _drawn(rng, is_disturbed)
        # Weeks to learn from, and one in whose course things go wrong.
        past = simulate(profile, rng, first=0, rounds=(LEARNT_WEEKS + 1) * ROUNDS_A_WEEK)
        known = learned(past, rules=rules)
        for fault in FAULTS:
            for _ in range(number, runs, services):
                detections[fault.name].append(_one_run(past, known, profile, rng, fault, rules))
    return Report(
        seed,
        INTERVAL,
        tuple(detection(fault, detections[fault.name]) for fault in FAULTS),
        _clean(seed, weeks, rules, is_disturbed),
        "simulated services" if is_disturbed else "simulated services without jobs and deploys",
    )


def _drawn(rng: np.random.Generator, is_disturbed: bool) -> Profile:
    profile = Profile.drawn(rng)
    return profile if is_disturbed else profile.undisturbed


def _one_run(
    past: Samples,
    known: Mapping[str, deviation.Hours],
    profile: Profile,
    rng: np.random.Generator,
    fault: Fault,
    rules: Sequence[Rule],
) -> tuple[float, str]:
    """How many intervals it took, and the rule that found it; infinite and "" when none did."""
    first = int(rng.integers(LEARNT_WEEKS * ROUNDS_A_WEEK, (LEARNT_WEEKS + 1) * ROUNDS_A_WEEK))
    begins_at = MONDAY + INTERVAL * (first + rng.uniform())
    during = simulate(profile, rng, first=first, rounds=LONGEST_ROUNDS, fault=fault, begins_at=begins_at)
    # No rule looks further back than two weeks.
    judged = Judge(past.between(first - 2 * ROUNDS_A_WEEK, first).then(during), rules, known)
    before = 2 * ROUNDS_A_WEEK
    for number in range(before, before + LONGEST_ROUNDS):
        if fired := judged.round(number):
            return float((judged.at[number] - begins_at) / INTERVAL), fired[0]
    return math.inf, ""


def detection(fault: Fault, found: Sequence[tuple[float, str]], *, longest: float = LONGEST_ROUNDS) -> Detection:
    """The row of a fault of which each run took so many intervals and was found by that rule; inf and "": not found."""
    times = np.minimum([time for time, _ in found], longest)
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


def _clean(seed: int, weeks: int, rules: Sequence[Rule], is_disturbed: bool) -> Clean:
    by_rule: dict[str, int] = {}
    for number in range(weeks):
        rng = np.random.default_rng([seed, 2, number])
        profile = _drawn(rng, is_disturbed)
        whole = simulate(profile, rng, first=0, rounds=(LEARNT_WEEKS + 1) * ROUNDS_A_WEEK)
        last = whole.between((LEARNT_WEEKS - 1) * ROUNDS_A_WEEK, len(whole.at))
        judged = Judge(last, rules, learned(whole, rules=rules))
        for _, name in judged.watch(ROUNDS_A_WEEK, 2 * ROUNDS_A_WEEK):
            by_rule[name] = by_rule.get(name, 0) + 1
    alerts = sum(by_rule.values())
    low, high = poisson_interval(alerts)
    return Clean(weeks, alerts, alerts / weeks, low / weeks, high / weeks, FALSE_ALERTS_TARGET, by_rule)


def poisson_interval(count: int) -> tuple[float, float]:
    """The exact 95 % interval of a Poisson mean of which `count` was seen: Garwood, Biometrika 28 (1936)."""
    from scipy.special import gammaincinv

    low = float(gammaincinv(count, 0.025)) if count else 0.0
    return low, float(gammaincinv(count + 1, 0.975))
