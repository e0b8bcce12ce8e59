"""After somebody else reset a person's second factor or password, high and critical wait for the person to notice.

An administrator could otherwise sign in the name of somebody else within minutes; the mail about it may be read later.
"""

from __future__ import annotations

import datetime as dt

from django.conf import settings
from django.contrib.auth.models import User

from approvals.models.credentials import CredentialsReset
from approvals.policy import Reset

AT_THE_MACHINE = "somebody at the machine"


def note(person: User, *, what: str, by: User | None, at: dt.datetime) -> bool:
    """Write down that `by` (None: a command) replaced `what` of `person`, and return whether that makes them wait.

    It does not where the person did it themself, nor where they never signed in: an account that an administrator makes
    has signed nothing yet that anybody could mistake for it, and its rights are given, and recorded, one by one.
    Call it in a transaction, before its audit entry.
    """
    if by == person or not User.objects.filter(pk=person.pk, last_login__isnull=False).exists():
        return False
    now_known = {"what": what, "by": by.username if by else AT_THE_MACHINE, "at": at}
    CredentialsReset.objects.update_or_create(person=person, defaults=now_known)
    return True


def settles_at(reset_at: dt.datetime) -> dt.datetime:
    """From when on the person may sign again."""
    return reset_at + dt.timedelta(hours=settings.CREDENTIALS_SETTLE_HOURS)


def unsettled(what: str | None, by: str | None, reset_at: dt.datetime | None, at: dt.datetime) -> Reset | None:
    """What the row of a person means for the policy at that time; None when it is long ago, or never was."""
    if not what or not by or reset_at is None or settles_at(reset_at) <= at:
        return None
    return Reset(what, by, reset_at, settles_at(reset_at))
