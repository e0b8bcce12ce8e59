"""What of the evidence a signature holds for: everything but what comes out differently whenever it is measured again.

After a rebase that changes nothing, every step is taken again: the suite takes another second, the candidate is another
commit, the benchmark's numbers waver. Who signed did not sign the second. What was established stays bound: verdicts,
names, paths, issues, answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from approvals.fingerprint import digest

# Kind of evidence → what wavers in it; a dotted name is a key of each entry of a list. What is not here is bound as it
# is, and so is evidence of a kind that is not here.
WAVERS: Mapping[str, frozenset[str]] = {
    # Whole trees hold everybody's files. What the patch changes is in the patch, and where is in its places.
    "patch": frozenset({"base_tree", "tree"}),
    # How many tests there are is the branch's affair; which of them fail or went missing is the patch's.
    "tests": frozenset({"base", "patch", "output_tail", "base_output_tail", "messages"}),
    "bandit": frozenset({"known_before", "new.line"}),
    "secrets": frozenset({"known_before", "new.line"}),
    "start": frozenset({"seconds", "commit"}),
    "smoke": frozenset({"answers.ms"}),
    "benchmark": frozenset({f"changes.{name}" for name in ("current", "candidate", "worse", "noise", "separated")}),
}


def bound(kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a piece of evidence that stays equal when the same is proven again."""
    wavers = WAVERS.get(kind, frozenset())
    return {key: _entries(key, value, wavers) for key, value in content.items() if key not in wavers}


def _entries(key: str, value: Any, wavers: frozenset[str]) -> Any:
    if not isinstance(value, list):
        return value
    return [
        {name: one for name, one in entry.items() if f"{key}.{name}" not in wavers}
        if isinstance(entry, Mapping)
        else entry
        for entry in value
    ]


def binding(kind: str, content: Mapping[str, Any], sha256: str) -> str:
    """The hash of what is bound, as 64 hex digits.

    `sha256` is that of the whole, as it was kept and written into the audit log. Where the content has become another,
    that is what is bound: nobody signed it.
    """
    if digest({"kind": kind, "content": content}) != sha256:
        return digest({"kind": kind, "was": sha256, "is": content})
    return digest({"kind": kind, "content": bound(kind, content)})
