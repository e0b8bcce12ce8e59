"""The steps that touch live traffic, on a real repository, with traffic as the proxy would have logged it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from approvals.models import AuditEntry
from improvements import releasing, rolling, stopping
from improvements.deployers import DeployError
from improvements.models import Improvement, Release, Rollout, State, TrafficSlice
from improvements.outcome import Outcome, Verdict, Waiting
from monitoring import notifying, storing
from monitoring.derive import Reading
from monitoring.models import Alert, Contact, EscalationStep, Notice, Page
from tests.improvements.world import STEP_SECONDS, Shop

pytestmark = pytest.mark.django_db

FOR_EVER = 12  # times the length of a step


def step_with(shop: Shop, traffic: Callable[[], object]) -> None:
    """A whole step of the rollout with this traffic in the middle of it."""
    assert isinstance(shop.run(rolling.roll_out), Waiting)
    shop.elapse(STEP_SECONDS / 2)
    traffic()
    shop.elapse(STEP_SECONDS / 2 + 1)


def entries(action: str) -> int:
    return AuditEntry.objects.filter(action=action).count()


def alert(
    shop: Shop, *, fired_ago: float, name: str = "errors", severity: str = "critical", state: str = "firing"
) -> None:
    at = timezone.now() - dt.timedelta(seconds=fired_ago)
    Alert.objects.create(
        service=shop.service, name=name, severity=severity, labels_key="{}", state=state, fired_at=at, opened_at=at
    )


# --- rolling out --------------------------------------------------------------------------------------------------


def test_gives_the_candidate_more_traffic_verdict_by_verdict(shop: Shop) -> None:
    rollout = shop.roll_out()
    shares = []
    for _ in range(2):
        step_with(shop, shop.both)
        shares.append(shop.traffic)
        assert shop.tick() is State.ROLLING_OUT
    assert shop.tick() is State.VALIDATING
    assert [*shares, shop.traffic] == [0.1, 0.5, 1.0]
    rollout.refresh_from_db()
    assert [(one["share"], one["verdict"]) for one in rollout.verdicts] == [(10, "PASS"), (50, "PASS")]
    assert rollout.full_since is not None
    assert (shop.current.state, shop.current.share) == (Release.State.RUNNING, 0)
    assert entries("rollout.traffic") == 1 + 3


def test_goes_back_when_too_few_requests_come_for_too_long(shop: Shop) -> None:
    shop.roll_out()
    shop.run(rolling.roll_out)
    shop.requests(shop.current, 300)
    shop.requests(shop.candidate, 20)
    outcome = shop.until_it_ends(rolling.roll_out, every=STEP_SECONDS, times=FOR_EVER)
    assert outcome.verdict is not Verdict.PASS
    assert shop.leads_to(outcome) is State.ROLLING_BACK
    assert shop.traffic == 0.1


def test_goes_back_when_nobody_comes_at_all(shop: Shop) -> None:
    shop.roll_out()
    outcome = shop.until_it_ends(rolling.roll_out, every=STEP_SECONDS, times=FOR_EVER)
    assert outcome.verdict is Verdict.NO_DATA
    assert shop.leads_to(outcome) is State.ROLLING_BACK


def test_fails_a_candidate_with_errors_before_the_step_is_over(shop: Shop) -> None:
    rollout = shop.roll_out()
    shop.run(rolling.roll_out)
    shop.elapse(2)
    shop.requests(shop.current, 400)
    shop.requests(shop.candidate, 40, errors=30)
    shop.elapse(1)
    assert shop.tick() is State.ROLLING_BACK
    rollout.refresh_from_db()
    assert [(one["share"], one["verdict"]) for one in rollout.verdicts] == [(10, "FAIL")]
    assert "errors" in shop.said()


def test_fails_a_slow_candidate_at_the_end_of_the_step(shop: Shop) -> None:
    shop.roll_out()

    def traffic() -> None:
        shop.requests(shop.current, 400, ms=20)
        shop.requests(shop.candidate, 400, ms=32)

    step_with(shop, traffic)
    assert shop.tick() is State.ROLLING_BACK
    assert "slower" in shop.said()


def test_counts_what_the_candidate_dropped_although_users_were_answered_elsewhere(shop: Shop) -> None:
    shop.roll_out()

    def traffic() -> None:
        shop.both()
        shop.deployer.not_answered[shop.candidate.pk] = 60

    step_with(shop, traffic)
    assert shop.tick() is State.ROLLING_BACK


def test_does_not_count_what_was_dropped_before_the_step(shop: Shop) -> None:
    shop.roll_out()
    shop.deployer.not_answered[shop.candidate.pk] = 1000
    step_with(shop, shop.both)
    result = shop.run(rolling.roll_out)
    assert isinstance(result, Waiting), result
    assert shop.improvement.rollout.step == 1


def test_counts_a_dropped_request_once_when_the_user_saw_it_too(shop: Shop) -> None:
    shop.roll_out()

    def traffic() -> None:
        shop.requests(shop.current, 1000, errors=4, status=503)
        shop.requests(shop.candidate, 1000, errors=4, status=503)
        shop.deployer.not_answered.update({shop.current.pk: 4, shop.candidate.pk: 4})

    step_with(shop, traffic)
    shop.run(rolling.roll_out)
    assert shop.improvement.rollout.verdicts[0]["numbers"]["candidate_errors"] == 4


@pytest.mark.parametrize("wrong", ["broken", "down"])
def test_fails_a_candidate_that_does_not_come_up(shop: Shop, wrong: str) -> None:
    shop.roll_out()
    getattr(shop.deployer, wrong).add(shop.candidate.commit)
    outcome = shop.until_it_ends(rolling.roll_out, every=STEP_SECONDS, times=FOR_EVER)
    assert outcome.verdict is Verdict.FAIL
    assert shop.candidate.short in outcome.reason
    assert shop.deployer.traffic(shop.service) == {shop.current.short: 1.0}


def test_starts_what_a_restart_of_the_machine_ended_before_the_rollout(shop: Shop) -> None:
    shop.roll_out()
    shop.deployer.running.clear()
    assert isinstance(shop.run(rolling.roll_out), Waiting)
    assert shop.traffic == 0.1


def test_fails_a_candidate_whose_folder_was_altered_after_it_was_proven(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.roll_out()
    altered = {shop.candidate.pk: "app.py was changed"}
    monkeypatch.setattr(shop.deployer, "intact", lambda release: altered.get(release.pk, ""), raising=False)
    assert shop.tick() is State.ROLLING_BACK
    assert "app.py" in shop.said()
    assert shop.traffic == 0


@pytest.mark.parametrize(
    ("state", "step"),
    [
        (State.ROLLING_OUT, rolling.roll_out),
        (State.VALIDATING, rolling.validate),
        (State.PROMOTED, rolling.watch),
    ],
)
def test_ends_for_a_critical_alert_that_fired_during_the_rollout(
    shop: Shop, state: State, step: Callable[[Improvement], object]
) -> None:
    if state is State.ROLLING_OUT:
        shop.roll_out()
    else:
        shop.bake(state)
    shop.elapse(5)
    assert isinstance(shop.run(step), Waiting)
    alert(shop, fired_ago=0)
    outcome = shop.run(step)
    assert (outcome.verdict, shop.leads_to(outcome)) == (Verdict.FAIL, State.ROLLING_BACK)


def test_does_not_end_for_any_other_alert(shop: Shop) -> None:
    shop.roll_out()
    shop.elapse(5)
    for name, fired_ago, severity, state in [
        ("older", 3600, "critical", "firing"),
        ("warning", 0, "warning", "firing"),
        ("pending", 0, "critical", "pending"),
    ]:
        alert(shop, name=name, fired_ago=fired_ago, severity=severity, state=state)
        assert isinstance(shop.run(rolling.roll_out), Waiting), name


def test_looks_at_the_end_of_one_two_and_four_lengths_of_a_step_only(shop: Shop) -> None:
    """Whoever looks again and again until it passes lets everything pass."""
    shop.roll_out()
    shop.run(rolling.roll_out)
    shop.elapse(1)
    # The current release itself is in trouble: that is no verdict on the candidate.
    shop.requests(shop.current, 300, errors=90)
    shop.requests(shop.candidate, 300, errors=90)
    shop.elapse(STEP_SECONDS)
    assert isinstance(shop.run(rolling.roll_out), Waiting)
    shop.both(3000)
    for _ in range(3):
        shop.elapse(STEP_SECONDS / 5)
        assert isinstance(shop.run(rolling.roll_out), Waiting)
        assert (shop.improvement.rollout.step, shop.traffic) == (0, 0.1)
    shop.elapse(STEP_SECONDS / 2)
    assert isinstance(shop.run(rolling.roll_out), Waiting)
    assert shop.improvement.rollout.step == 1


def test_does_not_go_on_after_a_step_of_which_it_does_not_know_enough(shop: Shop) -> None:
    shop.roll_out()

    def lossy() -> None:
        shop.both()
        TrafficSlice.objects.create(
            service=shop.service, second=timezone.now(), latencies_ms=[], statuses=[], methods=[], lost=60
        )

    step_with(shop, lossy)
    assert isinstance(shop.run(rolling.roll_out), Waiting)
    assert shop.improvement.rollout.step == 0
    # It lasts longer, and with more that is known the 60 are few.
    shop.both(3000)
    shop.elapse(STEP_SECONDS)
    assert isinstance(shop.run(rolling.roll_out), Waiting)
    rollout = Rollout.objects.get()
    assert rollout.step == 1
    assert rollout.verdicts[0]["numbers"]["lost_ratio"] == pytest.approx(60 / 6660)


def test_goes_back_after_the_last_look_without_a_verdict(shop: Shop) -> None:
    shop.roll_out()
    shop.run(rolling.roll_out)
    result = None
    for _ in range(2 * FOR_EVER):
        shop.requests(shop.current, 300, errors=90)
        shop.requests(shop.candidate, 300, errors=90)
        shop.elapse(STEP_SECONDS / 2)
        if isinstance(result := shop.run(rolling.roll_out), Outcome):
            break
    assert isinstance(result, Outcome)
    assert result.verdict is not Verdict.PASS
    assert shop.leads_to(result) is State.ROLLING_BACK
    lasted = timezone.now() - shop.improvement.rollout.step_since
    assert 4 <= lasted.total_seconds() / STEP_SECONDS < 4.5


# --- validating ---------------------------------------------------------------------------------------------------


def baked(shop: Shop) -> Rollout:
    """Ready to be merged: all traffic on the candidate for long enough, and nothing wrong."""
    rollout = shop.bake()
    shop.elapse(STEP_SECONDS / 2)
    shop.requests(shop.candidate, 300)
    shop.elapse(STEP_SECONDS)
    return rollout


def test_merges_exactly_once(shop: Shop) -> None:
    baked(shop)
    base = shop.improvement.base_commit
    assert shop.tick() is State.PROMOTED
    assert shop.repository.head() == shop.improvement.merged_commit == shop.improvement.head_commit
    assert shop.repository.git("rev-list", "--count", f"{base}..main").strip() == "1"
    assert (shop.folder / "app.py").read_text() == "price = 2\n"
    shop.run(rolling.merge)
    assert entries("improvement.merged") == 1


def test_merges_once_although_it_was_killed_before_that_was_written_down(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    baked(shop)
    record = rolling.audit.record

    def killed(action, *arguments, **named):
        if action == "improvement.merged":
            raise KeyboardInterrupt
        return record(action, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(rolling.audit, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            shop.run(rolling.validate)
    assert shop.repository.head() == shop.improvement.head_commit
    assert shop.improvement.merged_commit == ""
    result = shop.run(rolling.validate)
    assert (result.verdict, shop.improvement.merged_commit) == (Verdict.PASS, shop.improvement.head_commit)
    assert shop.repository.head() == shop.improvement.head_commit
    assert entries("improvement.merged") == 1


def test_fails_when_the_branch_moved_meanwhile(shop: Shop) -> None:
    baked(shop)
    theirs = shop.commit({"other.py": "stock = 1\n"})
    assert shop.tick() is State.ROLLING_BACK
    assert shop.repository.head() == theirs
    assert shop.improvement.merged_commit == ""


def test_measures_what_the_change_was_worth(shop: Shop) -> None:
    rollout = baked(shop)
    for release, at, ms, queries in [
        (rollout.current, rollout.started_at - dt.timedelta(minutes=5), 400.0, 31.0),
        (rollout.candidate, timezone.now() - dt.timedelta(seconds=5), 100.0, 2.0),
    ]:
        endpoint = (("endpoint", "player-list"), ("method", "GET"), ("release", release.short))
        readings = [
            Reading("latency_p95_ms", endpoint, ms),
            Reading("requests_per_second", endpoint, 5.0),
            Reading("queries_per_request", (("release", release.short),), queries),
        ]
        storing.store([(shop.service, one) for one in readings], at=at)
    assert shop.tick() is State.PROMOTED
    measured = shop.improvement.measured
    assert (measured["before"]["p95_ms"], measured["after"]["p95_ms"]) == (400.0, 100.0)
    assert measured["change"]["p95_ms"] == -0.75
    assert measured["after"]["queries_per_request"] == 2.0
    assert "400 → 100 ms" in shop.said()


def test_says_so_when_the_benefit_could_not_be_measured(shop: Shop) -> None:
    baked(shop)
    assert shop.tick() is State.PROMOTED
    assert "could not be measured" in shop.said()
    assert shop.improvement.measured["change"]["p95_ms"] is None


def test_does_not_merge_what_nobody_used(shop: Shop) -> None:
    shop.bake()
    outcome = shop.until_it_ends(rolling.validate, every=STEP_SECONDS, times=FOR_EVER)
    assert outcome.verdict is not Verdict.PASS
    assert shop.leads_to(outcome) is State.ROLLING_BACK
    assert shop.repository.head() == shop.improvement.base_commit


def test_does_not_merge_before_the_bake_is_over(shop: Shop) -> None:
    shop.bake()
    shop.requests(shop.candidate, 300)
    shop.elapse(STEP_SECONDS / 2)
    assert shop.tick() is State.VALIDATING
    assert shop.repository.head() == shop.improvement.base_commit


def test_takes_a_candidate_with_errors_back_before_the_merge(shop: Shop) -> None:
    shop.bake()
    shop.requests(shop.candidate, 100, errors=60)
    shop.elapse(2)
    assert shop.tick() is State.ROLLING_BACK
    assert shop.repository.head() == shop.improvement.base_commit


# --- watching -----------------------------------------------------------------------------------------------------


def test_settles_and_only_then_lets_the_old_release_go(shop: Shop, settings) -> None:
    rollout = shop.merged()
    shop.requests(shop.candidate, 300)
    shop.elapse(settings.WATCH_SECONDS / 2)
    assert shop.tick() is State.PROMOTED
    assert shop.improvement.settled_at is None
    assert releasing.sweep() == []
    shop.requests(shop.candidate, 300)
    shop.elapse(settings.WATCH_SECONDS / 2 + 1)
    assert shop.current.commit in shop.deployer.running
    assert shop.tick() is State.PROMOTED
    assert shop.improvement.settled_at is not None
    rollout.refresh_from_db()
    assert rollout.state == Rollout.State.DONE
    assert entries("rollout.done") == 1
    releasing.sweep()
    assert shop.deployer.running == {shop.candidate.commit}
    assert shop.traffic == 1.0


def test_still_runs_the_old_release_when_the_watch_has_passed_and_is_not_recorded(shop: Shop, settings) -> None:
    """The worker may die in between, and what it found out is then nothing that anybody relied on."""
    shop.merged()
    shop.requests(shop.candidate, 300)
    shop.elapse(settings.WATCH_SECONDS + 1)
    assert shop.run(rolling.watch).verdict is Verdict.PASS
    assert shop.improvement.settled_at is None
    releasing.sweep()
    assert shop.current.commit in shop.deployer.running
    assert shop.improvement.rollout.state == Rollout.State.LIVE


def test_keeps_watching_when_nobody_comes_but_not_for_ever(shop: Shop, settings) -> None:
    shop.merged()
    shop.elapse(settings.WATCH_SECONDS + 1)
    assert isinstance(shop.run(rolling.watch), Waiting)
    outcome = shop.until_it_ends(rolling.watch, every=10 * settings.WATCH_SECONDS, times=10)
    assert outcome.verdict is not Verdict.PASS


def test_takes_back_what_regresses_after_the_promotion(shop: Shop) -> None:
    shop.merged()
    shop.elapse(5)
    shop.requests(shop.candidate, 100, errors=60)
    shop.elapse(2)
    assert shop.tick() is State.ROLLING_BACK
    assert shop.tick() is State.ROLLED_BACK
    assert shop.traffic == 0
    assert (shop.folder / "app.py").read_text() == "price = 1\n"


def test_does_not_hide_a_bad_minute_behind_a_good_hour(shop: Shop, settings) -> None:
    settings.WATCH_SECONDS = 7200
    shop.merged()
    for _ in range(3):
        shop.requests(shop.candidate, 2000)
        shop.elapse(600)
    shop.requests(shop.candidate, 100, errors=60)
    shop.elapse(2)
    assert shop.tick() is State.ROLLING_BACK


# --- rolling back -------------------------------------------------------------------------------------------------


def rolling_back(shop: Shop) -> Rollout:
    """A promoted change that has to go back."""
    rollout = shop.merged()
    Improvement.objects.filter(pk=shop.improvement.pk).update(state=State.ROLLING_BACK, state_since=timezone.now())
    shop.reload()
    return rollout


def test_reverts_the_merge_and_keeps_what_others_committed_since(shop: Shop) -> None:
    rollout = rolling_back(shop)
    shop.commit({"other.py": "stock = 1\n"})
    assert shop.tick() is State.ROLLED_BACK
    assert (shop.folder / "app.py").read_text() == "price = 1\n"
    assert (shop.folder / "other.py").read_text() == "stock = 1\n"
    assert shop.repository.head() == shop.improvement.revert_commit
    assert shop.deployer.traffic(shop.service) == {shop.current.short: 1.0}
    rollout.refresh_from_db()
    assert rollout.state == Rollout.State.ROLLED_BACK
    assert rollout.traffic_back_at is not None


def test_gives_the_traffic_back_first_and_is_stuck_when_the_revert_conflicts(shop: Shop) -> None:
    rolling_back(shop)
    shop.commit({"app.py": "price = 7\n"})
    for _ in range(FOR_EVER):
        if shop.tick() is not State.ROLLING_BACK:
            break
        shop.elapse(60)
    assert shop.improvement.state == State.STUCK
    assert "could not be reverted" in shop.said()
    assert shop.deployer.traffic(shop.service) == {shop.current.short: 1.0}
    assert (shop.folder / "app.py").read_text() == "price = 7\n"


def test_gives_the_traffic_back_before_it_merely_looks_at_the_repository(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolling_back(shop)
    seen = []

    def gone(service):
        seen.append(shop.traffic)
        raise rolling.GitError("the disk is gone")

    monkeypatch.setattr(rolling, "repository_of", gone)
    shop.run(rolling.roll_back)
    assert seen[0] == 0


def test_needs_nothing_of_the_candidate(shop: Shop) -> None:
    rolling_back(shop)
    shop.deployer.down.add(shop.candidate.commit)
    shop.deployer.running.discard(shop.candidate.commit)
    assert shop.tick() is State.ROLLED_BACK


def test_starts_the_old_release_again_when_its_process_is_gone(shop: Shop) -> None:
    rolling_back(shop)
    shop.deployer.running.discard(shop.current.commit)
    outcome = shop.until_it_ends(rolling.roll_back, every=1)
    assert outcome.verdict is Verdict.PASS
    assert shop.current.commit in shop.deployer.running
    assert shop.deployer.traffic(shop.service) == {shop.current.short: 1.0}


def test_is_stuck_when_traffic_cannot_be_given_back_for_too_long(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    rolling_back(shop)

    def fails(service):
        raise DeployError("the proxy is gone")

    with monkeypatch.context() as patched:
        patched.setattr(shop.deployer, "apply", fails)
        assert shop.tick() is State.ROLLING_BACK
        shop.elapse(3600)
        assert shop.tick() is State.STUCK
        assert "the proxy is gone" in shop.said()
    # The rows hold what was wanted, so the next agreement does it.
    releasing.reconcile()
    assert shop.deployer.traffic(shop.service) == {shop.current.short: 1.0}


def test_tries_again_for_a_person_who_removed_the_obstacle(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, bob: User
) -> None:
    rolling_back(shop)
    shop.deployer.site.status = 500
    assert shop.tick() is State.ROLLING_BACK
    shop.elapse(3600)
    assert shop.tick() is State.STUCK
    shop.deployer.site.status = 200
    stopping.retry_rollback(shop.improvement, actor=bob, because="the network is back")
    assert shop.tick() is State.ROLLED_BACK


def test_pages_on_call_when_it_is_stuck_each_time_and_only_then(shop: Shop, bob: User) -> None:
    for name, minutes in (("first", 0), ("second", 15)):
        person = Contact.objects.create(name=name, address=f"{name}@example.org")
        EscalationStep.objects.create(contact=person, after_minutes=minutes)
    rolling_back(shop)
    shop.deployer.site.status = 500
    assert shop.tick() is State.ROLLING_BACK
    assert not Page.objects.exists()
    shop.elapse(3600)
    assert shop.tick() is State.STUCK
    later = timezone.now() + dt.timedelta(minutes=16)
    first, second = notifying.decide(timezone.now()) + notifying.decide(later)
    assert (first.contact.name, second.contact.name) == ("first", "second")
    assert first.message["url"].endswith(shop.improvement.get_absolute_url())
    assert "A rollback is stuck" in first.title
    stopping.retry_rollback(shop.improvement, actor=bob, because="the network is back")
    assert {notice.last_error for notice in Notice.objects.all()} == {"bob tries it again: the network is back"}
    assert notifying.decide(later) == []
    assert shop.tick() is State.ROLLING_BACK
    shop.elapse(3600)
    assert shop.tick() is State.STUCK
    assert (Page.objects.open().count(), Page.objects.count()) == (1, 2)
    assert len(notifying.decide(timezone.now())) == 1


def test_says_nothing_of_success_before_the_service_answers_through_the_proxy(shop: Shop) -> None:
    rolling_back(shop)
    shop.deployer.site.status = 503
    assert shop.tick() is State.ROLLING_BACK
    shop.deployer.site.status = 200
    assert shop.tick() is State.ROLLED_BACK


def test_has_nothing_to_take_back_before_anything_moved(shop: Shop) -> None:
    shop.propose(state=State.ROLLING_BACK)
    assert shop.tick() is State.ROLLED_BACK
    assert shop.traffic == 0


def test_takes_a_prepared_rollout_back_that_moved_nothing(shop: Shop) -> None:
    rollout = shop.roll_out()
    Improvement.objects.filter(pk=shop.improvement.pk).update(state=State.ROLLING_BACK)
    assert shop.tick() is State.ROLLED_BACK
    rollout.refresh_from_db()
    assert rollout.state == Rollout.State.ROLLED_BACK
    assert shop.repository.head() == shop.improvement.base_commit


def test_takes_back_once_what_it_takes_back_twice(shop: Shop) -> None:
    rolling_back(shop)
    base = shop.improvement.base_commit
    first, second = shop.run(rolling.roll_back), shop.run(rolling.roll_back)
    assert (first.verdict, second.verdict) == (Verdict.PASS, Verdict.PASS)
    assert shop.repository.git("rev-list", "--count", f"{base}..main").strip() == "2"
    assert shop.repository.tree("main") == shop.repository.tree(base)
    assert entries("improvement.reverted") == 1
    assert entries("rollout.rolled_back") == 1


def test_reverts_what_was_merged_by_a_worker_that_died_before_writing_it_down(shop: Shop) -> None:
    rolling_back(shop)
    Improvement.objects.filter(pk=shop.improvement.pk).update(merged_commit="")
    assert shop.tick() is State.ROLLED_BACK
    assert (shop.folder / "app.py").read_text() == "price = 1\n"


def test_goes_back_through_the_whole_machine_after_a_bad_step(shop: Shop) -> None:
    shop.roll_out()
    shop.run(rolling.roll_out)
    shop.requests(shop.current, 400)
    shop.requests(shop.candidate, 40, errors=30)
    shop.elapse(1)
    assert shop.tick() is State.ROLLING_BACK
    assert shop.tick() is State.ROLLED_BACK
    assert shop.deployer.traffic(shop.service) == {shop.current.short: 1.0}
    assert TrafficSlice.objects.exists()
    releasing.sweep()
    assert shop.deployer.running == {shop.current.commit}
