"""Working time, as a table of weeks and moments, and against its definition counted minute by minute."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest

from approvals.working_hours import NeverWorks, Week, parse

OFFICE = parse("mon-fri 09:00-17:00 Europe/Berlin")
ROUND = parse("mon-sun 00:00-24:00 Europe/Berlin")
NEW_YORK = parse("mon-fri 09:00-17:00 America/New_York")
NIGHT = parse("sat-sun 01:00-04:00 Europe/Berlin")
FAR = parse("mon-fri 08:00-16:00 Pacific/Kiritimati")


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


# week, since, until (UTC), hours of work between
WORKED = [
    (OFFICE, "2026-11-23 08:00", "2026-11-23 16:00", 8.0),
    (OFFICE, "2026-11-23 00:00", "2026-11-24 00:00", 8.0),
    (OFFICE, "2026-11-23 15:30", "2026-11-24 08:30", 1.0),
    (OFFICE, "2026-11-20 15:00", "2026-11-23 09:00", 2.0),  # over a weekend
    (OFFICE, "2026-11-21 00:00", "2026-11-22 23:00", 0.0),
    (OFFICE, "2026-11-23 16:00", "2026-11-23 08:00", 0.0),  # backwards
    (OFFICE, "2026-07-06 07:00", "2026-07-06 15:00", 8.0),  # summer time: two hours from UTC
    (OFFICE, "2026-03-27 08:00", "2026-03-30 07:00", 8.0),  # clocks are put forward on Sunday
    (OFFICE, "2026-10-23 07:00", "2026-10-26 08:00", 8.0),  # and back
    (ROUND, "2026-03-28 23:00", "2026-03-29 22:00", 23.0),
    (ROUND, "2026-10-24 22:00", "2026-10-25 23:00", 25.0),
    (NIGHT, "2026-03-28 12:00", "2026-03-29 12:00", 2.0),  # 02:00 to 03:00 is not there
    (NIGHT, "2026-10-24 12:00", "2026-10-25 12:00", 4.0),  # 02:00 to 03:00 is there twice
    (NEW_YORK, "2026-03-09 12:00", "2026-03-09 14:00", 1.0),  # New York changes weeks before Berlin
    (NEW_YORK, "2026-03-06 12:00", "2026-03-06 15:00", 1.0),
    (FAR, "2026-11-22 18:00", "2026-11-22 20:00", 2.0),  # Monday there, Sunday in UTC
    (Week("Europe/Berlin", frozenset(range(5)), 540, 1020, frozenset({dt.date(2026, 12, 25)})),
     "2026-12-24 08:00", "2026-12-28 09:00", 9.0),
]  # fmt: skip


@pytest.mark.parametrize(("week", "since", "until", "hours"), WORKED)
def test_counts_working_time(week: Week, since: str, until: str, hours: float) -> None:
    assert week.worked(utc(since), utc(until)) == dt.timedelta(hours=hours)


# week, since (UTC), hours of work, when they are done (UTC)
AFTER = [
    (OFFICE, "2026-11-23 08:00", 8, "2026-11-23 16:00"),
    (OFFICE, "2026-11-23 08:00", 9, "2026-11-24 09:00"),
    (OFFICE, "2026-11-20 15:00", 2, "2026-11-23 09:00"),
    (OFFICE, "2026-11-21 12:00", 1, "2026-11-23 09:00"),
    (OFFICE, "2026-03-27 15:00", 2, "2026-03-30 08:00"),
    (OFFICE, "2026-10-23 14:00", 2, "2026-10-26 09:00"),
    (ROUND, "2026-10-24 22:00", 25, "2026-10-25 23:00"),
    (NIGHT, "2026-03-28 12:00", 1.5, "2026-03-29 01:30"),
    (FAR, "2026-11-20 12:00", 1, "2026-11-22 19:00"),
]


@pytest.mark.parametrize(("week", "since", "hours", "done"), AFTER)
def test_knows_when_so_much_work_is_done(week: Week, since: str, hours: float, done: str) -> None:
    assert week.after(utc(since), dt.timedelta(hours=hours)) == utc(done)


@pytest.mark.parametrize("day", ["2026-03-28", "2026-10-24", "2026-12-23"])
@pytest.mark.parametrize(
    "week", [OFFICE, ROUND, NIGHT, NEW_YORK, FAR, Week("Europe/Berlin", frozenset({5, 6}), 150, 180)]
)
def test_agrees_with_counting_every_minute(week: Week, day: str) -> None:
    """The definition: a minute counts when the wall clock shows working hours."""
    since, zone = utc(f"{day} 00:00"), ZoneInfo(week.zone)
    minutes = [since + dt.timedelta(minutes=one) for one in range(3 * 24 * 60)]
    working = []
    for at in minutes:
        local = at.astimezone(zone)
        shown = local.hour * 60 + local.minute
        is_open = week.opens <= shown < week.closes
        if is_open and local.weekday() in week.weekdays and local.date() not in week.holidays:
            working.append(at)
    # Who begins at 02:30, and clocks show that twice, begins at the first and works on: 02:00 to 02:30 too.
    begins_twice = week.opens == 150 and day == "2026-10-24"
    expected = dt.timedelta(minutes=len(working) + (30 if begins_twice else 0))
    counted = week.worked(since, minutes[-1] + dt.timedelta(minutes=1))
    assert counted == expected
    if counted:
        assert week.worked(since, week.after(since, counted / 2)) == counted / 2


@pytest.mark.parametrize(
    "text",
    ["", "mon-fri", "mon-fry 09:00-17:00 UTC", "mon-fri 17:00-09:00 UTC", "mon-fri 09:00-25:00 UTC",
     "mon-fri 09:00-17:00 Mars/Olympus", "mon-fri 09:00-09:00 UTC"],
)  # fmt: skip
def test_refuses_what_are_no_working_hours(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the settings say the rest
        parse(text)


def test_reads_days_over_the_end_of_the_week() -> None:
    assert parse("sat-mon 09:00-17:00 UTC").weekdays == {5, 6, 0}


def test_does_not_wait_for_ever_for_who_never_works() -> None:
    always_off = frozenset(dt.date(2026, 1, 1) + dt.timedelta(days=day) for day in range(800))
    with pytest.raises(NeverWorks, match="no working day"):
        Week("UTC", frozenset(range(7)), 540, 1020, always_off).after(utc("2026-01-01 00:00"), dt.timedelta(hours=1))
