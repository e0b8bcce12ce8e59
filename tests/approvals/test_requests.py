from __future__ import annotations

import datetime as dt
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.utils.timezone import now
from pytest_django import DjangoCaptureOnCommitCallbacks

from approvals import audit, policy, requests, roles, subjects, tasks
from approvals.models import ApprovalRequest, AuditEntry, Signature
from approvals.policy import RequestState, Role, Tier
from approvals.requests import Refused, StandingState
from approvals.subjects import SubjectRef
from tests.people import FRESH, person

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


def test_leaves_nothing_behind_when_it_refuses(alice: User, bob: User, carol: User, erin: User, mallory: User) -> None:
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
    assert AuditEntry.objects.count() == before


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


def test_lists_what_awaits_a_person(alice: User, bob: User, carol: User, dave: User, mallory: User) -> None:
    high = ask(Tier.HIGH, expires_at=now() + dt.timedelta(hours=9))
    critical = ask(Tier.CRITICAL, subject=SubjectRef("thing", 2, "Other"), expires_at=now() + dt.timedelta(hours=1))
    own = ask(Tier.HIGH, subject=SubjectRef("thing", 3, "Own"), proposed_by=carol)
    at = now()
    assert requests.awaiting(carol, at) == [critical.pk, high.pk]
    assert requests.awaiting(bob, at) == requests.awaiting(dave, at) == [critical.pk]
    assert requests.awaiting(alice, at) == requests.awaiting(mallory, at) == []
    requests.approve(critical, person=bob, how=FRESH, reason="sound")
    assert requests.awaiting(carol, at) == [high.pk]
    assert requests.awaiting(dave, at) == [critical.pk]
    assert requests.awaiting(person("eve", Role.ARCHITECTURE), at) == [high.pk, own.pk]


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


# --- Races, with a thread and a connection for each ---------------------------------------------------------------


def at_once(*acts: Callable[[], object]) -> list[object]:
    """Run all at the same time; what each returned or raised."""
    start = threading.Barrier(len(acts))
    results: list[object] = [None] * len(acts)

    def run(place: int) -> None:
        try:
            start.wait()
            results[place] = acts[place]()
        except Exception as error:  # noqa: BLE001 (told to the test)
            results[place] = error
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


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
