"""When a recurring window is open: RFC 5545 rules on a wall clock. Arithmetic; times that go in and out are aware.

A start that the wall clock skips (spring) is meant an hour later, one that it shows twice (autumn) the first time, as
RFC 5545 3.3.5 has it. A window lasts its duration in elapsed time, whatever the wall clock does meanwhile.
"""

from __future__ import annotations

import functools
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dateutil.rrule import rrule

LONGEST = timedelta(days=7)
LONGEST_RULE = 200
FREQUENCIES = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")
PARTS = ("FREQ", "INTERVAL", "COUNT", "UNTIL", "BYDAY", "BYMONTHDAY", "BYMONTH", "BYSETPOS", "WKST")
# The calendar repeats after 400 years to the weekday: the last such cycle that dates can express tells, in bounded
# time, whether a rule ever happens.
CYCLE_DAYS = 146_097


class BadWindow(ValueError):
    """The window can't be: the message says what is wrong and what would do."""


@dataclass(frozen=True)
class Window:
    """`first` is a naive time on the wall clock of `zone`; an empty `rule` means once."""

    first: datetime
    duration: timedelta
    zone: str = "UTC"
    rule: str = ""


def check(window: Window, *, longest: timedelta = LONGEST) -> None:
    """Raises BadWindow for what is not a zone, a rule, or a length, and for rules that never happen."""
    zone_of(window.zone)
    if not timedelta() < window.duration <= longest:
        raise BadWindow(f"A window lasts more than nothing and at most {longest.days} days.")
    if not window.rule:
        return
    rule = _rule(window)
    cycles = (9_600 - window.first.year) // 400
    endless = rule.replace(
        dtstart=window.first + timedelta(days=CYCLE_DAYS * max(cycles, 0)),
        until=None, count=None,
    )  # fmt: skip
    if next(iter(endless), None) is None or next(iter(rule), None) is None:
        raise BadWindow(f"The rule {window.rule!r} never happens.")


def zone_of(name: str) -> zoneinfo.ZoneInfo:
    """The IANA time zone `name`. Raises BadWindow."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadWindow(f"There is no time zone {name!r}; names look like Europe/Berlin.") from error


def open_until(window: Window, at: datetime) -> datetime | None:
    """When the window that is open at `at` ends; None while it is closed. The end itself is outside."""
    ends = [begin + window.duration for begin in _starts(window, at) if begin <= at < begin + window.duration]
    return max(ends, default=None)


def upcoming(window: Window, after: datetime, count: int = 3) -> list[tuple[datetime, datetime]]:
    """Begin and end (UTC) of the next `count` times that begin after `after`."""
    zone = zone_of(window.zone)
    if not window.rule:
        begins = [window.first]
    else:
        # A day earlier: on a wall clock that is set back the order of two times may differ.
        local = after.astimezone(zone).replace(tzinfo=None) - timedelta(days=1)
        begins = list(islice(_rule(window).xafter(local, inc=True), count + 2))
    found = [_instant(begin, zone) for begin in begins]
    return [(begin, begin + window.duration) for begin in found if begin > after][:count]


def _starts(window: Window, at: datetime) -> list[datetime]:
    """The begins, in UTC, that a window open at `at` may have."""
    zone = zone_of(window.zone)
    if not window.rule:
        return [_instant(window.first, zone)]
    local = at.astimezone(zone).replace(tzinfo=None)
    day = timedelta(days=1)
    return [_instant(one, zone) for one in _rule(window).between(local - window.duration - day, local + day, inc=True)]


def _instant(wall: datetime, zone: zoneinfo.ZoneInfo) -> datetime:
    return wall.replace(tzinfo=zone, fold=0).astimezone(UTC)


@functools.lru_cache(maxsize=256)
def _rule(window: Window) -> rrule:
    """The parsed rule, with what it worked out kept. Raises BadWindow."""
    from dateutil.rrule import rrulestr

    text = window.rule.strip().upper().removeprefix("RRULE:")
    if len(text) > LONGEST_RULE or "\n" in text:
        raise BadWindow(f"A rule is one line of at most {LONGEST_RULE} characters.")
    parts = dict(part.partition("=")[::2] for part in text.split(";") if part)
    if unknown := sorted(set(parts) - set(PARTS)):
        raise BadWindow(f"{unknown[0]} can't be used here; what can: {', '.join(PARTS)}.")
    if parts.get("FREQ") not in FREQUENCIES:
        raise BadWindow(f"FREQ is one of {', '.join(FREQUENCIES)}, such as FREQ=WEEKLY;BYDAY=SU.")
    if parts.get("UNTIL", "").endswith("Z"):
        # RFC 5545 gives the end in UTC when the start has a zone; the rule runs on the wall clock.
        try:
            until = datetime.strptime(parts["UNTIL"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        except ValueError as error:
            raise BadWindow(f"UNTIL={parts['UNTIL']} is no time; it looks like 20270131T220000Z.") from error
        parts["UNTIL"] = until.astimezone(zone_of(window.zone)).strftime("%Y%m%dT%H%M%S")
    try:
        parsed = rrulestr(
            ";".join(f"{name}={value}" for name, value in parts.items()), dtstart=window.first, cache=True
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise BadWindow(f"The rule {window.rule!r} can't be read: {error}.") from error
    return parsed  # type: ignore[return-value]  # one RRULE line gives a rule, never a set of them
