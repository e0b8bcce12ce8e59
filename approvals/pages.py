"""What the decision page says, composed once; the template only prints it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import User

from approvals import diff, forecasting, policy, requests, roles, subjects
from approvals.forecasting import Need
from approvals.models.request import ApprovalRequest, Signature
from approvals.policy import Decision, RequestState


@dataclass(frozen=True)
class Item:
    """One line of proof or one risk driver."""

    name: str
    text: str
    verdict: str = ""


@dataclass(frozen=True)
class DecisionPage:
    """Everything a signer reads before deciding."""

    request: ApprovalRequest
    is_open: bool
    state: str
    subject: subjects.Description | None
    what: str
    why: str
    proof: list[Item]
    risk: str
    risk_drivers: list[Item]
    on_approve: str
    undo: str
    requirement: str
    signatures: list[Signature]
    needs: list[Need]
    may_approve: bool
    may_reject: bool
    refused: str
    reason_required: bool
    diff: list[diff.Line]
    added: int
    removed: int


def decision_page(row: ApprovalRequest, viewer: User, at: dt.datetime) -> DecisionPage:
    """The page of `row` as `viewer` sees it now. Reads the database, changes nothing."""
    facts: Mapping[str, Any] = row.facts
    signatures = list(row.signatures.select_related("person", "on_behalf_of"))
    approving = [one for one in signatures if one.voided_at is None and one.decision == Decision.APPROVE]
    known = roles.everybody(scope=row.scope, at=at, also=[viewer.pk, *(one.person_id for one in approving)])
    signers = [known[one.person_id].signing_for(one.on_behalf_of_id) for one in approving]
    asked = requests.facts_of(row, signers, at)
    to_approve = policy.may_sign(known[viewer.pk], asked)
    to_reject = policy.may_sign(known[viewer.pk], asked, decision=Decision.REJECT)
    is_open = row.state == RequestState.OPEN and not asked.expired
    lines = diff.lines(str(facts.get("diff", "")))
    added, removed = diff.counts(lines)
    return DecisionPage(
        request=row,
        is_open=is_open,
        state="expired" if asked.expired and row.state == RequestState.OPEN else row.state,
        subject=subjects.describe(row.subject_kind, row.subject_id),
        what=str(facts.get("what") or row.title),
        why=str(facts.get("why", "")),
        proof=items(facts.get("proof")),
        risk=f"{facts['risk']:.2f}" if isinstance(facts.get("risk"), int | float) else "",
        risk_drivers=items(facts.get("risk_drivers")),
        on_approve=str(facts.get("on_approve", "")),
        undo=str(facts.get("undo", "")),
        requirement=row.needs.reason,
        signatures=signatures,
        needs=forecasting.needs(asked, known.values()) if is_open else [],
        may_approve=isinstance(to_approve, policy.Allowed),
        may_reject=isinstance(to_reject, policy.Allowed),
        refused=to_approve.why if isinstance(to_approve, policy.Refused) else "",
        reason_required=row.needs.reason_required,
        diff=lines,
        added=added,
        removed=removed,
    )


def items(value: Any) -> list[Item]:
    """Facts as lists of text, of dicts with name, verdict and summary, or as one dict of name → text."""
    if isinstance(value, Mapping):
        value = [{"name": name, "summary": text} for name, text in value.items()]
    if isinstance(value, str):
        value = [value]
    return [
        Item(
            name=str(one.get("name", "")),
            text=str(one.get("summary", one.get("text", ""))),
            verdict=str(one.get("verdict", "")),
        )
        if isinstance(one, Mapping)
        else Item(name="", text=str(one))
        for one in value or ()
    ]
