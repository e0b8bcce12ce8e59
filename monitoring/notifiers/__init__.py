"""Ways to tell people something. Each is an object with a name and two methods; third parties add theirs through the
entry point group "runerogue.notifiers" (an entry is a callable that returns a Notifier)."""

from __future__ import annotations

from collections.abc import Iterable

from monitoring.notifiers.memory import MemoryNotifier
from monitoring.notifiers.seam import Line, Message, Notifier, NotSent, Undeliverable
from monitoring.plugins import Plugins

__all__ = ["NOTIFIERS", "Line", "MemoryNotifier", "Message", "NotSent", "Notifier", "Undeliverable"]


def _own() -> Iterable[Notifier]:
    from monitoring.notifiers.email import EmailNotifier
    from monitoring.notifiers.webhook import AlertmanagerNotifier, WebhookNotifier

    return EmailNotifier(), WebhookNotifier(), AlertmanagerNotifier()


NOTIFIERS = Plugins("runerogue.notifiers", Notifier, _own)
