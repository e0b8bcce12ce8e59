"""What of the evidence is bound: a table of every kind, with what may waver and what must not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from approvals.fingerprint import digest
from improvements import binding

KINDS: dict[str, dict[str, Any]] = {
    "patch": {
        "summary": "Prefetch",
        "explanation": "One query.",
        "files": ["app.py"],
        "lines_changed": 2,
        "places": {"app.py": [0]},
        "service": "realm",
        "base_tree": "a" * 40,
        "tree": "b" * 40,
    },
    "tests": {
        "base": {"passed": 10, "seconds": 3.1},
        "patch": {"passed": 10, "seconds": 3.2},
        "newly_failing": [],
        "no_longer_run": ["test_old"],
        "failing_on_both": ["test_flaky"],
        "messages": {},
        "output_tail": "10 passed in 3.2 s",
        "base_output_tail": "10 passed in 3.1 s",
    },
    "paths": {"changed": ["app.py"], "refused": []},
    "migrations": {"migrations": [], "problems": [], "risk_driver": False},
    "bandit": {"files": ["app.py"], "known_before": 2, "new": [{"file": "app.py", "line": 7, "test": "B101"}]},
    "secrets": {"files": ["app.py"], "known_before": 0, "new": [{"file": "app.py", "line": 7, "hash": "x"}]},
    "start": {"seconds": 2.5, "commit": "c" * 40},
    "smoke": {"answers": [{"path": "/up", "status": 200, "ms": 12.5, "problem": ""}]},
    "benchmark": {
        "rounds": 5,
        "tolerance": 0.05,
        "missing": [],
        "isolation": "",
        "changes": [
            {
                "name": "p95_ms",
                "verdict": "PASS",
                "current": 1.0,
                "candidate": 0.9,
                "worse": -0.1,
                "noise": 0.02,
                "separated": False,
            }
        ],
    },
    "of another package": {"number": 1},
}


def hashed(kind: str, content: dict[str, Any]) -> str:
    return binding.binding(kind, content, digest({"kind": kind, "content": content}))


def leaves(content: dict[str, Any]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            found += [(key, name) for name in value[0]]
        else:
            found.append((key,))
    return found


CASES = [(kind, leaf) for kind, content in KINDS.items() for leaf in leaves(content)]


@pytest.mark.parametrize(("kind", "leaf"), CASES, ids=lambda one: one if isinstance(one, str) else ".".join(one))
def test_binds_everything_but_what_wavers(kind: str, leaf: tuple[str, ...]) -> None:
    other = copy.deepcopy(KINDS[kind])
    if len(leaf) == 1:
        other[leaf[0]] = "something else"
    else:
        other[leaf[0]][0][leaf[1]] = "something else"
    wavers = ".".join(leaf) in binding.WAVERS.get(kind, ())
    assert (hashed(kind, other) == hashed(kind, KINDS[kind])) == wavers


def test_has_no_row_for_what_is_not_there() -> None:
    known = {(kind, ".".join(leaf)) for kind, leaf in CASES}
    assert {(kind, name) for kind, names in binding.WAVERS.items() for name in names} <= known


def test_sees_that_evidence_is_not_what_was_kept() -> None:
    kept = KINDS["start"]
    sha256 = digest({"kind": "start", "content": kept})
    other = {**kept, "seconds": 9.0}
    assert hashed("start", other) == hashed("start", kept), "it wavers when it is measured again"
    assert binding.binding("start", other, sha256) != binding.binding("start", kept, sha256), "and not by itself"
    assert binding.binding("start", kept, "f" * 64) != binding.binding("start", kept, sha256)
