"""What a notifier is: the smallest interface through which people are told something."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from approvals.posting import NotSent, Undeliverable

__all__ = ["Line", "Message", "NotSent", "Notifier", "Undeliverable"]


@dataclass(frozen=True)
class Line:
    """One alert in a message. Times are ISO 8601 in UTC; `ends_at` is empty while it fires."""

    id: int
    name: str
    service: str
    severity: str
    text: str
    starts_at: str
    url: str
    ends_at: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    number: int = 1


@dataclass(frozen=True)
class Message:
    """What is told, whatever the medium. `subject` is one line; `body` is text of its own, beside the lines."""

    key: str
    kind: str
    severity: str
    service: str
    subject: str
    url: str
    at: str
    body: str = ""
    thread: str = ""  # messages with the same one belong together
    lines: tuple[Line, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Message:
        return cls(**{**data, "lines": tuple(Line(**line) for line in data["lines"])})


@runtime_checkable
class Notifier(Protocol):
    """One medium. Safe to call from several threads at once."""

    @property
    def name(self) -> str: ...

    def obstacle(self, address: str, secret: str) -> str:
        """Why nothing can be sent to this address as things are; empty when it can. Asks nobody outside."""
        ...

    def send(self, message: Message, *, address: str, secret: str) -> str:
        """Deliver, in bounded time, and say what the other side answered. Raises NotSent or Undeliverable."""
        ...
