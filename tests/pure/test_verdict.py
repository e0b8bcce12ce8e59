"""The judge of a rollout: against the definitions, as a table of stories, and simulated for false alarms."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import integrate

from improvements.outcome import Verdict
from improvements.verdict import SLOW_MS, Arm, Rules, catastrophe, compare_latency, judge, log_e_value

RULES = Rules()


def arm(rng: np.random.Generator, requests: int, *, errors: int = 0, scale: float = 1.0, add_ms: float = 0.0) -> Arm:
    """Log-normal response times around 20 ms in whole milliseconds, as the proxy writes them."""
    times = np.floor(rng.lognormal(3.0, 0.6, requests) * scale + add_ms)
    return Arm(times, errors, requests)


@pytest.mark.parametrize(
    ("mine", "others", "expected"), [(0, 3, 0.1), (3, 0, 0.1), (5, 20, 0.1), (12, 11, 0.5), (7, 1, 0.9)]
)
def test_e_value_is_the_mixture_over_the_null(mine: int, others: int, expected: float) -> None:
    mixture, _ = integrate.quad(lambda p: p**mine * (1 - p) ** others / (1 - expected), expected, 1)
    null = expected**mine * (1 - expected) ** others
    assert math.exp(log_e_value(mine, others, expected=expected)) == pytest.approx(mixture / null, rel=1e-6)


def test_e_value_has_mean_one_when_the_candidate_is_no_worse() -> None:
    """The definition: its expectation under the null, summed over every outcome of n events, is one."""
    n, expected = 12, 0.1
    mean = sum(
        math.comb(n, c) * expected**c * (1 - expected) ** (n - c) * math.exp(log_e_value(c, n - c, expected=expected))
        for c in range(n + 1)
    )
    assert mean == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(("mine", "others", "expected"), [(0, 0, 0.1), (4, 0, 0.0), (4, 0, 1.0)])
def test_e_value_is_one_without_events_or_without_a_second_arm(mine: int, others: int, expected: float) -> None:
    assert log_e_value(mine, others, expected=expected) == 0.0


def test_e_value_survives_extremes() -> None:
    assert log_e_value(0, 1_000_000, expected=0.5) < 0
    assert log_e_value(1_000_000, 0, expected=0.5) > 1000
    # JSON has no infinity.
    json.dumps(judge(Arm(np.ones(10**5), 0, 10**5), Arm(np.ones(10**5), 10**5, 10**5)).numbers, allow_nan=False)


def slow_mann_whitney(a: np.ndarray, b: np.ndarray) -> float:
    """One-sided p value that `a` is greater, by the definition: count the pairs, normal approximation with ties."""
    u = sum(1.0 if x > y else 0.5 if x == y else 0.0 for x in a for y in b)
    n, m = len(a), len(b)
    _, ties = np.unique(np.concatenate([a, b]), return_counts=True)
    variance = n * m / 12 * ((n + m + 1) - (ties**3 - ties).sum() / ((n + m) * (n + m - 1)))
    return 0.5 * math.erfc((u - n * m / 2 - 0.5) / math.sqrt(variance) / math.sqrt(2))


def test_latency_is_mann_whitney_against_the_tolerated_control() -> None:
    rng = np.random.default_rng(1)
    control, candidate = np.floor(rng.lognormal(3, 0.6, 80)), np.floor(rng.lognormal(3.3, 0.6, 50))
    tolerated = np.array([max(x * 1.25, x + 1.0) for x in control])
    numbers = compare_latency(control, candidate, rules=RULES).numbers
    assert numbers["latency_p_slower"] == pytest.approx(slow_mann_whitney(candidate, tolerated), rel=1e-6)
    assert numbers["latency_p_not_slower"] == pytest.approx(slow_mann_whitney(tolerated, candidate), rel=1e-6)


def test_catastrophe_is_the_mean_of_the_e_values() -> None:
    rng = np.random.default_rng(2)
    control, candidate = rng.lognormal(3, 0.6, 300), rng.lognormal(4, 0.6, 40)
    each = [
        math.exp(
            log_e_value(
                sum(1 for ms in candidate if ms > 2 * limit + 1),
                sum(1 for ms in control if ms > limit),
                expected=40 / 340,
            )
        )
        for limit in SLOW_MS
    ]
    log_e, _, _ = catastrophe(control, candidate, rules=RULES)
    assert math.exp(log_e) == pytest.approx(sum(each) / len(each))


STORIES = {
    # what happened: (control, candidate, final verdict, early verdict)
    "the same": ({"requests": 1800}, {"requests": 200}, Verdict.PASS, Verdict.INCONCLUSIVE),
    "faster": ({"requests": 1800}, {"requests": 200, "scale": 0.4}, Verdict.PASS, Verdict.INCONCLUSIVE),
    "a tenth slower": ({"requests": 2000}, {"requests": 2000, "scale": 1.1}, Verdict.PASS, Verdict.INCONCLUSIVE),
    "a quarter slower": (
        {"requests": 1800},
        {"requests": 200, "scale": 1.25},
        Verdict.INCONCLUSIVE,
        Verdict.INCONCLUSIVE,
    ),
    "half as slow again": ({"requests": 1800}, {"requests": 200, "scale": 1.5}, Verdict.FAIL, Verdict.INCONCLUSIVE),
    "half a second slower": ({"requests": 900}, {"requests": 100, "add_ms": 500}, Verdict.NO_DATA, Verdict.FAIL),
    "every twentieth fails": ({"requests": 1800}, {"requests": 200, "errors": 10}, Verdict.FAIL, Verdict.FAIL),
    "three odd errors": (
        {"requests": 1800},
        {"requests": 200, "errors": 3},
        Verdict.INCONCLUSIVE,
        Verdict.INCONCLUSIVE,
    ),
    "both fail a little": (
        {"requests": 1800, "errors": 36},
        {"requests": 200, "errors": 4},
        Verdict.PASS,
        Verdict.INCONCLUSIVE,
    ),
    "both fail": (
        {"requests": 1800, "errors": 900},
        {"requests": 200, "errors": 100},
        Verdict.INCONCLUSIVE,
        Verdict.INCONCLUSIVE,
    ),
    "no traffic": ({"requests": 1800}, {"requests": 0}, Verdict.NO_DATA, Verdict.INCONCLUSIVE),
    "little traffic": ({"requests": 1800}, {"requests": 199}, Verdict.NO_DATA, Verdict.INCONCLUSIVE),
    "nothing to compare with": ({"requests": 99}, {"requests": 900}, Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE),
    "alone": ({"requests": 0}, {"requests": 900, "errors": 9}, Verdict.INCONCLUSIVE, Verdict.INCONCLUSIVE),
}


@pytest.mark.parametrize("story", STORIES)
def test_judges(story: str) -> None:
    control, candidate, final, early = STORIES[story]
    rng = np.random.default_rng(7)
    arms = arm(rng, **control), arm(rng, **candidate)  # type: ignore[arg-type]
    judged = judge(*arms)
    assert judged.verdict is final, judged.reason
    assert judged.reason.endswith(".")
    json.dumps(judged.numbers, allow_nan=False)
    judged = judge(*arms, early=True)
    assert judged.verdict is early, judged.reason


def test_fails_a_slow_tail_that_the_median_hides() -> None:
    rng = np.random.default_rng(3)
    control, candidate = arm(rng, 1800), arm(rng, 200)
    candidate.latencies_ms[:40] += 800
    judged = judge(control, candidate)
    assert judged.verdict is Verdict.FAIL
    assert "21.0% of its requests took over 66 ms" in judged.reason


def test_does_not_take_rounding_for_slowness() -> None:
    """1.9 ms against 2.0 ms: the proxy writes 1 and 2."""
    judged = judge(Arm(np.full(900, 1.0), 0, 900), Arm(np.full(300, 2.0), 0, 300))
    assert judged.verdict is not Verdict.FAIL


def test_gives_the_numbers_it_rests_on() -> None:
    rng = np.random.default_rng(4)
    judged = judge(arm(rng, 1800, errors=2), arm(rng, 200, errors=12))
    assert judged.numbers["candidate_errors"] == 12
    assert judged.numbers["error_e_value"] > 100
    assert "12 errors in 200 requests (6.00%) against 2 in 1800 (0.11%)" in judged.reason


@pytest.mark.parametrize("base", [0.002, 0.02])
def test_rarely_fails_an_equal_candidate_however_often_it_peeks(base: float) -> None:
    """A/A, 10 % share, a peek every 100 requests up to 3,000, errors and latency: promised is 1 % for each."""
    rng = np.random.default_rng(11)
    false_alarms = 0
    runs = 100
    for _ in range(runs):
        mine = rng.random(3000) < 0.1
        failed = rng.random(3000) < base
        times = np.floor(rng.lognormal(3.0, 0.8, 3000))
        for seen in range(100, 3001, 100):
            m, f, t = mine[:seen], failed[:seen], times[:seen]
            control = Arm(t[~m], int((f & ~m).sum()), int((~m).sum()))
            candidate = Arm(t[m], int((f & m).sum()), int(m.sum()))
            if judge(control, candidate, early=True).verdict is Verdict.FAIL:
                false_alarms += 1
                break
    assert false_alarms <= 0.02 * runs


def test_rarely_fails_an_equal_candidate_in_the_end_and_finds_a_bad_one() -> None:
    rng = np.random.default_rng(12)
    runs = 100
    equal = [judge(arm(rng, 1800, errors=18), arm(rng, 200, errors=int(rng.binomial(200, 0.01)))) for _ in range(runs)]
    assert sum(judged.verdict is Verdict.FAIL for judged in equal) <= 0.02 * runs
    assert sum(judged.verdict is Verdict.PASS for judged in equal) >= 0.9 * runs
    bad = [judge(arm(rng, 1800), arm(rng, 200, scale=1.6)) for _ in range(runs)]
    assert sum(judged.verdict is Verdict.FAIL for judged in bad) >= 0.95 * runs


def test_finds_two_points_more_errors_within_a_thousand_requests_an_arm() -> None:
    rng = np.random.default_rng(13)
    found = 0
    for _ in range(100):
        mine, others = int(rng.binomial(1000, 0.022)), int(rng.binomial(1000, 0.002))
        found += (
            judge(Arm(np.ones(1000), others, 1000), Arm(np.ones(1000), mine, 1000), early=True).verdict is Verdict.FAIL
        )
    assert found >= 90


LOST = [
    # (share of the lines that was lost, errors of the candidate, verdict)
    (0.0, 0, Verdict.PASS),
    (0.05, 0, Verdict.PASS),
    (0.06, 0, Verdict.INCONCLUSIVE),
    (0.9, 60, Verdict.FAIL),
]


@pytest.mark.parametrize(("lost_ratio", "errors", "verdict"), LOST)
def test_no_pass_on_a_window_of_which_too_much_is_not_known(lost_ratio: float, errors: int, verdict: Verdict) -> None:
    rng = np.random.default_rng(3)
    judged = judge(arm(rng, 1500), arm(rng, 1500, errors=errors), lost_ratio=lost_ratio)
    assert judged.verdict is verdict
    assert ("lines were lost" in judged.reason) == (lost_ratio > 0)
    assert judged.numbers.get("lost_ratio", 0.0) == lost_ratio
