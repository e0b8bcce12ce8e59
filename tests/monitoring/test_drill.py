"""The drill: what it simulates, what it counts, what it prints."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from django.core.management import CommandError, call_command

from monitoring import drilling
from monitoring.alerts import DEFAULT_RULES, Rule
from monitoring.drilling import FAULTS, INTERVAL, MONDAY, ROUNDS_A_WEEK, Clean, Detection, Profile, Report, simulate

PROFILE = Profile(per_second=20.0, median_seconds=0.04, night=0.2, load_effect=0.2)


def samples(fault: str | None = None, begins: float = 100.0) -> drilling.Samples:
    chosen = next((one for one in FAULTS if one.name == fault), None)
    rng = np.random.default_rng(7)
    return simulate(PROFILE, rng, first=720, rounds=200, fault=chosen, begins_at=MONDAY + INTERVAL * (720 + begins))


@pytest.mark.parametrize(
    ("fault", "signal", "low", "high"),
    [
        ("latency ×1.5", "latency_mean_ms", 1.4, 1.65),
        ("latency ×2", "latency_mean_ms", 1.8, 2.2),
        ("latency ×5", "latency_mean_ms", 4.5, 5.5),
        ("saturation", "latency_mean_ms", 8.0, 11.0),
    ],
)
def test_slows_down_by_what_it_says(fault: str, signal: str, low: float, high: float) -> None:
    found = samples(fault).signals[signal]
    assert low < np.median(found[115:]) / np.median(found[:100]) < high


@pytest.mark.parametrize(("fault", "share"), [("errors 5 %", 0.05), ("errors 20 %", 0.2)])
def test_fails_as_many_as_it_says(fault: str, share: float) -> None:
    found = samples(fault).signals["error_ratio"]
    assert found[:100].mean() < 0.002
    assert found[101:].mean() == pytest.approx(share, rel=0.05)


def test_a_fault_in_the_middle_of_an_interval_is_in_part_of_it() -> None:
    found = samples("errors 20 %", begins=100.5).signals["error_ratio"]
    assert found[100] == pytest.approx(0.1, rel=0.3)


def test_a_crash_leaves_nothing_and_silence_leaves_up() -> None:
    crash, silence = samples("crash").signals, samples("silence of metrics").signals
    assert (crash["up"][100:] == 0).all()
    assert (silence["up"] == 1).all()
    for signals in (crash, silence):
        assert np.isnan(signals["latency_p95_ms"][100:]).all()
        assert np.isfinite(signals["latency_p95_ms"][:100]).all()


def test_has_quiet_nights() -> None:
    rng = np.random.default_rng(7)
    rate = simulate(PROFILE, rng, first=0, rounds=1440).signals["requests_per_second"]
    assert rate.max() > 3 * np.quantile(rate, 0.1)


def test_finds_what_the_rules_find_and_counts_from_the_beginning_of_the_fault() -> None:
    alone = [rule for rule in DEFAULT_RULES if rule.name == "not-measured"]
    report = drilling.drill(seed=3, runs=2, weeks=1, rules=alone)
    found = {detection.fault: detection for detection in report.detections}
    assert (found["crash"].found, found["crash"].first_rules) == (2, {"not-measured": 2})
    # `for` is two intervals: the one it falls into and the next one.
    assert 1.0 <= found["crash"].mean_intervals <= 2.0
    assert found["latency ×2"].found == 0
    assert found["latency ×2"].mean_intervals == drilling.LONGEST_ROUNDS
    assert not report.met
    assert report.clean.alerts == 0


def test_a_rule_that_cries_wolf_is_counted() -> None:
    wolf = [Rule("wolf", "…", "latency_mean_ms", threshold=0.0, for_intervals=1)]
    rng = np.random.default_rng(1)
    judged = drilling.Judge(simulate(PROFILE, rng, first=0, rounds=10), wolf)
    assert [judged.round(number) for number in range(3)] == [["wolf"], [], []]


def test_the_interval_of_a_rate_is_garwoods() -> None:
    assert drilling.poisson_interval(0) == (0.0, pytest.approx(3.6889, abs=1e-3))
    assert drilling.poisson_interval(10) == (pytest.approx(4.7954, abs=1e-3), pytest.approx(18.3904, abs=1e-3))


CLEAN = Clean(40, 2, 0.05, 0.006, 0.18, 0.1, {"latency-deviates": 2})
FOUND = Detection("latency ×2", 100, 100, 1.8, 3.1, 2.0, 4.0, {"latency-deviates": 100})


@pytest.mark.parametrize(
    ("report", "met"),
    [
        (Report(1, 60.0, (FOUND,), CLEAN), True),
        (Report(1, 60.0, (replace(FOUND, mean_intervals=2.1),), CLEAN), False),
        (Report(1, 60.0, (replace(FOUND, p95_intervals=4.1),), CLEAN), False),
        (Report(1, 60.0, (FOUND,), replace(CLEAN, per_week=0.15)), False),
    ],
)
def test_prints_the_table_and_fails_where_a_target_is_missed(
    report: Report, met: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def drill(**given: int) -> Report:
        asked.update(given)
        return report

    monkeypatch.setattr(drilling, "drill", drill)
    out = StringIO()

    def run(*arguments: str) -> None:
        if met:
            call_command("drill", *arguments, stdout=out)
            return
        with pytest.raises(SystemExit) as stopped:
            call_command("drill", *arguments, stdout=out)
        assert stopped.value.code == 1

    run("--json", "--runs", "7", "--weeks", "9", "--seed", "3", "--plain")
    assert asked == {"runs": 7, "weeks": 9, "seed": 3, "is_disturbed": False}
    told = json.loads(out.getvalue())
    assert told["met"] is met
    assert told["detections"][0]["fault"] == "latency ×2"
    assert told["clean"]["low"] == 0.006
    run()
    assert "False alerts on 40 clean service-weeks: 2 (latency-deviates 2), " in out.getvalue()


def test_refuses_no_runs() -> None:
    with pytest.raises(CommandError, match="--runs"):
        call_command("drill", "--runs", "0")


def test_a_week_has_as_many_rounds() -> None:
    assert ROUNDS_A_WEEK == 10_080


def test_watching_leaves_out_only_what_cannot_begin_an_alert() -> None:
    profile = replace(PROFILE, per_second=6.0, jobs=(drilling.Job(86_400.0, 9 * 3600.0, 3600.0, 2.0),))
    rng = np.random.default_rng(3)
    past = simulate(profile, rng, first=0, rounds=6 * 1440)
    first = len(past.at)
    hurt = simulate(profile, rng, first=first, rounds=500, fault=FAULTS[5], begins_at=MONDAY + INTERVAL * (first + 300))
    gone = simulate(profile, rng, first=first + 500, rounds=8, fault=FAULTS[7], begins_at=MONDAY)
    played = past.then(hurt).then(gone)
    # Touchier than they are, so that there is something to compare.
    rules = [replace(rule, strictness=0.7, threshold=0.8 * rule.threshold) for rule in DEFAULT_RULES]
    step_by_step = drilling.Judge(played, rules)
    expected = [
        (number, name) for number in range(first - 200, first + 508) for name in sorted(step_by_step.round(number))
    ]
    assert {name for _, name in expected} >= {
        "latency-deviates",
        "errors-unusual",
        "error-budget-fast",
        "traffic-silent",
    }
    assert drilling.Judge(played, rules).watch(first - 200, first + 508) == expected


def test_jobs_come_back_and_deploys_are_short() -> None:
    job = drilling.Job(every_seconds=drilling.WEEK, begins_seconds=36_000.0, lasts_seconds=3600.0, latency=1.5)
    at = MONDAY + INTERVAL * (1.0 + np.arange(2 * ROUNDS_A_WEEK))
    factor, missed = replace(PROFILE, jobs=(job,)).slowed(at)
    assert (factor[630:650] == 1.5).all()
    assert (factor[ROUNDS_A_WEEK + 630 : ROUNDS_A_WEEK + 650] == 1.5).all()
    assert (factor > 1).sum() == pytest.approx(120, abs=4)
    assert not missed.any()
    factor, missed = replace(PROFILE, deploys_a_week=20.0).slowed(at)
    assert factor.max() <= 2.0
    assert 20 < (factor > 1).sum() < 90
    assert 0 < missed.sum() < 25
    in_parts = np.concatenate([replace(PROFILE, deploys_a_week=20.0).slowed(part)[0] for part in np.split(at, 4)])
    assert np.array_equal(in_parts, factor)


def test_the_plain_ones_have_no_jobs_and_no_deploys() -> None:
    drawn = Profile.drawn(np.random.default_rng(5))
    assert drawn.deploys_a_week > 0
    assert (drawn.undisturbed.jobs, drawn.undisturbed.deploys_a_week) == ((), 0.0)
    assert drawn.undisturbed.slowed(MONDAY + 60.0 * np.arange(10_080))[0].max() == 1.0
