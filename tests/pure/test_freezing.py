"""Freezes and rollout windows on real wall clocks."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from approvals.freezing import Kind, Rule, held, loosens
from approvals.recurrence import Window

BERLIN, NEW_YORK, KOLKATA = "Europe/Berlin", "America/New_York", "Asia/Kolkata"


def rule(
    kind: Kind, name: str, first: str, hours: float, repeats: str = "", zone: str = "UTC", scope: str = ""
) -> Rule:
    return Rule(name, kind, Window(datetime.fromisoformat(first), timedelta(hours=hours), zone, repeats), scope)


def freeze(*given, **more) -> Rule:
    return rule(Kind.FREEZE, *given, **more)


def rollouts(*given, **more) -> Rule:
    return rule(Kind.ROLLOUTS, *given, **more)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


YEAR_END = freeze("Year end", "2026-12-21T00:00", 14 * 24)
WEEKENDS = freeze("Weekends", "2026-01-02T17:00", 63, "FREQ=WEEKLY;BYDAY=FR", BERLIN)
NIGHTS = freeze("Nights", "2026-03-01T02:30", 1, "FREQ=DAILY", BERLIN)
OTHERS = freeze("Others", "2026-01-01T00:00", 24, "FREQ=DAILY", scope="bank")
OFFICE = rollouts("Office hours", "2026-01-01T09:00", 7, "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH", BERLIN)
TUESDAYS = rollouts("Tuesdays", "2026-01-06T13:00", 6, "FREQ=WEEKLY;BYDAY=TU", BERLIN, "shop")
LUNCH = freeze("Lunch", "2026-01-01T12:00", 1, "FREQ=DAILY", BERLIN)
ONCE = rollouts("Once", "2026-07-01T10:00", 1)
THRICE = freeze("Thrice", "2026-07-01T10:00", 1, "FREQ=DAILY;COUNT=3")
ALWAYS = freeze("Always", "2026-01-01T00:00", 24, "FREQ=DAILY")


@pytest.mark.parametrize(
    ("rules", "at", "why", "until"),
    [
        ([], "2026-07-01T10:00", "", None),
        # Once; the end is outside.
        ([YEAR_END], "2026-12-20T23:59", "", None),
        ([YEAR_END], "2026-12-21T00:00", "“Year end”", "2027-01-04T00:00"),
        ([YEAR_END], "2027-01-04T00:00", "", None),
        # Zones and DST: 17:00 in Berlin is 16:00 UTC in winter and 15:00 in summer.
        ([WEEKENDS], "2026-01-09T15:30", "", None),
        ([WEEKENDS], "2026-01-09T16:30", "“Weekends”", "2026-01-12T07:00"),
        ([WEEKENDS], "2026-07-03T15:30", "“Weekends”", "2026-07-06T06:00"),
        # Over the changes of the clock it lasts as long as it says: 63 hours.
        ([WEEKENDS], "2026-03-29T12:00", "“Weekends”", "2026-03-30T07:00"),
        ([WEEKENDS], "2026-10-25T12:00", "“Weekends”", "2026-10-26T06:00"),
        # 02:30 is skipped in spring and meant an hour later; it comes twice in autumn and counts once.
        ([NIGHTS], "2026-03-29T00:45", "", None),
        ([NIGHTS], "2026-03-29T01:45", "“Nights”", "2026-03-29T02:30"),
        ([NIGHTS], "2026-10-25T00:45", "“Nights”", "2026-10-25T01:30"),
        ([NIGHTS], "2026-10-25T01:45", "", None),
        # Overlapping and adjoining freezes: it is over when the last of them is.
        ([YEAR_END, WEEKENDS], "2026-12-20T12:00", "“Weekends”", "2027-01-04T07:00"),
        ([YEAR_END, WEEKENDS], "2026-12-26T12:00", "“Year end” and “Weekends”", "2027-01-04T07:00"),
        ([ALWAYS], "2026-07-01T10:00", "“Always”", None),
        # The end of a recurrence.
        ([THRICE], "2026-07-03T10:30", "“Thrice”", "2026-07-03T11:00"),
        ([THRICE], "2026-07-04T10:30", "", None),
        # Another service's freeze.
        ([OTHERS], "2026-07-01T10:00", "", None),
        # Rollouts only in their windows.
        ([OFFICE], "2026-07-01T06:59", "only in “Office hours”", "2026-07-01T07:00"),
        ([OFFICE], "2026-07-01T07:00", "", None),
        ([OFFICE], "2026-07-02T14:00", "only in “Office hours”", "2026-07-06T07:00"),
        ([OFFICE], "2026-10-25T12:00", "only in “Office hours”", "2026-10-26T08:00"),
        # What holds for every service is not loosened for one: both levels must be open.
        ([OFFICE, TUESDAYS], "2026-07-01T10:00", "shop rolls out only in “Tuesdays”", "2026-07-07T11:00"),
        ([OFFICE, TUESDAYS], "2026-07-07T12:00", "", None),
        ([OFFICE, TUESDAYS], "2026-07-07T14:30", "Every service rolls out only in “Office hours”", "2026-07-14T11:00"),
        # A freeze beats a window for rollouts, inside of it and up to its edge.
        ([OFFICE, LUNCH], "2026-07-01T10:30", "“Lunch”", "2026-07-01T11:00"),
        ([ONCE, freeze("Until the end", "2026-07-01T10:30", 0.5)], "2026-07-01T10:40", "“Until the end”", None),
        ([OFFICE, WEEKENDS, YEAR_END], "2026-12-18T18:00", "“Weekends”", "2027-01-04T08:00"),
        # When the windows for rollouts are over, somebody has to plan another one.
        ([ONCE], "2026-07-01T09:00", "only in “Once”", "2026-07-01T10:00"),
        ([ONCE], "2026-07-01T11:00", "only in “Once”", None),
        # What cannot be read lets nothing through.
        ([freeze("Gone", "2026-07-01T10:00", 1, zone="Europe/Nowhere")], "2026-01-01T00:00", "cannot be read", None),
        ([freeze("Odd", "2026-07-01T10:00", 1, "FREQ=HOURLY")], "2026-01-01T00:00", "cannot be read", None),
    ],
)  # fmt: skip
def test_holds_and_says_until_when(rules, at, why, until):
    hold = held(rules, utc(at), scope="shop")
    if not why:
        assert hold is None
        return
    assert why in hold.why
    assert hold.until == (utc(until) if until else None)
    if until:
        assert held(rules, hold.until, scope="shop") is None
        assert held(rules, hold.until - timedelta(seconds=1), scope="shop") is not None
        assert f"Until {until.replace('T', ' ')} UTC." in str(hold)


@pytest.mark.parametrize(
    ("fix", "rollback", "fixes_pass", "is_held"),
    [
        (False, False, False, True), (False, False, True, True), (True, False, False, True), (True, False, True, False),
        (False, True, False, False), (False, True, True, False), (True, True, False, False), (True, True, True, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rules", [[ALWAYS], [ONCE], [ALWAYS, ONCE]])
def test_lets_rollbacks_through_and_fixes_when_the_policy_says_so(rules, fix, rollback, fixes_pass, is_held):
    hold = held(rules, utc("2026-08-01T00:00"), is_reliability_fix=fix, is_rollback=rollback, fixes_pass=fixes_pass)
    assert (hold is not None) is is_held


def test_agrees_with_every_half_hour_looked_at_one_by_one():
    """The slow truth: it is over at the first half hour at which nothing holds."""
    begin, step = utc("2026-10-24T00:00"), timedelta(minutes=30)
    holds = {}
    for number in range(5 * 48):  # from before the change of the clock to the next Tuesday evening
        holds[begin + number * step] = held(
            [OFFICE, TUESDAYS, LUNCH, WEEKENDS, NIGHTS], begin + number * step, scope="shop"
        )
    free = [at for at, hold in holds.items() if hold is None]
    assert free[0] == utc("2026-10-27T12:00")
    for at, hold in holds.items():
        if hold and at < free[-1]:
            assert hold.until == next(one for one in free if one > at), at


DAY = timedelta(days=1)
OWN = replace(YEAR_END, scope="shop")


@pytest.mark.parametrize(
    ("was", "became", "others", "expected"),
    [
        (None, YEAR_END, [], False),  # a new freeze
        (YEAR_END, None, [], True),  # gone, or switched off
        (YEAR_END, YEAR_END, [], False),
        (YEAR_END, replace(YEAR_END, name="Holidays", reason="other words"), [], False),
        (YEAR_END, replace(YEAR_END, window=replace(YEAR_END.window, duration=15 * DAY)), [], False),
        (YEAR_END, replace(YEAR_END, window=replace(YEAR_END.window, duration=13 * DAY)), [], True),
        (YEAR_END, replace(YEAR_END, window=replace(YEAR_END.window, first=datetime(2026, 12, 22))), [], True),
        (YEAR_END, replace(YEAR_END, window=replace(YEAR_END.window, zone=KOLKATA)), [], True),
        (WEEKENDS, replace(WEEKENDS, window=replace(WEEKENDS.window, rule="FREQ=WEEKLY;BYDAY=SA")), [], True),
        (YEAR_END, replace(YEAR_END, kind=Kind.ROLLOUTS), [], True),
        (YEAR_END, OWN, [], True),  # for every service, and now for one
        (OWN, YEAR_END, [], False),
        (OWN, replace(OWN, scope="bank"), [], True),
        (None, OFFICE, [], False),  # the first window for rollouts closes everything else
        (None, OFFICE, [TUESDAYS], False),  # of another level
        (None, TUESDAYS, [OFFICE], False),
        (None, ONCE, [OFFICE], True),  # one more opens more
        (OFFICE, None, [], True),  # the last one: everything is open again
        (OFFICE, None, [ONCE], False),
        (OFFICE, replace(OFFICE, window=replace(OFFICE.window, duration=DAY)), [], True),
        (OFFICE, replace(OFFICE, window=replace(OFFICE.window, duration=DAY / 24)), [], False),
        (OFFICE, replace(OFFICE, scope="shop"), [], True),
    ],
)
def test_knows_what_loosens(was, became, others, expected):
    assert loosens(was, became, others=others) is expected
