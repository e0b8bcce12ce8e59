"""What a step or a check says when it is done: one verdict, its reason, and the evidence it rests on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How a check ended. NO_DATA is not a kind of PASS: what could not be looked at was not proven."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    NO_DATA = "NO_DATA"


# From best to worst: several checks together are as good as the worst of them.
_ORDER = (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.NO_DATA, Verdict.FAIL)


@dataclass(frozen=True)
class Evidence:
    """One thing a step leaves behind. `content` is JSON: it is hashed and shown to whoever signs."""

    kind: str
    summary: str
    content: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The end of a step. `reason` is a sentence for people and carries the numbers.

    `ending` names one of the step's other endings (see `Step.endings`) where pass and fail do not say enough.
    """

    verdict: Verdict
    reason: str
    evidence: tuple[Evidence, ...] = ()
    ending: str = ""


@dataclass(frozen=True)
class Waiting:
    """The step is under way and cannot end yet; it is asked again after `seconds`."""

    reason: str
    seconds: float = 1.0


def combine(outcomes: Iterable[Outcome]) -> Outcome:
    """Several checks as one outcome: the worst verdict, every reason, all evidence. None at all is NO_DATA."""
    parts = list(outcomes)
    if not parts:
        return Outcome(Verdict.NO_DATA, "nothing was checked")
    worst = max(parts, key=lambda part: _ORDER.index(part.verdict)).verdict
    return Outcome(
        worst,
        " ".join(f"{part.verdict}: {part.reason}" if len(parts) > 1 else part.reason for part in parts),
        tuple(evidence for part in parts for evidence in part.evidence),
    )
