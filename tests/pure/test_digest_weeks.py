"""Weeks of ISO 8601 on people's wall clocks."""

from __future__ import annotations

import datetime as dt
import zoneinfo

import pytest

from improvements.digest import weeks
from improvements.digest.weeks import Week

BERLIN, AUCKLAND, HONOLULU = (zoneinfo.ZoneInfo(n) for n in ("Europe/Berlin", "Pacific/Auckland", "Pacific/Honolulu"))


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("week", "zone", "begins", "ends", "due"),
    [
        (Week(2026, 47), dt.UTC, "2026-11-16 00:00", "2026-11-23 00:00", "2026-11-23 08:00"),
        (Week(2026, 47), BERLIN, "2026-11-15 23:00", "2026-11-22 23:00", "2026-11-23 07:00"),
        (Week(2026, 47), AUCKLAND, "2026-11-15 11:00", "2026-11-22 11:00", "2026-11-22 19:00"),
        (Week(2026, 47), HONOLULU, "2026-11-16 10:00", "2026-11-23 10:00", "2026-11-23 18:00"),
        # The clock goes back on 2026-10-25 and forward on 2026-03-29: weeks of 169 and 167 hours.
        (Week(2026, 43), BERLIN, "2026-10-18 22:00", "2026-10-25 23:00", "2026-10-26 07:00"),
        (Week(2026, 13), BERLIN, "2026-03-22 23:00", "2026-03-29 22:00", "2026-03-30 06:00"),
        # The year of a week is that of its Thursday.
        (Week(2026, 53), dt.UTC, "2026-12-28 00:00", "2027-01-04 00:00", "2027-01-04 08:00"),
    ],
)
def test_begins_and_ends_at_midnight_of_the_zone(week: Week, zone: dt.tzinfo, begins: str, ends: str, due: str) -> None:
    assert (week.begins(zone), week.ends(zone)) == (utc(begins), utc(ends))
    assert week.due(zone, weekday="monday", hour=8) == utc(due)


@pytest.mark.parametrize(
    ("at", "weekday", "hour", "week"),
    [
        ("2026-11-23 07:59:59", "monday", 8, Week(2026, 46)),
        ("2026-11-23 08:00", "monday", 8, Week(2026, 47)),
        ("2026-11-29 23:59", "monday", 8, Week(2026, 47)),
        ("2026-11-30 08:00", "monday", 8, Week(2026, 48)),
        ("2026-11-27 11:59", "friday", 12, Week(2026, 46)),
        ("2026-11-27 12:00", "friday", 12, Week(2026, 47)),
        ("2026-11-29 00:00", "sunday", 0, Week(2026, 47)),
        ("2027-01-04 08:00", "monday", 8, Week(2026, 53)),
        ("2027-01-11 08:00", "monday", 8, Week(2027, 1)),
    ],
)
def test_the_week_to_send_is_the_newest_that_is_due(at: str, weekday: str, hour: int, week: Week) -> None:
    assert weeks.last_due(utc(at), dt.UTC, weekday=weekday, hour=hour) == week


def test_is_due_an_hour_later_where_the_clock_skips_the_hour() -> None:
    # Sunday 2026-03-29: 02:00 in Berlin is followed by 03:00.
    assert Week(2026, 12).due(BERLIN, weekday="sunday", hour=2) == utc("2026-03-29 01:00")


@pytest.mark.parametrize(("text", "week"), [("2026-W47", Week(2026, 47)), (" 2026-w53 ", Week(2026, 53))])
def test_reads_weeks(text: str, week: Week) -> None:
    assert weeks.parse(text) == week
    assert str(week) == text.strip().upper()


@pytest.mark.parametrize(
    "text",
    ["", "2026", "2026-47", "2026-W00", "2027-W53", "2026-W54", "0000-W01", "0001-W01", "9999-W52", "W47", "٢-W٤"],
)
def test_refuses_what_is_no_week_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no week\. Write it like 2026-W47"):
        weeks.parse(text)


def test_knows_what_comes_before_and_after() -> None:
    assert Week(2027, 1).previous == Week(2026, 53)
    assert Week(2026, 53).following == Week(2027, 1)
    assert sorted(map(str, [Week(2027, 1), Week(2026, 9), Week(2026, 53)])) == ["2026-W09", "2026-W53", "2027-W01"]


@pytest.mark.parametrize(
    ("zone", "words"),
    [(BERLIN, "2026-11-23 14:05 +01:00"), (dt.UTC, "2026-11-23 13:05 +00:00"), (HONOLULU, "2026-11-23 03:05 -10:00")],
)
def test_writes_times_that_every_language_reads(zone: dt.tzinfo, words: str) -> None:
    assert weeks.clock(utc("2026-11-23 13:05:59"), zone) == words


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../../etc/passwd", "Europe/Berlin\0", "x" * 300])
def test_is_utc_with_a_hint_where_there_is_no_such_zone(name: str) -> None:
    zone, hint = weeks.zone_named(name)
    assert zone is dt.UTC
    assert "so these times are UTC" in hint
    assert weeks.zone_named("Europe/Berlin") == (BERLIN, "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "< 1 min"), (59, "< 1 min"), (60, "1 min"), (3600, "1 h"), (3660, "1 h 1 min"), (86_400, "1 d"),
        (86_460, "1 d"), (90_000, "1 d 1 h"), (700_000, "8 d 2 h"),
    ],
)  # fmt: skip
def test_writes_durations_to_two_units(seconds: int, words: str) -> None:
    assert weeks.span(dt.timedelta(seconds=seconds)) == words
