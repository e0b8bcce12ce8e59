"""Periods, working days and the chain of escalation."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from approvals.policy import Role
from approvals.working_hours import Week
from improvements.cadence import (
    CHAIN,
    REVIEWS,
    Kind,
    ended,
    levels,
    local_day,
    period_of,
    responsible,
    working_days_after,
)

UTC, BERLIN = ZoneInfo("UTC"), ZoneInfo("Europe/Berlin")
D = dt.date.fromisoformat


@pytest.mark.parametrize(
    ("kind", "day", "name", "begins", "ends"),
    [
        (Kind.WEEKLY, "2026-11-23", "2026-W48", "2026-11-23", "2026-11-30"),
        (Kind.WEEKLY, "2026-11-29", "2026-W48", "2026-11-23", "2026-11-30"),
        # ISO weeks belong to the year of their Thursday.
        (Kind.WEEKLY, "2027-01-03", "2026-W53", "2026-12-28", "2027-01-04"),
        (Kind.WEEKLY, "2024-12-30", "2025-W01", "2024-12-30", "2025-01-06"),
        (Kind.MONTHLY, "2026-12-31", "2026-12", "2026-12-01", "2027-01-01"),
        (Kind.MONTHLY, "2028-02-29", "2028-02", "2028-02-01", "2028-03-01"),
        (Kind.QUARTERLY, "2026-01-01", "2026-Q1", "2026-01-01", "2026-04-01"),
        (Kind.QUARTERLY, "2026-06-30", "2026-Q2", "2026-04-01", "2026-07-01"),
        (Kind.QUARTERLY, "2026-09-01", "2026-Q3", "2026-07-01", "2026-10-01"),
        (Kind.QUARTERLY, "2026-12-31", "2026-Q4", "2026-10-01", "2027-01-01"),
        (Kind.YEARLY, "2026-11-23", "2026", "2026-01-01", "2027-01-01"),
    ],
)
def test_knows_the_period_of_a_day(kind: Kind, day: str, name: str, begins: str, ends: str) -> None:
    found = period_of(kind, D(day))
    assert (found.name, found.begins, found.ends) == (name, D(begins), D(ends))


@pytest.mark.parametrize(
    ("zone", "day", "since", "hours"),
    [
        (UTC, "2026-03-25", "2026-03-23T00:00+00:00", 168),
        (BERLIN, "2026-03-25", "2026-03-22T23:00+00:00", 167),  # the clock goes forward on Sunday
        (BERLIN, "2026-10-21", "2026-10-18T22:00+00:00", 169),  # and back
        (ZoneInfo("Pacific/Auckland"), "2026-11-25", "2026-11-22T11:00+00:00", 168),
    ],
)
def test_weeks_begin_at_local_midnight_also_when_the_clock_is_changed(
    zone: ZoneInfo, day: str, since: str, hours: int
) -> None:
    begins, ends = period_of(Kind.WEEKLY, D(day)).bounds(zone)
    assert begins == dt.datetime.fromisoformat(since)
    assert ends - begins == dt.timedelta(hours=hours)


@pytest.mark.parametrize("kind", [kind for kind in Kind if REVIEWS[kind].catch_up])
def test_periods_follow_each_other_without_gap_in_every_zone(kind: Kind) -> None:
    # Beirut changes its clock at midnight: on that day there is none.
    for zone in (UTC, BERLIN, ZoneInfo("Asia/Beirut"), ZoneInfo("America/Santiago")):
        day = D("2024-01-01")
        while day < D("2027-01-01"):
            one = period_of(kind, day)
            assert one.bounds(zone)[1] == period_of(kind, one.ends).bounds(zone)[0]
            assert local_day(one.bounds(zone)[0], zone) == one.begins
            day = one.ends


@pytest.mark.parametrize(
    ("kind", "today", "names"),
    [
        (Kind.WEEKLY, "2026-11-23", ["2026-W42", "2026-W43", "2026-W44", "2026-W45", "2026-W46", "2026-W47"]),
        (Kind.WEEKLY, "2026-11-29", ["2026-W42", "2026-W43", "2026-W44", "2026-W45", "2026-W46", "2026-W47"]),
        (Kind.MONTHLY, "2026-01-01", ["2025-10", "2025-11", "2025-12"]),
        (Kind.QUARTERLY, "2026-02-10", ["2025-Q3", "2025-Q4"]),
        (Kind.YEARLY, "2026-12-31", ["2025"]),
        (Kind.BREAK_GLASS, "2026-12-31", []),
    ],
)
def test_makes_up_for_the_last_periods_only(kind: Kind, today: str, names: list[str]) -> None:
    assert [period.name for period in ended(kind, D(today))] == names


@pytest.mark.parametrize(
    ("day", "count", "then"),
    [
        ("2026-11-23", 0, "2026-11-23"),
        ("2026-11-23", 3, "2026-11-26"),
        ("2026-11-27", 1, "2026-11-30"),  # a Friday
        ("2026-11-28", 1, "2026-11-30"),
        ("2026-11-26", 5, "2026-12-03"),
        ("2026-12-23", 2, "2026-12-28"),  # over a holiday that is a Friday
        ("2026-12-24", 1, "2026-12-28"),
    ],
)
def test_counts_working_days(day: str, count: int, then: str) -> None:
    week = Week("UTC", frozenset(range(5)), 9 * 60, 17 * 60, frozenset({D("2026-12-25")}))
    assert working_days_after(D(day), count, week) == D(then)


def test_counts_the_days_on_which_its_people_work() -> None:
    assert working_days_after(D("2026-11-26"), 2, Week("UTC", frozenset({6, 0}), 0, 60)) == D("2026-11-30")


@pytest.mark.parametrize(
    ("role", "level", "who"),
    [
        (Role.LEAD, 0, [Role.LEAD]),
        (Role.LEAD, 1, [Role.LEAD, Role.ARCHITECTURE]),
        (Role.LEAD, 2, [Role.LEAD, Role.ARCHITECTURE, Role.CTO]),
        (Role.LEAD, 3, [Role.LEAD, Role.ARCHITECTURE, Role.CTO]),
        (Role.ARCHITECTURE, 1, [Role.ARCHITECTURE, Role.CTO]),
        (Role.CTO, 0, [Role.CTO]),
        (Role.CTO, 1, [Role.CTO]),
    ],
)
def test_escalates_upwards(role: Role, level: int, who: list[Role]) -> None:
    assert list(responsible(role, level)) == who
    assert level <= levels(role)


def test_every_kind_has_a_rule_and_its_role_is_in_the_chain() -> None:
    assert set(REVIEWS) == set(Kind)
    assert {rule.role for rule in REVIEWS.values()} <= set(CHAIN)


def test_the_documentation_has_the_rules() -> None:
    page = (Path(__file__).parents[2] / "docs" / "governance.md").read_text()
    for kind, rule in REVIEWS.items():
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {kind} "))
        assert rule.about in row
        assert f"| {rule.working_days} |" in row
        assert not rule.catch_up or f"last {'one' if rule.catch_up == 1 else rule.catch_up} |" in row
