"""Whether a person gets the digest, and in which time zone; and the link in it that stops it without signing in."""

from __future__ import annotations

import zoneinfo

from django.contrib.auth.models import User
from django.core import signing
from django.db import transaction
from django.urls import reverse

from approvals import audit
from approvals.models import PersonSettings
from improvements.digest.parts import address

SALT = "improvements.digest.unsubscribe"


def unsubscribe_url(user: User) -> str:
    """The address that stops the digest of exactly this person. It does not expire, as old mails do not."""
    token = signing.Signer(salt=SALT).sign_object(user.pk)
    return address(reverse("digest-unsubscribe", args=[token]))


def reader_of_token(token: str) -> User | None:
    """Whose link it is; None for one that RuneRogue did not make, and for people who are gone."""
    try:
        pk = signing.Signer(salt=SALT).unsign_object(token)
    except signing.BadSignature:
        return None
    return User.objects.filter(pk=pk).first() if isinstance(pk, int) else None


def subscribe(user: User, wants: bool, *, actor: User, because: str) -> bool:
    """Have `user` get the digest or not, and record it. False when it was so already."""
    return change(user, wants_digest=wants, actor=actor, because=because)


def set_time_zone(user: User, name: str, *, actor: User) -> bool:
    """Raises ValueError for what is no IANA time zone. False when it was so already."""
    name = name.strip()
    # Only names of the list: a path would be read from the disk.
    if name not in zoneinfo.available_timezones():
        raise ValueError(f"There is no time zone {name!r}. Names look like Europe/Berlin; UTC is one too.")
    return change(user, time_zone=name, actor=actor, because="")


def change(user: User, *, actor: User, because: str, **wanted: str | bool) -> bool:
    with transaction.atomic():
        PersonSettings.objects.get_or_create(user=user)
        row = PersonSettings.objects.select_for_update().get(user=user)
        was = {name: getattr(row, name) for name in wanted}
        if was == wanted:
            return False
        for name, value in wanted.items():
            setattr(row, name, value)
        row.save(update_fields=list(wanted))
        audit.record("person.settings-changed", user, actor=actor, because=because, was=was, became=wanted)
    return True
