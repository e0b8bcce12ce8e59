from __future__ import annotations

import pytest

from approvals.outline import MOST_LINES, Line, lines, quantity


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("p95_ms", 84.75, ("p95", "84.75 ms")),
        ("waiting_seconds_per_hour", 1050.9, ("waiting", "1,051 s an hour")),
        ("requests_per_second", 5.109, ("requests", "5.109 a second")),
        ("seconds", 4.509, ("seconds", "4.509")),
        ("traffic_share", 0.3997, ("traffic share", "40.0%")),
        ("share", 10, ("share", "10")),
        ("error_ratio", 0, ("error ratio", "0.0%")),
        ("exit_code", 0, ("exit code", "0")),
        ("timed_out", False, ("timed out", "no")),
        ("p95_ms", None, ("p95 ms", "–")),
        ("tests/test_a.py::test_b", "x", ("tests/test_a.py::test_b", "x")),
    ],
)
def test_writes_a_number_with_its_unit(name: str, value: object, expected: tuple[str, str]) -> None:
    assert quantity(name, value) == expected


def test_indents_what_is_inside() -> None:
    assert lines({"base": {"passed": 53}, "new": [], "files": ["a", "b"], "answers": [{"path": "/up"}]}) == [
        Line(0, "base", ""),
        Line(1, "passed", "53"),
        Line(0, "new", "none"),
        Line(0, "files", "a, b"),
        Line(0, "answers 1", ""),
        Line(1, "path", "/up"),
    ]


def test_takes_a_text_as_it_is_and_marks_long_ones() -> None:
    assert lines("open") == [Line(0, "", "open")]
    assert lines({"output": "one\ntwo"}) == [Line(0, "output", "one\ntwo", is_block=True)]


def test_says_when_it_cuts() -> None:
    found = lines({f"n{number}": number for number in range(MOST_LINES + 50)})
    assert len(found) == MOST_LINES + 1
    assert "cut" in found[-1].text
