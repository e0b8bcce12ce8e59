"""Ways to tell people something. Each is an object with a name and two methods; third parties add theirs through the
entry point group "runerogue.notifiers" (an entry is a callable that returns a Notifier)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points

from monitoring.notifiers.memory import MemoryNotifier
from monitoring.notifiers.seam import Line, Message, Notifier, NotSent, Undeliverable

__all__ = ["NOTIFIERS", "Line", "MemoryNotifier", "Message", "NotSent", "Notifier", "Undeliverable"]

ENTRY_POINTS = "runerogue.notifiers"


class _Known(Mapping[str, Notifier]):
    """Every notifier by name: our own, then those of installed packages, loaded when first asked for."""

    def __getitem__(self, name: str) -> Notifier:
        return _load()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_load())

    def __len__(self) -> int:
        return len(_load())


@cache
def _load() -> dict[str, Notifier]:
    from monitoring.notifiers.email import EmailNotifier
    from monitoring.notifiers.webhook import AlertmanagerNotifier, WebhookNotifier

    own: tuple[Notifier, ...] = (EmailNotifier(), WebhookNotifier(), AlertmanagerNotifier())
    notifiers = {notifier.name: notifier for notifier in own}
    for entry in entry_points(group=ENTRY_POINTS):
        notifier = entry.load()()
        if not isinstance(notifier, Notifier):
            raise TypeError(f"entry point {entry.name} of {ENTRY_POINTS} gives {notifier!r}, which is not a Notifier")
        notifiers.setdefault(notifier.name, notifier)  # a package can't replace one of ours
    return notifiers


NOTIFIERS: Mapping[str, Notifier] = _Known()
