"""The emergency door: two people let one rollout start without its signatures, or while it is held.

It passes missing signatures, freezes and a spent error budget, for one request with exactly its fingerprint, once. It
never passes the machine's proof (a request exists only after that), a rejection, or a question about the policy.

Locks go in the order of everybody else: the request, the glass, the people, and the audit log last.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.urls import reverse

from approvals import audit, roles, subjects, telling
from approvals.holding import NO_ROLLOUT
from approvals.models import ApprovalRequest, PersonSettings
from approvals.models.break_glass import CONFIRM_WITHIN, IN_FORCE_FOR, BreakGlass
from approvals.policy import Channel, How, PersonFacts, RequestState, Role

BREAKERS = frozenset({Role.ON_CALL, Role.LEAD, Role.ARCHITECTURE, Role.CTO})
REVIEWERS = frozenset({Role.LEAD, Role.ARCHITECTURE, Role.CTO})
ANSWERABLE = (RequestState.OPEN, RequestState.APPROVED)  # what may still go ahead
LONGEST_TEXT = 4_000  # characters of a reason or of notes
LONGEST_TICKET = 200
# A worker may die between preparing the rollout and moving on. So long the same request goes on with what it began.
RESUME_WITHIN = dt.timedelta(minutes=10)

S = BreakGlass.State
MOVES: Mapping[BreakGlass.State, frozenset[BreakGlass.State]] = {
    S.OPENED: frozenset({S.CONFIRMED, S.REVOKED, S.LAPSED}),
    S.CONFIRMED: frozenset({S.USED, S.REVOKED, S.LAPSED}),
    S.USED: frozenset(),
    S.REVOKED: frozenset(),
    S.LAPSED: frozenset(),
}

# Called in the transaction of a confirmation, for what has to follow: higher apps have it reviewed.
on_broken_glass: list[Callable[[BreakGlass], None]] = []
# Called in the transaction of a review.
on_reviewed: list[Callable[[BreakGlass], None]] = []


class Action(StrEnum):
    """What the audit log calls the things that happen here."""

    OPENED = "break_glass.opened"
    CONFIRMED = "break_glass.confirmed"
    USED = "break_glass.used"
    REVOKED = "break_glass.revoked"
    LAPSED = "break_glass.lapsed"
    REVIEWED = "break_glass.reviewed"


class Refused(Exception):
    """A rule forbids it; the text is the rule's own sentence, fit for people."""


class SecondFactorWanted(Refused):
    """Nothing else is missing: the person can give one and try again."""


@dataclass(frozen=True)
class Facts:
    """What the rules need to know of the request and of who took part in it already."""

    kind: str
    state: RequestState
    expired: bool = False
    proposed_by: int | None = None
    edited_by: frozenset[int] = frozenset()
    opened_by: int | None = None


def refusal(person: PersonFacts, facts: Facts, *, how: How | None) -> str:
    """Which rule keeps `person` from breaking the glass, as its first or its second; empty when none does.

    With `how=None` the question is only whether to offer it.
    """
    rules = (
        (not person.active, f"The account of {person.name} is not active."),
        (person.is_service_account, f"{person.name} is a program's account, and this takes two people."),
        (not person.roles & BREAKERS, f"Break-glass is for on-call engineers, leads, architects and the CTO; "
         f"{person.name} is none of them."),
        (facts.kind in NO_ROLLOUT, "The policy is never changed by break-glass: it is what this is measured by."),
        (facts.state not in ANSWERABLE, f"The request is {facts.state}, and "
         "break-glass passes no such answer."),
        (facts.expired, "The request has expired. It has to be asked for again."),
        (person.id == facts.proposed_by, f"{person.name} proposed this; two others are needed."),
        (person.id in facts.edited_by, f"{person.name} edited this; two others are needed."),
        (person.id == facts.opened_by, f"{person.name} opened it; the second person is another one."),
        (person.reset is not None, person.reset.of(person.name) if person.reset else ""),
        (how is not None and how.channel is not Channel.PAGE, "Break-glass is done on its page, by people, and not by "
         "a token or a program."),
        (how is not None and not how.is_fresh, "Break-glass needs a second factor of the last five minutes. Confirm "
         "with a code of your authenticator first."),
    )  # fmt: skip
    return next((why for broken, why in rules if broken), "")


def as_then(person: PersonFacts) -> PersonFacts:
    """Whoever did their part already: a reset of their credentials since undoes nothing."""
    return replace(person, reset=None)


def open_glass(
    request: ApprovalRequest, *, person: User, how: How, reason: str, ticket: str, seen: str, at: dt.datetime
) -> BreakGlass:
    """The first person opens it: nothing passes before the second confirms. Raises Refused with the rule that forbids.

    `seen` is the fingerprint of what the person looked at.
    """
    if not reason.strip() or not ticket.strip():
        raise Refused("Break-glass needs a reason and a ticket: everybody will ask what the emergency was.")
    refuse_too_long(reason)
    refuse_too_long(ticket, longest=LONGEST_TICKET)
    with transaction.atomic():
        row = locked_request(request.pk)
        found = BreakGlass.objects.live().select_related("request", "opened_by", "confirmed_by")
        before = found.select_for_update(no_key=True, of=["self"]).filter(request=row).first()
        if seen != row.fingerprint:
            raise Refused("What you looked at is not what is asked now. Open the request again.")
        refuse(roles.people([person.pk], scope=row.scope, at=at, lock=True)[person.pk], facts_of(row, at), how)
        if before and not has_lapsed(before, at):
            raise Refused("Break-glass is open for this request already. See its page.")
        if before:
            lapse(before, at)
        glass = BreakGlass.objects.create(
            request=row,
            fingerprint=row.fingerprint,
            reason=reason.strip(),
            ticket=ticket.strip(),
            opened_by=person,
            opened_at=at,
        )
        tell(glass, Action.OPENED, f"{person} opened break-glass", "Nothing passes until a second person confirms it.")
        record(glass, Action.OPENED, actor=person, because=glass.reason, was=None)
        return glass


def confirm(glass: BreakGlass, *, person: User, how: How, at: dt.datetime) -> BreakGlass:
    """The second person confirms it: from now on its rollout may start. Raises Refused with the rule that forbids."""
    with transaction.atomic():
        row, one = locked(glass)
        known = roles.people([person.pk, one.opened_by_id], scope=row.scope, at=at, lock=True)
        if one.state != S.OPENED:
            raise Refused(f"This is {one.get_state_display()}; there is nothing to confirm.")
        if has_lapsed(one, at):
            raise Refused("Nobody confirmed it within half an hour. Open it again.")
        if one.fingerprint != row.fingerprint:
            raise Refused("What was opened is not what is asked now. Open it again for what is.")
        refuse(known[person.pk], facts_of(row, at, opened_by=one.opened_by_id), how)
        if why := refusal(as_then(known[one.opened_by_id]), facts_of(row, at), how=None):
            raise Refused(f"Whoever opened it could not any more. {why}")
        move(one, S.CONFIRMED, confirmed_by=person, confirmed_at=at)
        for follow in on_broken_glass:
            follow(one)
        until = f"{at + IN_FORCE_FOR:%Y-%m-%d %H:%M}"
        tell(one, Action.CONFIRMED, f"{person} confirmed break-glass", f"The rollout may start until {until} UTC.")
        record(one, Action.CONFIRMED, actor=person, because=one.reason, was=S.OPENED)
        return one


def revoke(glass: BreakGlass, *, person: User, because: str, at: dt.datetime) -> BreakGlass:
    """Close the door before anything went through. Whoever may open it may close it; it needs no second factor.

    Raises Refused, also when it was used already: a rollout under way is stopped on its own page.
    """
    if not because.strip():
        raise Refused("Write why it is closed: the record needs it.")
    refuse_too_long(because)
    with transaction.atomic():
        row, one = locked(glass)
        facts = roles.people([person.pk], scope=row.scope, at=at, lock=True)[person.pk]
        if not facts.active or not facts.roles & BREAKERS:
            raise Refused(f"{person} may look at break-glass, but not close it.")
        if one.state == S.USED:
            raise Refused("It was used already. Stop the rollout on the page of what rolls out.")
        if one.state not in (S.OPENED, S.CONFIRMED):
            raise Refused(f"It is {one.state} already.")
        end(one, S.REVOKED, Action.REVOKED, at, because=because.strip(), actor=person)
        return one


def broken(row: ApprovalRequest) -> BreakGlass | None:
    """The glass that two people broke for what a locked request asks, locked. See `lets_through`."""
    return (
        BreakGlass.objects.select_for_update(no_key=True, of=["self"])
        .select_related("opened_by", "confirmed_by", "request")
        .filter(request=row, fingerprint=row.fingerprint, state__in=[S.CONFIRMED, S.USED])
        .order_by("-pk")
        .first()
    )


def the_two(glass: BreakGlass | None) -> list[int]:
    """The ids of those who broke it."""
    return [pk for pk in (glass.opened_by_id, glass.confirmed_by_id) if pk] if glass else []


def lets_through(glass: BreakGlass, row: ApprovalRequest, at: dt.datetime, known: Mapping[int, PersonFacts]) -> bool:
    """Whether the subject of a locked request may start by it now; `known` are the two with their rights locked."""
    two, facts = the_two(glass), facts_of(row, at)
    if len(two) < 2 or has_lapsed(glass, at):
        return False
    return not any(refusal(as_then(known[pk]), facts, how=None) for pk in two)


def use(glass: BreakGlass, at: dt.datetime) -> None:
    """Something went through, in the transaction that started it: it does not let anything else through."""
    if glass.state == S.CONFIRMED:
        end(glass, S.USED, Action.USED, at, because=glass.why, used_at=at)


def review(glass: BreakGlass, *, person: User, notes: str, at: dt.datetime) -> BreakGlass:
    """Sign off what was done: a lead, an architect or the CTO who was none of the two. Raises Refused."""
    if not notes.strip():
        raise Refused("Write what the review found: it is what the next emergency learns from.")
    refuse_too_long(notes)
    with transaction.atomic():
        row, one = locked(glass)
        facts = roles.people([person.pk], scope=row.scope, at=at, lock=True)[person.pk]
        if why := why_no_review(one, facts, facts_of(row, at)):
            raise Refused(why)
        one.reviewed_by, one.reviewed_at, one.notes = person, at, notes.strip()
        one.save(update_fields=["reviewed_by", "reviewed_at", "notes"])
        for follow in on_reviewed:
            follow(one)
        record(one, Action.REVIEWED, actor=person, because=one.notes, was=one.state)
        return one


@dataclass(frozen=True)
class Offers:
    """What a person may do with a glass now. A text says why not; empty: it is offered."""

    confirm: str
    revoke: str
    review: str


def may_open(row: ApprovalRequest, person: User, *, at: dt.datetime) -> str:
    """Why `person` cannot open it for this request; empty when it is offered."""
    facts = roles.facts_of(person, scope=row.scope, at=at)
    return refusal(facts, facts_of(row, at), how=None)


def offers(glass: BreakGlass, person: User, *, at: dt.datetime) -> Offers:
    """What the page of a glass offers `person`. The rules are asked once more, under locks, when it is done."""
    row, over = glass.request, has_lapsed(glass, at)
    facts = roles.facts_of(person, scope=row.scope, at=at)
    asked = facts_of(row, at, opened_by=glass.opened_by_id)
    confirm = refusal(facts, asked, how=None)
    if glass.state != S.OPENED or over:
        confirm = "There is nothing to confirm."
    may_revoke = facts.active and facts.roles & BREAKERS and glass.state in (S.OPENED, S.CONFIRMED) and not over
    review = why_no_review(glass, facts, asked)
    return Offers(confirm, "" if may_revoke else "There is nothing that you may close.", review)


def why_no_review(glass: BreakGlass, person: PersonFacts, asked: Facts) -> str:
    """Which rule keeps `person` from reviewing; empty when none does."""
    took_part = {glass.opened_by_id, glass.confirmed_by_id, asked.proposed_by} | asked.edited_by
    rules = (
        (not person.active or not person.roles & REVIEWERS,
         "Break-glass is reviewed by a lead developer, the architecture team or the CTO."),
        (person.id in took_part, f"{person.name} took part in it; somebody else reviews it."),
        (glass.confirmed_at is None, "Nobody confirmed it, so nothing passed and there is nothing to review."),
        (glass.state == S.CONFIRMED, "It is still in force. It is reviewed when it is over; revoke it to end it now."),
        (glass.reviewed_at is not None, f"{glass.reviewed_by} reviewed it already."),
    )  # fmt: skip
    return next((why for broken, why in rules if broken), "")


def has_lapsed(glass: BreakGlass, at: dt.datetime) -> bool:
    """Whether its time is up or its request is over, marked or not."""
    if glass.request.state not in ANSWERABLE:
        return True
    if glass.state == S.OPENED:
        return at >= glass.confirm_until
    if glass.state == S.USED and glass.used_at:
        return at >= glass.used_at + RESUME_WITHIN
    return glass.in_force_until is None or at >= glass.in_force_until


def lapse(glass: BreakGlass, at: dt.datetime) -> None:
    """Write down that a locked one is over."""
    if glass.request.state not in ANSWERABLE:
        because = f"The request is {glass.request.state}."
    elif glass.state == S.OPENED:
        because = f"Nobody confirmed it within {CONFIRM_WITHIN.seconds // 60} minutes."
    else:
        because = f"Not used within {IN_FORCE_FOR.seconds // 3600} hours."
    end(glass, S.LAPSED, Action.LAPSED, at, because=because)


def lapse_due(at: dt.datetime) -> int:
    """Write down what lapsed; how many that were. What is used or confirmed meanwhile looks at the time itself."""
    lapsed = 0
    for glass in list(BreakGlass.objects.live()):
        with transaction.atomic():
            _, one = locked(glass)
            if S.LAPSED in MOVES[S(one.state)] and has_lapsed(one, at):
                lapse(one, at)
                lapsed += 1
    return lapsed


def everybody() -> Iterable[User]:
    """Whoever has a role, and is a person: an emergency is nobody's secret."""
    programs = PersonSettings.objects.filter(is_service_account=True).values("user_id")
    return User.objects.filter(is_active=True, groups__role__isnull=False).exclude(pk__in=programs).distinct()


def facts_of(row: ApprovalRequest, at: dt.datetime, *, opened_by: int | None = None) -> Facts:
    return Facts(
        kind=row.subject_kind,
        state=RequestState(row.state),
        expired=row.expires_at <= at,
        proposed_by=row.proposed_by_id,
        edited_by=frozenset(row.edited_by.values_list("pk", flat=True)),
        opened_by=opened_by,
    )


def refuse_too_long(text: str, *, longest: int = LONGEST_TEXT) -> None:
    if len(text.strip()) > longest:
        what = "A text" if longest == LONGEST_TEXT else "A ticket"
        raise Refused(f"{what} has at most {longest} characters here, and this has {len(text.strip())}.")


def refuse(person: PersonFacts, facts: Facts, how: How) -> None:
    if why := refusal(person, facts, how=how):
        with_one = replace(how, second_factor_age_seconds=0.0)
        raise Refused(why) if refusal(person, facts, how=with_one) else SecondFactorWanted(why)


def locked_request(pk: int) -> ApprovalRequest:
    return ApprovalRequest.objects.select_for_update(no_key=True).get(pk=pk)


def locked(glass: BreakGlass) -> tuple[ApprovalRequest, BreakGlass]:
    row = locked_request(glass.request_id)
    found = BreakGlass.objects.select_related("opened_by", "confirmed_by", "reviewed_by", "request")
    return row, found.select_for_update(no_key=True, of=["self"]).get(pk=glass.pk)


def move(glass: BreakGlass, target: BreakGlass.State, **fields: Any) -> None:
    assert target in MOVES[S(glass.state)], f"{glass.state} → {target} is no legal move"
    for name, value in {"state": target, **fields}.items():
        setattr(glass, name, value)
    glass.save(update_fields=["state", *fields])


def end(
    glass: BreakGlass,
    target: BreakGlass.State,
    action: Action,
    at: dt.datetime,
    *,
    because: str,
    actor: User | None = None,
    **fields: Any,
) -> None:
    origin = S(glass.state)
    move(glass, target, ended_at=at, ended_because=because, **fields)
    record(glass, action, actor=actor, because=because, was=origin)


def tell(glass: BreakGlass, action: Action, what: str, then: str) -> None:
    telling.tell(
        everybody(),
        about="break-glass",
        subject=f"{what}: {glass.request.title}",
        lines=[
            f"{what} for “{glass.request.title}”{f' of {glass.request.scope}' if glass.request.scope else ''}.",
            f"Reason: {glass.reason}",
            f"Ticket: {glass.ticket}",
            then,
        ],
        url=reverse("admin:approvals_breakglass_change", args=[glass.pk]),
        key=f"{action} {glass.pk}",
    )


def record(
    glass: BreakGlass, action: Action, *, actor: User | None, because: str, was: BreakGlass.State | str | None
) -> None:
    row = glass.request
    data = {
        "request": row.pk,
        "subject": f"{row.subject_kind} {row.subject_id}",
        "fingerprint": glass.fingerprint,
        "tier": row.tier,
        "ticket": glass.ticket,
        "opened_by": glass.opened_by.username,
        "confirmed_by": glass.confirmed_by.username if glass.confirmed_by else None,
    }
    audit.record(action, glass, actor=actor, because=because, was=was, became=glass.state, data=data)
    # Whoever waits for the request looks again at once.
    transaction.on_commit(partial(subjects.tell, row.subject_kind, row.subject_id), robust=True)
