"""Naming deputies and the people of services. Whoever gives or takes a right here is written down."""

from __future__ import annotations

import datetime as dt
from copy import copy

from django.contrib.auth.models import User
from django.db import transaction
from django.utils.timezone import now

from approvals import audit, roles
from approvals.models.deputy import Deputy
from approvals.models.team import TeamMember
from approvals.policy import ANYBODY_SENIOR, PersonFacts, Role
from approvals.teams import TEAM_ROLES

LONGEST = dt.timedelta(days=183)


class NotNamed(ValueError):
    """Nobody was named; the message says which rule forbids it."""


def name_deputy(
    principal: User,
    deputy: User,
    *,
    since: dt.datetime,
    until: dt.datetime,
    because: str,
    actor: User,
    role: Role | None = None,
) -> Deputy:
    """Let `deputy` sign with the right of `principal` from `since` until `until`, in one role or in all.

    The principal names the deputy. For somebody who can't, a superuser does, but never names themself. Only what the
    principal holds by their own groups is lent, so nothing is handed on. Raises NotNamed.
    """
    with transaction.atomic():
        roles.rights_change()
        if why := why_not(principal, deputy, since=since, until=until, because=because, actor=actor, role=role):
            raise NotNamed(why)
        row = Deputy.objects.create(
            principal=principal,
            deputy=deputy,
            role=role or "",
            since=since,
            until=until,
            because=because.strip()[:500],
            made_by=actor,
        )
        audit.record("deputy.named", row, actor=actor, because=row.because, became=_told(row))
        return row


def why_not(
    principal: User,
    deputy: User,
    *,
    since: dt.datetime,
    until: dt.datetime,
    because: str,
    actor: User,
    role: Role | None = None,
) -> str:
    """Which rule forbids it to name this deputy now; empty when none does."""
    facts = roles.people([principal.pk, deputy.pk], scope=roles.ANYWHERE)
    return _refused(facts[principal.pk], facts[deputy.pk], actor, role, since, until, because)


def _refused(
    principal: PersonFacts,
    deputy: PersonFacts,
    actor: User,
    role: Role | None,
    since: dt.datetime,
    until: dt.datetime,
    because: str,
) -> str:
    lent = principal.roles & ANYBODY_SENIOR
    rules = (
        (not because.strip(), "Say why somebody stands in: the log keeps it."),
        (principal.id == deputy.id, f"{principal.name} cannot stand in for themself."),
        (
            actor.pk != principal.id and not (actor.is_superuser and actor.is_active),
            f"{principal.name} names their deputy, or a superuser does; you may not.",
        ),
        (
            actor.pk == deputy.id,
            "Nobody makes themself a deputy: the person who is away does it, or another superuser.",
        ),
        (not principal.may_count, f"{principal.name} cannot sign, so there is no right to lend."),
        (not lent, f"{principal.name} holds no role that signs by a group of their own, so there is nothing to lend."),
        (
            role is not None and role not in lent,
            f"{principal.name} does not hold the role {role} by a group of their own.",
        ),
        (not deputy.active, f"The account of {deputy.name} is not active."),
        (deputy.is_service_account, f"{deputy.name} is the account of a program, and programs never sign."),
        (until <= since, "It ends before it begins."),
        (until <= now(), "It is over already."),
        (until - since > LONGEST, f"Nobody stands in for longer than {LONGEST.days} days at a time."),
    )
    return next((why for broken, why in rules if broken), "")


def end_deputy(row: Deputy, *, actor: User, because: str) -> Deputy:
    """End it now. The principal, the deputy or a superuser may; signatures given that way count no more."""
    with transaction.atomic():
        roles.rights_change()
        row = Deputy.objects.select_for_update().get(pk=row.pk)
        if actor.pk not in (row.principal_id, row.deputy_id) and not actor.is_superuser:
            raise NotNamed(f"Only {row.principal}, {row.deputy} or a superuser may end this.")
        at = now()
        if row.ended_at is not None or row.until <= at:
            return row
        row.ended_at = at
        row.save(update_fields=["ended_at"])
        audit.record("deputy.ended", row, actor=actor, because=because.strip(), was=_told(row), became={"ended_at": at})
        return row


def name_member(scope: str, role: Role, person: User, *, actor: User | None, because: str = "") -> TeamMember:
    """Name `person` as one of the people of the service `scope` for `role`. Naming somebody twice changes nothing.

    From the first one on, others no longer hold the role there. Raises NotNamed.
    """
    if role not in TEAM_ROLES:
        raise NotNamed(f"{role.title[:1].upper()}{role.title[1:]} is of all services; teams name others.")
    if not scope.strip():
        raise NotNamed("A team belongs to a service: name one.")
    with transaction.atomic():
        roles.rights_change()
        if roles.facts_of(person).is_service_account:
            raise NotNamed(f"{person} is the account of a program, and programs never sign.")
        row, is_new = TeamMember.objects.get_or_create(scope=scope.strip(), role=role, person=person)
        if is_new:
            audit.record("team.named", row, actor=actor, because=because, became=_member(row))
        return row


def drop_member(row: TeamMember, *, actor: User | None, because: str = "") -> None:
    """Name this person no longer. Where nobody is named any more, the whole group holds the role again."""
    with transaction.atomic():
        roles.rights_change()
        dropped, was = copy(row), _member(row)
        row.delete()
        audit.record("team.dropped", dropped, actor=actor, because=because, was=was)


def _told(row: Deputy) -> dict[str, object]:
    return {
        "principal": row.principal.username,
        "deputy": row.deputy.username,
        "role": row.role or "every role",
        "since": row.since,
        "until": row.until,
    }


def _member(row: TeamMember) -> dict[str, object]:
    return {"service": row.scope, "role": row.role, "person": row.person.username}
