"""Reviews: made when their period ends, given to a role, signed off by a person, escalated when nobody does.

Every change locks the review's row first, then reads people's rights under that lock, and writes its audit entry last.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from zoneinfo import ZoneInfo

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction

from approvals import audit, roles, telling
from approvals.fingerprint import digest
from approvals.models import AuditEntry, PersonSettings, WorkingHours
from approvals.policy import PersonFacts, Role
from improvements.cadence import (
    CHAIN,
    NEXT_WORKING_DAYS,
    REVIEWS,
    Kind,
    Period,
    ended,
    is_working_day,
    levels,
    local_day,
    working_days_after,
)
from improvements.cadence import responsible as responsible_roles
from improvements.governance import monthly, quarterly, weekly, yearly
from improvements.governance.facts import Section, Window, as_json
from improvements.governance.recorded import began_at
from improvements.models import Review

COMPOSE: Mapping[Kind, Callable[[Window], list[Section]]] = {
    Kind.WEEKLY: weekly.compose,
    Kind.MONTHLY: monthly.compose,
    Kind.QUARTERLY: quarterly.compose,
    Kind.YEARLY: yearly.compose,
}
MADE = "review.made"


class Refused(ValueError):
    """It can't be signed off; the message is the rule's own sentence."""


def zone() -> ZoneInfo:
    """Where the installation is."""
    found: ZoneInfo = settings.INSTALLATION_TIME_ZONE
    return found


# --- Making ------------------------------------------------------------------------------------------------------


def make_due(at: dt.datetime) -> list[Review]:
    """Make the reviews of the periods that have ended, those missed while the system was down too. Returns the new
    ones; repeats harmlessly. Nothing is made of the time before this installation began.
    """
    began = began_at()
    if began is None:
        return []
    known = set(Review.objects.exclude(kind=Kind.BREAK_GLASS).values_list("kind", "period"))
    made = []
    for kind in COMPOSE:
        for period in ended(kind, local_day(at, zone())):
            if (kind.value, period.name) not in known and period.bounds(zone())[1] > began:
                made.append(_of_period(period, at))
    return [review for review in made if review is not None]


def review_break_glass(
    key: str,
    *,
    title: str,
    url: str,
    facts: Sequence[Section],
    broken_by: Iterable[User],
    at: dt.datetime,
    scope: str = "",
) -> Review | None:
    """The review of an emergency of the service `scope`; None when the one of this `key` exists already.

    Those who broke the glass may not sign it off. Called in the transaction of what it is about, or outside of any.
    """
    barred = list(broken_by)
    return _make(
        Kind.BREAK_GLASS, key, title, at=at, since=at, until=at, facts=facts, url=url, barred=barred, scope=scope
    )


def _of_period(period: Period, at: dt.datetime) -> Review | None:
    since, until = period.bounds(zone())
    facts = COMPOSE[period.kind](Window(since, until, at))
    title = f"{period.kind.capitalize()} review {period.name}: {REVIEWS[period.kind].about}"
    return _make(period.kind, period.name, title, at=at, since=since, until=until, facts=facts)


def _make(
    kind: Kind,
    period: str,
    title: str,
    *,
    at: dt.datetime,
    since: dt.datetime,
    until: dt.datetime,
    facts: Sequence[Section],
    url: str = "",
    barred: Sequence[User] = (),
    scope: str = "",
) -> Review | None:
    rule, packet = REVIEWS[kind], audit.plain(as_json(facts))
    due_on = working_days_after(local_day(at, zone()), rule.working_days, WorkingHours.objects.of(scope))
    sha256 = digest(packet)
    without = [person.pk for person in barred]
    try:
        with transaction.atomic():
            review = Review.objects.create(
                kind=kind,
                period=period[:80],
                title=audit.plain(title)[:200],
                scope=scope,
                url=url,
                since=since,
                until=until,
                facts=packet,
                facts_sha256=sha256,
                role=rule.role,
                level=_first_level(rule.role, without, scope),
                made_at=at,
                due_on=due_on,
                escalates_after=due_on,
            )
            review.barred.set(barred)
            _tell(review, f"It is due by the end of {review.due_on:%Y-%m-%d}.", occasion="made")
            given = {"given_to": review.responsible[-1], "due_on": review.due_on, "barred": list(barred)}
            audit.record(MADE, review, because=title, data={"facts_sha256": sha256, **given})
    except IntegrityError:
        # Another worker made it at this moment; whatever else is wrong shows here.
        if not Review.objects.filter(kind=kind, period=period[:80]).exists():
            raise
        return None
    return review


def _first_level(role: Role, without: Sequence[int], scope: str) -> int:
    """Given at once to the next role that has somebody who may sign it off; to its own role where none has."""
    for level in range(len(CHAIN) - CHAIN.index(role)):
        if roles.holders([responsible_roles(role, level)[-1]], scope=scope, without=without):
            return level
    return 0


# --- Escalating --------------------------------------------------------------------------------------------------


def escalate_overdue(at: dt.datetime) -> int:
    """Give what is overdue to the next role and tell them; the last one is told once more. Returns how many.

    On working days only, one role at a time: also after a long pause of the system each one has its days.
    """
    today = local_day(at, zone())
    return sum(_escalate(pk, today) for pk in list(Review.objects.to_escalate(today).values_list("pk", flat=True)))


def _escalate(pk: int, today: dt.date) -> bool:
    with transaction.atomic():
        review = Review.objects.select_for_update().get(pk=pk)
        week = WorkingHours.objects.of(review.scope)
        is_late = review.signed_at is None and review.escalates_after < today and is_working_day(today, week)
        if not is_late or review.level >= levels(Role(review.role)):
            return False
        was, review.level = review.responsible[-1], review.level + 1
        review.escalates_after = working_days_after(today, NEXT_WORKING_DAYS, week)
        review.save(update_fields=["level", "escalates_after"])
        because = f"Nobody signed it off; it was due on {review.due_on:%Y-%m-%d}."
        _tell(review, because, occasion=f"overdue-{review.level}")
        audit.record("review.escalated", review, because=because, was=was, became=review.responsible[-1])
    return True


def _tell(review: Review, what: str, *, occasion: str) -> None:
    barred = review.barred.values_list("pk", flat=True)
    names = roles.holders([review.responsible[-1]], scope=review.scope, without=barred)
    telling.tell(
        User.objects.filter(username__in=names),
        about="review",
        subject=f"To review: {review.title}",
        lines=[what, "Its facts are on its page, where it is signed off with notes."],
        url=review.get_absolute_url(),
        key=f"review-{review.pk}-{occasion}",
    )


# --- Signing off -------------------------------------------------------------------------------------------------


def sign_off(review: Review, *, person: User, notes: str, at: dt.datetime) -> Review:
    """`person` has looked at the facts and says in `notes` what follows from them. Once; raises Refused."""
    notes = notes.strip()
    with transaction.atomic():
        row = Review.objects.select_for_update().get(pk=review.pk)
        facts = roles.facts_of(person, scope=row.scope, lock=True)
        role = may_sign_off(row, facts)
        if not notes:
            raise Refused("Write what you looked at and what follows from it: the notes are the review.")
        row.signed_by, row.signed_as, row.signed_at, row.notes = person, role, at, audit.plain(notes)[:10_000]
        row.save(update_fields=["signed_by", "signed_as", "signed_at", "notes"])
        audit.record(
            "review.signed", row, actor=person, because=row.notes,
            data={"as": role, "facts_sha256": row.facts_sha256, "overdue": row.due_on < local_day(at, zone())},
        )  # fmt: skip
    return row


def may_sign_off(review: Review, person: PersonFacts) -> Role:
    """As what `person`, as they are for its service, may sign it off now. Raises Refused with the rule that forbids."""
    if review.signed_at is not None:
        raise Refused(f"{review.signed_by} signed it off already.")
    if not person.active:
        raise Refused(f"The account of {person.name} is not active.")
    if PersonSettings.objects.filter(user=person.id, is_service_account=True).exists():
        raise Refused(f"{person.name} is a program's account, and programs review nothing.")
    if review.barred.filter(pk=person.id).exists():
        raise Refused(f"{person.name} took part in what this review is about, so somebody else signs it off.")
    fitting = [role for role in reversed(review.responsible) if role in person.roles]
    if not fitting:
        wanted = " or ".join(role.title for role in review.responsible)
        raise Refused(" ".join((f"It is for {wanted} to sign off; {person.name} has no such role.", *person.elsewhere)))
    return fitting[0]


def awaiting(person: User, rights: roles.Snapshot | None = None) -> list[Review]:
    """The open reviews that `person` may sign off now, the most urgent first. `rights` are theirs, if known already."""
    found = list(Review.objects.open().exclude(barred=person).defer("facts").order_by("due_on", "pk"))
    if not found:
        return []
    rights = rights or roles.snapshot([person.pk])
    known = {scope: rights.people(scope)[person.pk] for scope in {review.scope for review in found}}
    held = {scope: facts.roles if facts.may_count else frozenset() for scope, facts in known.items()}
    return [review for review in found if held[review.scope] & set(review.responsible)]


def is_as_frozen(review: Review) -> bool:
    """Whether the facts are still those whose hash the audit log took down when the review was made."""
    made = AuditEntry.objects.about(review).filter(action=MADE).first()
    return made is not None and made.data.get("facts_sha256") == digest(review.facts)
