"""When an alert opens, fires and resolves: every case is a row."""

from __future__ import annotations

import pytest

from monitoring.alerts import DEFAULT_RULES, SILENT_INTERVALS, Move, Rule, holds, next_move

ABOVE = Rule("r", "…", "error_ratio", threshold=0.05)
BELOW = Rule("r", "…", "up", is_below=True, threshold=1.0)
RELATIVE = Rule("r", "…", "latency_p95_ms", threshold=5.0, is_relative=True)
GUARDED = Rule("r", "…", "error_ratio", threshold=0.05, minimum_requests=5)


@pytest.mark.parametrize(
    ("rule", "value", "usual", "requests", "expected"),
    [
        (ABOVE, 0.06, None, None, True),
        (ABOVE, 0.05, None, None, False),
        (ABOVE, None, None, None, None),
        (BELOW, 0.5, None, None, True),
        (BELOW, 1.0, None, None, False),
        (RELATIVE, 501.0, 100.0, None, True),
        (RELATIVE, 500.0, 100.0, None, False),
        (RELATIVE, 501.0, None, None, None),
        (RELATIVE, 501.0, 0.0, None, None),
        (GUARDED, 1.0, None, 1.0, None),
        (GUARDED, 1.0, None, 5.0, True),
        (GUARDED, 1.0, None, None, True),
    ],
)
def test_holds(
    rule: Rule, value: float | None, usual: float | None, requests: float | None, expected: bool | None
) -> None:
    assert holds(rule, value, usual=usual, requests=requests) is expected


@pytest.mark.parametrize(
    ("state", "held", "intervals", "wait", "silent", "expected"),
    [
        (None, True, 0, 2, 0, Move.OPEN),
        (None, True, 0, 1, 0, Move.FIRE),
        (None, False, 0, 2, 0, Move.NONE),
        (None, None, 0, 2, 99, Move.NONE),
        ("pending", True, 1, 3, 0, Move.HOLD),
        ("pending", True, 2, 3, 0, Move.FIRE),
        ("pending", False, 2, 3, 0, Move.RESOLVE),
        ("pending", None, 2, 3, 1, Move.NONE),
        ("pending", None, 2, 3, SILENT_INTERVALS, Move.RESOLVE),
        ("firing", True, 9, 3, 0, Move.HOLD),
        ("firing", False, 9, 3, 0, Move.RESOLVE),
        ("firing", None, 9, 3, 1, Move.NONE),
        ("firing", None, 9, 3, SILENT_INTERVALS, Move.RESOLVE),
    ],
)
def test_next_move(
    state: str | None, held: bool | None, intervals: int, wait: int, silent: float, expected: Move
) -> None:
    move = next_move(state=state, held=held, intervals=intervals, for_intervals=wait, silent_intervals=silent)
    assert move == expected


@pytest.mark.parametrize("wait", [1, 2, 5])
def test_fires_after_exactly_as_many_rounds_as_the_rule_says(wait: int) -> None:
    state, intervals, rounds = None, 0, 0
    while state != "firing":
        rounds += 1
        move = next_move(state=state, held=True, intervals=intervals, for_intervals=wait)
        intervals += 1
        state = "firing" if move == Move.FIRE else "pending"
    assert rounds == wait


def test_default_rules_have_distinct_names() -> None:
    assert len({rule.name for rule in DEFAULT_RULES}) == len(DEFAULT_RULES)
