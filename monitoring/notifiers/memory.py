"""The twin without a network: it keeps what it was given, and drops doubles as a good receiver does."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from monitoring.notifiers.seam import Message, NotSent, Undeliverable


@dataclass
class MemoryNotifier:
    """`broken` is raised by every attempt while it is set."""

    name: str = "memory"
    inbox: list[tuple[str, Message]] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)  # the keys, doubles included
    broken: NotSent | Undeliverable | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def obstacle(self, address: str, secret: str) -> str:
        return "" if address else "It has no address."

    def send(self, message: Message, *, address: str, secret: str) -> str:
        with self._lock:
            self.attempts.append(message.key)
            if self.broken is not None:
                raise self.broken
            if all(message.key != known.key for _, known in self.inbox):
                self.inbox.append((address, message))
        return "kept"
