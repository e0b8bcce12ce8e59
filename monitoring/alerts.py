"""When an alert begins, fires and ends: arithmetic on one rule and what is known about one series.

`KINDS` says how each kind of rule is judged; `next_move` turns the judgement of a round into a move of the alert.
A round without a value changes nothing, until the series has been silent for so long that nothing can be said any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from monitoring import burnrate, deviation, forecasting
from monitoring.burnrate import Window
from monitoring.deviation import Usual

SILENT_INTERVALS = 10
# An alert that fired so often within the window goes on firing until it has been calm for a while: people should hear
# of a problem that comes and goes once, not each time.
FLAP_TIMES = 3
FLAP_WINDOW_SECONDS = 3600.0
FLAP_CALM_INTERVALS = 15
EMPTY: NDArray[np.float64] = np.empty(0)


class Kind(StrEnum):
    THRESHOLD = "threshold"
    BURN_RATE = "burn_rate"
    DEVIATION = "deviation"
    FORECAST = "forecast"
    MISSING = "missing"
    HEARTBEAT = "heartbeat"


class Move(StrEnum):
    NONE = "none"
    OPEN = "open"  # nothing → pending
    FIRE = "fire"  # pending → firing, or at once
    HOLD = "hold"  # one interval more
    CALM = "calm"  # it holds no more, but not for long enough to be over
    RESOLVE = "resolve"


@dataclass(frozen=True)
class Rule:
    """What `threshold` means depends on the kind.

    threshold: in the signal's unit, or a multiple of the usual value where `is_relative`. burn_rate: unused, see
    `windows`. deviation: the least share, or the least multiple of the usual, that counts. forecast: the value that
    must not be reached within `horizon_seconds`. missing: unused. heartbeat: seconds without a sign of life.
    """

    name: str
    summary: str
    signal: str
    kind: str = Kind.THRESHOLD
    also: str = ""  # deviation: a signal with the same labels that must be raised as well
    labels: tuple[tuple[str, str], ...] = ()  # exactly these; empty means every series
    is_below: bool = False
    threshold: float = 0.0
    clear_threshold: float | None = None  # hysteresis: only beyond this does it count as over; None: the threshold
    is_relative: bool = False
    minimum_requests: int = 0
    minimum_bad: int = 0  # burn_rate: so many bad requests in the long window
    for_intervals: int = 2
    clear_intervals: int = 1
    strictness: float = 1.0  # deviation: all its limits times this
    horizon_seconds: int = 0
    windows: tuple[Window, ...] = ()
    severity: str = "warning"


WHOLE = (("endpoint", "*"), ("method", "*"))
DEFAULT_RULES = (
    Rule(
        "error-ratio",
        "Too many requests fail",
        "error_ratio",
        labels=WHOLE,
        threshold=0.05,
        minimum_requests=5,
        severity="critical",
    ),
    Rule(
        "errors-unusual",
        "More requests fail than usual",
        "error_ratio",
        kind=Kind.DEVIATION,
        labels=WHOLE,
        threshold=0.01,
        minimum_requests=5,
        clear_intervals=3,
    ),
    Rule(
        "error-budget-fast",
        "Failures spend the error budget within days",
        "error_ratio",
        kind=Kind.BURN_RATE,
        labels=WHOLE,
        windows=burnrate.FAST,
        minimum_requests=20,
        minimum_bad=10,
        clear_intervals=3,
        severity="critical",
    ),
    Rule(
        "error-budget-slow",
        "Failures spend the error budget too early",
        "error_ratio",
        kind=Kind.BURN_RATE,
        labels=WHOLE,
        windows=burnrate.SLOW,
        minimum_requests=100,
        minimum_bad=20,
        clear_intervals=10,
    ),
    Rule(
        "latency-budget-fast",
        "Slow answers spend the latency budget within days",
        "slow_ratio",
        kind=Kind.BURN_RATE,
        labels=WHOLE,
        windows=burnrate.FAST,
        minimum_requests=20,
        minimum_bad=10,
        clear_intervals=3,
    ),
    Rule(
        "latency-budget-slow",
        "Slow answers spend the latency budget too early",
        "slow_ratio",
        kind=Kind.BURN_RATE,
        labels=WHOLE,
        windows=burnrate.SLOW,
        minimum_requests=100,
        minimum_bad=20,
        clear_intervals=10,
    ),
    Rule(
        "latency-slow",
        "Slow for users",
        "latency_p95_ms",
        labels=WHOLE,
        threshold=2000.0,
        clear_threshold=1600.0,
        minimum_requests=5,
        clear_intervals=2,
    ),
    Rule(
        "latency-unusual",
        "Much slower than usual",
        "latency_p95_ms",
        labels=WHOLE,
        threshold=5.0,
        is_relative=True,
        minimum_requests=5,
    ),
    Rule(
        "latency-deviates",
        "Slower than usual at this time of day",
        "latency_mean_ms",
        kind=Kind.DEVIATION,
        # Of all latencies the mean alone is exact: quantiles are guessed inside a bucket.
        also="latency_p50_ms",
        labels=WHOLE,
        threshold=1.2,
        minimum_requests=20,
        clear_intervals=3,
    ),
    Rule(
        "latency-tail-deviates",
        "The slowest answers are slower than usual at this time of day",
        "latency_p95_ms",
        kind=Kind.DEVIATION,
        labels=WHOLE,
        threshold=1.5,
        strictness=2.5,
        minimum_requests=100,
        clear_intervals=3,
    ),
    Rule("not-measured", "Its metrics can't be read", "up", is_below=True, threshold=1.0, severity="critical"),
    Rule("absent", "Nothing of it is measured any more", "up", kind=Kind.MISSING, for_intervals=3, severity="critical"),
    Rule(
        "traffic-silent",
        "It no longer tells about its requests",
        "requests_per_second",
        kind=Kind.MISSING,
        labels=WHOLE,
        for_intervals=3,
    ),
    Rule(
        "disk-filling",
        "The disk is nearly full",
        "disk_used_percent",
        threshold=90.0,
        clear_threshold=88.0,
        severity="critical",
    ),
    Rule(
        "disk-full-soon",
        "The disk will be full within hours",
        "disk_used_percent",
        kind=Kind.FORECAST,
        threshold=100.0,
        horizon_seconds=4 * 3600,
        for_intervals=3,
        clear_intervals=10,
        severity="critical",
    ),
    Rule(
        "host-memory",
        "The host's memory is nearly full",
        "host_memory_percent",
        threshold=92.0,
        clear_threshold=90.0,
        for_intervals=3,
    ),
    Rule(
        "memory-growing",
        "It uses much more memory than usual",
        "memory_bytes",
        threshold=2.0,
        is_relative=True,
        for_intervals=5,
    ),
    Rule(
        "program-silent",
        "One of RuneRogue's own programs gives no sign of life",
        "heartbeat",
        kind=Kind.HEARTBEAT,
        threshold=60.0,
        for_intervals=1,
        severity="critical",
    ),
)


# --- What is known -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trail:
    """The past of a series: unix seconds `at`[n], rising, and `value`[n]; `requests`[n] per interval, 0 if unknown."""

    at: NDArray[np.float64] = field(default_factory=lambda: EMPTY)
    value: NDArray[np.float64] = field(default_factory=lambda: EMPTY)
    requests: NDArray[np.float64] = field(default_factory=lambda: EMPTY)


@dataclass(frozen=True)
class Facts:
    """What is known about one series in the round `now` (unix seconds). None is unknown, never zero."""

    now: float
    interval_seconds: float
    value: float | None = None
    requests: float | None = None  # of the whole service, in this interval
    usual: float | None = None  # what a relative threshold is a multiple of
    pattern: Usual | None = None
    trail: Trail = field(default_factory=Trail)
    also_pattern: Usual | None = None
    also_trail: Trail = field(default_factory=Trail)
    objective: float | None = None
    silent_seconds: float | None = None  # since the last sign of something that was there


@dataclass(frozen=True)
class Judgement:
    """What a rule says about one round.

    `held` None: that can't be said. `fires` None: it fires after `for_intervals` in a row, else the arithmetic has
    done the confirming. `is_clear`: not only not held, but beyond the clear threshold. `limit` in words for a person.
    """

    held: bool | None
    fires: bool | None = None
    is_clear: bool = True
    limit: str = ""
    value: float | None = None


UNKNOWN = Judgement(None)


# --- The arithmetic of each kind ---------------------------------------------------------------------------------


def holds(rule: Rule, value: float | None, *, usual: float | None = None, requests: float | None = None) -> bool | None:
    """Whether a threshold rule's condition is met; None when that can't be said.

    `usual` is the series' usual value; `requests` how many the interval had, None when unknown.
    """
    return _threshold(rule, Facts(0.0, 1.0, value=value, usual=usual, requests=requests)).held


def _threshold(rule: Rule, facts: Facts) -> Judgement:
    if facts.value is None or (facts.requests is not None and facts.requests < rule.minimum_requests):
        return UNKNOWN
    factor = 1.0
    if rule.is_relative:
        if facts.usual is None or facts.usual <= 0:
            return UNKNOWN
        factor = facts.usual
    threshold = rule.threshold * factor
    clear = threshold if rule.clear_threshold is None else rule.clear_threshold * factor
    if rule.is_below:
        held, is_clear = facts.value < threshold, facts.value >= clear
    else:
        held, is_clear = facts.value > threshold, facts.value <= clear
    if rule.is_relative and facts.usual:
        times = facts.value / facts.usual
        usual = in_words(rule.signal, facts.usual)
        limit = f"{times:.1f} times the usual {usual}, the limit is {rule.threshold:g} times"
    else:
        limit = f"the limit is {'below' if rule.is_below else 'above'} {in_words(rule.signal, rule.threshold)}"
    return Judgement(held, None, is_clear and not held, limit)


def _burn_rate(rule: Rule, facts: Facts) -> Judgement:
    if facts.objective is None or facts.value is None or not len(facts.trail.at):
        return UNKNOWN
    found = burnrate.burning(
        facts.trail.at,
        facts.trail.value,
        facts.trail.requests,
        now=facts.now,
        objective=facts.objective,
        windows=rule.windows,
        least_requests=rule.minimum_requests,
        least_bad=rule.minimum_bad,
    )
    if found is None:
        return Judgement(False, limit=f"the error budget of {facts.objective * 100:.6g}% lasts")
    longer, shorter = hours_in_words(found.window.long_seconds), hours_in_words(found.window.short_seconds)
    limit = (
        f"{found.bad:,.0f} of {found.requests:,.0f} requests in {longer}: {found.long:.1f} times the pace that the "
        f"objective of {facts.objective * 100:.6g}% allows ({found.short:.1f} in {shorter}), "
        f"the limit is {found.window.factor:g} times"
    )
    # Two windows that agree are the confirmation.
    return Judgement(True, True, False, limit)


def _deviation(rule: Rule, facts: Facts) -> Judgement:
    if facts.pattern is None or facts.value is None:
        return UNKNOWN
    found = deviation.deviation(
        facts.trail.at,
        facts.trail.value,
        facts.trail.requests,
        now=facts.now,
        interval_seconds=facts.interval_seconds,
        usual=facts.pattern,
        least=rule.threshold,
        least_requests=rule.minimum_requests,
        share=deviation.is_share(rule.signal),
        strictness=rule.strictness,
        also=deviation.apart(facts.trail.at, facts.also_trail.at, facts.also_trail.value, facts.also_pattern)
        if rule.also
        else None,
    )
    if found is None:
        return UNKNOWN
    centre = in_words(rule.signal, facts.pattern.centre)
    limit = f"the usual {facts.pattern.since} is {centre}, {found.z:.1f} standard deviations off"
    calm_z = deviation.CALM_Z if rule.clear_threshold is None else rule.clear_threshold
    return Judgement(found.held, found.fires, found.z <= calm_z, limit + found.why)


def _forecast(rule: Rule, facts: Facts) -> Judgement:
    at, value = facts.trail.at, facts.trail.value
    if facts.value is None or len(at) < forecasting.LEAST_POINTS or at[-1] - at[0] < HISTORY_LEAST_SECONDS:
        return UNKNOWN
    limit = f"it does not reach {in_words(rule.signal, rule.threshold)} within {hours_in_words(rule.horizon_seconds)}"
    # A slope costs a few thousand pairs. Where even the whole rise seen, twice as fast, would not do, it is not needed.
    third = len(at) // 3
    rise = float(value[-third:].mean() - value[:third].mean())
    needed = (rule.threshold - facts.value) * (at[-1] - at[0]) / rule.horizon_seconds
    if 2.0 * 1.5 * rise < needed:
        return Judgement(False, limit=limit)
    found = forecasting.forecast(at, value)
    if found is None:
        return UNKNOWN
    slowest = found.seconds_until(rule.threshold, slowest=True)
    if slowest >= rule.horizon_seconds:
        return Judgement(False, limit=limit)
    likely = hours_in_words(found.seconds_until(rule.threshold))
    return Judgement(
        True,
        None,
        False,
        f"it reaches {in_words(rule.signal, rule.threshold)} in {likely}, at the slowest in {hours_in_words(slowest)}",
    )


def _missing(rule: Rule, facts: Facts) -> Judgement:
    if facts.value is not None:
        return Judgement(False, limit="it is measured again")
    if facts.silent_seconds is None:
        return UNKNOWN
    return Judgement(True, None, False, f"it was last measured {hours_in_words(facts.silent_seconds)} ago")


def _heartbeat(rule: Rule, facts: Facts) -> Judgement:
    if facts.silent_seconds is None:
        return UNKNOWN
    held = facts.silent_seconds > rule.threshold
    limit = (
        f"the last one was {hours_in_words(facts.silent_seconds)} ago, the limit is {hours_in_words(rule.threshold)}"
    )
    return Judgement(held, None, not held, limit, facts.silent_seconds)


KINDS: Mapping[str, Callable[[Rule, Facts], Judgement]] = {
    Kind.THRESHOLD: _threshold,
    Kind.BURN_RATE: _burn_rate,
    Kind.DEVIATION: _deviation,
    Kind.FORECAST: _forecast,
    Kind.MISSING: _missing,
    Kind.HEARTBEAT: _heartbeat,
}
# How much of a series' past each kind looks at.
HISTORY_SECONDS: Mapping[str, float] = {
    Kind.BURN_RATE: 259_200.0,
    Kind.DEVIATION: 1200.0,
    Kind.FORECAST: 6 * 3600.0,
}
HISTORY_LEAST_SECONDS = 3600.0
# What is usual moves slowly, so it is worked out once for so long.
PATTERN_SECONDS = deviation.USED_SECONDS


def judge(rule: Rule, facts: Facts) -> Judgement:
    """What `rule` says about `facts`."""
    return KINDS[rule.kind](rule, facts)


# --- The moves of an alert ---------------------------------------------------------------------------------------


def next_move(
    *,
    state: str | None,
    held: bool | None,
    intervals: int,
    for_intervals: int,
    silent_intervals: float = 0.0,
    fires: bool | None = None,
    is_clear: bool = True,
    calm_intervals: int = 0,
    clear_intervals: int = 1,
) -> Move:
    """What happens to an alert in `state` (None: there is none) that has held for `intervals` before this round.

    A firing alert ends after `clear_intervals` clear rounds in a row, `calm_intervals` of which were before this one.
    """
    if held is None:
        return Move.RESOLVE if state and silent_intervals >= SILENT_INTERVALS else Move.NONE
    if held:
        if state == "firing":
            return Move.HOLD
        if intervals + 1 >= for_intervals if fires is None else fires:
            return Move.FIRE
        return Move.HOLD if state == "pending" else Move.OPEN
    if state is None:
        return Move.NONE
    if state == "pending":
        return Move.RESOLVE
    if not is_clear:
        return Move.HOLD
    return Move.RESOLVE if calm_intervals + 1 >= clear_intervals else Move.CALM


def clear_intervals_of(rule: Rule, *, is_flapping: bool) -> int:
    """How many calm rounds end an alert of `rule`."""
    return max(rule.clear_intervals, FLAP_CALM_INTERVALS) if is_flapping else rule.clear_intervals


def flaps(fired_at: Sequence[float], *, now: float) -> bool:
    """Whether an alert that began to fire at the unix seconds `fired_at` comes and goes too often to be told of."""
    return sum(now - FLAP_WINDOW_SECONDS < moment <= now for moment in fired_at) >= FLAP_TIMES


@dataclass(frozen=True)
class Track:
    """An alert without a row: what a drill follows, by the same `next_move`."""

    state: str = "pending"
    intervals: int = 0
    calm_intervals: int = 0


def advance(track: Track | None, rule: Rule, judged: Judgement) -> tuple[Move, Track | None]:
    """The move of this round and the track after it."""
    move = next_move(
        state=track.state if track else None,
        held=judged.held,
        intervals=track.intervals if track else 0,
        for_intervals=rule.for_intervals,
        fires=judged.fires,
        is_clear=judged.is_clear,
        calm_intervals=track.calm_intervals if track else 0,
        clear_intervals=rule.clear_intervals,
    )
    if move == Move.NONE:
        return move, track
    if move == Move.RESOLVE:
        return move, None
    after = track or Track()
    if move == Move.CALM:
        return move, replace(after, calm_intervals=after.calm_intervals + 1)
    return move, Track("firing" if move == Move.FIRE else after.state, after.intervals + 1)


# --- In words ----------------------------------------------------------------------------------------------------


# What people call a signal, where its name without its unit does not say it.
NAMES = {
    "up": "share of its addresses that answer",
    "error_ratio": "share of failed requests",
    "slow_ratio": "share of slow requests",
    "latency_mean_ms": "mean latency",
    "latency_p50_ms": "median latency",
    "latency_p95_ms": "p95 latency",
    "latency_p99_ms": "p99 latency",
    "requests_per_second": "requests per second",
    "cpu_percent": "CPU",
    "host_cpu_percent": "CPU of the host",
    "host_memory_percent": "memory of the host",
    "disk_used_percent": "disk in use",
    "apdex": "Apdex",
    "open_fds": "open files",
    "max_fds": "files that may be open",
    "lcp_p75_ms": "largest contentful paint (p75)",
    "inp_p75_ms": "interaction to next paint (p75)",
    "cls_p75": "cumulative layout shift (p75)",
}
UNITS = ("_ms", "_ratio", "_percent", "_bytes", "_seconds")


def named(signal: str) -> str:
    """What people call a signal."""
    if signal in NAMES:
        return NAMES[signal]
    unit = next((unit for unit in UNITS if signal.endswith(unit)), "")
    return signal.removesuffix(unit).replace("_", " ")


def in_words(signal: str, value: float) -> str:
    """A value with its unit."""
    if signal == "heartbeat":
        return hours_in_words(value)
    if signal.endswith("_ms"):
        return f"{value:,.0f} ms" if abs(value) >= 10 or value == int(value) else f"{value:.2g} ms"
    if signal == "up":
        return f"{value:.0%}"
    if signal.endswith("_ratio"):
        return f"{value:.1%}"
    if signal.endswith("_seconds"):
        return f"{value:.3g} s"
    if signal.endswith("_percent"):
        return f"{value:.0f} %"
    if signal.endswith("_bytes"):
        return f"{value / 1024 / 1024:,.0f} MB"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def hours_in_words(seconds: float) -> str:
    """A time span in the largest unit that it has at least one and a half of."""
    if not math.isfinite(seconds):
        return "for ever"
    for unit, length in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * length or seconds == length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.0f} s"
