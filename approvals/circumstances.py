"""What is true around a request beside what it asks for: was it the same when people signed?

Only what got worse since a request was asked voids it. Who signed while a check failed knew that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MOST_NAMES = 5


@dataclass(frozen=True)
class Circumstances:
    """What was known at one time. `budget_left` is the share of the error budget that is left, 0 when it is spent;
    None when nothing says. A vulnerability and a check are names that stay the same while they mean the same.
    """

    vulnerabilities: frozenset[str] = frozenset()
    budget_left: float | None = None
    failing_checks: frozenset[str] = frozenset()

    @property
    def budget_exhausted(self) -> bool:
        return self.budget_left is not None and self.budget_left <= 0

    def as_json(self) -> dict[str, Any]:
        return {
            "vulnerabilities": sorted(self.vulnerabilities),
            "budget_left": self.budget_left,
            "failing_checks": sorted(self.failing_checks),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Circumstances:
        left = value.get("budget_left")
        return cls(
            frozenset(value.get("vulnerabilities", ())),
            None if left is None else float(left),
            frozenset(value.get("failing_checks", ())),
        )

    def in_words(self) -> list[str]:
        """What a signer reads: a line for each thing that speaks against it, and for the error budget."""
        lines = []
        if self.vulnerabilities:
            lines.append(f"Known vulnerabilities: {named(self.vulnerabilities)}.")
        if self.failing_checks:
            lines.append(f"Failing checks: {named(self.failing_checks)}.")
        if self.budget_exhausted:
            lines.append("The error budget is exhausted.")
        elif self.budget_left is not None:
            lines.append(f"{self.budget_left:.0%} of the error budget is left.")
        return lines


NOTHING_KNOWN = Circumstances()


def worse(asked: Circumstances, now: Circumstances) -> str:
    """What got worse since it was asked, as a sentence for those who signed; empty when nothing did."""
    found = []
    if new := now.vulnerabilities - asked.vulnerabilities:
        found.append(f"a vulnerability became known ({named(new)})")
    if now.budget_exhausted and not asked.budget_exhausted:
        found.append("the error budget is exhausted now")
    if failing := now.failing_checks - asked.failing_checks:
        found.append(f"a check fails that did not ({named(failing)})")
    return f"Since this was asked, {', and '.join(found)}." if found else ""


def named(names: Iterable[str]) -> str:
    known = sorted(names)
    more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return ", ".join(known[:MOST_NAMES]) + more
