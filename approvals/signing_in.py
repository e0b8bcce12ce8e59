"""What happens with every sign-in and sign-out: Django tells of them by signals, the middleware writes them down."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.utils.timezone import now

from approvals import audit, lockouts, whence

BEGAN, SEEN = "signed_in_at", "seen_at"  # in the session: seconds since 1970


def connect() -> None:
    user_logged_in.connect(_signed_in, dispatch_uid="approvals.signing_in")
    user_logged_out.connect(_signed_out, dispatch_uid="approvals.signing_in")


def _signed_in(sender: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
    request.session[BEGAN] = request.session[SEEN] = now().timestamp()
    request.signed_in = user  # type: ignore[attr-defined]


def _signed_out(sender: Any, request: HttpRequest, user: User | None, **kwargs: Any) -> None:
    request.signed_out = user  # type: ignore[attr-defined]


def write_down(request: HttpRequest, response: HttpResponse) -> None:
    """Record the sign-in or sign-out that answering `request` was. Where that fails, nobody gets the new session."""
    if person := getattr(request, "signed_in", None):
        with transaction.atomic():
            audit.record("signin.began", person, actor=person, data={"from": whence.origin_of(request)})
        lockouts.remember_browser(response, person)
    elif person := getattr(request, "signed_out", None):
        with transaction.atomic():
            audit.record("signin.ended", person, actor=person, because="Signed out.")
