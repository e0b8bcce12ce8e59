"""What the decision page says, composed once; the template only prints it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import User

from approvals import diff, forecasting, holding, policy, requests, roles, subjects
from approvals.forecasting import Helpers, Need
from approvals.law import MOVES
from approvals.models.request import ApprovalRequest, Comment, Signature
from approvals.policy import PENDING, Decision, How, PersonFacts, RequestFacts, RequestState, Tier


@dataclass(frozen=True)
class Item:
    """One line of proof or one risk driver."""

    name: str
    text: str
    verdict: str = ""


@dataclass(frozen=True)
class May:
    """What the viewer may do: empty where it is allowed, otherwise the rule's sentence that forbids it."""

    approve: str
    reject: str
    ask_for_changes: str
    revoke: str
    comment: str

    @property
    def decides(self) -> bool:
        return not (self.approve and self.reject and self.ask_for_changes and self.revoke)


@dataclass(frozen=True)
class DecisionPage:
    """Everything a signer reads before deciding."""

    request: ApprovalRequest
    is_pending: bool
    state: RequestState
    state_in_words: str
    subject: subjects.Description | None
    held: str
    ended: str
    what: str
    why: str
    proof: list[Item]
    risk: str
    risk_drivers: list[Item]
    on_approve: str
    undo: str
    requirement: str
    editors: list[str]
    signatures: list[Signature]
    voided: list[Signature]
    signed: int
    needs: list[Need]
    stuck: str
    kept_out: list[str]
    comments: list[Comment]
    may: May
    rights: list[policy.Allowed]
    reason_required: bool
    wants_second_factor: bool
    typed: str
    diff: list[diff.Line]
    added: int
    removed: int


def decision_page(
    row: ApprovalRequest,
    viewer: User,
    at: dt.datetime,
    *,
    how: How | None = None,
    typed: str = "",
    helpers: Helpers | None = None,
) -> DecisionPage:
    """The page of `row` as `viewer` sees it now. Reads the database, changes nothing.

    `how` is how the viewer would decide, `typed` what they wrote already.
    """
    facts: Mapping[str, Any] = row.facts
    signatures = list(row.signatures.select_related("person", "on_behalf_of"))
    approving = [one for one in signatures if one.voided_at is None and one.decision == Decision.APPROVE]
    known = roles.everybody(scope=row.scope, at=at, also=[viewer.pk, *(one.person_id for one in approving)])
    asked = requests.facts_of(row, [known[one.person_id].signing_for(one.on_behalf_of_id) for one in approving], at)
    state = state_of(row, at)
    is_pending = state in PENDING
    rights = list(policy.options(known[viewer.pk], asked))
    hold = holding.look_at(row, at).hold if state in (*PENDING, RequestState.APPROVED) else None
    people = list(known.values())
    stuck = forecasting.stuck(asked, people, row.scope, helpers or Helpers()) if is_pending else ""
    lines = diff.lines(str(facts.get("diff", "")))
    added, removed = diff.counts(lines)
    return DecisionPage(
        request=row,
        is_pending=is_pending,
        state=state,
        state_in_words=STATES[state],
        subject=subjects.describe(row.subject_kind, row.subject_id),
        held=f"If it is approved, it will still wait: {hold}" if hold and row.started_at is None else "",
        ended=ended(state, row.subject_kind),
        what=str(facts.get("what") or row.title),
        why=str(facts.get("why", "")),
        proof=items(facts.get("proof")),
        risk=f"{facts['risk']:.2f}" if isinstance(facts.get("risk"), int | float) else "",
        risk_drivers=items(facts.get("risk_drivers")),
        on_approve=str(facts.get("on_approve", "")),
        undo=str(facts.get("undo", "")),
        requirement=row.needs.reason,
        editors=sorted(user.username for user in row.edited_by.all()),
        signatures=signatures,
        voided=[one for one in signatures if one.voided_at],
        signed=len(approving),
        needs=forecasting.needs(asked, people) if is_pending else [],
        stuck=stuck,
        kept_out=forecasting.kept_out(asked, people) if stuck else [],
        comments=list(row.comments.select_related("person")),
        may=may_of(row, known[viewer.pk], asked, signatures),
        rights=rights if len(rights) > 1 else [],
        reason_required=row.needs.reason_required,
        wants_second_factor=bool(rights) and row.needs.second_factor_required and not (how and how.is_fresh),
        typed=typed,
        diff=lines,
        added=added,
        removed=removed,
    )


def state_of(row: ApprovalRequest, at: dt.datetime) -> RequestState:
    """The state as it is at that time: an expiry is written down by a task, which comes later."""
    state = RequestState(row.state)
    return RequestState.EXPIRED if state in PENDING and row.expires_at <= at else state


STATES: Mapping[RequestState, str] = {
    RequestState.OPEN: "open",
    RequestState.CHANGES_ASKED: "changes asked for",
    RequestState.APPROVED: "approved",
    RequestState.REJECTED: "rejected",
    RequestState.EXPIRED: "expired",
    RequestState.VOID: "void",
}


def ended(state: RequestState, kind: str) -> str:
    """What a request that ended without an approval means for whoever still wants it; empty while it lives."""
    if MOVES[state]:
        return ""
    return f"{policy.CLOSED[state]} {subjects.again(kind)}".strip()


def may_of(row: ApprovalRequest, viewer: PersonFacts, asked: RequestFacts, signatures: list[Signature]) -> May:
    """What `viewer` may do with the request, asked of the rules that will answer when it is done."""

    def refused(decision: Decision) -> str:
        answer = policy.may_sign(viewer, asked, decision=decision)
        return answer.why if isinstance(answer, policy.Refused) else ""

    own = [one for one in signatures if one.person_id == viewer.id and one.voided_at is None]
    return May(
        approve=refused(Decision.APPROVE),
        reject=refused(Decision.REJECT),
        ask_for_changes=refused(Decision.ASK_FOR_CHANGES),
        revoke=requests.why_not_revoke(row, viewer, has_decided=bool(own)),
        comment=requests.why_not_comment(viewer),
    )


MOST_AT_ONCE = 20


@dataclass(frozen=True)
class CriticalPage:
    """All critical requests that wait, across services; each is signed by itself."""

    pages: list[DecisionPage]
    more: int
    summary: str


def critical_page(
    viewer: User, at: dt.datetime, *, how: How | None = None, typed: Callable[[int], str] = lambda _: ""
) -> CriticalPage:
    """The critical requests that wait for somebody, the most urgent first, as `viewer` sees them now.

    `typed` tells what was written already about the request of that id.
    """
    rows = (
        ApprovalRequest.objects.pending()
        .filter(tier=Tier.CRITICAL, expires_at__gt=at)
        .select_related("proposed_by")
        .prefetch_related("edited_by")
        .order_by("expires_at", "pk")
    )
    count = rows.count()
    helpers = Helpers()
    shown = [
        decision_page(row, viewer, at, how=how, typed=typed(row.pk), helpers=helpers) for row in rows[:MOST_AT_ONCE]
    ]
    wanted = sum(not page.may.approve for page in shown)
    where = len({page.request.scope for page in shown})
    summary = (
        f"{count} critical request{'' if count == 1 else 's'} in {where} place{'' if where == 1 else 's'}; "
        f"{wanted or 'none'} can be signed by you now. Each is signed by itself, after it was read."
    )
    return CriticalPage(shown, max(0, count - MOST_AT_ONCE), summary if count else "")


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
