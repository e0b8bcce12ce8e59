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


def people_for(
    row: ApprovalRequest, ids: Iterable[int], at: dt.datetime, *, lock: bool = False
) -> dict[int, PersonFacts]:
    """These people as the policy sees them for this request; with `lock`, their rights stay until the transaction
    ends.
    """
    return roles.people(ids, scope=row.scope, at=at, lock=lock)


def voices(row: ApprovalRequest, known: Mapping[int, PersonFacts]) -> list[PersonFacts]:
    """Those whose approval of `row` stands, each with the right that they used."""
    given = approvals_of([row]).values_list("person_id", "on_behalf_of_id")
    return [known[pk].signing_for(whose) for pk, whose in given if pk in known]


def facts_of(row: ApprovalRequest, signers: Iterable[PersonFacts], at: dt.datetime) -> RequestFacts:
    """A request as the policy sees it."""
    return RequestFacts(
        requirement=row.needs,
        state=RequestState(row.state),
        expired=row.expires_at <= at,
        proposed_by=row.proposed_by_id,
        edited_by=frozenset(user.pk for user in row.edited_by.all()),
        signers=tuple(signers),
        because=row.because,
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
    known = roles.everybody(scope=row.scope, at=at, also=approvals_of([row]).values_list("person_id", flat=True))
    facts = facts_of(row, voices(row, known), at)
    wanted = [
        pk
        for pk, one in known.items()
        if _has_any(one, having) and isinstance(policy.may_sign(one, facts, decision=decision), policy.Allowed)
    ]
    return list(User.objects.filter(pk__in=wanted, is_active=True).order_by("pk"))


def _has_any(person: PersonFacts, having: frozenset[Role]) -> bool:
    return bool(person.roles & having) or any(one.roles & having for one in person.stands_in_for)


def everybody_locked(row: ApprovalRequest, at: dt.datetime, *, also: Iterable[int]) -> dict[int, PersonFacts]:
    """Whoever decided something here that stands, and those with the ids `also`, their rights locked.

    All in one go: two requests whose people meet crosswise would wait for each other otherwise.
    """
    decided = row.signatures.standing().values_list("person_id", flat=True)
    return people_for(row, [*decided, *also], at, lock=True)


def sift(row: ApprovalRequest, at: dt.datetime, known: Mapping[int, PersonFacts]) -> tuple[PersonFacts, ...]:
    """Those whose approval of `row` stands. Approvals of people who lost their right are voided."""
    wanted = frozenset[policy.Role]().union(*row.needs.signatures)
    standing_signers, lost = [], []
    for signature in approvals_of([row]).filter(fingerprint=row.fingerprint):
        signer = known[signature.person_id].signing_for(signature.on_behalf_of_id)
        if signer.may_count and signer.roles & wanted:
            standing_signers.append(signer)
        else:
            lost.append((signature, signer))
    for signature, signer in lost:
        because = f"{signer.name} {why_lost(signature, signer)}"
        void_signature(signature, at, because)
        audit.record(Action.SIGNATURE_VOIDED, row, because=because, data={**identity(row), "person": signer.name})
    return tuple(standing_signers)


def why_lost(signature: Signature, signer: PersonFacts) -> str:
    if not signer.active:
        return "was deactivated."
    if signer.is_service_account:
        return "is the account of a program, and programs never sign."
    if signature.on_behalf_of:
        return f"no longer stands in for {signature.on_behalf_of} with a right to sign this."
    return "no longer has a role that may sign this."


def with_roles(row: ApprovalRequest, having: frozenset[Role]) -> list[User]:
    """The active people who have one of these roles for what the request is about."""
    known = roles.everybody(scope=row.scope)
    held = [pk for pk, one in known.items() if one.may_count and one.roles & having]
    return list(User.objects.filter(pk__in=held).order_by("pk"))
