"""Reports of other programs: read right, or refused with a reason."""

from __future__ import annotations

import json

import pytest

from monitoring.reports import ReportError, debt_ratio, parse

JUNIT = b"""<?xml version="1.0"?>
<testsuites><testsuite name="s" tests="4">
<testcase classname="a.B" name="passes" time="0.5"/>
<testcase classname="a.B" name="fails" time="1,000.25"><failure message="jane@example.org">secret</failure></testcase>
<testcase classname="a.B" name="breaks"><error/></testcase>
<testcase classname="a.B" name="waits"><skipped/></testcase>
<testcase classname="a.B" name="passes"><failure/></testcase>
</testsuite></testsuites>"""
COBERTURA = (
    b'<?xml version="1.0"?><!DOCTYPE coverage SYSTEM "http://x/y.dtd"><coverage lines-valid="200" lines-covered="150"/>'
)
SARIF = {
    "version": "2.1.0",
    "runs": [
        {
            "tool": {
                "driver": {
                    "name": "trivy",
                    "rules": [
                        {"id": "CVE-1", "properties": {"security-severity": "9.8"}},
                        {"id": "CVE-2", "properties": {"security-severity": "2.0"}},
                    ],
                }
            },
            "results": [
                {"ruleId": "CVE-1", "level": "warning"},
                {"ruleId": "CVE-2", "level": "error"},
                {"ruleId": "X", "level": "error"},
                {"ruleId": "X", "level": "note"},
                {"ruleId": "CVE-1", "suppressions": [{"kind": "inSource"}]},
                {"ruleId": "CVE-1", "kind": "pass"},
            ],
        }
    ],
}


def test_reads_junit_once_per_test_and_counts_the_worst():
    parsed = parse(JUNIT)
    assert parsed.kind == "junit"
    assert parsed.content == {
        "passed": [],
        "failed": ["a.B::breaks", "a.B::fails", "a.B::passes"],
        "skipped": 1,
        "seconds": 1000.75,
    }
    assert parsed.signals == {"test_success_ratio": 0.0, "test_seconds": 1000.75}


def test_keeps_no_output_of_tests():
    assert "jane" not in json.dumps(parse(JUNIT).content)
    assert "secret" not in json.dumps(parse(JUNIT).content)


def test_a_report_without_tests_gives_no_ratio():
    assert parse(b"<testsuites/>").signals == {}


@pytest.mark.parametrize(
    ("body", "percent"),
    [(COBERTURA, 75.0), (b'<coverage line-rate="0.5"/>', 50.0), (b'<coverage lines-valid="0" line-rate="1"/>', 100.0)],
)
def test_reads_cobertura(body, percent):
    parsed = parse(body)
    assert (parsed.kind, parsed.signals) == ("coverage", {"test_coverage_percent": percent})


def test_counts_vulnerabilities_by_score_and_else_by_level():
    parsed = parse(json.dumps(SARIF).encode())
    assert parsed.signals == {"vulnerabilities": 2.0}
    assert parsed.content["results"] == 4
    assert parsed.content["rules"] == {"CVE-1": 1, "CVE-2": 1, "X": 2}


def test_counts_lint_by_rule():
    parsed = parse(b'[{"code": "F401"}, {"code": "F401"}, {"code": null}]')
    assert (parsed.kind, parsed.signals) == ("ruff", {"lint_violations": 3.0})
    assert parsed.content == {"rules": {"F401": 2, "syntax error": 1}}


def test_reads_a_benchmark_with_and_without_repeats():
    parsed = parse(b'{"players_ms": 12, "search_ms": [1.5, 2]}')
    assert parsed.content == {"numbers": {"players_ms": [12.0], "search_ms": [1.5, 2.0]}}
    assert parsed.signals == {}


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b"", None, "empty"),
        (b" \n", None, "empty"),
        (b"hello", None, "neither XML nor JSON"),
        (b"<a", None, "not well-formed"),
        (b"<other/>", None, "looks like none of"),
        (b'"text"', None, "looks like none of"),
        (b"{}", "coverage", "is XML, and this is not"),
        (b"<testsuites/>", "ruff", "is JSON, and this is not"),
        (b"{}", "gossip", "no known kind"),
        (b'<coverage lines-valid="10" lines-covered="11"/>', None, "can't be"),
        (b"<coverage/>", None, "neither lines-valid nor line-rate"),
        (b'{"a": "fast"}', None, "no number"),
        (b'{"a": true}', None, "no number"),
        (b'{"a": []}', None, "0 values"),
        (b'{"a": Infinity}', None, "finite"),
        (b'{"a": NaN}', None, "finite"),
        (b"{}", None, "1 to 200 numbers"),
        (b'{"version": "1.0", "runs": []}', None, "2.1.0 can"),
        (b'{"version": "2.1.0", "runs": [{}]}', None, "not a usable sarif report"),
        (b'[{"rule": 1}]', None, "not a usable ruff report"),
        (b'<testsuite><testcase name="a" time="soon"/></testsuite>', None, "time of a test case"),
        (
            b'<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]><testsuites>&d;</testsuites>',
            None,
            "declares entities",
        ),
        (b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><testsuites>&b;</testsuites>', None, "entities"),
        (b"[" * 100_000, None, "neither XML nor JSON"),
    ],
)
def test_refuses_with_a_reason(body, kind, says):
    with pytest.raises(ReportError, match=says):
        parse(body, kind=kind)


def test_the_debt_is_minutes_to_mend_over_minutes_to_write():
    # 2 × 5 min of pyflakes, 1 × 30 of complexity, 1 × 1 of import order; 100 lines of 30 min each.
    assert debt_ratio({"F401": 2, "C901": 1, "I001": 1}, 100) == pytest.approx(41 / 3000)
    assert debt_ratio({}, 10) == 0.0
    assert debt_ratio({"F401": 1}, 0) is None
