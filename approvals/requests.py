"""Asking for signatures, giving them, and whether they still hold.

Every change locks the request's row first, reads people's rights from the database under that lock, and writes its
audit entry last, in the same transaction. Whoever waits for a decision is told after commit.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.utils.timezone import now

from approvals import audit, policy, roles, subjects
from approvals.models.request import ApprovalRequest, Signature
from approvals.policy import Category, Decision, How, PersonFacts, RequestFacts, RequestState, Requirement, Tier
from approvals.subjects import SubjectRef

__all__ = [
    "Action",
    "Refused",
    "Standing",
    "StandingState",
    "SubjectRef",
    "approve",
    "awaiting",
    "expire_due",
    "open_request",
    "reject",
    "standing",
    "void",
]

# The law of requests: what may follow what. Approved is not the end: until the subject has used the approval, a lost
# right opens the question again, and a change of what was approved voids it.
MOVES: Mapping[RequestState, frozenset[RequestState]] = {
    RequestState.OPEN: frozenset(
        {RequestState.APPROVED, RequestState.REJECTED, RequestState.EXPIRED, RequestState.VOID}
    ),
    RequestState.APPROVED: frozenset({RequestState.OPEN, RequestState.EXPIRED, RequestState.VOID}),
    RequestState.REJECTED: frozenset(),
    RequestState.EXPIRED: frozenset(),
    RequestState.VOID: frozenset(),
}


class Action(StrEnum):
    """What the audit log calls the things that happen here."""

    OPENED = "approval.opened"
    SIGNED = "approval.signed"
    SIGNATURE_VOIDED = "approval.signature_voided"
    APPROVED = "approval.approved"
    APPROVED_BY_POLICY = "approval.approved_by_policy"
    REJECTED = "approval.rejected"
    EXPIRED = "approval.expired"
    VOIDED = "approval.voided"
    REOPENED = "approval.reopened"


class Refused(Exception):
    """A rule forbids it; the text is the rule's own sentence, fit for people."""

    @property
    def why(self) -> str:
        return str(self)


class StandingState(StrEnum):
    SATISFIED = "satisfied"
    WAITING = "waiting"
    REJECTED = "rejected"
    EXPIRED = "expired"
    VOID = "void"


@dataclass(frozen=True)
class Standing:
    """Whether a request's signatures allow its subject to go ahead now, and why."""

    state: StandingState
    why: str

    @property
    def satisfied(self) -> bool:
        return self.state is StandingState.SATISFIED


def policy_version() -> str:
    """The policy in force with this installation's settings."""
    return policy.version(Tier(settings.SELF_BUILD_APPROVAL_REQUIRED))


def open_request(
    subject: SubjectRef,
    *,
    requirement: Requirement,
    fingerprint: str,
    proposed_by: User | None,
    facts: Mapping[str, Any],
    expires_at: dt.datetime,
    edited_by: Iterable[User] = (),
    categories: Iterable[Category] = (),
) -> ApprovalRequest:
    """The request for exactly this subject, fingerprint and requirement, made when there is none.

    A request that people answered or let expire is returned as it is; one for another fingerprint or requirement is
    voided. A requirement without signatures is approved at once, by the policy. `facts` is what signers see, all
    optional: what, why, on_approve, undo, diff (text), proof and risk_drivers (lists of text or of dicts with name,
    verdict and summary), risk (0-1).
    """
    with transaction.atomic():
        serialise(subject)
        for row in ApprovalRequest.objects.about(subject.kind, subject.id).select_for_update(no_key=True):
            if row.state == RequestState.VOID:
                continue
            # A no to exactly this stays a no, whatever the policy would ask for by now.
            rejected = row.state == RequestState.REJECTED
            if row.fingerprint == fingerprint and (rejected or row.requirement == requirement.as_json()):
                return row
            if RequestState.VOID in MOVES[RequestState(row.state)]:
                close(row, RequestState.VOID, Action.VOIDED, because=WHY_CHANGED)
        at = now()
        row = ApprovalRequest.objects.create(
            subject_kind=subject.kind,
            subject_id=subject.id,
            title=subject.title[:200],
            url=subject.url,
            scope=subject.scope,
            categories=sorted(str(one) for one in categories),
            tier=requirement.tier,
            requirement=requirement.as_json(),
            fingerprint=fingerprint,
            policy_version=requirement.policy_version,
            proposed_by=proposed_by,
            facts=audit.plain(facts),
            state=RequestState.OPEN,
            created_at=at,
            expires_at=expires_at,
        )
        editors = list(edited_by)
        row.edited_by.set(editors)
        audit.record(
            Action.OPENED,
            row,
            actor=proposed_by,
            because=requirement.reason,
            data={**identity(row), "requirement": row.requirement, "edited_by": [user.username for user in editors]},
        )
        if not requirement.signatures:
            close(row, RequestState.APPROVED, Action.APPROVED_BY_POLICY, because=requirement.reason)
        return row


WHY_CHANGED = "The patch, its evidence or what the policy asks for has changed since."


def approve(
    request: ApprovalRequest, *, person: User, how: How, reason: str = "", seen: str | None = None
) -> ApprovalRequest:
    """Sign. The request is approved when this was the last signature missing.

    `how` is through what the person decides, with which second factor; the caller has verified it. `seen` is the
    fingerprint of what the person looked at. Raises Refused with the rule that forbids it.
    """
    return decide(request, person, Decision.APPROVE, how, reason, seen)


def reject(
    request: ApprovalRequest, *, person: User, how: How, reason: str, seen: str | None = None
) -> ApprovalRequest:
    """Say no, which ends the request whoever signed before. Raises Refused with the rule that forbids it."""
    return decide(request, person, Decision.REJECT, how, reason, seen)


def decide(
    request: ApprovalRequest, person: User, decision: Decision, how: How, reason: str, seen: str | None
) -> ApprovalRequest:
    with transaction.atomic():
        row = locked(request)
        at = now()
        if seen is not None and seen != row.fingerprint:
            raise Refused("What you looked at is not what is asked now. Open the request again.")
        if row.state == RequestState.OPEN and row.policy_version != policy_version():
            raise Refused("The policy has changed since this was asked. It will be asked again.")
        signer, signers = with_rights_locked(row, at, person)
        answer = policy.may_sign(signer, facts_of(row, signers, at), decision=decision, reason=reason, how=how)
        if isinstance(answer, policy.Refused):
            raise Refused(answer.why)
        Signature.objects.create(
            request=row,
            person=person,
            role=answer.role,
            decision=decision,
            reason=reason.strip(),
            fingerprint=row.fingerprint,
            channel=how.channel,
            second_factor=how.is_fresh,
            at=at,
        )
        audit.record(
            Action.SIGNED,
            row,
            actor=person,
            because=reason.strip(),
            data={
                **identity(row),
                "decision": decision,
                "role": answer.role,
                "channel": how.channel,
                "second_factor": how.is_fresh,
            },
        )
        if decision is Decision.REJECT:
            close(row, RequestState.REJECTED, Action.REJECTED, actor=person, because=reason.strip())
        elif not policy.missing(row.needs, (*signers, signer)):
            names = " and ".join(one.name for one in (*signers, signer))
            close(row, RequestState.APPROVED, Action.APPROVED, actor=person, because=f"Signed by {names}.")
        return row


def void(request: ApprovalRequest, because: str) -> ApprovalRequest:
    """Withdraw the question and every signature under it. A request that is already over stays as it is."""
    with transaction.atomic():
        row = locked(request)
        if RequestState.VOID in MOVES[RequestState(row.state)]:
            close(row, RequestState.VOID, Action.VOIDED, because=because)
        return row


def standing(request: ApprovalRequest, fingerprint: str) -> Standing:
    """Whether the signatures allow what has this fingerprint to go ahead, checked afresh under locks.

    Call it in the transaction that starts what was approved: until that ends, nobody can sign, reject, lose a right or
    be deactivated. What no longer holds is written down on the way: a changed fingerprint or policy voids the request,
    a passed deadline expires it, and a signer who lost the right opens it again.
    """
    with transaction.atomic():
        row = locked(request)
        at = now()
        if not MOVES[RequestState(row.state)]:
            return Standing(StandingState(row.state), row.because)
        if row.fingerprint != fingerprint:
            close(row, RequestState.VOID, Action.VOIDED, because=WHY_CHANGED)
        elif row.policy_version != policy_version():
            close(row, RequestState.VOID, Action.VOIDED, because="The approval policy has changed since.")
        elif row.expires_at <= at:
            close(
                row, RequestState.EXPIRED, Action.EXPIRED, because=f"Not used by {row.expires_at:%Y-%m-%d %H:%M} UTC."
            )
        if not MOVES[RequestState(row.state)]:
            return Standing(StandingState(row.state), row.because)
        missing = policy.missing(row.needs, still_signing(row, at))
        if missing and row.state == RequestState.APPROVED:
            reopen(row, because=f"A signature no longer counts; missing again: {policy.in_words(missing)}.")
        if row.state == RequestState.OPEN:
            # Even when nothing is missing any more (somebody gained a role): only a signature approves.
            return Standing(StandingState.WAITING, f"Waiting for {policy.in_words(missing or row.needs.signatures)}.")
        return Standing(StandingState.SATISFIED, row.because)


def expire_due(at: dt.datetime) -> int:
    """Expire the open requests whose time is up; how many that were. One somebody is signing is left for next time."""
    expired = 0
    for pk in list(ApprovalRequest.objects.overdue(at).values_list("pk", flat=True)):
        with transaction.atomic():
            row = (
                ApprovalRequest.objects.overdue(at)
                .select_for_update(no_key=True, skip_locked=True)
                .filter(pk=pk)
                .first()
            )
            if row:
                because = f"Nobody decided by {row.expires_at:%Y-%m-%d %H:%M} UTC."
                close(row, RequestState.EXPIRED, Action.EXPIRED, because=because)
                expired += 1
    return expired


def awaiting(person: User, at: dt.datetime) -> list[int]:
    """The ids of the open requests that `person` may sign now, the most urgent first."""
    rows = list(
        ApprovalRequest.objects.open()
        .filter(expires_at__gt=at)
        .defer("facts")
        .prefetch_related("edited_by")
        .order_by("expires_at", "pk")
    )
    signed: dict[int, list[int]] = {}
    for request_id, person_id in approvals_of(rows).values_list("request_id", "person_id"):
        signed.setdefault(request_id, []).append(person_id)
    known = roles.people([person.pk, *(one for many in signed.values() for one in many)])
    return [
        row.pk
        for row in rows
        if isinstance(
            policy.may_sign(
                known[person.pk],
                facts_of(row, [known[one] for one in signed.get(row.pk, []) if one in known], at),
            ),
            policy.Allowed,
        )
    ]


def facts_of(row: ApprovalRequest, signers: Iterable[PersonFacts], at: dt.datetime) -> RequestFacts:
    """A request as the policy sees it."""
    return RequestFacts(
        requirement=row.needs,
        state=RequestState(row.state),
        expired=row.expires_at <= at,
        proposed_by=row.proposed_by_id,
        edited_by=frozenset(user.pk for user in row.edited_by.all()),
        signers=tuple(signers),
    )


def approvals_of(rows: Iterable[ApprovalRequest]) -> Any:
    return Signature.objects.standing().filter(request__in=list(rows), decision=Decision.APPROVE)


def locked(request: ApprovalRequest) -> ApprovalRequest:
    return ApprovalRequest.objects.select_for_update(no_key=True).get(pk=request.pk)


def serialise(subject: SubjectRef) -> None:
    """Let one transaction at a time ask about a subject. Row locks cannot: there may be no row yet."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"approval request {subject.kind} {subject.id}"]
        )


def still_signing(row: ApprovalRequest, at: dt.datetime) -> tuple[PersonFacts, ...]:
    """Those whose approval of `row` stands, their rights locked. Approvals of people who lost theirs are voided."""
    return sift(row, at, roles.people(approvals_of([row]).values_list("person_id", flat=True), lock=True))


def with_rights_locked(
    row: ApprovalRequest, at: dt.datetime, person: User
) -> tuple[PersonFacts, tuple[PersonFacts, ...]]:
    """`person` and those whose approval of `row` stands.

    All are locked in one go: two requests whose signers meet crosswise would wait for each other otherwise.
    """
    known = roles.people([person.pk, *approvals_of([row]).values_list("person_id", flat=True)], lock=True)
    return known[person.pk], sift(row, at, known)


def sift(row: ApprovalRequest, at: dt.datetime, known: Mapping[int, PersonFacts]) -> tuple[PersonFacts, ...]:
    wanted = frozenset[policy.Role]().union(*row.needs.signatures)
    standing_signers, lost = [], []
    for signature in approvals_of([row]).filter(fingerprint=row.fingerprint):
        signer = known[signature.person_id]
        if signer.active and signer.roles & wanted:
            standing_signers.append(signer)
        else:
            lost.append((signature, signer))
    for signature, signer in lost:
        why = "no longer has a role that may sign this." if signer.active else "was deactivated."
        because = f"{signer.name} {why}"
        void_signature(signature, at, because)
        audit.record(Action.SIGNATURE_VOIDED, row, because=because, data={**identity(row), "person": signer.name})
    return tuple(standing_signers)


def void_signature(signature: Signature, at: dt.datetime, because: str) -> None:
    signature.voided_at, signature.voided_because = at, because
    signature.save(update_fields=["voided_at", "voided_because"])


def close(
    row: ApprovalRequest, target: RequestState, action: Action, *, because: str, actor: User | None = None
) -> None:
    """Move a locked request out of its state: the row, its signatures, the audit entry, and the word to who waits."""
    origin = RequestState(row.state)
    assert target in MOVES[origin], f"{origin} → {target} is no legal move"
    row.state, row.decided_at, row.because = target, now(), because
    row.save(update_fields=["state", "decided_at", "because"])
    if target in (RequestState.VOID, RequestState.EXPIRED):
        for signature in row.signatures.standing():
            void_signature(signature, row.decided_at, because)
    written_down(row, origin, action, actor, because)


def reopen(row: ApprovalRequest, *, because: str) -> None:
    """Ask again for what was approved."""
    origin = RequestState(row.state)
    assert RequestState.OPEN in MOVES[origin], f"{origin} → open is no legal move"
    row.state, row.decided_at, row.because = RequestState.OPEN, None, because
    row.save(update_fields=["state", "decided_at", "because"])
    written_down(row, origin, Action.REOPENED, None, because)


def written_down(row: ApprovalRequest, origin: RequestState, action: Action, actor: User | None, because: str) -> None:
    audit.record(action, row, actor=actor, because=because, was=origin, became=row.state, data=identity(row))
    # robust: a waker that fails must not look like a decision that failed. A later tick sees the decision anyway.
    transaction.on_commit(partial(subjects.tell, row.subject_kind, row.subject_id), robust=True)


def identity(row: ApprovalRequest) -> dict[str, Any]:
    """What ties an entry about a request to its subject and to what exactly was asked."""
    return {
        "subject": f"{row.subject_kind} {row.subject_id}",
        "fingerprint": row.fingerprint,
        "tier": row.tier,
        "policy_version": row.policy_version,
    }
