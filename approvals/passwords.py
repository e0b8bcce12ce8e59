"""Who changed whose password, written down wherever it is changed: on the pages, by a command, by a program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpRequest

from approvals import audit

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
            actor = request.user if request and request.user.is_authenticated else None
            because = "" if actor else "At the machine."
            with transaction.atomic():
                audit.record("signin.password_changed", user, actor=actor, because=because)
