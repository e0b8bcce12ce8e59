"""What got worse, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from approvals.circumstances import NOTHING_KNOWN, Circumstances, worse

ASKED = Circumstances(frozenset({"CVE-1"}), 0.5, frozenset({"tests of the branch"}))
CASES = [
    ({}, ""),
    ({"vulnerabilities": frozenset()}, ""),
    ({"vulnerabilities": frozenset({"CVE-2"})}, "a vulnerability became known (CVE-2)"),
    ({"failing_checks": frozenset()}, ""),
    ({"failing_checks": frozenset({"tests of the patch"})}, "a check fails that did not (tests of the patch)"),
    ({"budget_left": 0.01}, ""),
    ({"budget_left": None}, ""),
    ({"budget_left": 0.0}, "the error budget is exhausted now"),
    ({"budget_left": -3.0}, "the error budget is exhausted now"),
]


@pytest.mark.parametrize(("changes", "why"), CASES)
def test_voids_for_what_got_worse_and_names_it(changes: dict[str, object], why: str) -> None:
    told = worse(ASKED, replace(ASKED, **changes))  # type: ignore[arg-type]
    assert told == (f"Since this was asked, {why}." if why else "")


def test_names_everything_that_got_worse() -> None:
    now = Circumstances(frozenset({"a", "b", "c", "d", "e", "f", "g"}), 0.0, frozenset({"lint"}))
    told = worse(NOTHING_KNOWN, now)
    assert "(a, b, c, d, e and 2 more)" in told
    assert "budget" in told
    assert "(lint)" in told


def test_is_not_worse_than_what_people_knew() -> None:
    spent = replace(ASKED, budget_left=0.0)
    assert worse(spent, replace(spent, budget_left=-1.0)) == ""


@pytest.mark.parametrize("one", [NOTHING_KNOWN, ASKED, replace(ASKED, budget_left=0.0)])
def test_survives_being_stored(one: Circumstances) -> None:
    assert Circumstances.from_json(one.as_json()) == one
    assert Circumstances.from_json({}) == NOTHING_KNOWN


def test_says_what_signers_read() -> None:
    assert NOTHING_KNOWN.in_words() == []
    assert ASKED.in_words() == [
        "Known vulnerabilities: CVE-1.",
        "Failing checks: tests of the branch.",
        "50% of the error budget is left.",
    ]
    assert replace(NOTHING_KNOWN, budget_left=-0.5).in_words() == ["The error budget is exhausted."]
