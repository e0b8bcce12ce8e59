"""Charts: a line between its axes, with its gaps."""

from __future__ import annotations

import re

import numpy as np
import pytest

from monitoring.charting import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Line, draw, value_steps

HOUR = 3600.0


def chart(values: list[float], *, at: list[float] | None = None, **more: object) -> Chart | None:
    times = np.array(at) if at is not None else HOUR * np.arange(len(values)) / max(len(values) - 1, 1)
    line = Line(times, np.array(values, float), HOUR / max(len(values) - 1, 1))
    return draw(line, since=0.0, until=HOUR, name="p95 latency", in_words="{:g} ms".format, **more)  # type: ignore[arg-type]


def places(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_spans_its_axes() -> None:
    drawn = chart([0.0, 5.0, 10.0])
    assert drawn is not None
    middle = (TOP + HEIGHT - BOTTOM) / 2
    right = WIDTH - RIGHT
    assert places(drawn.line) == [(LEFT, HEIGHT - BOTTOM), ((LEFT + right) / 2, middle), (right, TOP)]
    assert [tick.text for tick in drawn.values] == ["0 ms", "2.5 ms", "5 ms", "7.5 ms", "10 ms"]
    assert [tick.text for tick in drawn.times] == ["00:00", "00:15", "00:30", "00:45"]
    assert drawn.words == "p95 latency: 0 ms to 10 ms, newest 10 ms"


def test_leaves_gaps_and_points_alone() -> None:
    minute = 60.0
    at = [0.0, minute, 2 * minute, 20 * minute, 40 * minute, 41 * minute]
    line = Line(np.array(at), np.ones(6), minute)
    drawn = draw(line, since=0.0, until=HOUR, name="x", in_words=str)
    assert drawn is not None
    assert drawn.line.count("M") == 2
    assert [x for x, _ in drawn.points] == [pytest.approx(LEFT + (WIDTH - RIGHT - LEFT) / 3, abs=0.1)]


def test_draws_a_band_around_what_varies() -> None:
    at, value = np.array([0.0, HOUR]), np.array([5.0, 5.0])
    drawn = draw(Line(at, value, HOUR, value - 5, value + 5), since=0.0, until=HOUR, name="x", in_words=str)
    assert drawn is not None
    assert {y for _, y in places(drawn.band)} == {TOP, HEIGHT - BOTTOM}


def test_shows_only_what_is_inside_and_nothing_when_there_is_nothing() -> None:
    drawn = chart([1.0, 2.0, 3.0], at=[-60.0, 60.0, HOUR + 1])
    assert drawn is not None
    assert len(drawn.points) == 1
    assert drawn.words.endswith("2 ms to 2 ms, newest 2 ms")
    assert chart([]) is None
    assert chart([float("nan")]) is None


def test_marks_what_happened_in_its_time() -> None:
    drawn = chart([1.0, 2.0], marks=((HOUR / 2, "fires"), (2 * HOUR, "later")))
    assert drawn is not None
    assert [(mark.place, mark.text) for mark in drawn.marks] == [((LEFT + WIDTH - RIGHT) / 2, "fires")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]),
        (0.0, 7.0, [0, 2, 4, 6, 8]),
        (0.0, 0.0, None),
        (-3.0, 3.0, [-4, -2, 0, 2, 4]),
        (0.0, 4.2e9, [0, 2e9, 4e9, 6e9]),
        (0.0, 1e-7, [0, 2.5e-8, 5e-8, 7.5e-8, 1e-7]),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, expected: list[float] | None) -> None:
    steps = value_steps(low, high)
    assert 2 <= len(steps) <= 6
    assert steps[0] <= low
    assert steps[-1] >= high
    if expected is not None:
        assert steps == pytest.approx(expected)
