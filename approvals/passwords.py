"""Who changed whose password, written down wherever it is changed: on the pages, by a command, by a program."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpRequest
from django.urls import reverse
from django.utils.timezone import now

from approvals import audit, settling, telling

_answering: ContextVar[HttpRequest | None] = ContextVar("the request that is being answered", default=None)


@contextmanager
def changed_by(request: HttpRequest) -> Iterator[None]:
    """Within this, passwords are changed by whoever is signed in; elsewhere by a command at the machine itself."""
    before = _answering.set(request)
    try:
        yield
    finally:
        _answering.reset(before)


class Recorded:
    """A password validator that objects to nothing: Django tells validators, and nobody else, of every new password."""

    def validate(self, password: str, user: User | None = None) -> None:
        """Any will do."""

    def get_help_text(self) -> str:
        return "Changing a password is recorded, and signs the person out everywhere else."

    def password_changed(self, password: str, user: User | None = None) -> None:
        if user is not None:
            request = _answering.get()
            actor = request.user if request and isinstance(request.user, User) else None
            because, at = "" if actor else "At the machine.", now()
            with transaction.atomic():
                if settling.note(user, what="password", by=actor, at=at):
                    _tell(user, actor, at)
                audit.record("signin.password_changed", user, actor=actor, because=because)


def _tell(person: User, actor: User | None, at: dt.datetime) -> None:
    """Mail: whoever has the new password could sign in as this person."""
    what, until = f"{actor or settling.AT_THE_MACHINE} set your password", f"{settling.settles_at(at):%Y-%m-%d %H:%M}"
    telling.tell(
        [person],
        about="password",
        subject=f"RuneRogue: {what}",
        lines=[
            f"{what}, {at:%Y-%m-%d %H:%M} UTC. You were signed out everywhere.",
            f"Until {until} UTC nothing of high or critical risk is signed in your name.",
            "If this was not your wish, say so at once.",
        ],
        url=reverse("admin:password_change"),
        key=f"password {person.pk} {at.isoformat()}",
    )
