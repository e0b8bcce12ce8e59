from __future__ import annotations

import datetime as dt
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.utils.timezone import now
from pytest_django import DjangoCaptureOnCommitCallbacks

from approvals import audit, policy, requests, roles, subjects, tasks
from approvals.circumstances import Circumstances
from approvals.models import ApprovalRequest, AuditEntry, Comment, Letter, Signature
from approvals.policy import RequestState, Role, Tier
from approvals.requests import Refused, StandingState
from approvals.subjects import SubjectRef
from tests.people import FRESH, person
from tests.racing import at_once

PRINT = "f" * 64
SUBJECT = SubjectRef("thing", 1, "Prefetch guilds", "/things/1")
Ask = Callable[..., ApprovalRequest]

pytestmark = pytest.mark.django_db


def ask(
    tier: Tier = Tier.HIGH, *, fingerprint: str = PRINT, subject: SubjectRef = SUBJECT, **more: Any
) -> ApprovalRequest:
    return requests.open_request(
        subject,
        requirement=more.pop("requirement", None) or policy.required(tier),
        fingerprint=fingerprint,
        proposed_by=more.pop("proposed_by", None),
        facts=more.pop("facts", {"what": "one query instead of fifty"}),
        expires_at=more.pop("expires_at", now() + dt.timedelta(hours=72)),
        **more,
    )


def actions() -> list[str]:
    return list(AuditEntry.objects.order_by("sequence").values_list("action", flat=True))


def states() -> Counter[str]:
    return Counter(ApprovalRequest.objects.values_list("state", flat=True))


def test_asks_once_for_the_same_thing(alice: User) -> None:
    first = ask(proposed_by=alice)
    assert ask(proposed_by=alice) == first
    assert (first.state, first.tier, first.proposed_by) == ("open", "high", alice)
    assert actions() == ["approval.opened"]


@pytest.mark.parametrize("change", [{"fingerprint": "e" * 64}, {"tier": Tier.CRITICAL}])
def test_voids_what_was_asked_when_the_thing_changes(change: dict[str, Any], carol: User) -> None:
    first = requests.approve(ask(), person=carol, how=FRESH, reason="sound")
    second = ask(**change)
    first.refresh_from_db()
    assert (first.state, second.state) == ("void", "open")
    assert not first.signatures.standing().exists()
    assert ask(**change) == second


def test_asks_again_for_what_was_void() -> None:
    first = ask()
    ask(fingerprint="e" * 64)
    assert ask() != first
    assert states() == {"void": 2, "open": 1}


def test_keeps_a_no(carol: User) -> None:
    first = requests.reject(ask(), person=carol, how=FRESH, reason="not now")
    assert ask() == first
    assert ask().state == "rejected"


def test_lets_the_policy_approve_what_needs_nobody() -> None:
    request = ask(Tier.LOW)
    assert request.state == "approved"
    assert not request.signatures.exists()
    assert actions() == ["approval.opened", "approval.approved_by_policy"]
    assert requests.standing(request, PRINT).satisfied
    assert ask(Tier.LOW) == request


def test_has_the_database_keep_one_open_request_per_subject() -> None:
    request = ask()
    request.pk = None
    with pytest.raises(IntegrityError), transaction.atomic():
        request.save(force_insert=True)


def test_approves_with_the_one_signature_of_high(carol: User) -> None:
    request = requests.approve(ask(), person=carol, how=FRESH, reason="  sound ", seen=PRINT)
    assert (request.state, request.because) == ("approved", "Signed by carol.")
    signature = request.signatures.get()
    assert (signature.person, signature.role, signature.reason, signature.fingerprint) == (
        carol,
        "architecture",
        "sound",
        PRINT,
    )
    assert actions() == ["approval.opened", "approval.signed", "approval.approved"]
    assert AuditEntry.objects.get(action="approval.signed").actor == "carol"


def test_needs_two_people_for_critical(bob: User, carol: User, dave: User) -> None:
    request = requests.approve(ask(Tier.CRITICAL), person=bob, how=FRESH, reason="sound")
    assert request.state == "open"
    assert requests.standing(request, PRINT).why == "Waiting for one signature of the CTO."
    with pytest.raises(Refused, match="still missing is one signature of the CTO"):
        requests.approve(request, person=carol, how=FRESH, reason="sound")
    with pytest.raises(Refused, match="one person counts once"):
        requests.approve(request, person=bob, how=FRESH, reason="sound")
    assert requests.approve(request, person=dave, how=FRESH, reason="sound").state == "approved"


def test_ends_with_a_no_whoever_said_yes(bob: User, dave: User) -> None:
    request = requests.approve(ask(Tier.CRITICAL), person=bob, how=FRESH, reason="sound")
    request = requests.reject(request, person=dave, how=FRESH, reason="too much at once")
    assert (request.state, request.because) == ("rejected", "too much at once")
    standing = requests.standing(request, PRINT)
    assert (standing.state, standing.why) == (StandingState.REJECTED, "too much at once")


def test_leaves_nothing_but_a_note_of_the_attempt_when_it_refuses(
    alice: User, bob: User, carol: User, erin: User, mallory: User
) -> None:
    proposed = ask(proposed_by=carol)
    edited = ask(subject=SubjectRef("thing", 2, "Other"), edited_by=[carol])
    overdue = ask(subject=SubjectRef("thing", 3, "Late"), expires_at=now())
    before = AuditEntry.objects.count()
    for request, who, reason, why in [
        (proposed, carol, "sound", "what they proposed"),
        (edited, carol, "sound", "what they edited"),
        (overdue, carol, "sound", "has expired"),
        (proposed, alice, "sound", "no such role"),
        (proposed, bob, "sound", "no such role"),
        (proposed, erin, "sound", "no such role"),
        (proposed, mallory, "sound", "no such role"),
        (proposed, person("ann", Role.ARCHITECTURE, is_active=False), "sound", "not active"),
        (proposed, person("eve", Role.ARCHITECTURE), " ", "written reason"),
    ]:
        for decision in (requests.approve, requests.reject):
            with pytest.raises(Refused, match=why):
                decision(request, person=who, how=FRESH, reason=reason)
    assert not Signature.objects.exists()
    attempts = AuditEntry.objects.filter(action="approval.refused", outcome="refused")
    assert attempts.count() == 2 * 8, "all but those that came too late"
    assert AuditEntry.objects.count() == before + attempts.count()


def test_refuses_a_signature_under_something_else(carol: User) -> None:
    with pytest.raises(Refused, match="not what is asked now"):
        requests.approve(ask(), person=carol, how=FRESH, reason="sound", seen="e" * 64)


def test_reads_rights_from_the_database_not_from_the_object(carol: User) -> None:
    request = ask()
    User.objects.get(pk=carol.pk).groups.clear()
    with pytest.raises(Refused):
        requests.approve(request, person=carol, how=FRESH, reason="sound")


def test_knows_groups_by_id(mallory: User, carol: User) -> None:
    from django.contrib.auth.models import Group

    Group.objects.filter(role__role="architecture").update(name="Architects")
    mallory.groups.add(Group.objects.create(name="Architecture team"))
    request = ask()
    with pytest.raises(Refused):
        requests.approve(request, person=mallory, how=FRESH, reason="sound")
    assert requests.approve(request, person=carol, how=FRESH, reason="sound").state == "approved"


def test_holds_while_nothing_changes(carol: User) -> None:
    request = requests.approve(ask(), person=carol, how=FRESH, reason="sound")
    standing = requests.standing(request, PRINT)
    assert standing.satisfied
    assert standing.why == "Signed by carol."


def test_is_void_when_the_fingerprint_differs_at_the_start(carol: User) -> None:
    request = requests.approve(ask(), person=carol, how=FRESH, reason="sound")
    assert requests.standing(request, "e" * 64).state is StandingState.VOID
    assert requests.standing(request, PRINT).state is StandingState.VOID
    assert request.signatures.get().voided_because == requests.WHY_CHANGED


def test_is_void_when_the_policy_changed(carol: User, settings: Any) -> None:
    settings.SELF_BUILD_APPROVAL_REQUIRED = "high"
    approved = requests.approve(ask(), person=carol, how=FRESH, reason="sound")
    by_policy = ask(Tier.MEDIUM, subject=SubjectRef("thing", 2, "Other"))
    waiting = ask(subject=SubjectRef("thing", 3, "Third"))
    settings.SELF_BUILD_APPROVAL_REQUIRED = "medium"
    with pytest.raises(Refused, match="policy has changed"):
        requests.approve(waiting, person=carol, how=FRESH, reason="sound")
    for request in (approved, by_policy, waiting):
        assert requests.standing(request, PRINT).state is StandingState.VOID


def test_expires_when_it_was_not_used_in_time(carol: User) -> None:
    request = requests.approve(ask(), person=carol, how=FRESH, reason="sound")
    ApprovalRequest.objects.update(expires_at=now())
    assert requests.standing(request, PRINT).state is StandingState.EXPIRED


@pytest.mark.parametrize("loss", ["role", "account"])
def test_opens_again_when_a_signer_lost_the_right(loss: str, carol: User) -> None:
    request = requests.approve(ask(), person=carol, how=FRESH, reason="sound")
    if loss == "role":
        roles.revoke(carol, Role.ARCHITECTURE)
    else:
        User.objects.filter(pk=carol.pk).update(is_active=False)
    standing = requests.standing(request, PRINT)
    assert standing.state is StandingState.WAITING
    request.refresh_from_db()
    assert (request.state, request.decided_at) == ("open", None)
    assert actions()[-2:] == ["approval.signature_voided", "approval.reopened"]
    # The right comes back, the signature does not: the same person signs anew.
    roles.grant(carol, Role.ARCHITECTURE)
    User.objects.filter(pk=carol.pk).update(is_active=True)
    assert requests.standing(request, PRINT).state is StandingState.WAITING
    assert requests.approve(request, person=carol, how=FRESH, reason="still sound").state == "approved"
    assert requests.standing(request, PRINT).satisfied


def test_does_not_count_a_lost_right_towards_the_last_signature(bob: User, dave: User) -> None:
    request = requests.approve(ask(Tier.CRITICAL), person=bob, how=FRESH, reason="sound")
    roles.revoke(bob, Role.LEAD)
    assert requests.approve(request, person=dave, how=FRESH, reason="sound").state == "open"
    assert [one.person.username for one in request.signatures.standing()] == ["dave"]


def test_voids_on_request_but_only_what_is_not_over(carol: User) -> None:
    assert requests.void(ask(), "stopped").state == "void"
    rejected = requests.reject(ask(), person=carol, how=FRESH, reason="no")
    assert requests.void(rejected, "stopped").state == "rejected"


def test_expires_what_nobody_decided() -> None:
    late = ask(expires_at=now() - dt.timedelta(minutes=1))
    ask(subject=SubjectRef("thing", 2, "Other"))
    assert tasks.expire() == 1
    assert tasks.expire() == 0
    late.refresh_from_db()
    assert (late.state, states()) == ("expired", {"expired": 1, "open": 1})
    assert requests.standing(late, PRINT).state is StandingState.EXPIRED


def ids(who: User, at: dt.datetime) -> list[int]:
    return [one.id for one in requests.awaiting(who, at)]


def test_lists_what_awaits_a_person(alice: User, bob: User, carol: User, dave: User, mallory: User) -> None:
    high = ask(Tier.HIGH, expires_at=now() + dt.timedelta(hours=9))
    critical = ask(Tier.CRITICAL, subject=SubjectRef("thing", 2, "Other"), expires_at=now() + dt.timedelta(hours=1))
    own = ask(Tier.HIGH, subject=SubjectRef("thing", 3, "Own"), proposed_by=carol)
    at = now()
    assert ids(carol, at) == [critical.pk, high.pk]
    assert ids(bob, at) == ids(dave, at) == [critical.pk]
    assert ids(alice, at) == ids(mallory, at) == []
    requests.approve(critical, person=bob, how=FRESH, reason="sound")
    assert ids(carol, at) == [high.pk]
    assert ids(dave, at) == [critical.pk]
    assert ids(person("eve", Role.ARCHITECTURE), at) == [high.pk, own.pk]


def test_says_since_when_and_until_when_it_waits(carol: User) -> None:
    request = ask()
    at = request.created_at + dt.timedelta(hours=2)
    assert requests.awaiting(carol, at) == [
        requests.Awaited(request.pk, dt.timedelta(hours=2), request.expires_at, request),
    ]


def test_wakes_whoever_waits_after_the_commit(
    carol: User,
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    woken: list[int] = []
    monkeypatch.setitem(
        subjects.KNOWN, "thing", subjects.Subject(woken.append, lambda pk: subjects.Description("A thing"))
    )
    with django_capture_on_commit_callbacks(execute=True):
        requests.approve(ask(), person=carol, how=FRESH, reason="sound")
        assert woken == []
    assert woken == [1]


def test_has_an_audit_entry_for_every_change_of_state(carol: User) -> None:
    request = requests.approve(ask(), person=carol, how=FRESH, reason="sound")
    requests.standing(request, "e" * 64)
    moves = [(entry.was, entry.became) for entry in AuditEntry.objects.order_by("sequence") if entry.became]
    assert moves == [("open", "approved"), ("approved", "void")]
    assert audit.verify().fault is None


def test_knows_every_state_in_its_law() -> None:
    assert set(requests.MOVES) == set(RequestState)


# --- Asking for changes, taking back, commenting -------------------------------------------------------------------


def change(request: ApprovalRequest, who: User, reason: str = "smaller") -> ApprovalRequest:
    return requests.ask_for_changes(request, person=who, how=FRESH, reason=reason)


def test_approves_nothing_while_changes_are_asked_for(bob: User, carol: User, dave: User) -> None:
    request = requests.approve(ask(Tier.CRITICAL), person=bob, how=FRESH, reason="sound")
    request = change(request, carol, " smaller ")
    assert (request.state, request.because, request.decided_at) == ("changes-asked", "smaller", None)
    standing = requests.standing(request, PRINT)
    assert (standing.state, standing.why) == (StandingState.CHANGES_ASKED, "Changes are asked for: smaller")
    with pytest.raises(Refused, match="Changes are asked for"):
        requests.approve(request, person=dave, how=FRESH, reason="sound")
    assert ask(Tier.CRITICAL) == request, "it is the same question"
    assert actions() == ["approval.opened", "approval.signed", "approval.signed", "approval.changes_asked"]


@pytest.mark.parametrize("way", ["another patch", "taken back", "a no", "a no of the same person", "time"])
def test_has_a_way_forward_when_changes_are_asked_for(way: str, carol: User, dave: User) -> None:
    request = change(ask(Tier.CRITICAL), carol)
    match way:
        case "another patch":
            assert ask(Tier.CRITICAL, fingerprint="e" * 64).state == "open"
        case "taken back":
            requests.revoke(request, person=carol, how=FRESH)
        case "time":
            ApprovalRequest.objects.update(expires_at=now())
            requests.expire_due(now())
        case _:
            who = carol if way.endswith("person") else dave
            requests.reject(request, person=who, how=FRESH, reason="no")
    request.refresh_from_db()
    ends = {"another patch": "void", "taken back": "open", "time": "expired"}
    assert request.state == ends.get(way, "rejected")


def test_waits_until_nobody_asks_for_changes_any_more(carol: User, dave: User) -> None:
    request = change(change(ask(Tier.CRITICAL), carol), dave)
    with pytest.raises(Refused, match="asks for changes already"):
        change(request, carol)
    assert requests.revoke(request, person=carol, how=FRESH).state == "changes-asked"
    assert requests.revoke(request, person=dave, how=FRESH).state == "open"


def test_tells_the_author_every_time_somebody_asks_for_changes(alice: User, carol: User, dave: User) -> None:
    User.objects.filter(pk=alice.pk).update(email="alice@example.org")
    request = change(ask(Tier.CRITICAL, proposed_by=alice), carol)
    change(request, dave, "and faster")
    requests.revoke(request, person=carol, how=FRESH)
    change(request, carol, "smaller still")
    letters = Letter.objects.filter(person=alice, subject__startswith="Changes are asked for").order_by("pk")
    assert [letter.lines[1] for letter in letters] == ["smaller", "and faster", "smaller still"]


def test_is_held_up_by_nobody_who_may_not_sign_any_more(carol: User) -> None:
    request = change(ask(), carol)
    roles.revoke(carol, Role.ARCHITECTURE)
    assert requests.standing(request, PRINT).state is StandingState.WAITING
    assert actions()[-2:] == ["approval.signature_voided", "approval.reopened"]


def test_takes_a_signature_back_until_it_is_used(bob: User, carol: User) -> None:
    request = requests.approve(ask(), person=carol, how=FRESH, reason="sound")
    with pytest.raises(Refused, match="decided nothing here"):
        requests.revoke(request, person=bob, how=FRESH)
    request = requests.revoke(request, person=carol, how=FRESH, reason=" saw a bug ")
    assert (request.state, request.signatures.get().voided_because) == ("open", "carol took it back: saw a bug")
    assert actions()[-2:] == ["approval.revoked", "approval.reopened"]
    assert not requests.standing(request, PRINT).satisfied
    requests.approve(request, person=carol, how=FRESH, reason="sound after all")
    requests.mark_started(request)
    with pytest.raises(Refused, match="has begun"):
        requests.revoke(request, person=carol, how=FRESH)
    assert requests.standing(request, PRINT).satisfied, "the step is taken again when its worker died"
    requests.mark_not_started("thing", 1)
    assert requests.revoke(request, person=carol, how=FRESH).state == "open"


def test_takes_nothing_back_of_what_is_over(carol: User) -> None:
    request = requests.reject(ask(), person=carol, how=FRESH, reason="no")
    for act in (requests.revoke, requests.approve):
        with pytest.raises(Refused, match="nobody takes a rejection back"):
            act(request, person=carol, how=FRESH, reason="yes after all")


def test_leaves_a_thread_of_decisions_and_comments(bob: User, carol: User, erin: User, dave: User) -> None:
    request = ask(Tier.CRITICAL)
    requests.comment(request, person=erin, how=FRESH, reason=" is it safe? ", seen=PRINT)
    requests.approve(request, person=bob, how=FRESH, reason="yes")
    requests.revoke(request, person=bob, how=FRESH)
    requests.reject(request, person=dave, how=FRESH, reason="no")
    requests.comment(request, person=bob, how=FRESH, reason="pity")
    told = [(one.person, one.text, one.decision, one.role) for one in requests.thread(request)]
    assert told == [
        ("erin", "is it safe?", None, ""),
        ("bob", "yes", "approve", "lead"),
        ("dave", "no", "reject", "cto"),
        ("bob", "pity", None, ""),
    ]
    assert requests.thread(request)[1].voided_because == "bob took it back."
    assert AuditEntry.objects.filter(action="approval.commented").count() == 2


@pytest.mark.parametrize(
    ("text", "why"), [(" ", "says something"), ("x" * 4001, "at most 4000"), ("ok", "people with a role")]
)
def test_takes_comments_of_people_with_a_role_that_say_something(text: str, why: str, bob: User, mallory: User) -> None:
    who = mallory if text == "ok" else bob
    with pytest.raises(Refused, match=why):
        requests.comment(ask(), person=who, how=FRESH, reason=text)
    assert not Comment.objects.exists()


@pytest.mark.parametrize("act", [requests.ask_for_changes, requests.revoke, requests.comment, requests.reject])
def test_refuses_in_an_old_tab_what_was_not_seen(act: Callable[..., object], carol: User) -> None:
    with pytest.raises(Refused, match="Open the request again"):
        act(ask(), person=carol, how=FRESH, reason="text", seen="e" * 64)


# --- What is true around it ----------------------------------------------------------------------------------------

CALM = Circumstances(frozenset({"CVE-1"}), 0.4, frozenset({"tests of the branch"}))


def test_voids_what_was_signed_in_better_circumstances(carol: User) -> None:
    User.objects.update(email="carol@example.org")
    bad = replace(CALM, vulnerabilities=CALM.vulnerabilities | {"CVE-2"})
    request = requests.approve(ask(circumstances=CALM), person=carol, how=FRESH, reason="sound")
    assert requests.standing(request, PRINT, replace(CALM, budget_left=0.1)).satisfied
    standing = requests.standing(request, PRINT, bad)
    assert standing.state is StandingState.VOID
    assert standing.why == "Since this was asked, a vulnerability became known (CVE-2)."
    letter = Letter.objects.get(subject__startswith="Your signature is void")
    assert (letter.person, letter.lines[0]) == (carol, standing.why)
    again = ask(circumstances=bad)
    assert again != request
    assert {"name": "Circumstances", "summary": "Known vulnerabilities: CVE-1, CVE-2."} in again.facts["proof"]
    assert requests.approve(again, person=carol, how=FRESH, reason="I know").state == "approved"
    assert requests.standing(again, PRINT, bad).satisfied


def test_asks_again_by_itself_when_circumstances_got_worse(carol: User) -> None:
    User.objects.update(email="carol@example.org")
    request = requests.approve(ask(circumstances=CALM), person=carol, how=FRESH, reason="sound")
    again = ask(circumstances=replace(CALM, budget_left=-0.2))
    request.refresh_from_db()
    assert (request.state, again.state) == ("void", "open")
    subjects_told = list(Letter.objects.order_by("pk").values_list("subject", flat=True))
    assert subjects_told == [
        "Your decision is asked for: Prefetch guilds",
        "Your signature is void: Prefetch guilds",
        "Asked again: Prefetch guilds",
    ]


def test_keeps_a_no_whatever_gets_worse(carol: User) -> None:
    request = requests.reject(ask(circumstances=CALM), person=carol, how=FRESH, reason="no")
    assert ask(circumstances=replace(CALM, budget_left=0.0)) == request


# --- Races, with a thread and a connection for each ---------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_gives_fifty_parallel_signers_one_outcome() -> None:
    request = ask(Tier.HIGH)
    signers = [person(f"architect{number}", Role.ARCHITECTURE) for number in range(50)]
    deciders = [requests.approve if number % 2 else requests.reject for number in range(50)]
    results = at_once(
        *[
            lambda decide=decide, signer=signer: decide(request, person=signer, how=FRESH, reason="mine")
            for decide, signer in zip(deciders, signers, strict=True)
        ]
    )
    won = [place for place, result in enumerate(results) if isinstance(result, ApprovalRequest)]
    assert len(won) == 1
    assert sum(isinstance(result, Refused) for result in results) == 49
    request.refresh_from_db()
    assert request.state == ("approved" if won[0] % 2 else "rejected")
    assert Signature.objects.get().person == signers[won[0]]
    assert Counter(actions()) == {
        "approval.opened": 1,
        "approval.signed": 1,
        f"approval.{request.state}": 1,
    }
    assert audit.verify().fault is None


@pytest.mark.django_db(transaction=True)
def test_counts_a_double_click_once() -> None:
    request = ask(Tier.CRITICAL)
    boss = person("boss", Role.CTO, Role.ARCHITECTURE)
    results = at_once(*[lambda: requests.approve(request, person=boss, how=FRESH, reason="twice")] * 8)
    assert sum(isinstance(result, ApprovalRequest) for result in results) == 1
    assert Signature.objects.count() == 1
    request.refresh_from_db()
    assert request.state == "open"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("turn", range(2))
def test_takes_one_decision_of_a_person_with_two_tabs(turn: int) -> None:
    carol, request = person("carol", Role.ARCHITECTURE), ask()
    tabs = {"approved": requests.approve, "rejected": requests.reject}
    results = at_once(
        *[lambda act=act: act(request, person=carol, how=FRESH, reason="read", seen=PRINT) for act in tabs.values()]
    )
    request.refresh_from_db()
    won = [state for state, result in zip(tabs, results, strict=True) if isinstance(result, ApprovalRequest)]
    assert won == [request.state]
    assert sum(isinstance(result, Refused) for result in results) == 1
    assert Signature.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_asks_once_when_many_workers_ask() -> None:
    results = at_once(
        *[lambda: ask(Tier.HIGH)] * 8, *[lambda: ask(Tier.LOW, subject=SubjectRef("thing", 2, "Low"))] * 8
    )
    assert len({getattr(result, "pk", result) for result in results}) == 2
    assert states() == {"open": 1, "approved": 1}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("turn", range(3))
def test_does_not_lock_up_when_signers_meet_crosswise(turn: int) -> None:
    pairs = [(person(f"lead{number}", Role.LEAD), person(f"boss{number}", Role.CTO)) for number in range(2)]
    (lead, boss), (other_lead, other_boss) = pairs
    crossing = [ask(Tier.CRITICAL, subject=SubjectRef("thing", number, "Thing")) for number in range(4)]
    requests.approve(crossing[0], person=boss, how=FRESH, reason="sound")
    requests.approve(crossing[1], person=lead, how=FRESH, reason="sound")
    requests.approve(crossing[2], person=other_boss, how=FRESH, reason="sound")
    requests.approve(crossing[3], person=boss, how=FRESH, reason="sound")
    results = at_once(
        lambda: requests.approve(crossing[0], person=lead, how=FRESH, reason="sound"),
        lambda: requests.approve(crossing[1], person=boss, how=FRESH, reason="sound"),
        lambda: requests.approve(crossing[2], person=lead, how=FRESH, reason="sound"),
        lambda: requests.approve(crossing[3], person=other_lead, how=FRESH, reason="sound"),
        lambda: roles.revoke(other_lead, Role.LEAD),
        lambda: roles.revoke(lead, Role.LEAD),
    )
    assert all(result is None or isinstance(result, ApprovalRequest | Refused) for result in results), results
    assert audit.verify().fault is None


@pytest.mark.django_db(transaction=True)
def test_does_not_lock_up_when_who_approves_one_asks_for_changes_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is rechecked is locked in one go: of two requests with the same people the second waits for the first."""
    bob, dave = person("bob", Role.LEAD), person("dave", Role.CTO)
    crossing = [ask(Tier.CRITICAL, subject=SubjectRef("thing", number, "Thing")) for number in range(2)]
    for request, (approving, asking) in zip(crossing, [(bob, dave), (dave, bob)], strict=True):
        requests.approve(request, person=approving, how=FRESH, reason="sound")
        change(request, asking)
    both, recheck = threading.Barrier(2), requests.forget_asks_without_right

    def recheck_when_the_other_holds_what_it_can(*given: Any) -> None:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # nobody comes while the other waits for the same people
        recheck(*given)

    monkeypatch.setattr(requests, "forget_asks_without_right", recheck_when_the_other_holds_what_it_can)
    results = at_once(*[lambda request=request: requests.standing(request, PRINT) for request in crossing])
    assert [getattr(one, "state", one) for one in results] == [StandingState.CHANGES_ASKED] * 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("turn", range(5))
def test_orders_a_revocation_and_a_start(turn: int) -> None:
    """Either the right was lost first and nothing starts, or the start was first and the loss waits for it."""
    carol = person("carol", Role.ARCHITECTURE)
    request = requests.approve(ask(), person=carol, how=FRESH, reason="sound")
    order: list[str] = []

    def start() -> bool:
        with transaction.atomic():
            satisfied = requests.standing(request, PRINT).satisfied
            order.append(f"started {satisfied}")
            return satisfied

    def revoke() -> None:
        with transaction.atomic():
            roles.revoke(carol, Role.ARCHITECTURE)
            order.append("revoked")

    results = at_once(start, revoke)
    assert not any(isinstance(result, Exception) for result in results), results
    assert not requests.standing(request, PRINT).satisfied
    trail = [action for action in actions() if action in ("role.revoked", "approval.signature_voided")]
    if results[0] is True:
        assert order[0] == "started True"
    assert trail == ["role.revoked", "approval.signature_voided"]


@pytest.mark.django_db(transaction=True)
def test_makes_a_revocation_wait_for_a_start_under_way() -> None:
    carol = person("carol", Role.ARCHITECTURE)
    request = requests.approve(ask(), person=carol, how=FRESH, reason="sound")
    done = threading.Event()

    def revoke() -> None:
        try:
            roles.revoke(carol, Role.ARCHITECTURE)
            done.set()
        finally:
            connection.close()

    thread = threading.Thread(target=revoke)
    with transaction.atomic():
        assert requests.standing(request, PRINT).satisfied
        thread.start()
        assert not done.wait(0.3)
    thread.join()
    assert done.is_set()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("turn", range(3))
def test_orders_taking_back_a_signature_and_a_start(turn: int) -> None:
    carol = person("carol", Role.ARCHITECTURE)
    request = requests.approve(ask(), person=carol, how=FRESH, reason="sound")

    def start() -> bool:
        with transaction.atomic():
            satisfied = requests.standing(request, PRINT).satisfied
            if satisfied:
                requests.mark_started(request)
            return satisfied

    started, revoked = at_once(start, lambda: requests.revoke(request, person=carol, how=FRESH))
    request.refresh_from_db()
    if started is True:
        assert isinstance(revoked, Refused)
        assert (request.state, request.started_at is None) == ("approved", False)
    else:
        assert isinstance(revoked, ApprovalRequest), revoked
        assert (request.state, request.started_at) == ("open", None)
    assert Signature.objects.standing().count() == (started is True)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("turn", range(3))
def test_gives_an_approval_and_a_wish_for_changes_one_outcome(turn: int) -> None:
    carol, cora = person("carol", Role.ARCHITECTURE), person("cora", Role.ARCHITECTURE)
    request = ask()
    approved, asked = at_once(
        lambda: requests.approve(request, person=carol, how=FRESH, reason="sound"), lambda: change(request, cora)
    )
    request.refresh_from_db()
    assert request.state == ("approved" if isinstance(approved, ApprovalRequest) else "changes-asked")
    assert isinstance(approved, Refused) != isinstance(asked, Refused)
    assert Signature.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_tells_the_signers_once_when_many_workers_see_what_got_worse() -> None:
    carol = person("carol", Role.ARCHITECTURE, email="carol@example.org")
    request = requests.approve(ask(circumstances=CALM), person=carol, how=FRESH, reason="sound")
    bad = replace(CALM, failing_checks=frozenset({"tests of the patch"}))
    results = at_once(*[lambda: requests.standing(request, PRINT, bad)] * 4, *[lambda: ask(circumstances=bad)] * 4)
    assert not any(isinstance(result, Exception) for result in results), results
    assert states() == {"void": 1, "open": 1}
    assert Letter.objects.filter(subject__startswith="Your signature is void").count() == 1
    assert actions().count("approval.voided") == 1


@pytest.mark.django_db(transaction=True)
def test_decides_nothing_from_an_old_tab_while_it_is_asked_anew() -> None:
    carol = person("carol", Role.ARCHITECTURE)
    request = ask()
    _, signed = at_once(
        lambda: ask(fingerprint="e" * 64),
        lambda: requests.approve(request, person=carol, how=FRESH, reason="sound", seen=PRINT),
    )
    assert isinstance(signed, ApprovalRequest | Refused), signed
    assert states() == {"void": 1, "open": 1}
    assert not Signature.objects.standing().exists()
