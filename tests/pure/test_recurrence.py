"""Windows on real wall clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from approvals.recurrence import BadWindow, Window, check, open_until, upcoming

BERLIN, NEW_YORK, KOLKATA = "Europe/Berlin", "America/New_York", "Asia/Kolkata"
HOUR = timedelta(hours=1)


def window(first: str, rule: str = "", zone: str = BERLIN, duration: timedelta = HOUR) -> Window:
    return Window(datetime.fromisoformat(first), duration, zone, rule)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


SUNDAYS = window("2026-01-04T03:00", "FREQ=WEEKLY;BYDAY=SU")
NIGHTLY = window("2026-03-01T02:30", "FREQ=DAILY")
LATE = window("2026-01-01T23:30", "FREQ=DAILY", duration=2 * HOUR)


@pytest.mark.parametrize(
    ("shown", "at", "until"),
    [
        (window("2026-07-01T10:00"), "2026-07-01T07:59", None),
        (window("2026-07-01T10:00"), "2026-07-01T08:00", "2026-07-01T09:00"),
        (window("2026-07-01T10:00"), "2026-07-01T08:59", "2026-07-01T09:00"),
        (window("2026-07-01T10:00"), "2026-07-01T09:00", None),  # the end is outside
        (window("2026-07-01T10:00", zone=KOLKATA), "2026-07-01T04:30", "2026-07-01T05:30"),
        (SUNDAYS, "2026-01-11T02:30", "2026-01-11T03:00"),  # winter: 03:00 is 02:00 UTC
        (SUNDAYS, "2026-07-05T01:30", "2026-07-05T02:00"),  # summer: 03:00 is 01:00 UTC
        (SUNDAYS, "2026-07-05T02:30", None),
        (SUNDAYS, "2026-07-06T01:30", None),  # a Monday
        (SUNDAYS, "2025-12-28T02:30", None),  # before the first
        # 29 March 2026: 02:30 does not exist in Berlin and is meant as 03:30, which is 01:30 UTC.
        (NIGHTLY, "2026-03-29T01:29", None),
        (NIGHTLY, "2026-03-29T01:30", "2026-03-29T02:30"),
        # 25 October 2026: 02:30 comes twice, at 00:30 and 01:30 UTC; the first counts.
        (NIGHTLY, "2026-10-25T00:30", "2026-10-25T01:30"),
        (NIGHTLY, "2026-10-25T01:30", None),
        # The wall clock went back over its start: 02:15 for the second time, after a begin at 02:30.
        (NIGHTLY, "2026-10-25T01:15", "2026-10-25T01:30"),
        (LATE, "2026-01-09T00:15", "2026-01-09T00:30"),  # over midnight
        (window("2026-01-03T22:00", "FREQ=MONTHLY;BYDAY=1SA", NEW_YORK), "2026-02-08T03:30", "2026-02-08T04:00"),
        (window("2026-01-04T03:00", "FREQ=WEEKLY;COUNT=2"), "2026-01-11T02:30", "2026-01-11T03:00"),
        (window("2026-01-04T03:00", "FREQ=WEEKLY;COUNT=2"), "2026-01-18T02:30", None),
        (window("2026-01-04T03:00", "FREQ=WEEKLY;UNTIL=20260111T020000Z"), "2026-01-11T02:30", "2026-01-11T03:00"),
        (window("2026-01-04T03:00", "FREQ=WEEKLY;UNTIL=20260111T015959Z"), "2026-01-11T02:30", None),
        (window("2026-01-04T03:00", "RRULE:freq=weekly"), "2026-01-11T02:30", "2026-01-11T03:00"),
    ],
)
def test_is_open(shown, at, until):
    check(shown)
    assert open_until(shown, utc(at)) == (utc(until) if until else None)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"zone": "Europe/Nowhere"}, "no time zone"),
        ({"zone": "../../etc/passwd"}, "no time zone"),
        ({"zone": ""}, "no time zone"),
        ({"duration": timedelta()}, "at most 7 days"),
        ({"duration": timedelta(days=8)}, "at most 7 days"),
        ({"rule": "every sunday"}, "can't be used here"),
        ({"rule": "FREQ=SECONDLY"}, "FREQ is one of"),
        ({"rule": "FREQ=HOURLY"}, "FREQ is one of"),
        ({"rule": "BYDAY=SU"}, "FREQ is one of"),
        ({"rule": "FREQ=WEEKLY;BYDAY=XX"}, "can't be read"),
        ({"rule": "FREQ=WEEKLY;INTERVAL=x"}, "can't be read"),
        ({"rule": "FREQ=WEEKLY;BYSECOND=1"}, "can't be used here"),
        ({"rule": "FREQ=WEEKLY;UNTIL=tomorrowZ"}, "is no time"),
        ({"rule": "FREQ=WEEKLY\nDTSTART:20260101T000000"}, "one line"),
        ({"rule": "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30"}, "never happens"),
        ({"rule": "FREQ=WEEKLY;UNTIL=20200101T000000Z"}, "never happens"),
    ],
)
def test_refuses(fields, says):
    given = {"first": datetime(2026, 1, 4, 3), "duration": HOUR, "zone": BERLIN, "rule": ""} | fields
    with pytest.raises(BadWindow, match=says):
        check(Window(**given))


def test_names_the_next_times_in_utc():
    begins = [begin for begin, _ in upcoming(SUNDAYS, utc("2026-03-20T00:00"))]
    assert begins == [utc("2026-03-22T02:00"), utc("2026-03-29T01:00"), utc("2026-04-05T01:00")]
    assert upcoming(window("2026-07-01T10:00"), utc("2026-07-02T00:00")) == []


def test_agrees_with_every_minute_looked_at_one_by_one():
    """The slow truth: a window is open in the minutes after each begin, and in no other."""
    begins = [begin for begin, _ in upcoming(NIGHTLY, utc("2026-10-20T00:00"), count=12)]
    minute = utc("2026-10-21T00:00")
    while minute < utc("2026-10-28T00:00"):
        expected = any(begin <= minute < begin + HOUR for begin in begins)
        assert (open_until(NIGHTLY, minute) is not None) is expected, minute
        minute += timedelta(minutes=7)
