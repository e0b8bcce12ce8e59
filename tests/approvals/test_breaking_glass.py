"""The emergency door: who opens it, what passes through it, and that exactly one of two racing people wins."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.utils.timezone import now

from approvals import audit, breaking_glass, holding, requests, roles, tasks, telling
from approvals.breaking_glass import Facts, Refused, refusal
from approvals.models import ApprovalRequest, AuditEntry, BreakGlass, PersonSettings
from approvals.policy import Channel, How, PersonFacts, RequestState, Reset, Role, Tier
from approvals.requests import StandingState
from approvals.subjects import SubjectRef
from tests.approvals.test_holding import window
from tests.approvals.test_requests import PRINT, actions, ask
from tests.people import FRESH, person
from tests.racing import at_once

pytestmark = pytest.mark.django_db
SHOP = SubjectRef("thing", 1, "Prefetch guilds", "/things/1", scope="shop")


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, set[str]]]]:
    """Who was told of what; the outbox is not these tests' business."""
    monkeypatch.setattr(holding, "_reasons", {})
    found: list[tuple[str, set[str]]] = []

    def tell(people: Any, *, about: str, subject: str, lines: Any, url: str, key: str) -> int:
        found.append((key, {one.username for one in people}))
        return len(found[-1][1])

    monkeypatch.setattr(telling, "tell", tell)
    return found


def open_glass(request: ApprovalRequest, who: User, **more: Any) -> BreakGlass:
    given = {"how": FRESH, "reason": "The shop is down.", "ticket": "INC-7", "seen": PRINT, "at": now(), **more}
    return breaking_glass.open_glass(request, person=who, **given)


def broken(request: ApprovalRequest, first: User, second: User) -> BreakGlass:
    return breaking_glass.confirm(open_glass(request, first), person=second, how=FRESH, at=now())


def elapse(**time: float) -> None:
    """Everything about the glass happened so much longer ago."""
    for glass in BreakGlass.objects.all():
        for name in ("opened_at", "confirmed_at", "used_at"):
            if getattr(glass, name):
                setattr(glass, name, getattr(glass, name) - dt.timedelta(**time))
        glass.save()


# --- The rules, as a table -----------------------------------------------------------------------------------------

SOMEBODY = PersonFacts(1, "bob", frozenset({Role.LEAD}))
ASKED = Facts("improvement", RequestState.OPEN)
TOKEN, STALE, NEVER = How(Channel.TOKEN, 1.0), How(Channel.PAGE, 301.0), How(Channel.PAGE)
PROGRAM = How(Channel.PROGRAM, 1.0)
NOON = dt.datetime(2026, 5, 4, 12, tzinfo=dt.UTC)
JUST_NOW = Reset("password", "boss", NOON, NOON + dt.timedelta(hours=24))


@pytest.mark.parametrize(
    ("who", "facts", "how", "service_account", "why"),
    [
        *[({"roles": frozenset({role})}, {}, FRESH, False, "" if role is not Role.VIEWER else "is none of them")
          for role in Role],
        ({"roles": frozenset()}, {}, FRESH, False, "is none of them"),
        ({"active": False}, {}, FRESH, False, "not active"),
        ({}, {}, FRESH, True, "a program's account"),
        ({}, {"kind": "policy"}, FRESH, False, "never changed by break-glass"),
        *[({}, {"state": state}, FRESH, False,
           "" if state in (RequestState.OPEN, RequestState.APPROVED) else "passes no such answer")
          for state in RequestState],
        ({}, {"expired": True}, FRESH, False, "has expired"),
        ({}, {"proposed_by": 1}, FRESH, False, "proposed this"),
        ({}, {"edited_by": frozenset({1})}, FRESH, False, "edited this"),
        ({}, {"opened_by": 1}, FRESH, False, "another one"),
        ({}, {"opened_by": 2, "proposed_by": 3, "edited_by": frozenset({4})}, FRESH, False, ""),
        ({}, {}, TOKEN, False, "not by a token"),
        ({}, {}, PROGRAM, False, "not by a token or a program"),
        ({}, {}, STALE, False, "second factor of the last five minutes"),
        ({}, {}, NEVER, False, "second factor"),
        ({}, {}, None, False, ""),
        *[({"reset": JUST_NOW}, {}, how, False, "boss reset the password of bob") for how in (FRESH, None)],
    ],
)  # fmt: skip
def test_refuses_by_rule(who: Any, facts: Any, how: How | None, service_account: bool, why: str) -> None:
    somebody = dataclasses.replace(SOMEBODY, is_service_account=service_account, **who)
    said = refusal(somebody, dataclasses.replace(ASKED, **facts), how=how)
    assert why in said
    assert bool(said) is bool(why)


# --- What passes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", [Tier.HIGH, Tier.CRITICAL])
def test_passes_missing_signatures_after_the_second_person(bob: User, erin: User, tier: Tier) -> None:
    request = ask(tier, subject=SHOP)
    glass = open_glass(request, erin)
    assert requests.standing(request, PRINT).state is StandingState.WAITING
    breaking_glass.confirm(glass, person=bob, how=FRESH, at=now())
    standing = requests.standing(request, PRINT)
    assert (standing.state, standing.by_break_glass) == (StandingState.SATISFIED, True)
    assert standing.why == "Break-glass by erin and bob (ticket INC-7): The shop is down."


def test_passes_a_freeze_for_what_is_approved(bob: User, carol: User, erin: User) -> None:
    window().save()
    request = requests.approve(ask(subject=SHOP), person=carol, how=FRESH, reason="sound")
    assert requests.standing(request, PRINT).state is StandingState.HELD
    broken(request, bob, erin)
    assert requests.standing(request, PRINT).why.startswith("Break-glass by bob and erin")


def test_is_not_used_up_where_it_was_not_needed(bob: User, carol: User, erin: User) -> None:
    request = ask(subject=SHOP)
    glass = broken(request, bob, erin)
    requests.approve(request, person=carol, how=FRESH, reason="sound")
    standing = requests.standing(request, PRINT)
    assert (standing.why, standing.by_break_glass) == ("Signed by carol.", False)
    requests.used(request, standing)
    glass.refresh_from_db()
    assert glass.state == "confirmed"


def test_passes_once(bob: User, erin: User) -> None:
    request = ask(subject=SHOP)
    glass = broken(request, bob, erin)
    requests.used(request, requests.standing(request, PRINT))
    glass.refresh_from_db()
    request.refresh_from_db()
    assert (glass.state, request.state) == ("used", "approved")
    assert actions()[-2:] == ["break_glass.used", "approval.approved_by_break_glass"]
    # A worker that died before it moved on goes on with the same; later it is over.
    assert requests.standing(request, PRINT).satisfied
    elapse(minutes=11)
    assert requests.standing(request, PRINT).state is StandingState.WAITING


def test_passes_no_other_request_and_no_other_patch(bob: User, erin: User) -> None:
    request = ask(subject=SHOP)
    broken(request, bob, erin)
    assert requests.standing(ask(subject=SubjectRef("thing", 2, "Other")), PRINT).state is StandingState.WAITING
    assert requests.standing(request, "e" * 64).state is StandingState.VOID
    after = ask(subject=SHOP, fingerprint="e" * 64)
    assert requests.standing(after, "e" * 64).state is StandingState.WAITING


@pytest.mark.parametrize("loss", ["first role", "second role", "first account", "second is a program"])
def test_rechecks_the_rights_of_both_at_the_start(bob: User, erin: User, loss: str) -> None:
    request = ask(subject=SHOP)
    broken(request, bob, erin)
    match loss:
        case "first role":
            roles.revoke(bob, Role.LEAD)
        case "second role":
            roles.revoke(erin, Role.ON_CALL)
        case "first account":
            User.objects.filter(pk=bob.pk).update(is_active=False)
        case _:
            PersonSettings.objects.create(user=erin, is_service_account=True)
    assert requests.standing(request, PRINT).state is StandingState.WAITING


def test_passes_no_rejection(bob: User, carol: User, erin: User) -> None:
    request = ask(subject=SHOP)
    broken(request, bob, erin)
    requests.reject(request, person=carol, how=FRESH, reason="it deletes the shop")
    assert requests.standing(request, PRINT).state is StandingState.REJECTED
    with pytest.raises(Refused, match="is rejected"):
        open_glass(request, bob)
    tasks.expire()
    assert BreakGlass.objects.get().ended_because == "The request is rejected."


# --- Opening, confirming, ending ------------------------------------------------------------------------------------


def test_wants_a_reason_a_ticket_and_what_was_seen(bob: User) -> None:
    request = ask(subject=SHOP)
    for given, why in [
        ({"reason": " "}, "a reason"),
        ({"reason": "x" * 4001}, "A text has at most 4000 characters"),
        ({"ticket": ""}, "a ticket"),
        ({"ticket": "x" * 201}, "A ticket has at most 200 characters here, and this has 201"),
        ({"seen": "e" * 64}, "looked at"),
    ]:
        with pytest.raises(Refused, match=why):
            open_glass(request, bob, **given)
    assert not BreakGlass.objects.exists()
    assert actions() == ["approval.opened"]


def test_refuses_the_second_person_who_may_not(bob: User, carol: User, alice: User, mallory: User) -> None:
    request = ask(subject=SHOP, edited_by=[carol])
    glass = open_glass(request, bob)
    program = person("robot", Role.ON_CALL)
    PersonSettings.objects.create(user=program, is_service_account=True)
    for who, why in [(bob, "another one"), (carol, "edited"), (alice, "none of them"), (mallory, "none of them"),
                     (program, "program's account")]:  # fmt: skip
        with pytest.raises(Refused, match=why):
            breaking_glass.confirm(glass, person=who, how=FRESH, at=now())
    with pytest.raises(Refused, match="second factor"):
        breaking_glass.confirm(glass, person=person("lea", Role.LEAD), how=STALE, at=now())
    glass.refresh_from_db()
    assert glass.state == "opened"


def test_refuses_to_confirm_for_somebody_who_lost_the_right(bob: User, erin: User) -> None:
    glass = open_glass(ask(subject=SHOP), bob)
    roles.revoke(bob, Role.LEAD)
    with pytest.raises(Refused, match="could not any more"):
        breaking_glass.confirm(glass, person=erin, how=FRESH, at=now())


@pytest.mark.parametrize(("minutes", "works"), [(29, True), (31, False)])
def test_wants_the_second_person_within_half_an_hour(bob: User, erin: User, minutes: float, works: bool) -> None:
    request = ask(subject=SHOP)
    glass = open_glass(request, bob)
    elapse(minutes=minutes)
    if works:
        assert breaking_glass.confirm(glass, person=erin, how=FRESH, at=now()).state == "confirmed"
        return
    with pytest.raises(Refused, match="half an hour"):
        breaking_glass.confirm(glass, person=erin, how=FRESH, at=now())
    assert open_glass(request, erin).opened_by == erin  # and it can be opened again
    assert "break_glass.lapsed" in actions()


@pytest.mark.parametrize(("hours", "works"), [(3.9, True), (4.1, False)])
def test_is_in_force_for_four_hours(bob: User, erin: User, hours: float, works: bool) -> None:
    request = ask(subject=SHOP)
    glass = broken(request, bob, erin)
    elapse(hours=hours)
    assert requests.standing(request, PRINT).satisfied is works
    tasks.expire()
    tasks.expire()
    glass.refresh_from_db()
    assert glass.state == ("confirmed" if works else "lapsed")
    assert Counter(actions())["break_glass.lapsed"] == (0 if works else 1)


def test_is_closed_by_whoever_may_open_it(alice: User, bob: User, carol: User, erin: User) -> None:
    request = ask(subject=SHOP)
    glass = broken(request, bob, erin)
    with pytest.raises(Refused, match="not close it"):
        breaking_glass.revoke(glass, person=alice, because="no", at=now())
    breaking_glass.revoke(glass, person=carol, because="It is up again.", at=now())
    assert requests.standing(request, PRINT).state is StandingState.WAITING
    with pytest.raises(Refused, match="revoked already"):
        breaking_glass.revoke(glass, person=bob, because="no", at=now())
    assert AuditEntry.objects.get(action="break_glass.revoked").because == "It is up again."


def test_tells_everybody_with_a_role_at_both_moments(
    told: list[tuple[str, set[str]]], alice: User, bob: User, erin: User, mallory: User
) -> None:
    person("gone", Role.LEAD, is_active=False)
    PersonSettings.objects.create(user=person("robot", Role.ON_CALL), is_service_account=True)
    glass = broken(ask(subject=SHOP), bob, erin)
    everybody = {"alice", "bob", "erin"}
    assert [one for one in told if "glass" in one[0]] == [
        (f"break_glass.opened {glass.pk}", everybody),
        (f"break_glass.confirmed {glass.pk}", everybody),
    ]


def test_has_what_follows_done_in_the_transaction_of_the_confirmation(
    monkeypatch: pytest.MonkeyPatch, bob: User, erin: User
) -> None:
    seen: list[BreakGlass] = []
    monkeypatch.setattr(breaking_glass, "on_broken_glass", [seen.append])
    glass = broken(ask(subject=SHOP), bob, erin)
    assert seen == [glass]
    assert glass.review_due_at is not None


def test_is_reviewed_by_a_third_senior_when_it_is_over(bob: User, carol: User, dave: User, erin: User) -> None:
    request = ask(subject=SHOP, proposed_by=dave)
    glass = broken(request, bob, erin)
    assert list(BreakGlass.objects.unsettled()) == [glass]
    with pytest.raises(Refused, match="still in force"):
        breaking_glass.review(glass, person=carol, notes="fine", at=now())
    requests.used(request, requests.standing(request, PRINT))
    anna = person("anna", Role.ON_CALL)
    for who, why in [(bob, "took part"), (erin, "lead developer"), (dave, "took part"), (anna, "lead developer")]:
        with pytest.raises(Refused, match=why):
            breaking_glass.review(glass, person=who, notes="fine", at=now())
    with pytest.raises(Refused, match="what the review found"):
        breaking_glass.review(glass, person=carol, notes=" ", at=now())
    breaking_glass.review(glass, person=carol, notes="The alarm came too late.", at=now())
    assert not BreakGlass.objects.unsettled().exists()
    with pytest.raises(Refused, match="carol reviewed it"):
        breaking_glass.review(glass, person=person("eve", Role.CTO), notes="fine", at=now())
    trail = [action for action in actions() if action.startswith("break_glass")]
    assert trail == ["break_glass.opened", "break_glass.confirmed", "break_glass.used", "break_glass.reviewed"]


def test_keeps_its_promises_in_the_database_too(bob: User, erin: User) -> None:
    glass = broken(ask(subject=SHOP), bob, erin)
    for wrong in ({"confirmed_by": bob}, {"reviewed_by": bob}, {"reviewed_by": erin}, {"confirmed_at": None}):
        with pytest.raises(IntegrityError), transaction.atomic():
            BreakGlass.objects.filter(pk=glass.pk).update(**wrong)
    glass.pk = None
    with pytest.raises(IntegrityError), transaction.atomic():
        glass.save(force_insert=True)


# --- Races, with a thread and a connection for each ---------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_counts_one_of_many_second_people() -> None:
    request = ask(subject=SHOP)
    glass = open_glass(request, person("first", Role.LEAD))
    others = [person(f"other{number}", Role.ON_CALL) for number in range(8)]
    results = at_once(
        *[lambda who=who: breaking_glass.confirm(glass, person=who, how=FRESH, at=now()) for who in others]
    )
    won = [result for result in results if isinstance(result, BreakGlass)]
    assert len(won) == 1
    assert sum(isinstance(result, Refused) for result in results) == 7
    glass.refresh_from_db()
    assert (glass.state, glass.confirmed_by) == ("confirmed", won[0].confirmed_by)
    assert Counter(actions())["break_glass.confirmed"] == 1
    assert audit.verify().fault is None


@pytest.mark.django_db(transaction=True)
def test_opens_once_on_a_double_click() -> None:
    request, bob = ask(subject=SHOP), person("bob", Role.LEAD)
    results = at_once(*[lambda: open_glass(request, bob)] * 6)
    assert sum(isinstance(result, BreakGlass) for result in results) == 1
    assert sum(isinstance(result, Refused) for result in results) == 5


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("turn", range(4))
def test_is_either_used_or_revoked(turn: int) -> None:
    """A start and a revocation at once: whoever has the request's lock first wins, and the other learns of it."""
    bob, erin, carol = person("bob", Role.LEAD), person("erin", Role.ON_CALL), person("carol", Role.ARCHITECTURE)
    request = ask(subject=SHOP)
    glass = broken(request, bob, erin)

    def start() -> bool:
        with transaction.atomic():
            standing = requests.standing(request, PRINT)
            if standing.satisfied:
                requests.used(request, standing)
            return standing.satisfied

    started, revoked, *_ = at_once(
        start, lambda: breaking_glass.revoke(glass, person=carol, because="no", at=now()),
        lambda: breaking_glass.lapse_due(now()),
    )  # fmt: skip
    glass.refresh_from_db()
    request.refresh_from_db()
    if started is True:
        assert isinstance(revoked, Refused)
        assert (glass.state, request.state) == ("used", "approved")
    else:
        assert started is False
        assert isinstance(revoked, BreakGlass)
        assert (glass.state, request.state) == ("revoked", "open")
    assert audit.verify().fault is None


@pytest.mark.django_db(transaction=True)
def test_does_not_lock_up_when_people_meet_crosswise() -> None:
    leads = [person(f"lead{number}", Role.LEAD, Role.CTO) for number in range(3)]
    crossing = [ask(Tier.CRITICAL, subject=SubjectRef("thing", number, "Thing")) for number in range(3)]
    for number, one in enumerate(crossing):
        broken(one, leads[number], leads[number - 1])
    requests.approve(crossing[0], person=leads[1], how=FRESH, reason="sound")
    requests.approve(crossing[2], person=leads[0], how=FRESH, reason="sound")
    results = at_once(
        *[lambda one=one: requests.standing(one, PRINT) for one in crossing],
        *[lambda one=one, who=leads[2]: requests.approve(one, person=who, how=FRESH, reason="s") for one in crossing],
        lambda: roles.revoke(leads[0], Role.LEAD),
    )
    assert not [one for one in results if isinstance(one, Exception) and not isinstance(one, requests.Refused)], results
    assert all(isinstance(one, requests.Standing) for one in results[:3])
