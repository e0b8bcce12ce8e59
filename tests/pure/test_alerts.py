"""When an alert opens, fires and resolves: every case is a row."""

from __future__ import annotations

import pytest

from monitoring.alerts import (
    DEFAULT_RULES,
    FLAP_CALM_INTERVALS,
    FLAP_WINDOW_SECONDS,
    KINDS,
    SILENT_INTERVALS,
    Facts,
    Kind,
    Move,
    Rule,
    Track,
    advance,
    clear_intervals_of,
    flaps,
    holds,
    hours_in_words,
    judge,
    next_move,
)

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


def test_every_kind_has_its_arithmetic_and_a_default_rule() -> None:
    assert set(KINDS) == set(Kind)
    assert {rule.kind for rule in DEFAULT_RULES} == set(Kind)


HYSTERESIS = Rule("r", "…", "error_ratio", threshold=0.05, clear_threshold=0.02, for_intervals=1, clear_intervals=3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.06, 0.04, 0.04, 0.04, 0.04], "firing"),  # not above, but not clear either
        ([0.06, 0.01, 0.01], "firing"),
        ([0.06, 0.01, 0.01, 0.01], None),
        ([0.06, 0.01, 0.01, 0.04, 0.01, 0.01], "firing"),  # calm begins anew
        ([0.06, 0.01, 0.01, 0.06, 0.01, 0.01], "firing"),
        ([0.04], None),
    ],
)
def test_hysteresis_and_calm(values: list[float], expected: str | None) -> None:
    track: Track | None = None
    for value in values:
        _, track = advance(track, HYSTERESIS, judge(HYSTERESIS, Facts(0.0, 60.0, value=value)))
    assert (track.state if track else None) == expected


def test_hysteresis_of_a_lower_limit_is_above_it() -> None:
    rule = Rule("r", "…", "up", is_below=True, threshold=0.5, clear_threshold=0.9)
    assert [judge(rule, Facts(0.0, 60.0, value=value)).is_clear for value in (0.4, 0.6, 0.9)] == [False, False, True]


@pytest.mark.parametrize(
    ("silent", "held"), [(None, None), (10.0, False), (59.0, False), (61.0, True)], ids=["unknown", "10", "59", "61"]
)
def test_heartbeat(silent: float | None, held: bool | None) -> None:
    rule = Rule("r", "…", "heartbeat", kind=Kind.HEARTBEAT, threshold=60.0)
    assert judge(rule, Facts(0.0, 15.0, silent_seconds=silent)).held is held


@pytest.mark.parametrize(("value", "silent", "held"), [(1.0, None, False), (None, None, None), (None, 300.0, True)])
def test_missing(value: float | None, silent: float | None, held: bool | None) -> None:
    rule = Rule("r", "…", "up", kind=Kind.MISSING)
    assert judge(rule, Facts(0.0, 60.0, value=value, silent_seconds=silent)).held is held


@pytest.mark.parametrize(
    ("ago", "expected"),
    [
        ([], False),
        ([10, 20], False),
        ([10, 20, 30], True),
        ([10, 20, FLAP_WINDOW_SECONDS + 1], False),
        ([-10, 10, 20], False),  # the clock was set back
    ],
)
def test_flaps(ago: list[float], expected: bool) -> None:
    assert flaps([1e9 - seconds for seconds in ago], now=1e9) is expected


def test_a_flapping_alert_has_to_be_calm_for_longer() -> None:
    assert clear_intervals_of(HYSTERESIS, is_flapping=False) == 3
    assert clear_intervals_of(HYSTERESIS, is_flapping=True) == FLAP_CALM_INTERVALS


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (45, "45 s"),
        (60, "1 min"),
        (300, "5 min"),
        (3600, "1 h"),
        (5400, "1.5 h"),
        (259_200, "3 d"),
        (float("inf"), "for ever"),
    ],
)
def test_time_in_words(seconds: float, words: str) -> None:
    assert hours_in_words(seconds) == words
