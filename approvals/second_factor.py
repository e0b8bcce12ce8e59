"""The second factor: one-time codes of an authenticator app, and recovery codes for the day it is lost.

Each code counts once. Wrong codes make the next one wait (django-otp's throttling), so their count must survive
whatever the caller does: `verify` and `confirm` begin their own transaction and refuse to be called inside of another.
"""

from __future__ import annotations

import base64
import datetime as dt
import io
import logging
import os
import secrets
from dataclasses import replace
from enum import StrEnum
from typing import Any
from urllib.parse import quote, urlencode

from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpRequest
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.timezone import now

from approvals import audit, concealing, sessions, settling, telling
from approvals.models import Authenticator, RecoveryCode
from approvals.policy import Channel, How

log = logging.getLogger(__name__)

GIVEN_AT = "second_factor_at"  # in the session: seconds since 1970
ISSUER = "RuneRogue"
KEY_BYTES = 20  # as long as the hash, which RFC 4226 recommends
BEGUN_FOR = dt.timedelta(hours=1)  # how long a key that was shown waits for its first code
RECOVERY_CODES = 10


class Action(StrEnum):
    """What the audit log calls the things that happen here. No entry holds a code or a key."""

    GIVEN = "signin.factor_given"
    FAILED = "signin.factor_failed"
    ENROLLED = "signin.factor_enrolled"
    REMOVED = "signin.factor_removed"
    RESET = "signin.factor_reset"
    CODES_MADE = "signin.recovery_codes_made"
    CODE_USED = "signin.recovery_code_used"


class NotAllowed(Exception):
    """A rule forbids it; the text is the rule's own sentence, fit for people."""


# --- How somebody decides ----------------------------------------------------------------------------------------


def note(request: HttpRequest, at: dt.datetime) -> None:
    """Remember that the person gave a second factor `at` that time; the caller has verified it.

    The session gets a new key: one that somebody knew before is not the one that may sign.
    """
    request.session[GIVEN_AT] = at.timestamp()
    request.session.cycle_key()


def how(request: HttpRequest, at: dt.datetime) -> How:
    """How the person behind a page's request decides."""
    given = request.session.get(GIVEN_AT)
    return How(Channel.PAGE, None if given is None else at.timestamp() - float(given))


def how_by_token(request: HttpRequest, code: str, at: dt.datetime) -> How:
    """How the person of an API token decides: with `code`, verified and used up here, or with the token alone.

    Call it outside of a transaction (in a view of approvals.rest: in `prepare`, not in the handler).
    """
    alone = How(Channel.TOKEN)
    given = bool(code) and isinstance(request.user, User) and verify(request.user, code, at)
    return replace(alone, second_factor_age_seconds=0.0) if given else alone


def step_up_url(request: HttpRequest, next_page: str = "") -> str:
    """The page that asks for a code and leads on to `next_page`; without one of this site, to where `request` is."""
    return f"{reverse('second-factor')}?{urlencode({'next': safe_next(request, next_page) or request.path})}"


def safe_next(request: HttpRequest, page: str) -> str:
    """`page` if it is one of this site, else "": nobody is led elsewhere from a page that asked for a code."""
    # As a browser reads it: controls and backslashes could make another host of it.
    if not page.startswith("/") or not page.isprintable():
        return ""
    return page if url_has_allowed_host_and_scheme(page, allowed_hosts=None, require_https=request.is_secure()) else ""


# --- Giving one --------------------------------------------------------------------------------------------------


def has_device(person: User) -> bool:
    return Authenticator.objects.of(person.pk).exists()


def seconds_to_wait(person: User) -> int:
    """How long until the next code is looked at, after wrong ones."""
    device = Authenticator.objects.of(person.pk).first() or Authenticator.objects.begun(person.pk).first()
    why = device.verify_is_allowed()[1] if device else None
    return max(1, round((why["locked_until"] - now()).total_seconds())) if why else 0


def verify(person: User, code: str, at: dt.datetime) -> bool:
    """Whether `code` is a code of the person's authenticator, or one of their recovery codes; then it is used up."""
    code = code.strip()
    with transaction.atomic(durable=True):
        device = _locked(Authenticator.objects.of(person.pk))
        if device is None or not device.verify_is_allowed()[0]:
            return False  # not recorded: what is not looked at may be repeated as often as one likes
        if _accepted(device, code.replace(" ", ""), at):
            audit.record(Action.GIVEN, person, actor=person)
            return True
        used = RecoveryCode.objects.left(person.pk).filter(digest=RecoveryCode.digest_of(code)).update(used_at=at)
        if used:
            device.throttle_reset()
            left = RecoveryCode.objects.left(person.pk).count()
            audit.record(Action.CODE_USED, person, actor=person, data={"left": left})
            _tell(
                person, "A recovery code was used", [f"One of your recovery codes was used; {left} are left."], key=at
            )
            return True
        device.refuse()
        data = {"in_a_row": device.throttling_failure_count}
        audit.record(Action.FAILED, person, actor=person, data=data, outcome=audit.Outcome.FAILED)
        return False


def _accepted(device: Authenticator, code: str, at: dt.datetime) -> bool:
    try:
        return device.accepts(code, at)
    except concealing.Unreadable:
        log.error("The authenticator of person %s can't be read: SECRET_KEY is another one.", device.user_id)
        return False


def _locked(devices: Any) -> Authenticator | None:
    found: Authenticator | None = devices.select_for_update().first()
    return found


# --- Enrolling ---------------------------------------------------------------------------------------------------


def begin(person: User, at: dt.datetime) -> Authenticator:
    """The authenticator to be confirmed by its first code; the same one for an hour, so that a page may be reloaded."""
    with transaction.atomic():
        User.objects.select_for_update(no_key=True).get(pk=person.pk)  # of two tabs, the second finds the first's
        device = Authenticator.objects.begun(person.pk).first()
        if device and device.created_at > at - BEGUN_FOR:
            return device
        Authenticator.objects.begun(person.pk).delete()
        return _made(person, at, confirmed=False)


def confirm(person: User, code: str, at: dt.datetime) -> list[str] | None:
    """Put the begun authenticator into force if `code` is its own, and return new recovery codes; None if not.

    It takes the place of the one there was; the caller has made sure of a fresh second factor then.
    """
    with transaction.atomic(durable=True):
        device = _locked(Authenticator.objects.begun(person.pk))
        if device is None or device.created_at <= at - BEGUN_FOR or not device.verify_is_allowed()[0]:
            return None
        if not _accepted(device, code.replace(" ", ""), at):
            device.refuse()
            because = "Wrong first code of a new authenticator."
            audit.record(Action.FAILED, person, actor=person, because=because, outcome=audit.Outcome.FAILED)
            return None
        return _put_into_force(device, person, at, actor=person)


def enrol_at_the_machine(person: User, at: dt.datetime, because: str) -> Authenticator:
    """An authenticator in force at once, for who shows its key to the person: a command, never a page."""
    with transaction.atomic():
        Authenticator.objects.begun(person.pk).delete()
        device = _made(person, at, confirmed=False)
        _put_into_force(device, person, at, actor=None, because=because)
        return device


def _made(person: User, at: dt.datetime, *, confirmed: bool) -> Authenticator:
    key = concealing.conceal(os.urandom(KEY_BYTES).hex())
    return Authenticator.objects.create(
        user=person, name="authenticator app", confirmed=confirmed, concealed_key=key, created_at=at
    )


def _put_into_force(
    device: Authenticator, person: User, at: dt.datetime, *, actor: User | None, because: str = ""
) -> list[str]:
    replaced, _ = Authenticator.objects.of(person.pk).delete()
    device.confirmed = True
    device.save(update_fields=["confirmed"])
    codes = _new_codes(person)
    _tell(
        person,
        "An authenticator was set up for your account",
        ["From now on its codes are your second factor.", "If this was not you, tell an administrator at once."],
        key=at,
    )
    data = {"replaced": bool(replaced), "recovery_codes": len(codes)}
    audit.record(Action.ENROLLED, person, actor=actor, because=because, data=data)
    return codes


def uri(device: Authenticator) -> str:
    """What an authenticator app reads from the picture (Google's Key URI format)."""
    label = quote(f"{ISSUER}:{device.user.get_username()}")
    # The defaults (SHA-1, 6 digits, 30 s) are what every app assumes; naming them makes the picture denser.
    return f"otpauth://totp/{label}?{urlencode({'secret': shown_key(device), 'issuer': ISSUER})}"


def shown_key(device: Authenticator) -> str:
    """The key as people type it: base32 without padding."""
    return base64.b32encode(device.key).decode().rstrip("=")


def picture(device: Authenticator) -> str:
    """The QR code as inline SVG: no script, no style, nothing fetched."""
    import segno  # only this page needs it

    drawn = io.BytesIO()
    segno.make(uri(device), error="m").save(
        drawn, kind="svg", scale=5, border=4, light="#fff", dark="#000", xmldecl=False, svgclass="qr", lineclass=None,
        title="QR code for your authenticator app", omitsize=True,
    )  # fmt: skip
    return drawn.getvalue().decode()


# --- Recovery codes, removal, reset ------------------------------------------------------------------------------


def new_recovery_codes(person: User, *, by: How, at: dt.datetime) -> list[str]:
    """Ten new codes in the place of all there were; told here and never again. Raises NotAllowed."""
    _demand_fresh(by)
    with transaction.atomic():
        codes = _new_codes(person)
        _tell(person, "New recovery codes were made for your account", ["The old ones no longer count."], key=at)
        audit.record(Action.CODES_MADE, person, actor=person, data={"recovery_codes": len(codes)})
        return codes


def _new_codes(person: User) -> list[str]:
    codes = [base64.b32encode(secrets.token_bytes(10)).decode().lower() for _ in range(RECOVERY_CODES)]
    RecoveryCode.objects.filter(person=person).delete()
    RecoveryCode.objects.bulk_create(RecoveryCode(person=person, digest=RecoveryCode.digest_of(one)) for one in codes)
    return ["-".join(one[start : start + 4] for start in range(0, 16, 4)) for one in codes]


def remove(person: User, *, by: How, at: dt.datetime) -> None:
    """Take one's own second factor away. Raises NotAllowed without a fresh one."""
    _demand_fresh(by)
    with transaction.atomic():
        _forget(person)
        _tell(person, "Your second factor was removed", ["If this was not you, tell an administrator at once."], key=at)
        audit.record(Action.REMOVED, person, actor=person)


def reset(person: User, *, actor: User, by: How, because: str, at: dt.datetime) -> None:
    """Take the second factor of somebody who lost it, and sign them out everywhere. Raises NotAllowed.

    Superusers only, with a second factor of their own, never for themselves, and the person is told: whoever resets
    could otherwise enrol a device of their own in the other's name unseen.
    """
    if not actor.is_superuser or not actor.is_active:
        raise NotAllowed("Only an administrator resets the second factor of somebody.")
    if actor.pk == person.pk:
        raise NotAllowed("Nobody resets their own second factor: use a recovery code, or ask another administrator.")
    _demand_fresh(by)
    _reset(person, actor, because.strip(), at)


def reset_at_the_machine(person: User, *, because: str, at: dt.datetime) -> None:
    """The same by a command, for when no administrator is left who could. Raises NotAllowed."""
    _reset(person, None, because.strip(), at)


def _reset(person: User, actor: User | None, because: str, at: dt.datetime) -> None:
    if not because:
        raise NotAllowed("Say why: how do you know that it was this person who asked?")
    with transaction.atomic():
        _forget(person)
        waits = settling.note(person, what="second factor", by=actor, at=at)
        ended = sessions.end_all(person)
        lines = [f"Reason: {because}", "You were signed out everywhere. If this was not your wish, say so at once."]
        if waits:
            until = f"{settling.settles_at(at):%Y-%m-%d %H:%M}"
            lines.append(f"Until {until} UTC nothing of high or critical risk is signed in your name.")
        _tell(person, f"{actor or 'Somebody at the machine'} reset your second factor", lines, key=at)
        audit.record(Action.RESET, person, actor=actor, because=because, data={"sessions_ended": ended})


def _demand_fresh(by: How) -> None:
    if not by.is_fresh:
        raise NotAllowed("This needs a second factor of the last five minutes. Confirm with a code first.")


def _forget(person: User) -> None:
    Authenticator.objects.filter(user=person).delete()
    RecoveryCode.objects.filter(person=person).delete()


def _tell(person: User, subject: str, lines: list[str], *, key: dt.datetime) -> None:
    telling.tell(
        [person],
        about="second factor",
        subject=f"RuneRogue: {subject}",
        lines=[f"{subject}, {key:%Y-%m-%d %H:%M} UTC.", *lines],
        url=reverse("second-factor-settings"),
        key=f"second factor {person.pk} {key.isoformat()} {subject}"[:150],
    )
