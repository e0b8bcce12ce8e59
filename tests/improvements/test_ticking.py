"""The tick: leases, crashes, overtaking stops. The steps are small stand-ins; the machine around them is real."""

from __future__ import annotations

import dataclasses
import datetime as dt
import uuid

import pytest
from django.utils import timezone

from approvals.models import AuditEntry
from improvements import stopping, ticking
from improvements.models import IllegalMove, Improvement, State
from improvements.outcome import Evidence, Outcome, Verdict, Waiting
from improvements.pipeline import PIPELINE
from tests.improvements.factories import in_state

pytestmark = pytest.mark.django_db


@pytest.fixture
def step(monkeypatch):
    """step(state, run): what the machine does in `state` during this test."""

    def replace(state, run):
        monkeypatch.setitem(PIPELINE, state, dataclasses.replace(PIPELINE[state], run=run))

    return replace


def test_records_outcome_evidence_and_move_together(step):
    step(
        State.TESTING,
        lambda _: Outcome(Verdict.PASS, "3 tests passed", (Evidence("tests", "3 passed", {"passed": 3}),)),
    )
    improvement = in_state(State.TESTING)
    assert ticking.take_step(improvement)
    run = improvement.runs.get()
    assert (improvement.state, run.verdict, run.reason) == (State.SCANNING, "PASS", "3 tests passed")
    assert run.evidence.get().content == {"passed": 3}
    entry = AuditEntry.objects.get(action="improvement.step")
    assert run.evidence.get().sha256 in str(entry.payload)
    improvement.refresh_from_db()
    assert improvement.leased_until is None


def test_goes_on_step_by_step_until_one_waits(step):
    step(State.TESTING, lambda _: Outcome(Verdict.PASS, "fine"))
    step(State.SCANNING, lambda _: Outcome(Verdict.PASS, "fine"))
    step(State.STAGING, lambda _: Waiting("it is starting", seconds=30))
    improvement = in_state(State.TESTING)
    assert ticking.advance(improvement.pk) is State.STAGING
    improvement.refresh_from_db()
    assert improvement.state == State.STAGING
    assert improvement.wake_at > timezone.now() + dt.timedelta(seconds=20)
    assert improvement.pk not in dict(ticking.due())


def test_keeps_one_row_for_a_step_that_waits_many_times(step):
    answers = iter([Waiting("10 %", seconds=0), Waiting("50 %", seconds=0), Outcome(Verdict.PASS, "100 %")])
    step(State.ROLLING_OUT, lambda _: next(answers))
    improvement = in_state(State.ROLLING_OUT)
    for _ in range(3):
        ticking.take_step(improvement)
    assert [(run.verdict, run.reason) for run in improvement.runs.all()] == [("PASS", "100 %")]


def test_lets_nobody_else_take_a_step_that_is_leased(step):
    seen = []

    def nested(improvement):
        seen.append(ticking.take_step(Improvement.objects.get(pk=improvement.pk)))
        return Outcome(Verdict.PASS, "done")

    step(State.TESTING, nested)
    assert ticking.take_step(in_state(State.TESTING))
    assert seen == [False]


def test_takes_the_step_of_a_dead_worker_again_when_its_lease_runs_out(step):
    step(State.TESTING, lambda _: Outcome(Verdict.PASS, "done"))
    improvement = in_state(State.TESTING)
    improvement.claim(seconds=60)
    improvement.runs.create(state=State.TESTING, lease=improvement.leased_by)
    assert not ticking.take_step(improvement)
    Improvement.objects.filter(pk=improvement.pk).update(leased_until=timezone.now() - dt.timedelta(seconds=1))
    assert ticking.take_step(improvement)
    dead, alive = improvement.runs.all()
    assert (dead.verdict, dead.crashed) == ("", True)
    assert alive.verdict == "PASS"


def test_throws_away_the_outcome_of_a_worker_that_lost_its_lease(step):
    def slow(improvement):
        Improvement.objects.filter(pk=improvement.pk).update(leased_by=uuid.uuid4())
        return Outcome(Verdict.PASS, "too late")

    step(State.TESTING, slow)
    improvement = in_state(State.TESTING)
    assert not ticking.take_step(improvement)
    improvement.refresh_from_db()
    assert improvement.state == State.TESTING
    assert not improvement.runs.filter(verdict="PASS").exists()


@pytest.mark.parametrize("state", [State.ROLLING_OUT, State.VALIDATING, State.PROMOTED])
def test_lets_a_stop_win_over_a_pass_that_comes_later(step, state, bob):
    def overtaken(improvement):
        stopping.stop(Improvement.objects.get(pk=improvement.pk), actor=bob, because="errors on the phone app")
        return Outcome(Verdict.PASS, "looks fine")

    step(state, overtaken)
    improvement = in_state(state)
    ticking.take_step(improvement)
    improvement.refresh_from_db()
    assert improvement.state == State.ROLLING_BACK
    assert improvement.pk in dict(ticking.due())
    assert improvement.settled_at is None


def test_takes_a_crashed_step_again_later_and_gives_up_after_five(step):
    def broken(_):
        raise RuntimeError("the bug")

    step(State.TESTING, broken)
    improvement = in_state(State.TESTING)
    for _ in range(ticking.MOST_CRASHES):
        assert not ticking.take_step(improvement)
        assert improvement.pk not in dict(ticking.due())
        Improvement.objects.filter(pk=improvement.pk).update(wake_at=timezone.now())
    ticking.take_step(improvement)
    improvement.refresh_from_db()
    assert improvement.state == State.FAILED
    assert all("the bug" in run.reason for run in improvement.runs.filter(crashed=True))


def test_takes_traffic_back_when_a_live_step_crashes_for_good(step):
    def broken(_):
        raise RuntimeError("the bug")

    step(State.ROLLING_OUT, broken)
    improvement = in_state(State.ROLLING_OUT)
    for _ in range(ticking.MOST_CRASHES + 1):
        Improvement.objects.filter(pk=improvement.pk).update(wake_at=timezone.now())
        ticking.take_step(improvement)
    improvement.refresh_from_db()
    assert improvement.state == State.ROLLING_BACK


def test_settles_what_passed_its_watch_and_leaves_it_alone(step):
    step(State.PROMOTED, lambda _: Outcome(Verdict.PASS, "nothing regressed"))
    improvement = in_state(State.PROMOTED)
    assert not ticking.take_step(improvement)
    improvement.refresh_from_db()
    assert improvement.settled_at is not None
    assert ticking.due() == []


def test_puts_what_touches_traffic_before_new_ideas():
    fresh, rolling = in_state(State.AUTHORING), in_state(State.ROLLING_BACK)
    assert [pk for pk, _ in ticking.due()] == [rolling.pk, fresh.pk]


@pytest.mark.parametrize("state", [state for state in State if state not in (State.SUGGESTED,)])
def test_stops_in_every_state_or_says_why_not(state, bob):
    improvement = in_state(state)
    live = {State.ROLLING_OUT, State.VALIDATING, State.PROMOTED}
    if state in live:
        assert stopping.stop(improvement, actor=bob, because="stop") is State.ROLLING_BACK
    elif state in (State.AUTHORING, State.TESTING, State.SCANNING, State.STAGING):
        assert stopping.stop(improvement, actor=bob, because="stop") is State.DISMISSED
    elif state is State.AWAITING_APPROVAL:
        assert stopping.stop(improvement, actor=bob, because="stop") is State.REJECTED
    else:
        with pytest.raises(IllegalMove):
            stopping.stop(improvement, actor=bob, because="stop")
