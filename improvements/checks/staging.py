"""The candidate against the current release, before any traffic: does it answer, and is it not slower?"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from improvements.checks import shortened
from improvements.outcome import Evidence, Outcome, Verdict
from monitoring import sandbox
from monitoring.manifest import Manifest

TOLERANCE = 0.10
# Beyond this uncertainty a number tells nothing about ten percent.
TOO_NOISY = 0.30
TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Change:
    """One number of the benchmark: medians, relative change for the worse (+0.1: ten percent worse), its uncertainty.

    `noise` is twice the standard error of the difference of the medians, relative to the current median, where a
    median of n values has the standard error 1.253 σ / √n and σ is estimated as 1.4826 × the median absolute deviation.
    `separated`: every candidate value is worse than every current one (of 5 + 5 by chance: 1 in 252).
    """

    name: str
    current: float
    candidate: float
    worse: float
    noise: float
    separated: bool
    verdict: str


def compare_benchmarks(
    current: Path,
    candidate: Path,
    manifest: Manifest,
    environment: Mapping[str, str],
    rounds: int = 5,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Outcome:
    """Run [benchmark] in both folders, interleaved A B B A so that drift of the machine hits both, and compare
    medians. What is worse is measured once more, and fails only if it is worse again: with many numbers and a busy
    machine, one of them is separated by chance sooner or later.
    """
    command = manifest.benchmark.command
    if not command:
        return Outcome(Verdict.INCONCLUSIVE, "The service has no [benchmark] command, so its speed was not compared.")
    sides = {"current": current, "candidate": candidate}

    def measured() -> Outcome | Measured:
        return _measure(command, sides, environment, rounds, timeout_seconds)

    higher = manifest.benchmark.higher_is_better
    first = measured()
    if isinstance(first, Outcome):
        return first
    found = judge(first.values["current"], first.values["candidate"], higher, isolation=first.isolation)
    worse = failed_numbers(found)
    if found.verdict is not Verdict.FAIL or not worse:
        return found
    second = measured()
    if isinstance(second, Outcome):
        return second
    again = judge(second.values["current"], second.values["candidate"], higher, isolation=second.isolation)
    if worse & failed_numbers(again):
        return again
    names = ", ".join(sorted(worse))
    if again.verdict is Verdict.FAIL:
        return Outcome(Verdict.INCONCLUSIVE, f"{again.reason} Before that it was {names}: too noisy.", again.evidence)
    return Outcome(again.verdict, f"{again.reason} Measured twice: first, {names} looked worse.", again.evidence)


@dataclass(frozen=True)
class Measured:
    """The numbers of each round, by side."""

    values: dict[str, list[dict[str, float]]]
    isolation: str


def _measure(
    command: str, sides: Mapping[str, Path], environment: Mapping[str, str], rounds: int, timeout_seconds: float
) -> Measured | Outcome:
    """The numbers of `rounds` runs on both sides, or why there are none."""
    needs = sandbox.reach(environment)
    values: dict[str, list[dict[str, float]]] = {"current": [], "candidate": []}
    isolation = ""
    for index in range(rounds):
        order = ("current", "candidate") if index % 2 == 0 else ("candidate", "current")
        for side in order:
            try:
                done = sandbox.run(
                    command,
                    cwd=sides[side],
                    environment={"PYTHONDONTWRITEBYTECODE": "1", **environment},
                    timeout_seconds=timeout_seconds,
                    readable=needs.socket_folders,
                    network=needs.network,
                )
            except sandbox.SandboxError as error:
                return _no_numbers(side, str(error), "", Verdict.NO_DATA)
            isolation = done.isolation
            if not done.succeeded:
                how = "did not end in time" if done.timed_out else f"ended with exit code {done.exit_code}"
                verdict = Verdict.FAIL if side == "candidate" and values["current"] else Verdict.NO_DATA
                return _no_numbers(side, f"it {how}", done.tail(), verdict)
            numbers = read_numbers(done.stdout)
            if not numbers:
                return _no_numbers(side, "it printed no JSON object of numbers", done.tail(), Verdict.NO_DATA)
            values[side].append(numbers)
    return Measured(values, isolation)


def failed_numbers(outcome: Outcome) -> set[str]:
    """The names of the numbers that an outcome of `judge` calls worse."""
    changes = [change for one in outcome.evidence for change in one.content.get("changes", [])]
    return {change["name"] for change in changes if change["verdict"] == Verdict.FAIL}


def _no_numbers(side: str, why: str, output: str, verdict: Verdict) -> Outcome:
    content = {"side": side, "problem": why, "output_tail": shortened(output, 4000)}
    return Outcome(
        verdict,
        f"The benchmark gave no numbers on the {side} release: {why}.",
        (Evidence("benchmark", f"no numbers from {side}", content),),
    )


def read_numbers(stdout: str) -> dict[str, float]:
    """The last JSON object in the output, its finite numbers only; empty when there is none."""
    decoder = json.JSONDecoder()
    for start in [index for index, sign in enumerate(stdout) if sign == "{"][-200:]:
        try:
            found, end = decoder.raw_decode(stdout, start)
        except ValueError:
            continue
        if isinstance(found, dict) and not stdout[end:].strip():
            return {
                str(name): float(value)
                for name, value in found.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            }
    return {}


def judge(
    current: Sequence[Mapping[str, float]],
    candidate: Sequence[Mapping[str, float]],
    higher_is_better: Sequence[str] = (),
    *,
    tolerance: float = TOLERANCE,
    isolation: str = "",
) -> Outcome:
    """The verdict on the rounds of both sides. FAIL needs a number that is worse beyond tolerance, noise and every
    doubt.
    """
    names = sorted(set.intersection(*(set(one) for one in [*current, *candidate]))) if current and candidate else []
    missing = sorted({name for one in current for name in one} - set(names))
    if not names:
        return Outcome(Verdict.NO_DATA, "The benchmark gave no number that both releases have.")
    changes = [
        _change(
            name,
            [one[name] for one in current],
            [one[name] for one in candidate],
            -1.0 if name in higher_is_better else 1.0,
            tolerance,
        )
        for name in names
    ]
    content: dict[str, Any] = {
        "rounds": min(len(current), len(candidate)),
        "tolerance": tolerance,
        "changes": [_rounded(change) for change in changes],
        "missing": missing,
        "isolation": isolation,
    }
    best, worst = min(changes, key=lambda one: one.worse), max(changes, key=lambda one: one.worse)
    evidence = (Evidence("benchmark", f"{len(changes)} numbers; best {_told(best)}", content),)
    if missing:
        return Outcome(Verdict.FAIL, f"The candidate's benchmark no longer gives {', '.join(missing[:5])}.", evidence)
    failed = [one for one in changes if one.verdict == Verdict.FAIL]
    if failed:
        return Outcome(Verdict.FAIL, f"Worse than the current release: {'; '.join(map(_told, failed[:3]))}.", evidence)
    unsure = [one for one in changes if one.verdict == Verdict.INCONCLUSIVE]
    if unsure:
        return Outcome(Verdict.INCONCLUSIVE, f"Too noisy to tell: {'; '.join(map(_told, unsure[:3]))}.", evidence)
    return Outcome(
        Verdict.PASS, f"None of {len(changes)} numbers is worse; best {_told(best)}, worst {_told(worst)}.", evidence
    )


def _change(name: str, current: list[float], candidate: list[float], sign: float, tolerance: float) -> Change:
    before, after = statistics.median(current), statistics.median(candidate)
    scale = abs(before)
    if scale == 0:
        worse = 0.0 if after == before else math.copysign(1.0, sign * (after - before))
        noise = 0.0
    else:
        worse = sign * (after - before) / scale
        noise = 2 * math.hypot(_standard_error(current), _standard_error(candidate)) / scale
    separated = min(sign * value for value in candidate) > max(sign * value for value in current)
    if worse > tolerance and worse > noise:
        verdict = Verdict.FAIL if separated else Verdict.INCONCLUSIVE
    elif noise > TOO_NOISY and worse + noise > tolerance:
        verdict = Verdict.INCONCLUSIVE
    else:
        verdict = Verdict.PASS
    return Change(name, before, after, worse, noise, separated, verdict)


def _standard_error(values: list[float]) -> float:
    middle = statistics.median(values)
    deviation = 1.4826 * statistics.median(abs(value - middle) for value in values)
    return 1.253 * deviation / math.sqrt(len(values))


def _rounded(change: Change) -> dict[str, Any]:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(change).items()}


def _told(change: Change) -> str:
    how = "worse" if change.worse > 0 else "better"
    return (
        f"{change.name} {change.current:g} → {change.candidate:g} ({abs(change.worse):.0%} {how}, ±{change.noise:.0%})"
    )


def smoke(base_url: str, paths: Sequence[str], timeout_seconds: float = 10.0) -> Outcome:
    """GET each path of the candidate itself, not through the proxy: every answer must be below 400."""
    if not paths:
        return Outcome(Verdict.NO_DATA, "There is no path to ask the candidate for.")
    answers: list[dict[str, Any]] = []
    # trust_env=False: a proxy in our own environment must not stand between us and the candidate.
    with httpx.Client(base_url=base_url, timeout=timeout_seconds, trust_env=False, follow_redirects=False) as client:
        for path in dict.fromkeys(paths):
            began = time.monotonic()
            status, problem = 0, ""
            try:
                status = client.get(path).status_code
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"[:300]
            milliseconds = round((time.monotonic() - began) * 1000, 1)
            answers.append({"path": path, "status": status, "ms": milliseconds, "problem": problem})
    bad = [one for one in answers if not 0 < one["status"] < 400]
    content = {"answers": answers[:100]}
    evidence = (Evidence("smoke", f"{len(answers) - len(bad)} of {len(answers)} paths answer", content),)
    if bad:
        listed = "; ".join(f"{one['path']}: {one['problem'] or one['status']}" for one in bad[:3])
        return Outcome(
            Verdict.FAIL, f"{len(bad)} of {len(answers)} paths do not answer as they should: {listed}.", evidence
        )
    slowest = max(answers, key=lambda one: one["ms"])
    return Outcome(
        Verdict.PASS,
        f"All {len(answers)} paths answer; the slowest, {slowest['path']}, in {slowest['ms']} ms.",
        evidence,
    )
