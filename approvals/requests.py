"""Asking for signatures, giving them, and whether they still hold.

Every change locks the request's row first, then everybody whose right it rests on in one go (`signers`), and writes its
audit entry last, in the same transaction. Whoever waits for a decision is told after commit.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from django.contrib.auth.models import User
from django.db import connection, transaction
from django.utils.timezone import now

from approvals import audit, breaking_glass, holding, policy, reminding, roles, signers, terms
from approvals.circumstances import NOTHING_KNOWN, Circumstances, worse
from approvals.law import MOVES, Action, Refused, SecondFactorWanted, identity, is_over, locked, move, void_signature
from approvals.models.break_glass import BreakGlass
from approvals.models.request import ApprovalRequest, Comment, Signature
from approvals.policy import (
    NOTHING,
    PENDING,
    Category,
    Decision,
    How,
    PersonFacts,
    RequestState,
    Requirement,
    Rule,
    Why,
)
from approvals.reminding import expire_due, expiry
from approvals.signers import facts_of
from approvals.subjects import SubjectRef

__all__ = [
    "MOVES",
    "Action",
    "Awaited",
    "Circumstances",
    "Entry",
    "Refused",
    "SecondFactorWanted",
    "Standing",
    "StandingState",
    "SubjectRef",
    "approve",
    "ask_for_changes",
    "awaiting",
    "comment",
    "expire_due",
    "expiry",
    "facts_of",
    "keep_rules",
    "mark_not_started",
    "mark_started",
    "open_request",
    "reject",
    "revoke",
    "standing",
    "thread",
    "used",
    "void",
]

LONGEST_COMMENT = 4_000  # characters


def policy_version() -> str:
    """The policy in force with this installation's settings."""
    return terms.in_force().version


# --- Asking ------------------------------------------------------------------------------------------------------


def keep_rules() -> None:
    """Keep policy and rights as they are until the transaction ends.

    Whoever asks and starts in one transaction calls it first: an audit entry holds the log, and who changes a policy or
    a right holds that and then wants the log.
    """
    terms.stay()
    roles.rights_stay()


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
    circumstances: Circumstances = NOTHING_KNOWN,
) -> ApprovalRequest:
    """The request for exactly this subject, fingerprint and requirement, made when there is none.

    A request that people answered or let expire is returned as it is; one for another fingerprint or requirement, or
    since which the circumstances got worse, is voided, its signers are told why, and another is made. A requirement
    without signatures is approved at once, by the policy. `facts` is what signers see, all optional: what, why,
    on_approve, undo, diff (text), proof and risk_drivers (lists of text or of dicts with name, verdict and summary),
    risk (0-1); what the circumstances say is added to the proof.
    """
    with transaction.atomic():
        serialise(subject)
        again = False
        for row in ApprovalRequest.objects.about(subject.kind, subject.id).select_for_update(no_key=True):
            if row.state == RequestState.VOID:
                continue
            # A no to exactly this stays a no, whatever the policy would ask for by now.
            rejected = row.state == RequestState.REJECTED
            if row.fingerprint == fingerprint and (rejected or row.requirement == requirement.as_json()):
                because = worse(Circumstances.from_json(row.circumstances), circumstances)
                if not because or is_over(row):
                    return row
                void_and_tell(row, because)
                again = True
            elif not is_over(row):
                void_and_tell(row, WHY_CHANGED)
                again = True
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
            facts=audit.plain(with_circumstances(facts, circumstances)),
            circumstances=circumstances.as_json(),
            state=RequestState.OPEN,
            created_at=at,
            expires_at=expires_at,
        )
        editors = list(edited_by)
        row.edited_by.set(editors)
        if requirement.signatures:
            reminding.tell_asked(row, at, again="anew" if again else "")
        audit.record(
            Action.OPENED,
            row,
            actor=proposed_by,
            because=requirement.reason,
            data={
                **identity(row),
                "requirement": row.requirement,
                "edited_by": [user.username for user in editors],
                "circumstances": row.circumstances,
            },
        )
        if not requirement.signatures:
            move(row, RequestState.APPROVED, Action.APPROVED_BY_POLICY, because=requirement.reason)
        return row


WHY_CHANGED = "The patch, its evidence or what the policy asks for has changed since."


def with_circumstances(facts: Mapping[str, Any], circumstances: Circumstances) -> dict[str, Any]:
    lines = [{"name": "Circumstances", "summary": line} for line in circumstances.in_words()]
    proof = facts.get("proof") or []
    if isinstance(proof, Mapping):
        proof = [{"name": name, "summary": text} for name, text in proof.items()]
    elif isinstance(proof, str):
        proof = [proof]
    return {**facts, "proof": [*proof, *lines]} if lines else dict(facts)


def void(request: ApprovalRequest, because: str, *, tell_signers: bool = False) -> ApprovalRequest:
    """Withdraw the question and every signature under it. A request that is already over stays as it is.

    `tell_signers` where it will be asked again, about something else.
    """
    with transaction.atomic():
        row = locked(request)
        if not is_over(row) and tell_signers:
            void_and_tell(row, because)
        elif not is_over(row):
            move(row, RequestState.VOID, Action.VOIDED, because=because)
        return row


def void_and_tell(row: ApprovalRequest, because: str) -> None:
    """Void a locked request because it is not what was signed any more, and tell those who signed."""
    signed = [one.person for one in signers.approvals_of([row]).select_related("person")]
    reminding.tell_signers_void(row, signed, because)
    move(row, RequestState.VOID, Action.VOIDED, because=because)


def serialise(subject: SubjectRef) -> None:
    """Let one transaction at a time ask about a subject. Row locks cannot: there may be no row yet."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"approval request {subject.kind} {subject.id}"]
        )


# --- Deciding ----------------------------------------------------------------------------------------------------


def approve(
    request: ApprovalRequest,
    *,
    person: User,
    how: How,
    reason: str = "",
    seen: str | None = None,
    on_behalf_of: int | None = None,
) -> ApprovalRequest:
    """Sign. The request is approved when this was the last signature missing.

    `on_behalf_of` is the id of whose right is to be used; None takes what fits, the person's own first. `how` is
    through what the person decides, with which second factor; the caller has verified it. `seen` is the fingerprint of
    what the person looked at. Raises Refused with the rule that forbids it.
    """
    return decide(request, person, Decision.APPROVE, how, reason, seen, on_behalf_of)


def reject(
    request: ApprovalRequest, *, person: User, how: How, reason: str, seen: str | None = None
) -> ApprovalRequest:
    """Say no, which ends the request whoever signed before. Raises Refused with the rule that forbids it."""
    return decide(request, person, Decision.REJECT, how, reason, seen)


def ask_for_changes(
    request: ApprovalRequest, *, person: User, how: How, reason: str, seen: str | None = None
) -> ApprovalRequest:
    """Say what has to change first: nothing is approved until that is another request, or `revoke` takes it back.

    Raises Refused with the rule that forbids it.
    """
    return decide(request, person, Decision.ASK_FOR_CHANGES, how, reason, seen)


def decide(
    request: ApprovalRequest,
    person: User,
    decision: Decision,
    how: How,
    reason: str,
    seen: str | None,
    on_behalf_of: int | None = None,
) -> ApprovalRequest:
    """Decide, and keep in the log that somebody tried who may not. What comes too late or again is no attempt."""
    try:
        return decide_allowed(request, person, decision, how, reason, seen, on_behalf_of)
    except SecondFactorWanted:
        raise
    except Refused as refused:
        if not refused.is_conflict:
            # In a transaction of its own: that of the decision is undone.
            with transaction.atomic():
                data = {**identity(request), "decision": decision, "rule": refused.rule, "channel": how.channel}
                audit.record(
                    Action.REFUSED,
                    request,
                    actor=person,
                    because=refused.why,
                    data=data,
                    outcome=audit.Outcome.REFUSED,
                )
        raise


def decide_allowed(
    request: ApprovalRequest,
    person: User,
    decision: Decision,
    how: How,
    reason: str,
    seen: str | None,
    on_behalf_of: int | None,
) -> ApprovalRequest:
    reason = reason.strip()
    refuse_too_long(reason)
    with transaction.atomic():
        row = locked(request)
        at = now()
        refuse_unseen(row, seen)
        if row.state in PENDING and row.policy_version != policy_version():
            raise Refused(
                Why(
                    Rule.POLICY_CHANGED,
                    "The policy has changed since this was asked. A change of a service is asked again by itself; a "
                    "policy has to be proposed again.",
                )
            )
        known = signers.everybody_locked(row, at, also=[person.pk])
        signer, approving = known[person.pk], signers.sift(row, at, known)
        asked = facts_of(row, approving, at)
        answer = policy.may_sign(signer, asked, decision=decision, reason=reason, how=how, on_behalf_of=on_behalf_of)
        if isinstance(answer, policy.Refused):
            raise SecondFactorWanted(answer.why) if answer.lacks_second_factor else Refused(answer.why)
        principal = answer.on_behalf_of
        signer = signer.signing_for(answer.voice_of)
        if own := asks_of(row).filter(person=person).first():
            if decision is Decision.ASK_FOR_CHANGES:
                raise Refused(Why(Rule.COUNTED, f"{signer.name} asks for changes already. Comment to say more."))
            void_signature(own, at, f"{signer.name} decided otherwise.")
        given = Signature.objects.create(
            request=row,
            person=person,
            role=answer.role,
            decision=decision,
            reason=reason,
            fingerprint=row.fingerprint,
            channel=how.channel,
            second_factor=how.is_fresh,
            on_behalf_of_id=principal.id if principal else None,
            at=at,
        )
        if decision is Decision.ASK_FOR_CHANGES:
            reminding.tell_of_changes(row, given)
        audit.record(
            Action.SIGNED,
            row,
            actor=person,
            because=reason,
            on_behalf_of=principal.name if principal else "",
            data={
                **identity(row),
                "decision": decision,
                "role": answer.role,
                "channel": how.channel,
                "second_factor": how.is_fresh,
                "on_behalf_of": principal.name if principal else None,
            },
        )
        follow(row, decision, person, reason, (*approving, signer))
        return row


def follow(
    row: ApprovalRequest, decision: Decision, person: User, reason: str, approving: tuple[PersonFacts, ...]
) -> None:
    """What a decision means for the request. `approving` are those who approve it, if this was an approval."""
    match decision:
        case Decision.REJECT:
            move(row, RequestState.REJECTED, Action.REJECTED, actor=person, because=reason)
        case Decision.ASK_FOR_CHANGES if row.state == RequestState.OPEN:
            move(row, RequestState.CHANGES_ASKED, Action.CHANGES_ASKED, actor=person, because=reason)
        case Decision.APPROVE if not policy.missing(row.needs, approving):
            names = " and ".join(one.signed_as for one in approving)
            move(row, RequestState.APPROVED, Action.APPROVED, actor=person, because=f"Signed by {names}.")


def refuse_too_long(text: str) -> None:
    if len(text) > LONGEST_COMMENT:
        too_long = f"A text has at most {LONGEST_COMMENT} characters here, and this has {len(text)}."
        raise Refused(Why(Rule.TOO_LONG, too_long))


def refuse_unseen(row: ApprovalRequest, seen: str | None) -> None:
    if seen is not None and seen != row.fingerprint:
        raise Refused(Why(Rule.STALE, "What you looked at is not what is asked now. Open the request again."))


def asks_of(row: ApprovalRequest) -> Any:
    """The standing decisions that ask for changes."""
    return row.signatures.standing().filter(decision=Decision.ASK_FOR_CHANGES)


def asked_changes(kind: str, subject_id: int) -> list[Signature]:
    """What people ask to be changed about a subject now, the oldest first."""
    asks = Signature.objects.standing().filter(
        decision=Decision.ASK_FOR_CHANGES, request__state=RequestState.CHANGES_ASKED
    )
    about = asks.filter(request__subject_kind=kind, request__subject_id=subject_id)
    return list(about.select_related("person").order_by("at", "pk"))


def nobody_asks_any_more(row: ApprovalRequest) -> bool:
    return row.state == RequestState.CHANGES_ASKED and not asks_of(row).exists()


def revoke(
    request: ApprovalRequest, *, person: User, how: How, reason: str = "", seen: str | None = None
) -> ApprovalRequest:
    """Take one's own approval, or one's asking for changes, back: until what it allows has begun.

    Raises Refused with the rule that forbids it. A rejection has ended the request and stays.
    """
    reason = reason.strip()
    refuse_too_long(reason)
    with transaction.atomic():
        row = locked(request)
        at = now()
        refuse_unseen(row, seen)
        own = row.signatures.standing().filter(person=person).first()
        if why := why_not_revoke(row, roles.facts_of(person), has_decided=own is not None):
            raise Refused(why)
        assert own is not None
        because = f"{person.username} took it back{f': {reason}' if reason else '.'}"
        void_signature(own, at, because)
        audit.record(
            Action.REVOKED,
            row,
            actor=person,
            because=reason,
            data={**identity(row), "decision": own.decision, "channel": how.channel, "second_factor": how.is_fresh},
        )
        if row.state == RequestState.APPROVED or (
            row.state == RequestState.CHANGES_ASKED and not asks_of(row).exists()
        ):
            move(row, RequestState.OPEN, Action.REOPENED, because=because)
            reminding.tell_asked(row, at, again=f"after-{own.pk}")
        return row


def why_not_revoke(row: ApprovalRequest, person: PersonFacts, *, has_decided: bool) -> Why:
    """Which rule keeps `person` from taking their decision back; empty when none does."""
    if row.started_at is not None:
        return Why(Rule.STARTED, "What this allowed has begun, so nothing is taken back any more. Stop it instead.")
    if is_over(row):
        return Why(Rule.OVER, policy.CLOSED[RequestState(row.state)])
    if not has_decided:
        return Why(Rule.NOTHING_DECIDED, f"{person.name} has decided nothing here that could be taken back.")
    return NOTHING if person.active else Why(Rule.INACTIVE, f"The account of {person.name} is not active.")


def why_not_comment(person: PersonFacts) -> Why:
    """Which rule keeps `person` from commenting; empty when none does."""
    if not person.active or not person.roles:
        return Why(Rule.NO_ROLE, f"Only people with a role write here, and {person.name} has none.")
    return NOTHING


def comment(
    request: ApprovalRequest, *, person: User, how: How, reason: str, seen: str | None = None
) -> ApprovalRequest:
    """Say something and decide nothing. Whoever has a role may, also when the request is over. Raises Refused."""
    text = reason.strip()
    with transaction.atomic():
        row = locked(request)
        refuse_unseen(row, seen)
        speaker = signers.people_for(row, [person.pk], now())[person.pk]
        if why := why_not_comment(speaker):
            raise Refused(why)
        if not text:
            raise Refused(Why(Rule.NO_REASON, "A comment says something."))
        refuse_too_long(text)
        text = audit.plain(text)
        Comment.objects.create(request=row, person=person, text=text, channel=how.channel, at=now())
        data = {**identity(row), "channel": how.channel}
        audit.record(Action.COMMENTED, row, actor=person, because=text, data=data)
        return row


# --- Rechecking --------------------------------------------------------------------------------------------------


class StandingState(StrEnum):
    SATISFIED = "satisfied"
    WAITING = "waiting"
    CHANGES_ASKED = "changes-asked"
    HELD = "held"  # everything is there, and a freeze or the error budget keeps it from starting
    REJECTED = "rejected"
    EXPIRED = "expired"
    VOID = "void"


@dataclass(frozen=True)
class Standing:
    """Whether a request's signatures allow its subject to go ahead now, and why."""

    state: StandingState
    why: str
    glass: BreakGlass | None = None  # what it goes ahead by, when its signatures alone do not allow it

    @property
    def by_break_glass(self) -> bool:
        return self.glass is not None

    @property
    def satisfied(self) -> bool:
        return self.state is StandingState.SATISFIED


def standing(request: ApprovalRequest, fingerprint: str, circumstances: Circumstances = NOTHING_KNOWN) -> Standing:
    """Whether the signatures allow what has this fingerprint to go ahead, checked afresh under locks.

    Call it in the transaction that starts what was approved, and `used` after it: until that ends, nobody can
    sign, reject, lose a right or be deactivated. What no longer holds is written down on the way: a changed
    fingerprint or policy and worse circumstances void the request, a passed deadline expires it, and a signer who lost
    the right opens it again.
    """
    with transaction.atomic():
        terms.stay()
        row = locked(request)
        at = now()
        if not is_over(row):
            end_what_does_not_hold(row, at, fingerprint, circumstances)
        if is_over(row):
            return Standing(StandingState(row.state), row.because)
        glass = breaking_glass.broken(row)
        known = signers.everybody_locked(row, at, also=breaking_glass.the_two(glass))
        if glass and not breaking_glass.lets_through(glass, row, at, known):
            glass = None
        missing = policy.missing(row.needs, signers.sift(row, at, known))
        if missing and row.state == RequestState.APPROVED and not glass:
            because = f"A signature no longer counts; missing again: {policy.in_words(missing)}."
            move(row, RequestState.OPEN, Action.REOPENED, because=because)
            last = row.signatures.exclude(voided_at=None).order_by("voided_at", "pk").last()
            reminding.tell_asked(row, at, again=f"after-{last.pk if last else 0}")
        if row.state == RequestState.CHANGES_ASKED:
            forget_asks_without_right(row, at, known)
        match RequestState(row.state):
            case RequestState.CHANGES_ASKED:
                return Standing(StandingState.CHANGES_ASKED, f"Changes are asked for: {row.because}")
            case RequestState.OPEN if not glass:
                # Even when nothing is missing any more (somebody gained a role): only a signature approves.
                waited_for = policy.in_words(missing or row.needs.signatures)
                return Standing(StandingState.WAITING, f"Waiting for {waited_for}.")
        found = holding.look_at(row, at)
        if glass and (missing or row.state == RequestState.OPEN or found.hold):
            return Standing(StandingState.SATISFIED, glass.why, glass)
        if found.hold:
            return Standing(StandingState.HELD, f"{row.because} {found.hold}")
        return Standing(StandingState.SATISFIED, f"{row.because} {found.note}".strip())


def used(request: ApprovalRequest, standing: Standing) -> None:
    """What was approved has started, in the transaction that asked `standing`: no signature is taken back any more, and
    broken glass has let its one thing through.
    """
    with transaction.atomic():
        row = locked(request)
        if standing.glass:
            breaking_glass.use(standing.glass, now())
            if row.state == RequestState.OPEN:
                move(row, RequestState.APPROVED, Action.APPROVED_BY_BREAK_GLASS, because=standing.why)
        mark_started(row)


def end_what_does_not_hold(
    row: ApprovalRequest, at: dt.datetime, fingerprint: str, circumstances: Circumstances
) -> None:
    if row.fingerprint != fingerprint:
        void_and_tell(row, WHY_CHANGED)
    elif row.policy_version != policy_version():
        void_and_tell(row, "The approval policy has changed since.")
    elif because := worse(Circumstances.from_json(row.circumstances), circumstances):
        void_and_tell(row, because)
    elif row.expires_at <= at:
        because = f"Not used by {row.expires_at:%Y-%m-%d %H:%M} UTC."
        move(row, RequestState.EXPIRED, Action.EXPIRED, because=because)


def forget_asks_without_right(row: ApprovalRequest, at: dt.datetime, known: Mapping[int, PersonFacts]) -> None:
    """Whoever may not sign any more keeps nobody else from signing."""
    wanted = frozenset[policy.Role]().union(*row.needs.signatures)
    asks = list(asks_of(row))
    voices = [(one, known[one.person_id].signing_for(one.on_behalf_of_id)) for one in asks]
    lost = [one for one, voice in voices if not voice.may_count or not voice.roles & wanted]
    for ask in lost:
        name = known[ask.person_id].name
        because = f"{name} asked for changes and has no role any more that may sign this."
        void_signature(ask, at, because)
        audit.record(Action.SIGNATURE_VOIDED, row, because=because, data={**identity(row), "person": name})
    if lost and len(lost) == len(asks):
        move(row, RequestState.OPEN, Action.REOPENED, because="Nobody asks for changes any more.")
        reminding.tell_asked(row, at, again=f"after-{lost[-1].pk}")


def mark_started(request: ApprovalRequest) -> None:
    """What was approved begins, in the transaction that `standing` said so: from now on no signature is taken back."""
    ApprovalRequest.objects.filter(pk=request.pk, started_at=None).update(started_at=now())


def mark_not_started(kind: str, subject_id: int) -> None:
    """What was prepared did not begin after all: signatures can be taken back again."""
    ApprovalRequest.objects.about(kind, subject_id).exclude(started_at=None).update(started_at=None)


# --- Looking -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Awaited:
    """A request that waits for somebody; `age` is how long it has been waiting. Its row comes without `facts`."""

    id: int
    age: dt.timedelta
    deadline: dt.datetime
    request: ApprovalRequest


def awaiting(person: User, at: dt.datetime) -> list[Awaited]:
    """The open requests that `person` may sign now, the most urgent first."""
    rows = list(
        ApprovalRequest.objects.open()
        .filter(expires_at__gt=at)
        .defer("facts")
        .prefetch_related("edited_by")
        .order_by("expires_at", "pk")
    )
    signed: dict[int, list[tuple[int, int | None]]] = {}
    for request_id, *signer in signers.approvals_of(rows).values_list("request_id", "person_id", "on_behalf_of_id"):
        signed.setdefault(request_id, []).append((signer[0], signer[1]))
    rights = roles.snapshot([person.pk, *(one for many in signed.values() for one, _ in many)], at=at)
    known = {scope: rights.people(scope) for scope in {row.scope for row in rows}}
    found = []
    for row in rows:
        of_scope = known[row.scope]
        facts = facts_of(row, [of_scope[pk].signing_for(whose) for pk, whose in signed.get(row.pk, [])], at)
        if isinstance(policy.may_sign(of_scope[person.pk], facts), policy.Allowed):
            found.append(Awaited(row.pk, at - row.created_at, row.expires_at, row))
    return found


@dataclass(frozen=True)
class Entry:
    """One thing that somebody said or decided about a request. `decision` is None for a comment."""

    at: dt.datetime
    person: str
    text: str
    decision: Decision | None = None
    role: str = ""
    on_behalf_of: str = ""
    channel: str = ""
    second_factor: bool = False
    voided_because: str = ""


def thread(request: ApprovalRequest) -> list[Entry]:
    """Decisions and comments in the order in which they came."""
    entries = [
        Entry(
            one.at,
            one.person.username,
            one.reason,
            Decision(one.decision),
            one.role,
            one.on_behalf_of.username if one.on_behalf_of else "",
            one.channel,
            one.second_factor,
            one.voided_because,
        )
        for one in request.signatures.select_related("person", "on_behalf_of")
    ]
    for said in request.comments.select_related("person"):
        entries.append(Entry(said.at, said.person.username, said.text, channel=said.channel))
    return sorted(entries, key=lambda entry: entry.at)
