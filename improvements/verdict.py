"""Is the candidate worse than the release that serves now? Both get live traffic at the same time; this compares them.

Errors are judged by an e-value, which may be looked at after every request without raising more false alarms: reject
once it reaches 1/alpha (Ville's inequality; Ramdas, Grünwald, Vovk, Shafer, "Game-theoretic statistics and safe
anytime-valid inference", Statistical Science 38(4), 2023). Latency is judged at the end of a step by the Mann-Whitney
U test with a tolerance, as Netflix's and Google's Kayenta does, and by the slow tail, to which that test is blind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from improvements.outcome import Verdict

Floats = NDArray[np.float64]

# Thresholds at which early() counts slow requests: 8 ms, 16 ms … about a minute. They are fixed in advance, because a
# threshold chosen by looking at the data would break the promise of the e-value.
SLOW_MS = tuple(float(2**power) for power in range(3, 17))


@dataclass(frozen=True)
class Arm:
    """What one release did in a window. `latencies_ms` is float64[n], n ≤ `requests`: some have no time."""

    latencies_ms: Floats
    errors: int
    requests: int

    @property
    def error_ratio(self) -> float:
        return self.errors / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class Rules:
    """What counts as worse, and how sure one must be."""

    candidate_requests: int = 200
    control_requests: int = 100
    error_alpha: float = 0.01
    candidate_errors: int = 5
    # Evidence of errors that is too weak to fail a candidate and too strong to wave it through.
    suspicious_alpha: float = 0.05
    # With the current release in such trouble a comparison says nothing about the candidate.
    control_error_ratio: float = 0.2
    latency_tolerance: float = 0.25
    latency_confidence: float = 0.98
    # The proxy's times are whole milliseconds, so smaller differences may be rounding.
    latency_floor_ms: float = 1.0
    tail_quantile: float = 0.95
    tail_alpha: float = 0.005
    tail_ratio: float = 2.0
    # Lines are lost without regard to the release, so a comparison bears some; with more than this it is of too little.
    lost_ratio: float = 0.05
    # Before the end of a step only a candidate that is more than this many times as slow is failed for latency.
    catastrophe: float = 2.0


@dataclass(frozen=True)
class Judgement:
    """A verdict, the sentence that explains it, and every number it rests on (finite, so that it is valid JSON)."""

    verdict: Verdict
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


def judge(
    control: Arm, candidate: Arm, *, rules: Rules = Rules(), early: bool = False, lost_ratio: float = 0.0
) -> Judgement:
    """Compare the two arms of one window in which both got traffic. Of all its requests `lost_ratio` (0–1) are unknown.

    `early` may be asked as often as wanted while the step is under way; it only knows FAIL and INCONCLUSIVE. Without it
    the answer is final: PASS, FAIL, INCONCLUSIVE, or NO_DATA when the candidate got too little traffic to say anything.
    """
    return _doubted(_compared(control, candidate, rules, early), lost_ratio, rules)


def _compared(control: Arm, candidate: Arm, rules: Rules, early: bool) -> Judgement:
    numbers = _numbers(control, candidate)
    log_e = log_e_value(
        candidate.errors, control.errors, expected=_expected_share(control.requests, candidate.requests)
    )
    numbers["error_e_value"] = _e(log_e)
    errors = (
        f"{candidate.errors} errors in {candidate.requests} requests ({candidate.error_ratio:.2%}) against "
        f"{control.errors} in {control.requests} ({control.error_ratio:.2%})"
    )
    if candidate.errors >= rules.candidate_errors and log_e >= -math.log(rules.error_alpha):
        reason = (
            f"The candidate has more errors: {errors}; e-value {numbers['error_e_value']:.3g}, "
            f"the limit is {1 / rules.error_alpha:g}."
        )
        return Judgement(Verdict.FAIL, reason, numbers)
    if early:
        return _early(control, candidate, rules, numbers, errors)
    return _final(control, candidate, rules, numbers, errors, log_e)


def _doubted(judged: Judgement, lost_ratio: float, rules: Rules) -> Judgement:
    """The same with what is not known of its window: told if it is anything, and no PASS if it is much."""
    if not lost_ratio:
        return judged
    is_doubtful = judged.verdict is Verdict.PASS and lost_ratio > rules.lost_ratio
    return Judgement(
        Verdict.INCONCLUSIVE if is_doubtful else judged.verdict,
        f"{judged.reason} Of this window {lost_ratio:.1%} of the requests are not known: the proxy's lines were lost.",
        {**judged.numbers, "lost_ratio": lost_ratio},
    )


def _early(control: Arm, candidate: Arm, rules: Rules, numbers: dict[str, float], errors: str) -> Judgement:
    log_e, slow_ms, slow = catastrophe(control.latencies_ms, candidate.latencies_ms, rules=rules)
    numbers |= {"slow_e_value": _e(log_e), "slow_ms": slow_ms, "candidate_slow": slow}
    if slow >= rules.candidate_errors and log_e >= -math.log(rules.error_alpha):
        reason = (
            f"The candidate is more than {rules.catastrophe:g} times as slow: {slow} of its "
            f"{candidate.latencies_ms.size} requests took over {rules.catastrophe * slow_ms:g} ms; "
            f"e-value {numbers['slow_e_value']:.3g}, the limit is {1 / rules.error_alpha:g}."
        )
        return Judgement(Verdict.FAIL, reason, numbers)
    return Judgement(Verdict.INCONCLUSIVE, f"Nothing alarming so far: {errors}.", numbers)


def _final(
    control: Arm, candidate: Arm, rules: Rules, numbers: dict[str, float], errors: str, log_e: float
) -> Judgement:
    if candidate.requests < rules.candidate_requests or not candidate.latencies_ms.size:
        reason = f"The candidate got {candidate.requests} requests; a verdict needs {rules.candidate_requests}."
        return Judgement(Verdict.NO_DATA, reason, numbers)
    if control.requests < rules.control_requests or not control.latencies_ms.size:
        reason = (
            f"The current release got {control.requests} requests; a comparison needs {rules.control_requests} "
            "in the same window."
        )
        return Judgement(Verdict.INCONCLUSIVE, reason, numbers)
    if control.error_ratio > rules.control_error_ratio:
        reason = f"The current release is itself failing, so the comparison says nothing: {errors}."
        return Judgement(Verdict.INCONCLUSIVE, reason, numbers)

    slower = compare_latency(control.latencies_ms, candidate.latencies_ms, rules=rules)
    numbers |= slower.numbers
    latency = (
        f"median {numbers['candidate_p50_ms']:.1f} ms against {numbers['control_p50_ms']:.1f} ms, "
        f"p95 {numbers['candidate_p95_ms']:.1f} ms against {numbers['control_p95_ms']:.1f} ms"
    )
    if slower.verdict is Verdict.FAIL:
        return Judgement(
            Verdict.FAIL, f"The candidate is slower: {latency}; {slower.reason}. Errors: {errors}.", numbers
        )
    if log_e >= -math.log(rules.suspicious_alpha):
        reason = (
            f"The candidate may have more errors: {errors}; e-value {numbers['error_e_value']:.3g}, too little "
            f"for a failure ({1 / rules.error_alpha:g} and {rules.candidate_errors} errors) and too much for a pass."
        )
        return Judgement(Verdict.INCONCLUSIVE, reason, numbers)
    if slower.verdict is Verdict.INCONCLUSIVE:
        reason = f"The candidate may be slower: {latency}; {slower.reason}. Errors: {errors}."
        return Judgement(Verdict.INCONCLUSIVE, reason, numbers)
    return Judgement(Verdict.PASS, f"The candidate is no worse: {latency}; {slower.reason}. Errors: {errors}.", numbers)


def log_e_value(candidate_events: int, control_events: int, *, expected: float) -> float:
    """Natural logarithm of the evidence that more than the `expected` share (0–1) of the events are the candidate's.

    When the candidate is no worse, each event is the candidate's with probability at most `expected`. The alternative
    is a mixture: any share above that, uniformly (Robbins 1970). The ratio of the two likelihoods is the e-value. With
    c and k events it is ∫ p^c (1-p)^k dp over (expected, 1), divided by (1-expected), over expected^c (1-expected)^k.
    Zero (an e-value of 1: no evidence) when there are no events, or one arm had no traffic.
    """
    from scipy import special  # here, because importing it costs every process of the product seconds at its start

    events = candidate_events + control_events
    if not events or not 0 < expected < 1:
        return 0.0
    a, b = candidate_events + 1.0, control_events + 1.0
    above = float(special.betaincc(a, b, expected))
    if above <= 0:  # the candidate has so few of the events that the mixture's mass underflows
        return -math.inf
    mixture = float(special.betaln(a, b)) + math.log(above) - math.log1p(-expected)
    return mixture - candidate_events * math.log(expected) - control_events * math.log1p(-expected)


def catastrophe(control_ms: Floats, candidate_ms: Floats, *, rules: Rules) -> tuple[float, float, int]:
    """Evidence that the candidate is more than `rules.catastrophe` times as slow, valid under peeking.

    Returns the natural logarithm of the e-value, the threshold (ms) that speaks loudest, and how many requests of the
    candidate were beyond it (times the factor). At each threshold a slow request is an event as in `log_e_value`; the
    mean over the thresholds is an e-value again.
    """
    from scipy import special  # here, as above

    expected = _expected_share(control_ms.size, candidate_ms.size)
    control, candidate = np.sort(control_ms), np.sort((candidate_ms - rules.latency_floor_ms) / rules.catastrophe)
    slow = [
        (
            int(candidate.size - candidate.searchsorted(ms, "right")),
            int(control.size - control.searchsorted(ms, "right")),
        )
        for ms in SLOW_MS
    ]
    logs = [log_e_value(mine, others, expected=expected) for mine, others in slow]
    loudest = int(np.argmax(logs))
    return float(special.logsumexp(logs)) - math.log(len(logs)), SLOW_MS[loudest], slow[loudest][0]


def compare_latency(control_ms: Floats, candidate_ms: Floats, *, rules: Rules) -> Judgement:
    """Is the candidate slower than the control made slower by the tolerance? Both float64[n], n ≥ 1, in milliseconds.

    FAIL: surely slower (Mann-Whitney, or many more requests in the slow tail). PASS: surely not. Else INCONCLUSIVE.
    """
    from scipy import stats  # here, because importing it costs every process of the product seconds at its start

    tolerated = np.maximum(control_ms * (1 + rules.latency_tolerance), control_ms + rules.latency_floor_ms)
    slower = float(stats.mannwhitneyu(candidate_ms, tolerated, alternative="greater", method="asymptotic").pvalue)
    not_slower = float(stats.mannwhitneyu(candidate_ms, tolerated, alternative="less", method="asymptotic").pvalue)
    # All values equal leave the U test without variance; equal to the tolerated ones is not worse than tolerated.
    slower, not_slower = (1.0 if math.isnan(p) else p for p in (slower, not_slower))

    tail_ms = float(np.quantile(tolerated, rules.tail_quantile))
    mine, others = int((candidate_ms > tail_ms).sum()), int((tolerated > tail_ms).sum())
    # Fisher's exact test: of all slow requests, how surprising is it that so many are the candidate's?
    tail_p = float(stats.hypergeom.sf(mine - 1, candidate_ms.size + tolerated.size, mine + others, candidate_ms.size))
    mine_ratio, others_ratio = mine / candidate_ms.size, others / tolerated.size
    in_tail = tail_p <= rules.tail_alpha and mine_ratio >= rules.tail_ratio * max(others_ratio, 1 - rules.tail_quantile)

    numbers = {
        "latency_p_slower": slower,
        "latency_p_not_slower": not_slower,
        "tail_ms": tail_ms,
        "candidate_tail_ratio": mine_ratio,
        "tail_p": tail_p,
    }
    tolerance, limit = f"{rules.latency_tolerance:.0%}", 1 - rules.latency_confidence
    if slower <= limit:
        reason = f"more than {tolerance} slower with confidence {1 - slower:.4f} (Mann-Whitney)"
        return Judgement(Verdict.FAIL, reason, numbers)
    if in_tail:
        tolerated_ratio = f"{1 - rules.tail_quantile:.0%}"
        reason = f"{mine_ratio:.1%} of its requests took over {tail_ms:.0f} ms, where {tolerated_ratio} are tolerated"
        return Judgement(Verdict.FAIL, reason, numbers)
    if not_slower <= limit:
        reason = f"not more than {tolerance} slower with confidence {1 - not_slower:.4f} (Mann-Whitney)"
        return Judgement(Verdict.PASS, reason, numbers)
    reason = (
        f"whether it is more than {tolerance} slower is open: confidence {1 - slower:.2f} that it is, "
        f"{1 - not_slower:.2f} that it is not, {rules.latency_confidence:g} is needed"
    )
    return Judgement(Verdict.INCONCLUSIVE, reason, numbers)


def _expected_share(control: int, candidate: int) -> float:
    return candidate / (control + candidate) if control + candidate else 0.0


def _e(log_e: float) -> float:
    return math.exp(min(log_e, 700.0))


def _numbers(control: Arm, candidate: Arm) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, arm in (("control", control), ("candidate", candidate)):
        numbers |= {f"{name}_requests": arm.requests, f"{name}_errors": arm.errors}
        if arm.latencies_ms.size:
            p50, p95, p99 = (float(value) for value in np.quantile(arm.latencies_ms, (0.5, 0.95, 0.99)))
            numbers |= {f"{name}_p50_ms": p50, f"{name}_p95_ms": p95, f"{name}_p99_ms": p99}
    return numbers
