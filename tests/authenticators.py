"""An authenticator app, as a person's phone has it."""

from __future__ import annotations

import base64
import datetime as dt

from django.contrib.auth.models import User
from django.utils.timezone import now
from django_otp.oath import hotp

from approvals import second_factor
from approvals.models import Authenticator


def code_of(key: str, at: dt.datetime | None = None, *, ahead: int = 0) -> str:
    """The six digits that an app with this base32 key shows at that time, or `ahead` steps of 30 s later."""
    bare = key.replace(" ", "")
    secret = base64.b32decode(bare + "=" * (-len(bare) % 8))
    return f"{hotp(secret, int((at or now()).timestamp()) // 30 + ahead):06d}"


def enrolled(person: User, at: dt.datetime | None = None) -> str:
    """Give `person` an authenticator in force; its key in base32."""
    second_factor.enrol_at_the_machine(person, at or now(), because="test")
    return second_factor.shown_key(Authenticator.objects.of(person.pk).get())
