"""Rollbacks that people drilled: told once, with a name, so that the monthly review can count them."""

from __future__ import annotations

import datetime as dt

from django.contrib.auth.models import User
from django.db import transaction

from approvals import audit, roles
from approvals.roles import OPERATING_ROLES
from improvements.models import RollbackDrill

# It counts in the month in which it is told; older than this, nobody remembers the seconds.
LATEST = dt.timedelta(days=31)


class Refused(ValueError):
    """It is not recorded; the message is the rule's own sentence."""


def tell(drill: RollbackDrill, *, person: User, at: dt.datetime) -> RollbackDrill:
    """Record an unsaved `drill` in the name of `person`, who operates its service. Raises Refused."""
    drill.tried, drill.notes = audit.plain(drill.tried.strip()), audit.plain(drill.notes.strip())
    with transaction.atomic():
        facts = roles.facts_of(person, scope=drill.service.name, lock=True)
        held = [role for role in OPERATING_ROLES if role in facts.roles]
        if not facts.may_count or not held:
            raise Refused(
                " ".join((f"{person} has no role for {drill.service.name} in which drills are done.", *facts.elsewhere))
            )
        if not at - LATEST <= drill.drilled_at <= at:
            raise Refused(f"A drill is told within {LATEST.days} days after it, and not before it.")
        if not drill.tried or not drill.notes:
            raise Refused("Write what was tried and what follows from it: that is what the review reads.")
        drill.recorded_by, drill.recorded_as, drill.recorded_at = person, held[0], at
        drill.save(force_insert=True)
        told = {"service": drill.service.name, "drilled_at": drill.drilled_at, "tried": drill.tried}
        told |= {"seconds": drill.seconds, "worked": drill.worked, "as": drill.recorded_as}
        audit.record("rollback.drilled", drill, actor=person, because=drill.notes, data=told)
    return drill
