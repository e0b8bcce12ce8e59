"""Reports of other programs read into numbers: JUnit, Cobertura, SARIF 2.1, ruff's JSON, and benchmarks.

What is kept is what a later comparison needs and nothing else: names of tests and rules, counts, seconds. Output of the
tests, messages and source lines are never read into it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from monitoring import privacy

LARGEST_BYTES = 16 * 1024 * 1024
MOST_TESTS = 50_000
LONGEST_NAME = 200
MOST_NUMBERS = 200
MOST_REPEATS = 1000
# SARIF leaves the severity to tools; scanners of dependencies write a CVSS score here, from 4.0 it is "medium".
SECURITY_SEVERITY = "security-severity"
VULNERABLE_FROM = 4.0


class ReportError(ValueError):
    """A report that can't be used; the message says what is wrong with it and what to send."""


@dataclass(frozen=True)
class Parsed:
    """One report. `signals` are values to store as samples; `content` is what a later comparison needs."""

    kind: str
    signals: Mapping[str, float] = field(default_factory=dict)
    content: Mapping[str, Any] = field(default_factory=dict)


def parse(body: bytes, *, kind: str | None = None) -> Parsed:
    """Read a report of the given kind, or of the kind it looks like. Raises ReportError."""
    if len(body) > LARGEST_BYTES:
        raise ReportError(f"The report has {len(body):,} bytes; at most {LARGEST_BYTES:,} are read.")
    if not body.strip():
        raise ReportError("The report is empty. Did the program that writes it run?")
    if kind is not None and kind not in READERS:
        raise ReportError(f"{kind!r} is no known kind of report. Known: {', '.join(READERS)}.")
    loaded = _loaded(body)
    found = kind or recognise(loaded)
    if found is None:
        raise ReportError(f"This looks like none of {', '.join(READERS)}. Name the kind if it is one of them.")
    if isinstance(loaded, Element) != (found in XML):
        raise ReportError(f"A {found} report is {'XML' if found in XML else 'JSON'}, and this is not.")
    try:
        return READERS[found](loaded)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError(f"This is not a usable {found} report: {type(error).__name__} {str(error)[:200]}.") from error


def recognise(loaded: object) -> str | None:
    """The kind of a report by its shape, None when it has none that is known."""
    if isinstance(loaded, Element):
        return {"testsuites": "junit", "testsuite": "junit", "coverage": "coverage"}.get(loaded.tag)
    if isinstance(loaded, dict):
        return "sarif" if "runs" in loaded else "benchmark"
    return "ruff" if isinstance(loaded, list) else None


def _loaded(body: bytes) -> Any:
    if body.lstrip()[:1] == b"<":
        try:
            return fromstring(body, forbid_dtd=False)
        except DefusedXmlException as error:
            raise ReportError("The XML declares entities; they are not read. Write the report without them.") from error
        except ParseError as error:
            raise ReportError(f"This is not well-formed XML: {error}.") from error
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"This is neither XML nor JSON: {str(error)[:200]}.") from error


def _junit(root: Element) -> Parsed:
    """Each test case once, by "class::name". A name that is there twice is failed if one of them failed."""
    outcome: dict[tuple[str, str], str] = {}
    seconds = 0.0
    worst = {"skipped": 0, "passed": 1, "failed": 2}
    for case in root.iter("testcase"):
        name = case.get("classname", ""), case.get("name", "")
        tags = {child.tag for child in case}
        state = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        if name not in outcome or worst[state] > worst[outcome[name]]:
            outcome[name] = state
        seconds += _number(case.get("time") or 0, "time of a test case")
        if len(outcome) > MOST_TESTS:
            raise ReportError(f"There are more than {MOST_TESTS:,} tests in the report.")
    failed = {_name("::".join(name)) for name, state in outcome.items() if state == "failed"}
    passed = {_name("::".join(name)) for name, state in outcome.items() if state == "passed"} - failed
    states = Counter(outcome.values())
    executed = states["passed"] + states["failed"]
    signals = {"test_success_ratio": states["passed"] / executed, "test_seconds": seconds} if executed else {}
    content = {
        "passed": sorted(passed),
        "failed": sorted(failed),
        "skipped": len(outcome) - executed,
        "seconds": round(seconds, 3),
    }
    return Parsed("junit", signals, content)


def _coverage(root: Element) -> Parsed:
    """Cobertura's XML, as coverage.py, gocover-cobertura, coverlet and istanbul write it."""
    lines = _number(root.get("lines-valid") or 0, "lines-valid")
    if lines > 0:
        covered = _number(root.get("lines-covered") or 0, "lines-covered")
        percent = 100.0 * covered / lines
    elif root.get("line-rate") is not None:
        percent = 100.0 * _number(root.get("line-rate"), "line-rate")
    else:
        raise ReportError("The coverage report has neither lines-valid nor line-rate. Write Cobertura XML.")
    if not 0.0 <= percent <= 100.0:
        raise ReportError(f"A coverage of {percent:g} % can't be.")
    return Parsed("coverage", {"test_coverage_percent": percent}, {"lines": lines, "percent": round(percent, 3)})


def _sarif(log: dict[str, Any]) -> Parsed:
    """SARIF 2.1.0. A result counts as a vulnerability by its rule's CVSS score, or by level "error" without one."""
    if not str(log.get("version", "")).startswith("2.1"):
        raise ReportError(f"SARIF of version {log.get('version')!r} can't be read; 2.1.0 can.")
    vulnerable, results, rules_hit, tools = Counter[str](), 0, Counter[str](), []
    for run in log["runs"]:
        driver = run["tool"]["driver"]
        tools.append(_name(driver["name"]))
        scores = {}
        for rule in driver.get("rules") or []:
            if (score := (rule.get("properties") or {}).get(SECURITY_SEVERITY)) is not None:
                scores[rule["id"]] = _number(score, SECURITY_SEVERITY)
        for result in run.get("results") or []:
            if result.get("suppressions") or result.get("kind", "fail") != "fail":
                continue
            results += 1
            rule_id = str(result.get("ruleId", ""))
            rules_hit[_name(rule_id)] += 1
            score = scores.get(rule_id)
            if score >= VULNERABLE_FROM if score is not None else result.get("level", "warning") == "error":
                vulnerable[_name(rule_id)] += 1
    content = {
        "tools": tools,
        "results": results,
        "vulnerabilities": vulnerable.total(),
        "rules": dict(rules_hit),
        "vulnerable": sorted(vulnerable),
    }
    return Parsed("sarif", {"vulnerabilities": float(vulnerable.total())}, content)


def _ruff(violations: list[dict[str, Any]]) -> Parsed:
    """`ruff check --output-format json`: one object per violation."""
    rules = Counter(_name(violation["code"] or "syntax error") for violation in violations)
    return Parsed("ruff", {"lint_violations": float(len(violations))}, {"rules": dict(rules)})


def _benchmark(numbers: dict[str, Any]) -> Parsed:
    """One object: name → a number, or a list of the same measurement repeated."""
    found: dict[str, list[float]] = {}
    for name, given in numbers.items():
        values = given if isinstance(given, list) else [given]
        if not values or len(values) > MOST_REPEATS:
            raise ReportError(f"{name[:100]!r} has {len(values)} values; 1 to {MOST_REPEATS} can be compared.")
        if (kept := _name(name)) in found:
            raise ReportError(f"Two numbers are called {kept!r}, without what may be personal in their names.")
        found[kept] = [_number(value, f"the value of {name[:100]!r}") for value in values]
    if not 1 <= len(found) <= MOST_NUMBERS:
        raise ReportError(f"A benchmark has 1 to {MOST_NUMBERS} numbers, this has {len(found)}.")
    return Parsed("benchmark", {}, {"numbers": found})


def _name(given: object) -> str:
    """A name as it is kept: test cases are named after their parameters, which may be somebody's."""
    return privacy.scrub(str(given), own_addresses=False)[:LONGEST_NAME]


def _number(text: object, what: str) -> float:
    if isinstance(text, bool) or not isinstance(text, int | float | str):
        raise ReportError(f"{what} is {str(text)[:50]!r} and no number.")
    try:
        value = float(text.replace(",", "") if isinstance(text, str) else text)
    except (ValueError, OverflowError) as error:
        raise ReportError(f"{what} is {str(text)[:50]!r} and no number.") from error
    if not math.isfinite(value):
        raise ReportError(f"{what} is {str(text)[:50]!r}; a finite number is wanted.")
    return value


READERS: dict[str, Callable[[Any], Parsed]] = {
    "junit": _junit,
    "coverage": _coverage,
    "sarif": _sarif,
    "ruff": _ruff,
    "benchmark": _benchmark,
}
XML = frozenset({"junit", "coverage"})


# --- Technical debt ----------------------------------------------------------------------------------------------

# Minutes to mend one violation, by the letters its code begins with: SonarQube's defaults give 1 to 30 minutes a rule;
# style is the cheap end, complexity the dear one. The longest prefix that fits counts.
REMEDIATION_MINUTES = {"": 5.0, "I": 1.0, "W": 1.0, "E": 2.0, "D": 5.0, "F": 5.0, "S": 20.0, "B": 10.0, "C90": 30.0}
MINUTES_A_LINE = 30.0


def debt_ratio(rules: Mapping[str, int], lines: int) -> float | None:
    """Cost of mending over cost of writing, as SQALE and SonarQube define it (30 minutes a line); None without code."""
    if lines <= 0:
        return None
    minutes = 0.0
    for code, count in rules.items():
        prefix = max((p for p in REMEDIATION_MINUTES if code.startswith(p)), key=len)
        minutes += count * REMEDIATION_MINUTES[prefix]
    return minutes / (MINUTES_A_LINE * lines)
