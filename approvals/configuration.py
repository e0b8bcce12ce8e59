"""Which settings the product was started with: a change of them is history like any other."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from django.conf import settings
from django.db import transaction

from approvals import audit
from approvals.models.audit import AuditEntry

ACTION = "settings.changed"
# What may hold a password. The log learns that it is another one, and nothing of what it is.
SECRET = frozenset({"SECRET_KEY", "SECRET_KEY_FALLBACKS", "DATABASE_URL", "REDIS_URL", "EMAIL_URL"})


def note(given: Mapping[str, str] | None = None) -> AuditEntry | None:
    """Record what differs from the last start: setting → text. None when nothing does. `given` is for tests."""
    values = {name: told(name, text) for name, text in (settings.GIVEN if given is None else given).items()}
    with transaction.atomic():
        known: dict[str, str] = {}
        for entry in AuditEntry.objects.filter(action=ACTION).order_by("sequence"):
            known.update(entry.became or {})
        changed = {name for name in values.keys() | known.keys() if values.get(name, "") != known.get(name, "")}
        if not changed:
            return None
        was = {name: known.get(name, "") for name in changed}
        became = {name: values.get(name, "") for name in changed}
        return audit.record(ACTION, None, because="RuneRogue was started with other settings.", was=was, became=became)


def told(name: str, text: str) -> str:
    """The setting as the log has it: an empty text stands for the default."""
    if name not in SECRET or not text:
        return text
    key = hashlib.sha256(b"runerogue: settings in the audit log" + settings.SECRET_KEY.encode()).digest()
    return "digest:" + hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:16]
