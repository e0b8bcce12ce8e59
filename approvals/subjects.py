"""What a request can be about. Higher apps register their kinds, so that approvals need not know them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from django.core.exceptions import ObjectDoesNotExist


@dataclass(frozen=True)
class SubjectRef:
    """What is to be signed: a kind ("improvement"), its id, and how people see it."""

    kind: str
    id: int
    title: str
    url: str = ""
    scope: str = ""  # the name of the service it belongs to; empty for what concerns the whole installation


@dataclass(frozen=True)
class Description:
    """A subject as it is now; `state` in the words of its own app."""

    title: str
    url: str = ""
    state: str = ""


@dataclass(frozen=True)
class Subject:
    decided: Callable[[int], None]
    describe: Callable[[int], Description]


KNOWN: dict[str, Subject] = {}


def register(kind: str, *, decided: Callable[[int], None], describe: Callable[[int], Description]) -> None:
    """Make `kind` known. `decided(id)` is called after commit whenever a request of that kind leaves its state."""
    KNOWN[kind] = Subject(decided, describe)


def tell(kind: str, subject_id: int) -> None:
    """Wake whoever waits for a decision. A kind nobody registered is nobody's to wake."""
    if subject := KNOWN.get(kind):
        subject.decided(subject_id)


def describe(kind: str, subject_id: int) -> Description | None:
    """The subject as it is now; None for a kind nobody registered and for a row that is gone. Requests outlive both."""
    try:
        return KNOWN[kind].describe(subject_id) if kind in KNOWN else None
    except ObjectDoesNotExist:
        return None
