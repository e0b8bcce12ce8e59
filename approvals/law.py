"""The law of approval requests, and the only code that moves one: the row, its signatures, the audit entry."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.utils.timezone import now

from approvals import audit, subjects
from approvals.models.request import ApprovalRequest, Signature
from approvals.policy import CONFLICTS, PENDING, RequestState, Why

# What may follow what. Approved is not the end: until the subject has used the approval, a lost or revoked signature
# opens the question again, and a change of what was approved voids it.
MOVES: Mapping[RequestState, frozenset[RequestState]] = {
    RequestState.OPEN: frozenset(
        {
            RequestState.APPROVED,
            RequestState.REJECTED,
            RequestState.CHANGES_ASKED,
            RequestState.EXPIRED,
            RequestState.VOID,
        }
    ),
    # Nothing is approved from here: first what is asked about changes, which is another request, or nobody asks any
    # more.
    RequestState.CHANGES_ASKED: frozenset(
        {RequestState.OPEN, RequestState.REJECTED, RequestState.EXPIRED, RequestState.VOID}
    ),
    RequestState.APPROVED: frozenset({RequestState.OPEN, RequestState.EXPIRED, RequestState.VOID}),
    RequestState.REJECTED: frozenset(),
    RequestState.EXPIRED: frozenset(),
    RequestState.VOID: frozenset(),
}


class Action(StrEnum):
    """What the audit log calls the things that happen to a request."""

    OPENED = "approval.opened"
    SIGNED = "approval.signed"
    REFUSED = "approval.refused"
    REVOKED = "approval.revoked"
    COMMENTED = "approval.commented"
    SIGNATURE_VOIDED = "approval.signature_voided"
    APPROVED = "approval.approved"
    APPROVED_BY_BREAK_GLASS = "approval.approved_by_break_glass"
    APPROVED_BY_POLICY = "approval.approved_by_policy"
    CHANGES_ASKED = "approval.changes_asked"
    REJECTED = "approval.rejected"
    EXPIRED = "approval.expired"
    VOIDED = "approval.voided"
    REOPENED = "approval.reopened"
    REMINDED = "approval.reminded"
    ESCALATED = "approval.escalated"


class Refused(Exception):
    """A rule forbids it; the text is the rule's own sentence, fit for people."""

    def __init__(self, why: Why) -> None:
        super().__init__(str(why))
        self.rule = why.rule

    @property
    def why(self) -> str:
        return str(self)

    @property
    def is_conflict(self) -> bool:
        """Whether it refuses everybody as the request stands, and not this person."""
        return self.rule in CONFLICTS


class SecondFactorWanted(Refused):
    """Nothing but a fresh second factor is missing."""


def is_over(row: ApprovalRequest) -> bool:
    """Whether nothing can happen to it any more."""
    return not MOVES[RequestState(row.state)]


def locked(request: ApprovalRequest) -> ApprovalRequest:
    return ApprovalRequest.objects.select_for_update(no_key=True).get(pk=request.pk)


def move(
    row: ApprovalRequest, target: RequestState, action: Action, *, because: str, actor: User | None = None
) -> None:
    """Move a locked request: the row, its signatures where they end with it, the entry, the word to who waits."""
    origin = RequestState(row.state)
    assert target in MOVES[origin], f"{origin} → {target} is no legal move"
    row.state, row.because = target, because
    row.decided_at = None if target in PENDING else now()
    row.started_at = None
    row.save(update_fields=["state", "decided_at", "because", "started_at"])
    if target in (RequestState.VOID, RequestState.EXPIRED):
        for signature in row.signatures.standing():
            void_signature(signature, now(), because)
    audit.record(action, row, actor=actor, because=because, was=origin, became=row.state, data=identity(row))
    # robust: a waker that fails must not look like a decision that failed. A later tick sees the decision anyway.
    transaction.on_commit(partial(subjects.tell, row.subject_kind, row.subject_id), robust=True)


def void_signature(signature: Signature, at: dt.datetime, because: str) -> None:
    signature.voided_at, signature.voided_because = at, because
    signature.save(update_fields=["voided_at", "voided_because"])


def identity(row: ApprovalRequest) -> dict[str, Any]:
    """What ties an entry about a request to its subject and to what exactly was asked."""
    return {
        "subject": f"{row.subject_kind} {row.subject_id}",
        "fingerprint": row.fingerprint,
        "tier": row.tier,
        "policy_version": row.policy_version,
    }
