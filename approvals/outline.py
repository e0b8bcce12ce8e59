"""A recorded value (what JSON can hold) as lines that a person reads: names in words, numbers with their units."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

NONE = "–"
MOST_LINES = 400
# The end of a name says the unit. The first that fits counts.
UNITS: Mapping[str, str] = {
    "_seconds_per_hour": "{} s an hour",
    "_per_second": "{} a second",
    "_seconds": "{} s",
    "_ms": "{} ms",
    "_bytes": "{} bytes",
    "_percent": "{} %",
}
SHARES = ("_share", "_ratio")
PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")


@dataclass(frozen=True)
class Line:
    """One line. `text` is empty where deeper lines say more; `is_block` when it has several lines of its own."""

    depth: int
    name: str
    text: str
    is_block: bool = False


def lines(value: Any) -> list[Line]:
    """The lines of `value`. What is longer than anybody reads is cut, and says so."""
    found = list(islice(_walk("", value, 0), MOST_LINES + 1))
    if len(found) > MOST_LINES:
        found[MOST_LINES:] = [Line(0, "", "… cut here; the whole is in the database")]
    return found


def in_words(name: str) -> str:
    """'error ratio' from 'error_ratio'. What is no plain name (a path, a test's address) stays as it is."""
    return name.replace("_", " ") if PLAIN_NAME.fullmatch(name) else name


def quantity(name: str, value: Any) -> tuple[str, str]:
    """(name, value) for a person: ("p95", "84.75 ms") from ("p95_ms", 84.75)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return in_words(name), _scalar(value)
    if name.endswith(SHARES):
        return in_words(name), f"{value:.1%}"
    for ending, written in UNITS.items():
        if name.endswith(ending):
            return in_words(name.removesuffix(ending)), written.format(_number(value))
    return in_words(name), _number(value)


def _walk(name: str, value: Any, depth: int) -> Iterator[Line]:
    if isinstance(value, Mapping) and value:
        inner = depth
        if name:
            yield Line(depth, in_words(name), "")
            inner += 1
        for key, one in value.items():
            yield from _walk(str(key), one, inner)
    elif isinstance(value, list | tuple) and any(isinstance(one, Mapping | list | tuple) for one in value):
        for number, one in enumerate(value, start=1):
            yield from _walk(f"{name or 'item'} {number}", one, depth)
    elif isinstance(value, list | tuple):
        yield Line(depth, in_words(name), ", ".join(_scalar(one) for one in value) or "none")
    elif isinstance(value, Mapping):
        yield Line(depth, in_words(name), "none")
    else:
        called, text = quantity(name, value)
        yield Line(depth, called, text, is_block="\n" in text.strip())


def _scalar(value: Any) -> str:
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _number(value) if isinstance(value, int | float) else str(value)


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
