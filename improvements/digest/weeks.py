"""Weeks of ISO 8601 on the wall clock of a time zone, and times written so that every language reads them alike."""

from __future__ import annotations

import re
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo

WRITTEN = re.compile(r"(\d{4})-W(\d{2})")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True, order=True)
class Week:
    """A week from Monday to Sunday, written 2026-W47. It begins at midnight of the zone that is asked about."""

    year: int
    number: int

    def __str__(self) -> str:
        return f"{self.year:04d}-W{self.number:02d}"

    @property
    def monday(self) -> date:
        return date.fromisocalendar(self.year, self.number, 1)

    @property
    def previous(self) -> Week:
        return week_of(self.monday - timedelta(days=7))

    @property
    def following(self) -> Week:
        return week_of(self.monday + timedelta(days=7))

    def begins(self, zone: tzinfo) -> datetime:
        """In UTC."""
        return datetime.combine(self.monday, time(), zone).astimezone(UTC)

    def ends(self, zone: tzinfo) -> datetime:
        """The first moment that is not of this week, in UTC."""
        return self.following.begins(zone)

    def due(self, zone: tzinfo, *, weekday: str, hour: int) -> datetime:
        """When the digest of this week goes out: the first `weekday` at `hour` o'clock after its end, in UTC.

        An hour that the clock skips in spring comes an hour later, one that it shows twice in autumn the first time.
        """
        day = self.following.monday + timedelta(days=DAYS.index(weekday))
        return datetime.combine(day, time(hour), zone).astimezone(UTC)


def week_of(day: date) -> Week:
    year, number, _ = day.isocalendar()
    return Week(year, number)


def parse(text: str) -> Week:
    """The week that is written like 2026-W47. Raises ValueError with a sentence for people."""
    found = WRITTEN.fullmatch(text.strip().upper())
    try:
        week = Week(int(found[1]), int(found[2])) if found else None
        if week:
            _ = (week.monday, week.previous, week.following)  # weeks at the ends of the calendar have none
    except (ValueError, OverflowError):
        week = None
    if week is None:
        raise ValueError(f"{text!r} is no week. Write it like 2026-W47 (ISO 8601: year, W, week 01 to 53).")
    return week


def last_due(at: datetime, zone: tzinfo, *, weekday: str, hour: int) -> Week:
    """The newest week whose digest should have gone out by `at`. However long nobody looked, it is this one alone."""
    week = week_of(at.astimezone(zone).date()).previous
    return week if week.due(zone, weekday=weekday, hour=hour) <= at else week.previous


def zone_named(name: str) -> tuple[tzinfo, str]:
    """The IANA zone `name` and no words; UTC and a hint for people where there is none of that name."""
    try:
        return zoneinfo.ZoneInfo(name), ""
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return UTC, f"There is no time zone {name!r}, so these times are UTC. Names look like Europe/Berlin."


def clock(at: datetime, zone: tzinfo) -> str:
    """2026-11-23 14:05 +01:00."""
    text = at.astimezone(zone).isoformat(sep=" ", timespec="minutes")
    return f"{text[:16]} {text[16:]}"


def span(duration: timedelta) -> str:
    """A duration to its two greatest units: 3 d 4 h, 2 h 5 min, 12 min; what is under a minute is < 1 min."""
    minutes = int(duration.total_seconds() // 60)
    if minutes < 1:
        return "< 1 min"
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = [f"{value} {unit}" for value, unit in ((days, "d"), (hours, "h"), (minutes, "min")) if value]
    return " ".join(parts[:2] if not days or hours else parts[:1])


def count(number: int, one: str, many: str = "") -> str:
    """10,080 rounds; 1 round."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
