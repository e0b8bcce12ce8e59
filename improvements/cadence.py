"""Which reviews there are, who does them, and when: periods in the installation's time zone, and working days."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from zoneinfo import ZoneInfo

from approvals.policy import Role
from approvals.working_hours import Week

DAY = dt.timedelta(days=1)


class Kind(StrEnum):
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    QUARTERLY = "quarterly"
    YEARLY = "yearly"
    BREAK_GLASS = "break-glass"


@dataclass(frozen=True)
class Rule:
    """`catch_up`: how many periods are made up for after the system was down; older ones nobody would read."""

    about: str
    role: Role
    working_days: int
    catch_up: int


REVIEWS: Mapping[Kind, Rule] = {
    Kind.WEEKLY: Rule("metrics and suggestions", Role.LEAD, working_days=3, catch_up=6),
    Kind.MONTHLY: Rule("risk assessment and safety mechanisms", Role.ARCHITECTURE, working_days=5, catch_up=3),
    Kind.QUARTERLY: Rule("milestones and strategy", Role.CTO, working_days=10, catch_up=2),
    Kind.YEARLY: Rule("the whole specification", Role.CTO, working_days=15, catch_up=1),
    Kind.BREAK_GLASS: Rule("an emergency in which rules were set aside", Role.ARCHITECTURE, 5, catch_up=0),
}
# Who is asked when nobody signed a review off in time, and how long the next one has.
CHAIN: tuple[Role, ...] = (Role.LEAD, Role.ARCHITECTURE, Role.CTO)
NEXT_WORKING_DAYS = 2


@dataclass(frozen=True)
class Period:
    """Whole local days from `begins` up to `ends`, which belongs to the next one."""

    kind: Kind
    name: str
    begins: dt.date
    ends: dt.date

    def bounds(self, zone: ZoneInfo) -> tuple[dt.datetime, dt.datetime]:
        """When it begins and ends, in UTC: a week in which the clock is changed has 167 or 169 hours."""
        return _midnight(self.begins, zone), _midnight(self.ends, zone)


def period_of(kind: Kind, day: dt.date) -> Period:
    """The period that holds `day`; weeks are those of ISO 8601. Raises ValueError for a kind without periods."""
    match kind:
        case Kind.WEEKLY:
            year, week, weekday = day.isocalendar()
            begins = day - (weekday - 1) * DAY
            return Period(kind, f"{year}-W{week:02}", begins, begins + 7 * DAY)
        case Kind.MONTHLY:
            begins = day.replace(day=1)
            return Period(kind, f"{day:%Y-%m}", begins, _first_of(begins, months_later=1))
        case Kind.QUARTERLY:
            begins = dt.date(day.year, 1 + (day.month - 1) // 3 * 3, 1)
            return Period(kind, f"{day.year}-Q{(day.month + 2) // 3}", begins, _first_of(begins, months_later=3))
        case Kind.YEARLY:
            return Period(kind, f"{day.year}", dt.date(day.year, 1, 1), dt.date(day.year + 1, 1, 1))
    raise ValueError(f"A {kind} review has no period.")


def ended(kind: Kind, today: dt.date) -> list[Period]:
    """The periods that are over on `today` and worth making up for, the oldest first."""
    found: list[Period] = []
    day = today
    for _ in range(REVIEWS[kind].catch_up):
        before = period_of(kind, period_of(kind, day).begins - DAY)
        found.append(before)
        day = before.begins
    return found[::-1]


def working_days_after(day: dt.date, count: int, week: Week) -> dt.date:
    """The `count`-th day after `day` on which people work, by the weekdays and holidays of `week`."""
    while count:
        day += DAY
        count -= is_working_day(day, week)
    return day


def is_working_day(day: dt.date, week: Week) -> bool:
    return day.weekday() in week.weekdays and day not in week.holidays


def responsible(role: Role, level: int) -> tuple[Role, ...]:
    """Who may sign a review off that was given to `role` and escalated `level` times; the last one is asked now."""
    begins = CHAIN.index(role)
    return CHAIN[begins : begins + level + 1]


def levels(role: Role) -> int:
    """How often a review of `role` is told to be overdue: once by each next role, and once more to the last."""
    return len(CHAIN) - CHAIN.index(role)


def local_day(at: dt.datetime, zone: ZoneInfo) -> dt.date:
    return at.astimezone(zone).date()


def _first_of(day: dt.date, months_later: int) -> dt.date:
    month = day.month - 1 + months_later
    return dt.date(day.year + month // 12, month % 12 + 1, 1)


def _midnight(day: dt.date, zone: ZoneInfo) -> dt.datetime:
    return dt.datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(dt.UTC)
