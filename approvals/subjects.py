"""What a request can be about. Higher apps register their kinds, so that approvals need not know them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from django.core.exceptions import ObjectDoesNotExist

from approvals.policy import Subject as Concern
from approvals.policy import Tier


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
class Forecast:
    """What is known of a subject by now that decides who must sign it; before it is started, an estimate."""

    tier: Tier
    concern: Concern
    all_pass: bool = True
    is_estimate: bool = True
    proposed_by: int | None = None


@dataclass(frozen=True)
class Subject:
    decided: Callable[[int], None]
    describe: Callable[[int], Description]
    forecast: Callable[[int], Forecast] | None = None
    again: str = ""


KNOWN: dict[str, Subject] = {}


def register(
    kind: str,
    *,
    decided: Callable[[int], None],
    describe: Callable[[int], Description],
    forecast: Callable[[int], Forecast] | None = None,
    again: str = "",
) -> None:
    """Make `kind` known. `decided(id)` is called after commit whenever a request of that kind leaves its state;
    `forecast(id)` answers who will have to sign before anybody is asked; `again` tells in a sentence what there is to
    do when a request has ended without an approval and somebody still wants it."""
    KNOWN[kind] = Subject(decided, describe, forecast, again)


def tell(kind: str, subject_id: int) -> None:
    """Wake whoever waits for a decision. A kind nobody registered is nobody's to wake."""
    if subject := KNOWN.get(kind):
        subject.decided(subject_id)


def again(kind: str) -> str:
    """What there is to do when a request about this kind has ended without an approval; empty when nobody says."""
    return KNOWN[kind].again if kind in KNOWN else ""


def describe(kind: str, subject_id: int) -> Description | None:
    """The subject as it is now; None for a kind nobody registered and for a row that is gone. Requests outlive both."""
    try:
        return KNOWN[kind].describe(subject_id) if kind in KNOWN else None
    except ObjectDoesNotExist:
        return None


def forecast(kind: str, subject_id: int) -> Forecast | None:
    """What is known of the subject by now; None where its kind says nothing, and for a row that is gone."""
    known = KNOWN.get(kind)
    try:
        return known.forecast(subject_id) if known and known.forecast else None
    except ObjectDoesNotExist:
        return None
