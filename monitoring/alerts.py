"""When an alert begins, fires and ends: arithmetic on one rule and one series.

A condition has to hold for some intervals in a row before it fires. A round without a value changes nothing, until the
series has been silent for so long that nothing can be said any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

SILENT_INTERVALS = 10


class Move(StrEnum):
    NONE = "none"
    OPEN = "open"  # nothing → pending
    FIRE = "fire"  # pending → firing, or at once
    HOLD = "hold"  # one interval more
    RESOLVE = "resolve"


@dataclass(frozen=True)
class Rule:
    """`threshold` is in the signal's unit, or a multiple of the usual value where `is_relative`."""

    name: str
    summary: str
    signal: str
    labels: tuple[tuple[str, str], ...] = ()  # exactly these; empty means every series
    is_below: bool = False
    threshold: float = 0.0
    is_relative: bool = False
    minimum_requests: int = 0
    for_intervals: int = 2
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
    Rule("latency-slow", "Slow for users", "latency_p95_ms", labels=WHOLE, threshold=2000.0, minimum_requests=5),
    Rule(
        "latency-unusual",
        "Much slower than usual",
        "latency_p95_ms",
        labels=WHOLE,
        threshold=5.0,
        is_relative=True,
        minimum_requests=5,
    ),
    Rule("not-measured", "Its metrics can't be read", "up", is_below=True, threshold=1.0, severity="critical"),
    Rule("disk-filling", "The disk is nearly full", "disk_used_percent", threshold=90.0, severity="critical"),
    Rule("host-memory", "The host's memory is nearly full", "host_memory_percent", threshold=92.0, for_intervals=3),
    Rule(
        "memory-growing",
        "It uses much more memory than usual",
        "memory_bytes",
        threshold=2.0,
        is_relative=True,
        for_intervals=5,
    ),
)


def holds(rule: Rule, value: float | None, *, usual: float | None = None, requests: float | None = None) -> bool | None:
    """Whether the rule's condition is met; None when that can't be said.

    `usual` is the series' usual value; `requests` how many the interval had, None when unknown.
    """
    if value is None or (requests is not None and requests < rule.minimum_requests):
        return None
    threshold = rule.threshold
    if rule.is_relative:
        if usual is None or usual <= 0:
            return None
        threshold *= usual
    return value < threshold if rule.is_below else value > threshold


def next_move(
    *, state: str | None, held: bool | None, intervals: int, for_intervals: int, silent_intervals: float = 0.0
) -> Move:
    """What happens to an alert in `state` (None: there is none) that has held for `intervals` before this round."""
    if held is None:
        return Move.RESOLVE if state and silent_intervals >= SILENT_INTERVALS else Move.NONE
    if not held:
        return Move.RESOLVE if state else Move.NONE
    if state == "firing":
        return Move.HOLD
    if intervals + 1 >= for_intervals:
        return Move.FIRE
    return Move.HOLD if state == "pending" else Move.OPEN
