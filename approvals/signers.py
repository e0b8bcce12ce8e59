"""Who may sign a request, and whose approval of it still counts."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

from django.contrib.auth.models import User

from approvals import audit, policy, roles
from approvals.law import Action, identity, void_signature
from approvals.models.request import ApprovalRequest, Signature
from approvals.policy import Decision, PersonFacts, RequestFacts, RequestState, Role


def people_for(row: ApprovalRequest, ids: Iterable[int], *, lock: bool = False) -> dict[int, PersonFacts]:
    """These people as the policy sees them for this request; with `lock`, their rights stay until the transaction
    ends.
    """
    return roles.people(ids, lock=lock)


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


def able(
    row: ApprovalRequest,
    at: dt.datetime,
    *,
    decision: Decision = Decision.APPROVE,
    having: frozenset[Role] = frozenset(Role),
) -> list[User]:
    """Who could make this decision now, of those who have one of the roles `having`: whom it is worth telling."""
    users = {user.pk: user for user in User.objects.filter(is_active=True).order_by("pk")}
    known = people_for(row, users)
    signers = [known[one] for one in approvals_of([row]).values_list("person_id", flat=True) if one in known]
    facts = facts_of(row, signers, at)
    return [
        user
        for pk, user in users.items()
        if known[pk].roles & having and isinstance(policy.may_sign(known[pk], facts, decision=decision), policy.Allowed)
    ]


def still_signing(row: ApprovalRequest, at: dt.datetime) -> tuple[PersonFacts, ...]:
    """Those whose approval of `row` stands, their rights locked. Approvals of people who lost theirs are voided."""
    return sift(row, at, people_for(row, approvals_of([row]).values_list("person_id", flat=True), lock=True))


def with_rights_locked(
    row: ApprovalRequest, at: dt.datetime, person: User
) -> tuple[PersonFacts, tuple[PersonFacts, ...]]:
    """`person` and those whose approval of `row` stands.

    All are locked in one go: two requests whose signers meet crosswise would wait for each other otherwise.
    """
    ids = [person.pk, *approvals_of([row]).values_list("person_id", flat=True)]
    known = people_for(row, ids, lock=True)
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


def with_roles(row: ApprovalRequest, having: frozenset[Role]) -> list[User]:
    """The active people who have one of these roles for what the request is about."""
    users = {user.pk: user for user in User.objects.filter(is_active=True).order_by("pk")}
    known = people_for(row, users)
    return [user for pk, user in users.items() if known[pk].roles & having]
