"""The packet of facts that a review comes with: sections of named numbers, each with where it comes from."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

NOT_ENOUGH = "Not enough data"


@dataclass(frozen=True)
class Window:
    """From `since` up to `until` (exclusive), looked at `at` a later time, when some of it may be forgotten."""

    since: dt.datetime
    until: dt.datetime
    at: dt.datetime

    @property
    def before(self) -> Window:
        """As long, just before."""
        return Window(self.since - (self.until - self.since), self.since, self.at)


@dataclass(frozen=True)
class Fact:
    """One number or word. Without a value, `note` says why; `link` leads to the rows that were counted."""

    name: str
    value: float | int | str | None
    unit: str = ""
    link: str = ""
    note: str = ""


@dataclass(frozen=True)
class Section:
    title: str
    facts: tuple[Fact, ...]


def unknown(name: str, why: str, *, unit: str = "", link: str = "") -> Fact:
    """What nobody can say, and why."""
    return Fact(name, None, unit, link, f"{NOT_ENOUGH}: {why}")


def as_json(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """What is kept in the row of a review."""
    return [asdict(section) | {"facts": [asdict(fact) for fact in section.facts]} for section in sections]
