"""The gate of a build: a table of stories, and how often it is wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest

from monitoring.gate import judge, markdown


def suite(passed, failed=()):
    return {"passed": sorted(passed), "failed": sorted(failed), "skipped": 0, "seconds": 1.0}


def bench(**numbers):
    return {"numbers": {name: list(np.atleast_1d(values).astype(float)) for name, values in numbers.items()}}


STEADY = [bench(ms=100.0 + delta) for delta in (0, 1, -1, 2, -2, 1, 0, -1, 1, 0)]


@pytest.mark.parametrize(
    ("commit", "earlier", "verdict", "says"),
    [
        ({}, {}, "inconclusive", "no report of this commit"),
        ({"junit": suite("ab")}, {}, "pass", "Nothing of 1"),
        ({"junit": suite("a", "b")}, {}, "fail", "1 tests fail: b"),
        ({"junit": suite("")}, {}, "inconclusive", "No test was executed"),
        ({"junit": suite("ab")}, {"junit": [suite("ab")]}, "pass", "Nothing of 1"),
        ({"junit": suite("a", "b")}, {"junit": [suite("ab")]}, "fail", "did not before: b"),
        ({"junit": suite("a", "b")}, {"junit": [suite("a", "b")]}, "pass", "Nothing of 1"),
        ({"junit": suite("a")}, {"junit": [suite("ab")]}, "inconclusive", "not run any more: b"),
        ({"coverage": {"percent": 80.0}}, {"coverage": [{"percent": 80.4}]}, "pass", ""),
        ({"coverage": {"percent": 79.0}}, {"coverage": [{"percent": 80.4}]}, "fail", "80.4 → 79"),
        ({"coverage": {"percent": 79.0}}, {}, "inconclusive", "no earlier report"),
        ({"sarif": {"vulnerabilities": 1}}, {"sarif": [{"vulnerabilities": 0}]}, "fail", "0 → 1"),
        ({"sarif": {"vulnerabilities": 0}}, {"sarif": [{"vulnerabilities": 3}]}, "pass", ""),
        ({"ruff": {"rules": {"F401": 3}}}, {"ruff": [{"rules": {"F401": 2}}]}, "fail", "2 → 3"),
        ({"benchmark": bench(ms=100)}, {"benchmark": STEADY}, "pass", ""),
        ({"benchmark": bench(ms=60)}, {"benchmark": STEADY}, "pass", ""),
        ({"benchmark": bench(ms=130)}, {"benchmark": STEADY}, "fail", r"\+30.0% for the worse"),
        ({"benchmark": bench(ms=104)}, {"benchmark": STEADY}, "inconclusive", r"\+4.0%"),
        ({"benchmark": bench(ms=130)}, {"benchmark": STEADY[:3]}, "inconclusive", "too few"),
        ({"benchmark": bench(ms=0)}, {"benchmark": STEADY}, "inconclusive", "above 0"),
        ({"benchmark": bench(other=1)}, {"benchmark": STEADY}, "inconclusive", "too few"),
        (
            {"benchmark": bench(ms=[100, 101, 99, 100, 102])},
            {"benchmark": [bench(ms=[100, 99, 101, 100, 98])]},
            "pass",
            "",
        ),
        (
            {"benchmark": bench(ms=[130, 131, 129, 132, 128])},
            {"benchmark": [bench(ms=[100, 99, 101, 100, 98])]},
            "fail",
            "for the worse",
        ),
        ({"junit": suite("a", "b"), "benchmark": bench(ms=1)}, {}, "fail", r"1 tests fail: b"),
    ],
)
def test_judges(commit, earlier, verdict, says):
    found = judge(commit, earlier)
    assert found.verdict == verdict, found
    assert re.search(says, found.reason), found.reason


def test_higher_may_be_better():
    earlier = {"benchmark": [bench(per_second=value["numbers"]["ms"]) for value in STEADY]}
    assert judge({"benchmark": bench(per_second=70)}, earlier, higher_is_better=["per_second"]).verdict == "fail"
    assert judge({"benchmark": bench(per_second=130)}, earlier, higher_is_better=["per_second"]).verdict == "pass"
    assert judge({"benchmark": bench(per_second=130)}, earlier).verdict == "fail"


def test_tolerates_what_it_is_told_to():
    slower = {"benchmark": bench(ms=130)}
    assert judge(slower, {"benchmark": STEADY}, tolerance=0.5).verdict == "pass"


def test_rarely_fails_an_equal_commit_and_finds_a_slower_one():
    """Ten numbers a build, 8 % noise: Holm's correction holds the family, not each number, to one percent."""
    random = np.random.default_rng(4)
    names = [f"n{i}" for i in range(10)]

    def build(factor=1.0):
        return {"numbers": {name: (factor * 100 * random.lognormal(0, 0.08, 7)).tolist() for name in names}}

    equal = [judge({"benchmark": build()}, {"benchmark": [build()]}).verdict for _ in range(40)]
    slower = [judge({"benchmark": build(1.5)}, {"benchmark": [build()]}).verdict for _ in range(5)]
    assert equal.count("fail") <= 2
    assert slower == ["fail"] * 5


def test_its_summary_lets_no_name_break_the_table():
    found = judge({"junit": suite(["ok"], ["a|b\n<script>[x](y)"])}, {"junit": [suite(["ok", "a|b\n<script>[x](y)"])]})
    text = markdown(found, title="realm")
    assert "❌" in text
    assert r"\<script\>\[x\]" in text
    assert all(line.count(" | ") in (0, 5) for line in text.splitlines() if line.startswith("| "))
