"""A line over time as the paths of an SVG: where its points lie, what its axes say, and where it has gaps.

Drawn by the server, so that a chart needs no script. Coordinates are in units of the view box, downwards from the top.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 420.0, 160.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 8.0, 8.0, 24.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
# Seconds between the marks of the time axis, and how they are written: the first that needs no more than MOST_TIMES.
TIME_STEPS = (
    *((minutes * MINUTE, "%H:%M") for minutes in (1, 5, 15, 30)),
    *((hours * HOUR, "%H:%M") for hours in (1, 3, 6)),
    *((days * DAY, "%b %d") for days in (1, 2, 7, 28)),
)
MOST_TIMES = 5
# So many intervals without a point are a gap, not a line.
GAP_INTERVALS = 2.5

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """What is drawn: `at` unix seconds, rising, and `value`, both float64[n]; `low` and `high` are a band, or None.

    `interval_seconds` is how far apart the points are where nothing is missing.
    """

    at: Values
    value: Values
    interval_seconds: float
    low: Values | None = None
    high: Values | None = None


@dataclass(frozen=True)
class Tick:
    """A place on an axis, and what is written there."""

    place: float
    text: str

    @property
    def is_late(self) -> bool:
        """Whether its words belong to the left of its line."""
        return self.place > 0.75 * WIDTH


@dataclass(frozen=True)
class Chart:
    """Everything a template prints. `points` are alone between gaps, where a path would draw nothing."""

    line: str
    band: str
    points: tuple[tuple[float, float], ...]
    times: tuple[Tick, ...]
    values: tuple[Tick, ...]
    marks: tuple[Tick, ...]
    words: str
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def draw(
    line: Line,
    *,
    since: float,
    until: float,
    name: str,
    in_words: Callable[[float], str],
    top: float | None = None,
    marks: tuple[tuple[float, str], ...] = (),
) -> Chart | None:
    """`line` between the unix seconds `since` and `until`, from 0 to `top` or to what is highest; None without points.

    `marks` are times with what happened then; those outside are left out. Values below 0 move the floor down.
    """
    inside = (line.at >= since) & (line.at <= until) & np.isfinite(line.value)
    if not inside.any() or until <= since:
        return None
    at, value = line.at[inside], line.value[inside]
    low, high = (value if column is None else column[inside] for column in (line.low, line.high))
    steps = value_steps(min(0.0, float(low.min())), float(high.max()) if top is None else top)
    x = LEFT + (at - since) / (until - since) * (WIDTH - RIGHT - LEFT)

    def y(of: Values) -> Values:
        share = (np.asarray(of, float) - steps[0]) / (steps[-1] - steps[0])
        return np.clip(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), TOP, HEIGHT - BOTTOM)

    parts = np.split(np.arange(len(at)), np.flatnonzero(np.diff(at) > GAP_INTERVALS * line.interval_seconds) + 1)
    lines = [part for part in parts if len(part) > 1]
    alone = [part[0] for part in parts if len(part) == 1]
    has_band = line.low is not None and line.high is not None
    lowest, highest, newest = (in_words(float(known)) for known in (low.min(), high.max(), value[-1]))
    return Chart(
        line=" ".join(_path(x[part], y(value[part])) for part in lines),
        band=" ".join(_area(x[part], y(low[part]), y(high[part])) for part in lines) if has_band else "",
        points=tuple(zip(x[alone].round(1).tolist(), y(value[alone]).round(1).tolist(), strict=True)) if alone else (),
        times=tuple(_times(since, until)),
        values=tuple(Tick(round(float(y(np.array(step))), 1), in_words(step)) for step in steps),
        marks=tuple(Tick(_place(when, since, until), text) for when, text in marks if since <= when <= until),
        words=f"{name}: {lowest} to {highest}, newest {newest}",
    )


def value_steps(low: float, high: float) -> list[float]:
    """Round numbers, three to six, of which the first is at most `low` and the last at least `high`."""
    span = max(high - low, 1e-9, 1e-9 * abs(high))
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _times(since: float, until: float) -> list[Tick]:
    step, written = next(
        ((seconds, text) for seconds, text in TIME_STEPS if (until - since) / seconds <= MOST_TIMES), TIME_STEPS[-1]
    )
    first = math.ceil(since / step) * step
    return [
        Tick(_place(when, since, until), f"{datetime.fromtimestamp(when, UTC):{written}}")
        for when in np.arange(first, until, step).tolist()
    ]


def _place(when: float, since: float, until: float) -> float:
    return round(LEFT + (when - since) / (until - since) * (WIDTH - RIGHT - LEFT), 1)


def _path(x: Values, y: Values) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))


def _area(x: Values, low: Values, high: Values) -> str:
    return _path(np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]])) + "Z"
