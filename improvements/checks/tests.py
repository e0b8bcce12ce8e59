"""The service's own tests on base and on patch: nothing that passed may fail, and nothing may go missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

from junitparser import Error, Failure, JUnitXml, JUnitXmlError, Skipped, TestCase, TestSuite

from improvements.checks import shortened
from improvements.outcome import Evidence, Outcome, Verdict
from monitoring import sandbox
from monitoring.manifest import Manifest

TIMEOUT_SECONDS = 900.0
MOST_NAMES = 100


@dataclass(frozen=True)
class Suite:
    """One run of the tests. Names are "class::test"; `problem` says why there is no usable report."""

    passed: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    skipped: frozenset[str] = frozenset()
    messages: Mapping[str, str] = field(default_factory=dict)
    exit_code: int = 0
    seconds: float = 0.0
    timed_out: bool = False
    isolation: str = ""
    output: str = ""
    problem: str = ""

    @property
    def executed(self) -> int:
        return len(self.passed) + len(self.failed)

    def numbers(self) -> dict[str, Any]:
        return {
            "executed": self.executed,
            "passed": len(self.passed),
            "failed": len(self.failed),
            "skipped": len(self.skipped),
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 3),
            "timed_out": self.timed_out,
            "isolation": self.isolation,
            "problem": self.problem,
        }


def compare_tests(
    base: Path,
    patched: Path,
    manifest: Manifest,
    environment: Mapping[str, str],
    scratch: Path,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Outcome:
    """Run the [test] command in both checkouts, one after the other, and compare test by test."""
    before = run_suite(base, manifest, environment, scratch / "base", timeout_seconds)
    after = run_suite(patched, manifest, environment, scratch / "patch", timeout_seconds)
    return judge(before, after)


def judge(before: Suite, after: Suite) -> Outcome:
    """The verdict on two runs of the same tests."""
    newly_failing = sorted(after.failed - before.failed)
    gone = sorted(before.passed - after.passed - after.failed)
    content = {
        "base": before.numbers(),
        "patch": after.numbers(),
        "newly_failing": newly_failing[:MOST_NAMES],
        "no_longer_run": gone[:MOST_NAMES],
        "failing_on_both": sorted(before.failed & after.failed)[:MOST_NAMES],
        "messages": {name: after.messages.get(name, "")[:1000] for name in newly_failing[:10]},
        "output_tail": shortened(after.output, 8000),
    }
    if before.problem or before.timed_out:
        content["base_output_tail"] = shortened(before.output, 4000)

    def outcome(verdict: Verdict, reason: str) -> Outcome:
        summary = (
            f"base {len(before.passed)} of {before.executed} passed, patch {len(after.passed)} of {after.executed}"
        )
        return Outcome(verdict, reason, (Evidence("tests", summary, content),))

    if after.timed_out:
        if before.timed_out:
            return outcome(
                Verdict.INCONCLUSIVE, f"The tests do not end in time, nor do they without the patch: {before.problem}."
            )
        return outcome(Verdict.FAIL, f"With the patch the tests do not end in time: {after.problem}.")
    if before.timed_out or before.problem:
        return outcome(Verdict.INCONCLUSIVE, f"The tests are broken without the patch too: {before.problem}.")
    if after.problem:
        return outcome(Verdict.FAIL, f"With the patch the tests can't be run: {after.problem}.")
    if before.executed == 0 and after.executed == 0:
        return outcome(Verdict.NO_DATA, "No test was executed, neither on base nor on the patch.")
    if newly_failing:
        return outcome(
            Verdict.FAIL, f"{len(newly_failing)} tests fail with the patch only: {', '.join(newly_failing[:5])}."
        )
    if gone:
        return outcome(
            Verdict.FAIL, f"{len(gone)} tests that passed are no longer run with the patch: {', '.join(gone[:5])}."
        )
    if after.executed < before.executed or not after.passed:
        return outcome(
            Verdict.FAIL, f"{after.executed} tests were executed with the patch, {before.executed} without it."
        )
    if after.exit_code != 0 and before.exit_code == 0:
        return outcome(
            Verdict.FAIL, f"Every test passes, but with the patch the command ends with exit code {after.exit_code}."
        )
    both = f"; {len(before.failed)} fail with and without it" if before.failed else ""
    return outcome(Verdict.PASS, f"All {len(before.passed)} tests that passed still pass{both}.")


def run_suite(
    checkout: Path, manifest: Manifest, environment: Mapping[str, str], scratch: Path, timeout_seconds: float
) -> Suite:
    """Set the checkout up if the manifest says how, run its tests once and read the JUnit report."""
    scratch.mkdir(parents=True, exist_ok=True)
    report = scratch / "report.xml"
    report.unlink(missing_ok=True)
    needs = sandbox.reach(environment)
    own = {"PYTHONDONTWRITEBYTECODE": "1", **environment}
    command = manifest.test.command
    if "{report}" not in command:
        return Suite(problem="[test] command in runerogue.toml has no {report}, so no JUnit report can be asked for")
    try:
        if manifest.setup.command:
            ready = sandbox.run(
                manifest.setup.command, cwd=checkout, environment=own, timeout_seconds=timeout_seconds, network=True
            )
            if not ready.succeeded:
                return _without_report(ready, f"[setup] command ended with exit code {ready.exit_code}")
        done = sandbox.run(
            command.replace("{report}", str(report)),
            cwd=checkout,
            environment=own,
            timeout_seconds=timeout_seconds,
            readable=needs.socket_folders,
            writable=(scratch,),
            network=needs.network,
        )
    except sandbox.SandboxError as error:
        return Suite(problem=str(error))
    if done.timed_out:
        return _without_report(done, f"stopped after {timeout_seconds:.0f} s")
    if not report.is_file():
        return _without_report(done, f"the command wrote no report and ended with exit code {done.exit_code}")
    return _read(report, done)


def _without_report(done: sandbox.Finished, problem: str) -> Suite:
    return Suite(
        exit_code=done.exit_code,
        seconds=done.seconds,
        timed_out=done.timed_out,
        isolation=done.isolation,
        output=done.tail(),
        problem=problem,
    )


def _read(report: Path, done: sandbox.Finished) -> Suite:
    try:
        cases = list(_cases(JUnitXml.fromfile(str(report))))
    except (JUnitXmlError, ParseError, OSError, ValueError) as error:
        return _without_report(done, f"the JUnit report can't be read: {error}")
    outcomes: dict[str, set[str]] = {"passed": set(), "failed": set(), "skipped": set()}
    messages: dict[str, str] = {}
    for case in cases:
        name = f"{case.classname}::{case.name}" if case.classname else str(case.name)
        results = list(case.result or [])
        wrong = [result for result in results if isinstance(result, Failure | Error)]
        if wrong:
            outcomes["failed"].add(name)
            messages[name] = "\n".join(str(result.message or result.text or "") for result in wrong)
        elif any(isinstance(result, Skipped) for result in results):
            outcomes["skipped"].add(name)
        else:
            outcomes["passed"].add(name)
    # A test whose teardown fails is in the report twice, once as passed.
    passed = outcomes["passed"] - outcomes["failed"]
    return Suite(
        passed=frozenset(passed),
        failed=frozenset(outcomes["failed"]),
        skipped=frozenset(outcomes["skipped"] - passed - outcomes["failed"]),
        messages=messages,
        exit_code=done.exit_code,
        seconds=done.seconds,
        isolation=done.isolation,
        output=done.tail(),
        problem="" if cases or done.exit_code in (0, 5) else f"no test ran (exit code {done.exit_code})",
    )


def _cases(node: Any) -> list[TestCase]:
    """Every test case, also of nested suites."""
    found: list[TestCase] = []
    for child in node:
        if isinstance(child, TestCase):
            found.append(child)
        elif isinstance(child, TestSuite):
            found += _cases(child)
            suites: list[TestSuite] = list(child.testsuites())  # type: ignore[no-untyped-call]
            for inner in suites:
                found += _cases(inner)
    return found
