"""Who guesses passwords has to wait; who is guessed at can still sign in.

Failures are counted by name and address together, by address, and by name. The last would let anybody keep a person out
by guessing from many addresses, so a browser in which that person has signed in before (a signed cookie says so) is
counted by itself and knows neither of the other two. Nobody waits longer than SIGN_IN_LOCK_MINUTES: what is
tried meanwhile is not even looked at and moves nothing on.

A failed sign-in costs its counters and one row that is folded into the audit log by the minute and name: whoever
guesses neither fills the log nor makes those wait who write it.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from axes.handlers.base import AxesHandler
from django.conf import settings
from django.contrib.auth.models import User
from django.core import signing
from django.db import connection, transaction
from django.db.models import Max, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.timezone import now

from approvals import audit, whence
from approvals.models import Counted, SignInFailures

MOST_BY_ADDRESS = 30  # an office shares one, and people mistype
MOST_BY_NAME = 50  # NIST SP 800-63B allows a hundred
COOKIE, SALT = "rr_browser", "approvals.lockouts.browser"
COOKIE_SECONDS = 180 * 86_400
ORIGINS_NAMED = 5
FAILED, LOCKED, UNLOCKED = "signin.failed", "signin.locked", "signin.unlocked"


def limits() -> Mapping[Counted, int]:
    return {
        Counted.PAIR: settings.SIGN_IN_FAILURES,
        Counted.BROWSER: settings.SIGN_IN_FAILURES,
        Counted.ADDRESS: MOST_BY_ADDRESS,
        Counted.NAME: MOST_BY_NAME,
    }


def lock_time() -> dt.timedelta:
    return dt.timedelta(minutes=settings.SIGN_IN_LOCK_MINUTES)


@dataclass(frozen=True)
class Attempt:
    """Somebody wants to sign in: as whom, and by what their failures are counted."""

    person: User | None  # None: nobody has that name
    keys: Mapping[Counted, str]
    origin: str


def attempt_of(request: HttpRequest, name: str) -> Attempt:
    """What `request` tries for the name that was typed, whether or not anybody has it."""
    person = User.objects.filter(username=name).first()
    browser = known_browser(request, person)
    address = whence.address_of(request)
    if browser:
        keys = {Counted.BROWSER: whence.keyed("browser", browser)}
    else:
        keys = {
            Counted.PAIR: whence.keyed("pair", name, address),
            Counted.NAME: whence.keyed("name", name),
            Counted.ADDRESS: whence.keyed("address", address),
        }
    return Attempt(person, keys, whence.origin_of(request))


def locking(at: dt.datetime) -> QuerySet[SignInFailures]:
    """The counters that are full, and for whose sake somebody has to wait."""
    full = Q()
    for kind, limit in limits().items():
        full |= Q(kind=kind, failures__gte=limit)
    return SignInFailures.objects.filter(full, last_at__gt=at - lock_time())


def locked_until(attempt: Attempt, at: dt.datetime) -> dt.datetime | None:
    """When the attempt may be made again; None when it may be made now."""
    newest = locking(at).filter(key__in=list(attempt.keys.values())).aggregate(newest=Max("last_at"))["newest"]
    return newest + lock_time() if newest else None


def fail(attempt: Attempt, at: dt.datetime) -> bool:
    """Count a failed sign-in. Whether the next one has to wait."""
    person_id = attempt.person.pk if attempt.person else None
    # In one order, so that two at the same time do not wait for each other crosswise.
    rows = sorted((key, str(kind)) for kind, key in attempt.keys.items())
    with transaction.atomic(), connection.cursor() as cursor:
        counts = {}
        for key, kind in rows:
            cursor.execute(
                "INSERT INTO approvals_signinfailures AS old (key, kind, person_id, failures, last_at)"
                " VALUES (%s, %s, %s, 1, %s) ON CONFLICT (key) DO UPDATE SET last_at = EXCLUDED.last_at,"
                " failures = CASE WHEN old.last_at <= %s THEN 1 ELSE old.failures + 1 END RETURNING failures",
                [key, kind, person_id if kind != Counted.ADDRESS else None, at, at - lock_time()],
            )
            counts[Counted(kind)] = cursor.fetchone()[0]
        locked = [kind for kind, count in counts.items() if count >= limits()[kind]]
        _remember(FAILED, attempt, at)
        if locked:
            _remember(LOCKED, attempt, at)
    return bool(locked)


def succeed(attempt: Attempt) -> None:
    """Forget what failed for that name. The address's failures stay: who has an account could guess at others'."""
    kinds = [key for kind, key in attempt.keys.items() if kind is not Counted.ADDRESS]
    SignInFailures.objects.filter(key__in=kinds).delete()


def unlock(person: User | None, *, actor: User | None, because: str = "") -> int:
    """Forget the failed sign-ins for `person` (None: all there are), and record it; how many counters that were."""
    rows = SignInFailures.objects.all() if person is None else SignInFailures.objects.filter(person=person)
    with transaction.atomic():
        forgotten = rows.delete()[0]
        audit.record(UNLOCKED, person, actor=actor, because=because, data={"counters": forgotten})
    return forgotten


# --- Browsers in which somebody has signed in before -------------------------------------------------------------


def known_browser(request: HttpRequest, person: User | None) -> str:
    """What names this browser, if `person` has signed in with it before; else ""."""
    if person is None:
        return ""
    try:
        value = signing.loads(request.COOKIES.get(COOKIE, ""), salt=SALT, max_age=COOKIE_SECONDS)
    except signing.BadSignature:
        return ""
    return str(value[1]) if isinstance(value, list) and len(value) == 2 and value[0] == person.pk else ""


def remember_browser(response: HttpResponse, person: User) -> None:
    """Let this browser's failures for `person` be counted by themselves from now on."""
    response.set_cookie(
        COOKIE,
        signing.dumps([person.pk, secrets.token_urlsafe(16)], salt=SALT),
        max_age=COOKIE_SECONDS,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )


# --- What the audit log is told ----------------------------------------------------------------------------------


def _remember(action: str, attempt: Attempt, at: dt.datetime) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO approvals_untoldfailure AS old (minute, action, name, origin, count)"
            " VALUES (%s, %s, %s, %s, 1)"
            " ON CONFLICT (minute, action, name, origin) DO UPDATE SET count = old.count + 1",
            [
                at.replace(second=0, microsecond=0),
                action,
                # What was typed may be a password in the wrong field.
                attempt.person.get_username() if attempt.person else "",
                attempt.origin,
            ],
        )


def tell(at: dt.datetime) -> int:
    """Write one audit entry for each minute, name and kind of failure that is over; how many. Repeats harmlessly."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM approvals_untoldfailure WHERE minute < %s RETURNING minute, action, name, origin, count",
                [at.replace(second=0, microsecond=0)],
            )
            groups: dict[tuple[dt.datetime, str, str], dict[str, int]] = defaultdict(dict)
            for minute, action, name, origin, count in cursor.fetchall():
                groups[minute, action, name][origin] = count
        people = {one.username: one for one in User.objects.filter(username__in={name for _, _, name in groups})}
        for (minute, action, name), origins in sorted(groups.items()):
            outcome = audit.Outcome.FAILED if action == FAILED else audit.Outcome.REFUSED
            because, data = in_words(action, name, origins), _data(minute, origins)
            audit.record(action, people.get(name), because=because, data=data, outcome=outcome)
    return len(groups)


def in_words(action: str, name: str, origins: Mapping[str, int]) -> str:
    """'3 failed sign-ins as bob from 2 addresses.'"""
    count = sum(origins.values())
    what = "failed sign-in" if action == FAILED else "lock-out"
    whom = name or "names that nobody has"
    places = f"{len(origins)} address{'' if len(origins) == 1 else 'es'}"
    return f"{count} {what}{'' if count == 1 else 's'} as {whom} from {places}."


def _data(minute: dt.datetime, origins: Mapping[str, int]) -> dict[str, Any]:
    most = sorted(origins, key=lambda one: (-origins[one], one))[:ORIGINS_NAMED]
    return {"minute": minute, "count": sum(origins.values()), "addresses": len(origins), "from": most}


def forget_old(at: dt.datetime) -> int:
    """Delete the counters that lock nobody any more; how many."""
    return SignInFailures.objects.filter(last_at__lte=at - lock_time()).delete()[0]


# --- What django-axes calls --------------------------------------------------------------------------------------


class Handler(AxesHandler):  # type: ignore[misc]  # django-axes has no types
    """django-axes calls this before a password is looked at and after every sign-in, good or failed."""

    def is_allowed(self, request: HttpRequest, credentials: Mapping[str, Any] | None = None) -> bool:
        until = locked_until(attempt_of(request, _name(credentials)), now())
        request.locked_until = until  # type: ignore[attr-defined]
        return until is None

    def user_login_failed(self, sender: Any, credentials: Any, request: Any = None, **kwargs: Any) -> None:
        if request is None or request.axes_locked_out:
            return  # no request: no sign-in of a person. Locked: it was not looked at
        at = now()
        if fail(attempt_of(request, _name(credentials)), at):
            request.axes_locked_out, request.locked_until = True, at + lock_time()

    def user_logged_in(self, sender: Any, request: Any, user: User, **kwargs: Any) -> None:
        succeed(attempt_of(request, user.get_username()))

    def get_failures(self, request: HttpRequest, credentials: Mapping[str, Any] | None = None) -> int:
        attempt = attempt_of(request, _name(credentials))
        rows = SignInFailures.objects.filter(key__in=list(attempt.keys.values()))
        return max(rows.values_list("failures", flat=True), default=0)

    def reset_attempts(self, *, username: str | None = None, **kwargs: Any) -> int:
        """What `manage.py axes_reset` and `axes_reset_username NAME` do."""
        person = User.objects.get(username=username) if username else None
        return unlock(person, actor=None, because="At the machine, with manage.py.")


def _name(credentials: Mapping[str, Any] | None) -> str:
    return str((credentials or {}).get("username") or "")[:150].replace("\0", "")


def answer(request: HttpRequest, response: HttpResponse | None, credentials: Mapping[str, Any] | None) -> HttpResponse:
    """The page for who has to wait."""
    from django.contrib import admin

    at = now()
    until = getattr(request, "locked_until", None) or at + lock_time()
    seconds = max(1, round((until - at).total_seconds()))
    context = {
        **admin.site.each_context(request),
        "title": "Too many failed sign-ins",
        "until": until,
        "minutes": -(-seconds // 60),
    }
    page = render(request, "admin/locked.html", context, status=429)
    page["Retry-After"] = str(seconds)
    page["Cache-Control"] = "no-store"
    return page
