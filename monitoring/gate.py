"""Is a commit at least as good as what went before it? Pure arithmetic on reports; `gating` loads them.

Tests are compared by name, single numbers against what earlier commits gave, benchmarks by statistics:

- With at least REPEATS values on both sides: the Mann–Whitney U test (one-sided, for the worse) and the Hodges–Lehmann
  estimate of the ratio with its distribution-free 95 % interval.
- With fewer values of the commit and at least HISTORY earlier reports: where its median lies in a prediction interval
  around theirs (Student's t on the logarithms, with the median absolute deviation as scale).

FAIL needs both: a difference that chance explains with p < 0.01 (after Holm's correction over all numbers) and a
change beyond the tolerance. PASS needs an estimate that is not worse at all, or the upper end of the interval within
the tolerance. Anything else is inconclusive: the numbers do not say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
REPEATS = 5
HISTORY = 8
ALPHA = 0.01
TOLERANCE = 0.05
# Machines that build are never steadier than this; without it three equal numbers would make the fourth a scandal.
LEAST_SCALE = 0.01
MOST_NAMES = 20


@dataclass(frozen=True)
class Compared:
    """One thing that was compared. `change` is relative, for the worse (+0.1: ten percent worse); None: no number."""

    what: str
    verdict: str
    reason: str
    was: float | None = None
    became: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Gate:
    """The answer: the worst of what was compared. Nothing compared is inconclusive, never a pass."""

    verdict: str
    reason: str
    compared: tuple[Compared, ...]


def judge(
    commit: Mapping[str, Mapping[str, Any]],
    earlier: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    tolerance: float = TOLERANCE,
    higher_is_better: Sequence[str] = (),
) -> Gate:
    """Compare the reports of a commit (kind → content) with those of earlier ones (kind → contents, newest first)."""
    compared: list[Compared] = []
    for kind, content in sorted(commit.items()):
        before = earlier.get(kind, ())
        match kind:
            case "junit":
                compared.append(_tests(content, before))
            case "benchmark":
                compared += _benchmark(content, before, tolerance, frozenset(higher_is_better))
            case "coverage":
                percents = [float(c["percent"]) for c in (content, *before)]
                compared.append(_count("test coverage in %", percents, slack=0.5, sign=-1))
            case "sarif":
                counts = [float(c["vulnerabilities"]) for c in (content, *before)]
                compared.append(_count("vulnerabilities", counts, slack=0.0, sign=1))
            case "ruff":
                counts = [float(sum(c["rules"].values())) for c in (content, *before)]
                compared.append(_count("lint violations", counts, slack=0.0, sign=1))
    return _worst(compared)


def _worst(compared: Sequence[Compared]) -> Gate:
    if not compared:
        return Gate(INCONCLUSIVE, "There is no report of this commit that could be compared.", ())
    for verdict in (FAIL, INCONCLUSIVE):
        those = [one for one in compared if one.verdict == verdict]
        if those:
            more = f" (and {len(those) - 1} more)" if len(those) > 1 else ""
            return Gate(verdict, those[0].reason + more, tuple(compared))
    return Gate(PASS, f"Nothing of {len(compared)} compared is worse than before.", tuple(compared))


def _tests(content: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> Compared:
    passed, failed = set(content["passed"]), set(content["failed"])
    executed = len(passed) + len(failed)
    if not executed:
        return Compared("tests", INCONCLUSIVE, "No test was executed.")
    ratio = len(passed) / executed
    if not before:
        if failed:
            return Compared("tests", FAIL, f"{len(failed)} tests fail: {_names(failed)}.", became=ratio)
        return Compared("tests", PASS, f"All {executed} tests pass; there is no earlier report.", became=ratio)
    last = before[0]
    was_executed = len(last["passed"]) + len(last["failed"])
    was = len(last["passed"]) / was_executed if was_executed else None
    newly = failed - set(last["failed"])
    gone = set(last["passed"]) - passed - failed
    if newly:
        return Compared("tests", FAIL, f"{len(newly)} tests fail that did not before: {_names(newly)}.", was, ratio)
    if gone:
        reason = f"{len(gone)} tests that passed before are not run any more: {_names(gone)}. Renamed or lost?"
        return Compared("tests", INCONCLUSIVE, reason, was, ratio)
    still = f"; {len(failed)} fail as before" if failed else ""
    return Compared("tests", PASS, f"{len(passed)} of {executed} tests pass{still}.", was, ratio)


def _names(names: set[str]) -> str:
    first = ", ".join(sorted(names)[:5])
    return first + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _count(what: str, values: Sequence[float], *, slack: float, sign: int) -> Compared:
    """A number that is exact, not sampled: it is compared with the last one, and `slack` of it is no difference."""
    became = values[0]
    if len(values) == 1:
        return Compared(what, INCONCLUSIVE, f"{what}: {became:g}; there is no earlier report.", became=became)
    was = values[1]
    worse = sign * (became - was)
    change = worse / abs(was) if was else None
    verdict = FAIL if worse > slack + 1e-9 else PASS
    return Compared(what, verdict, f"{what}: {was:g} → {became:g}.", was, became, change)


def _benchmark(
    content: Mapping[str, Any], before: Sequence[Mapping[str, Any]], tolerance: float, higher: frozenset[str]
) -> list[Compared]:
    found = []
    for name, values in sorted(content["numbers"].items()):
        history = [one["numbers"][name] for one in before if name in one["numbers"]]
        found.append(_number(name, values, history, tolerance, -1.0 if name in higher else 1.0))
    missing = sorted({name for one in before[:1] for name in one["numbers"]} - set(content["numbers"]))
    if missing:
        found.append(Compared("benchmark", INCONCLUSIVE, f"It no longer gives {', '.join(missing[:MOST_NAMES])}."))
    return _corrected(found, tolerance)


def _number(
    name: str, values: Sequence[float], history: Sequence[Sequence[float]], tolerance: float, sign: float
) -> Compared:
    """One number before the correction for many: its verdict is pass or inconclusive, and p says what may yet fail."""
    after = np.asarray(values, dtype=float)
    # One report's repeats tell of one machine at one time; medians of many reports tell how builds differ.
    medians = np.array([float(np.median(one)) for one in history])
    pooled = medians if len(history) >= HISTORY else np.array([v for one in history for v in one], dtype=float)
    was = float(np.median(pooled)) if pooled.size else None
    became = float(np.median(after))
    if min(after.min(), pooled.min(initial=math.inf)) <= 0:
        return Compared(name, INCONCLUSIVE, f"{name}: only numbers above 0 can be compared as ratios.", was, became)
    enough = (after.size >= REPEATS and pooled.size >= REPEATS) or pooled.size >= HISTORY
    if not enough or was is None:
        reason = (
            f"{name}: {after.size} values now and {pooled.size} before are too few; "
            f"send {REPEATS} repeats a commit, or wait for {HISTORY} commits"
        )
        return Compared(name, INCONCLUSIVE, reason + ".", was, became)
    worse_after, worse_before = sign * np.log(after), sign * np.log(pooled)
    if after.size >= REPEATS:
        shift, low, high, p = _two_samples(worse_before, worse_after)
    else:
        shift, low, high, p = _prediction(worse_before, float(np.median(worse_after)))
    change, low, high = (math.expm1(x) for x in (shift, low, high))
    told = f"{name}: {was:.4g} → {became:.4g}, {change:+.1%} for the worse ({low:+.1%} to {high:+.1%})"
    verdict = PASS if high <= tolerance or change <= 0 else INCONCLUSIVE
    return Compared(name, verdict, told + ".", was, became, change, low, high, p)


def _two_samples(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Hodges–Lehmann shift, its 95 % interval (Lehmann 1963), and the one-sided p of the Mann–Whitney U test."""
    from scipy.stats import mannwhitneyu, norm

    differences = np.sort(np.subtract.outer(after, before).ravel())
    n, m = after.size, before.size
    half = norm.ppf(0.975) * math.sqrt(n * m * (n + m + 1) / 12.0)
    low = differences[max(0, math.floor(n * m / 2.0 - half))]
    high = differences[min(n * m - 1, math.ceil(n * m / 2.0 + half) - 1)]
    p = float(mannwhitneyu(after, before, alternative="greater").pvalue)
    return float(np.median(differences)), float(low), float(high), p


def _prediction(before: NDArray[np.float64], after: float) -> tuple[float, float, float, float]:
    """How far one value lies from earlier ones, the 95 % interval of that distance, and the one-sided p."""
    from scipy.stats import t

    middle = float(np.median(before))
    scale = max(1.4826 * float(np.median(np.abs(before - middle))), LEAST_SCALE)
    error = scale * math.sqrt(1.0 + 1.0 / before.size)
    shift = after - middle
    reach = float(t.ppf(0.975, before.size - 1)) * error
    return shift, shift - reach, shift + reach, float(t.sf(shift / error, before.size - 1))


def _corrected(compared: Sequence[Compared], tolerance: float) -> list[Compared]:
    """Holm (1979): the k-th smallest of n p-values must be below ALPHA / (n - k), and so must all before it."""
    ranked = sorted((one for one in compared if one.p is not None), key=lambda one: one.p or 0.0)
    significant = set()
    for place, one in enumerate(ranked):
        if (one.p or 0.0) >= ALPHA / (len(ranked) - place):
            break
        significant.add(one.what)
    return [
        Compared(**{**one.__dict__, "verdict": FAIL})
        if one.what in significant and one.change is not None and one.change > tolerance
        else one
        for one in compared
    ]


def markdown(gate: Gate, *, title: str) -> str:
    """A summary for a pull request."""
    sign = {PASS: "✅", FAIL: "❌", INCONCLUSIVE: "❔"}
    lines = [f"### {sign[gate.verdict]} {_cell(title)}: {gate.verdict}", "", _cell(gate.reason), ""]
    if gate.compared:
        lines += ["| | what | before | now | for the worse by | 95 % interval |", "|---|---|---:|---:|---:|---|"]
    for one in gate.compared:
        interval = f"{one.low:+.1%} to {one.high:+.1%}" if one.low is not None and one.high is not None else ""
        change = f"{one.change:+.1%}" if one.change is not None else ""
        cells = (sign[one.verdict], _cell(one.what), _plain(one.was), _plain(one.became), change, interval)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _cell(text: str) -> str:
    """Text of a report inside Markdown: it can't begin a new cell, line, link or tag."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
