"""The law of improvements: which moves there are, who makes them, and what is written down."""

from __future__ import annotations

import itertools
import threading

import pytest
from django.db import IntegrityError, connection, transaction

from approvals import audit
from approvals.models import AuditEntry
from improvements.models import LIVE, MOVES, IllegalMove, Improvement, LostRace, Rollout, State
from improvements.models.lifecycle import ENDED
from improvements.outcome import Evidence, Outcome, Verdict
from improvements.pipeline import PIPELINE
from tests.improvements.factories import ImprovementFactory, ReleaseFactory, in_state

pytestmark = pytest.mark.django_db


def test_has_a_row_in_the_law_for_every_state():
    assert set(MOVES) == set(State)


def test_has_a_step_for_every_state_that_a_machine_can_leave():
    # STUCK waits for a person: the machine has tried what it can.
    assert set(PIPELINE) == {state for state in State if MOVES[state]} - {State.STUCK}


def test_leads_nowhere_that_the_law_forbids():
    for state, step in PIPELINE.items():
        targets = {step.passed, step.failed, step.inconclusive, *step.endings.values()} - {None}
        assert targets <= MOVES[state], state


def test_reaches_every_move_of_the_law():
    by_people = {
        *((state, State.DISMISSED) for state in (State.AUTHORING, State.TESTING, State.SCANNING, State.STAGING)),
        (State.STUCK, State.ROLLING_BACK),
    }
    by_steps = {
        (state, target)
        for state, step in PIPELINE.items()
        for target in {step.passed, step.failed, step.inconclusive, *step.endings.values()} - {None}
    }
    assert by_people | by_steps == {(state, target) for state, targets in MOVES.items() for target in targets}


@pytest.mark.parametrize(("origin", "target"), [*itertools.product(State, State)])
def test_moves_exactly_where_the_law_says(origin, target):
    improvement = in_state(origin)
    if target in MOVES[origin]:
        improvement.move_to(target, actor=None, because="the test says so")
        entry = AuditEntry.objects.latest("sequence")
        assert (Improvement.objects.get(pk=improvement.pk).state, improvement.state) == (target, target)
        assert entry.action == f"improvement.{target.value.lower()}"
        assert entry.because == "the test says so"
    else:
        with pytest.raises(IllegalMove, match="cannot move"):
            improvement.move_to(target, actor=None, because="the test says so")
        assert Improvement.objects.get(pk=improvement.pk).state == origin


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("verdict", Verdict)
def test_never_takes_no_data_or_a_failure_for_a_pass(state, verdict):
    step = PIPELINE.get(state)
    if step is None:
        assert state in ENDED or state is State.STUCK
        return
    target = step.target(Outcome(verdict, "because"))
    if verdict is Verdict.PASS:
        assert target is step.passed
    elif verdict is Verdict.INCONCLUSIVE:
        assert target is (step.inconclusive or step.failed)
    else:
        assert target is step.failed


def test_goes_back_from_every_state_that_touches_live_traffic():
    assert all(State.ROLLING_BACK in MOVES[state] for state in LIVE)


def test_loses_the_race_when_somebody_else_moved_it():
    improvement = in_state(State.TESTING)
    Improvement.objects.get(pk=improvement.pk).move_to(State.SCANNING, actor=None, because="first")
    with pytest.raises(LostRace):
        improvement.move_to(State.FAILED, actor=None, because="second")
    assert Improvement.objects.get(pk=improvement.pk).state == State.SCANNING


@pytest.mark.django_db(transaction=True)
def test_lets_exactly_one_of_many_racing_workers_win():
    improvement = in_state(State.TESTING)
    barrier, results = threading.Barrier(8), []

    def race():
        try:
            mine = Improvement.objects.get(pk=improvement.pk)
            barrier.wait(timeout=10)
            mine.move_to(State.SCANNING, actor=None, because="racing")
            results.append("won")
        except LostRace:
            results.append("lost")
        finally:
            connection.close()

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(results) == ["lost"] * 7 + ["won"]
    assert AuditEntry.objects.filter(action="improvement.scanning", subject_id=str(improvement.pk)).count() == 1
    assert audit.verify().fault is None


def test_has_one_live_rollout_a_service():
    first, second = ImprovementFactory(), None
    second = ImprovementFactory(finding__service=first.service)
    old, new = ReleaseFactory(service=first.service), ReleaseFactory(service=first.service)
    Rollout.objects.create(service=first.service, improvement=first, current=old, candidate=new)
    with pytest.raises(IntegrityError), transaction.atomic():
        Rollout.objects.create(service=first.service, improvement=second, current=old, candidate=new)


def test_changes_its_fingerprint_with_patch_evidence_and_policy():
    improvement = in_state(State.TESTING, diff="+one line")
    seen = {improvement.fingerprint(policy_version="1")}
    seen.add(improvement.fingerprint(policy_version="2"))
    improvement.diff = "+another line"
    seen.add(improvement.fingerprint(policy_version="1"))
    run = improvement.runs.create(
        state=State.TESTING,
        lease="0" * 32,
        verdict=Verdict.PASS,
        ended_at=improvement.created_at,
        started_at=improvement.created_at,
    )
    run.keep(Evidence("tests", "all passed", {"passed": 3}))
    seen.add(improvement.fingerprint(policy_version="1"))
    assert len(seen) == 4
