"""What keeps an approved rollout from starting: freeze windows, what higher apps register, and who may change it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils.timezone import now

from approvals import holding, requests, rulebook, terms
from approvals.freezing import Hold, Kind
from approvals.holding import Finding
from approvals.models import ApprovalRequest, AuditEntry, FreezeWindow, TeamMember
from approvals.policy import Role, Terms, Tier
from approvals.requests import StandingState
from approvals.subjects import SubjectRef
from tests.approvals.test_requests import PRINT, ask
from tests.people import FRESH

pytestmark = pytest.mark.django_db
SHOP = SubjectRef("thing", 1, "Prefetch guilds", "/things/1", scope="shop")


@pytest.fixture(autouse=True)
def no_other_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "_reasons", {})


def window(name: str = "Year end", *, hours: float = 2, kind: Kind = Kind.FREEZE, **more: Any) -> FreezeWindow:
    """A window, not saved, that began an hour ago."""
    begin = more.pop("begin", now() - dt.timedelta(hours=1)).astimezone(dt.UTC)
    fields = {"kind": kind, "reason": "nobody is here", "first_day": begin.date(), "begins": begin.time(), **more}
    return FreezeWindow(name=name, duration_minutes=int(hours * 60), **fields)


def approved(carol: User, **more: Any) -> ApprovalRequest:
    return requests.approve(ask(Tier.HIGH, subject=SHOP, **more), person=carol, how=FRESH, reason="sound")


@pytest.mark.parametrize(
    ("fields", "is_held"),
    [
        ({}, True),
        ({"scope": "shop"}, True),
        ({"scope": "bank"}, False),
        ({"enabled": False}, False),
        ({"begin": now() + dt.timedelta(hours=1)}, False),
        ({"kind": Kind.ROLLOUTS}, False),
        ({"kind": Kind.ROLLOUTS, "begin": now() + dt.timedelta(hours=1)}, True),
    ],
)
def test_holds_what_is_approved_until_the_freeze_is_over(carol: User, fields: dict[str, Any], is_held: bool) -> None:
    window(**fields).save()
    request = approved(carol)  # signing is allowed meanwhile
    standing = requests.standing(request, PRINT)
    assert standing.state is (StandingState.HELD if is_held else StandingState.SATISFIED)
    if is_held:
        assert "“Year end”" in standing.why
        assert "Until 20" in standing.why
    request.refresh_from_db()
    assert request.state == "approved"


def test_holds_what_needed_nobody_and_lets_it_go_afterwards() -> None:
    frozen = window()
    frozen.save()
    request = ask(Tier.LOW, subject=SHOP)
    assert requests.standing(request, PRINT).state is StandingState.HELD
    FreezeWindow.objects.update(enabled=False)
    assert requests.standing(request, PRINT).satisfied


def test_waits_for_signatures_first_and_says_so(carol: User) -> None:
    window().save()
    assert requests.standing(ask(Tier.HIGH, subject=SHOP), PRINT).state is StandingState.WAITING


@pytest.mark.parametrize(("kind", "is_held"), [("thing", True), ("policy", False)])
def test_holds_rollouts_and_not_decisions_about_the_policy(kind: str, is_held: bool) -> None:
    window().save()
    request = ask(Tier.LOW, subject=SubjectRef(kind, 1, "Something"))
    assert (requests.standing(request, PRINT).state is StandingState.HELD) is is_held


GONE = Finding(Hold("The error budget of shop is gone."))
UNKNOWN = Finding(note="The error budget of shop is not known.")


@pytest.mark.parametrize(
    ("found", "frozen", "fix", "rollback", "expected"),
    [
        (Finding(), False, False, False, Finding()),
        (GONE, False, False, False, GONE),
        (GONE, False, True, False, Finding()),  # only reliability fixes pass
        (GONE, False, False, True, Finding()),  # stop wins
        (GONE, True, False, True, Finding()),
        (UNKNOWN, False, False, False, UNKNOWN),  # not gone, and said
    ],
)
def test_asks_what_higher_apps_know(found: Finding, frozen: bool, fix: bool, rollback: bool, expected: Finding) -> None:
    asked = []
    holding.register("error budget", lambda scope, at: asked.append(scope) or found)
    if frozen:
        window().save()
    assert holding.look("shop", now(), is_reliability_fix=fix, is_rollback=rollback) == expected
    assert set(asked) <= {"shop"}


def test_says_at_the_start_what_could_not_be_established(carol: User) -> None:
    holding.register("error budget", lambda scope, at: UNKNOWN)
    standing = requests.standing(approved(carol), PRINT)
    assert (standing.state, standing.why) == (
        StandingState.SATISFIED, "Signed by carol. The error budget of shop is not known.",
    )  # fmt: skip


def test_knows_a_reliability_fix_by_what_the_signers_saw(carol: User) -> None:
    holding.register("error budget", lambda scope, at: GONE)
    assert requests.standing(approved(carol), PRINT).why == "Signed by carol. The error budget of shop is gone."
    fix = ask(Tier.LOW, subject=SubjectRef("thing", 2, "Fix", scope="shop"), facts={"is_reliability_fix": True})
    assert requests.standing(fix, PRINT).satisfied


WHO = ("bob", "carol", "dave", "erin", "alice", "mallory")


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("change", ["add", "lengthen", "shorten", "switch off"])
def test_lets_seniors_loosen_and_whoever_operates_freeze(request: Any, who: str, change: str) -> None:
    actor: User = request.getfixturevalue(who)
    row = window()
    if change != "add":
        row.save()
        row = FreezeWindow.objects.get()
        row.duration_minutes += {"lengthen": 60, "shorten": -60}.get(change, 0)
        row.enabled = change != "switch off"
    senior = who in ("bob", "carol", "dave")
    if change in ("shorten", "switch off") and not senior:
        with pytest.raises(holding.Refused, match="takes a lead developer"):
            holding.save(row, actor=actor)
        assert not AuditEntry.objects.filter(action__startswith="freezewindow").exists()
        return
    holding.save(row, actor=actor)
    entry = AuditEntry.objects.get(action__startswith="freezewindow")
    assert entry.actor == who
    assert entry.action == ("freezewindow.added" if change == "add" else "freezewindow.changed")
    if change == "switch off":
        assert (entry.was, entry.became) == ({"enabled": True}, {"enabled": False})


def test_does_not_believe_a_role_that_was_lost(bob: User) -> None:
    row = window()
    row.save()
    row.enabled = False
    User.objects.get(pk=bob.pk).groups.clear()
    with pytest.raises(holding.Refused):
        holding.save(row, actor=bob)


def test_says_when_a_window_is_in_force_next() -> None:
    at = dt.datetime(2026, 7, 1, 12, tzinfo=dt.UTC)
    one = window(begin=at, hours=1, recurrence="FREQ=WEEKLY;COUNT=2")
    said = [holding.in_words(one, at + dt.timedelta(days=days)) for days in (-1, 0, 1, 8)]
    assert said == [
        "next at 2026-07-01 12:00 UTC", "in force until 2026-07-01 13:00 UTC", "next at 2026-07-08 12:00 UTC", "over",
    ]  # fmt: skip
    one.enabled = False
    assert holding.in_words(one, at) == "switched off"


def test_has_the_policy_decide_whether_fixes_pass_a_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    window().save()
    assert holding.hold("shop", now(), is_reliability_fix=True) is not None
    lenient = rulebook.DEFAULT.model_copy(update={"reliability_fixes_pass_freezes": True})
    monkeypatch.setattr(terms, "in_force", lambda: Terms(lenient, 1))
    assert holding.hold("shop", now(), is_reliability_fix=True) is None
    assert holding.hold("shop", now(), is_reliability_fix=False) is not None


def test_lets_nobody_move_the_freeze_of_another_service_to_their_own(bob: User) -> None:
    TeamMember.objects.create(scope="shop", role=Role.LEAD, person=bob)
    other = window(scope="realm")
    other.save()
    other.scope = "shop"
    with pytest.raises(holding.Refused, match="lead developer"):
        holding.save(other, actor=bob)
    assert FreezeWindow.objects.get(pk=other.pk).scope == "realm"
