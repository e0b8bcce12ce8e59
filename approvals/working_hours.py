"""When people work: how much of it has passed between two moments, and when so much of it will have passed.

Times of day are those of a wall clock in a zone. A day on which clocks change has an hour more or less of it, and so
does the work of those who work through that hour.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import dataclass
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
# Nobody has this many days off in a row; who does would wait for ever.
MOST_DAYS_OFF = 366
WRITTEN = re.compile(r"([a-z]{3})-([a-z]{3}) (\d\d):(\d\d)-(\d\d):(\d\d) (\S+)")


class NeverWorks(ValueError):
    """No work is done for a year: a wrong list of holidays."""


@dataclass(frozen=True)
class Week:
    """Working hours. `weekdays` from 0 (Monday) to 6; `opens` and `closes` in minutes from midnight, up to 1440."""

    zone: str
    weekdays: frozenset[int]
    opens: int
    closes: int
    holidays: frozenset[dt.date] = frozenset()

    def __post_init__(self) -> None:
        ZoneInfo(self.zone)  # raises for one that is not known
        if not self.weekdays or not self.weekdays <= frozenset(range(7)):
            raise ValueError("A working week has days, from 0 (Monday) to 6 (Sunday).")
        if not 0 <= self.opens < self.closes <= DAY_MINUTES:
            raise ValueError("A working day begins before it ends, between 00:00 and 24:00.")

    def spans(self, since: dt.datetime) -> Iterator[tuple[dt.datetime, dt.datetime]]:
        """The working times that end after `since`, in order, in UTC; the first may have begun before."""
        zone = ZoneInfo(self.zone)
        day, off = since.astimezone(zone).date(), 0
        while True:
            if day.weekday() in self.weekdays and day not in self.holidays:
                span = _moment(day, self.opens, zone), _moment(day, self.closes, zone)
                if span[1] > since:
                    off = 0
                    yield span
            off += 1
            if off > MOST_DAYS_OFF:
                raise NeverWorks(f"There is no working day in the year after {since:%Y-%m-%d} in {self.zone}.")
            day += dt.timedelta(days=1)

    def worked(self, since: dt.datetime, until: dt.datetime) -> dt.timedelta:
        """How much working time lies between two moments; nothing when `until` is not after `since`."""
        total = dt.timedelta()
        for opens, closes in self.spans(since):
            if opens >= until:
                return total
            total += min(closes, until) - max(opens, since)
        return total  # pragma: no cover - there is always another working day

    def after(self, since: dt.datetime, work: dt.timedelta) -> dt.datetime:
        """The moment, in UTC, at which `work` of working time has passed since `since`."""
        left = work
        for opens, closes in self.spans(since):
            begins = max(opens, since)
            if closes - begins >= left:
                return begins + left
            left -= closes - begins
        raise AssertionError  # pragma: no cover - there is always another working day


def _moment(day: dt.date, minute: int, zone: ZoneInfo) -> dt.datetime:
    """What the wall clock says, in UTC. A time that clocks skip is the moment at which they skip it; of one that they
    show twice it is the first.
    """
    days, minute = divmod(minute, DAY_MINUTES)
    time = dt.time(minute // 60, minute % 60)
    local = dt.datetime.combine(day + dt.timedelta(days=days), time, zone)
    moment = local.astimezone(dt.UTC)
    skipped = moment.astimezone(zone).replace(tzinfo=None) != local.replace(tzinfo=None)
    return _skip(local, zone) if skipped else moment


def _skip(local: dt.datetime, zone: ZoneInfo) -> dt.datetime:
    """The moment at which clocks were put forward over `local`: both readings of it lie around it."""
    early, late = sorted(local.replace(fold=fold).astimezone(dt.UTC) for fold in (0, 1))
    while late - early > dt.timedelta(seconds=1):
        middle = early + (late - early) / 2
        if middle.astimezone(zone).utcoffset() == early.astimezone(zone).utcoffset():
            early = middle
        else:
            late = middle
    return late.replace(microsecond=0)


def parse(text: str) -> Week:
    """`mon-fri 09:00-17:00 Europe/Berlin` as working hours. ValueError for anything else."""
    found = WRITTEN.fullmatch(text.strip())
    if not found or found[1] not in DAYS or found[2] not in DAYS:
        raise ValueError(f"{text!r} are no working hours; write them as mon-fri 09:00-17:00 Europe/Berlin.")
    first, last = DAYS.index(found[1]), DAYS.index(found[2])
    days = frozenset((first + step) % 7 for step in range((last - first) % 7 + 1))
    opens, closes = (int(found[at]) * 60 + int(found[at + 1]) for at in (3, 5))
    try:
        return Week(found[7], days, opens, closes)
    except (KeyError, OSError) as error:
        raise ValueError(f"{found[7]} is no time zone; name one such as Europe/Berlin.") from error
