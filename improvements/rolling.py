"""The steps that touch live traffic: ROLLING_OUT, VALIDATING, PROMOTED and ROLLING_BACK.

Each is asked again every second or so and says either that it waits or how it ended; where it stands is in the
`Rollout` row, so any worker can go on where another one died. The rows say what should be; the proxy is made to agree.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import Any

import httpx
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from approvals import audit
from improvements import measuring, traffic
from improvements.deployers import DeployError, deployer_for
from improvements.models import Improvement, Release, Rollout
from improvements.outcome import Evidence, Outcome, Verdict, Waiting
from improvements.releasing import bring_up, shift
from improvements.verdict import Arm, Judgement, Rules, judge
from monitoring.models import Alert
from monitoring.repository import BranchMoved, GitError, repository_of
from monitoring.workspace import worktree_folder

# A step's final judgement is made when it has lasted this many times its length, and not in between: looking again and
# again until it passes would pass anything. The allowance for error is shared among the looks.
LOOKS = (1, 2, 4)
# With too little traffic for any judgement a step is given this many times its length, and then it goes back.
PATIENCE = 6
# How long before the rollout the old release's own traffic is used to compare with, once it gets none any more.
CONTROL_WINDOW = dt.timedelta(minutes=10)
# With all traffic on the candidate there is no end to the data: it is judged in windows of this length, one after the
# other, each by itself. An old good hour must not hide a bad minute.
WATCH_WINDOW = dt.timedelta(minutes=5)
ROLLBACK_PATIENCE = dt.timedelta(seconds=120)


def rules() -> Rules:
    wanted = settings.ROLLOUT_STEP_REQUESTS
    return Rules(candidate_requests=wanted, control_requests=min(wanted, 100), latency_confidence=1 - 0.02 / len(LOOKS))


def roll_out(improvement: Improvement) -> Outcome | Waiting:
    """Give the candidate more traffic, step by step. A FAIL at any moment ends it; a step ends with its own verdict."""
    rollout = _rollout_of(improvement)
    if bad := alarm(rollout):
        return bad
    share = settings.ROLLOUT_STEPS[rollout.step]
    try:
        if rollout.step_since is None and rollout.step == 0:
            # Whatever happened since staging (a restart, a long wait for a signature): both must be up before that.
            bring_up(rollout.current)
            bring_up(rollout.candidate)
            if changed := deployer_for(rollout.service).intact(rollout.candidate):
                return Outcome(Verdict.FAIL, f"the candidate's files are not what was proven any more: {changed}")
        moved_ms = _give(rollout, share, because=f"rollout step {rollout.step + 1} of {len(settings.ROLLOUT_STEPS)}")
        if rollout.step_since is None:
            _begin_step(rollout, share)
        if share == 100:
            told = {"verdicts": rollout.verdicts, "moved_ms": round(moved_ms, 1)}
            evidence = Evidence("canary", "the verdicts of the rollout's steps", told)
            return Outcome(Verdict.PASS, f"all traffic is on {rollout.candidate.short}", (evidence,))
        return _judge_step(rollout, share)
    except DeployError as error:
        return Outcome(Verdict.FAIL, f"the candidate could not be given {share} %: {error}")


def _begin_step(rollout: Rollout, share: int) -> None:
    rollout.step_since, rollout.looks = timezone.now(), 0
    if share == 100:
        rollout.full_since = rollout.step_since
    counted = deployer_for(rollout.service).unanswered(rollout.service)
    rollout.unanswered = {str(pk): count for pk, count in counted.items()}
    rollout.save(update_fields=["step_since", "looks", "full_since", "unanswered"])


def _judge_step(rollout: Rollout, share: int) -> Outcome | Waiting:
    """The verdict on a step with both releases under traffic."""
    since, now = rollout.step_since or timezone.now(), timezone.now()
    control, candidate = _with_hidden_failures(rollout, since=since, until=now)
    early = judge(control, candidate, rules=rules(), early=True)
    if early.verdict is Verdict.FAIL:
        return _judged(rollout, share, early)
    told = f"{share} % of the traffic: {candidate.requests} requests in {(now - since).total_seconds():.0f} s."
    final = _look(rollout, control, candidate, since=since, now=now, length=settings.ROLLOUT_STEP_SECONDS)
    if final is None:
        return Waiting(f"{told} {early.reason}", seconds=0.5)
    if final.verdict is Verdict.PASS:
        _remember(rollout, share, final)
        Rollout.objects.filter(pk=rollout.pk, step=rollout.step).update(step=rollout.step + 1, step_since=None)
        return Waiting(f"{share} % passed. {final.reason}", seconds=0)
    return _judged(rollout, share, final)


def _look(
    rollout: Rollout, control: Arm, candidate: Arm, *, since: dt.datetime, now: dt.datetime, length: float
) -> Judgement | None:
    """The final judgement of a step of `length` seconds when it is due; None while it has to go on."""
    lasted = (now - since).total_seconds()
    due = lasted >= LOOKS[min(rollout.looks, len(LOOKS) - 1)] * length
    if not due:
        return None
    lost_ratio = traffic.totals(rollout.service, since=since, until=now).lost_ratio
    final = judge(control, candidate, rules=rules(), lost_ratio=lost_ratio)
    enough = candidate.requests >= rules().candidate_requests and control.requests >= rules().control_requests
    if not enough:
        # Only counts were looked at, so it is no look; but no traffic for ever is not a pass either.
        return final if lasted > PATIENCE * length else None
    rollout.looks += 1
    rollout.save(update_fields=["looks"])
    if final.verdict is Verdict.INCONCLUSIVE and rollout.looks < len(LOOKS):
        return None
    return final


def validate(improvement: Improvement) -> Outcome | Waiting:
    """Bake with all traffic, merge the commit, and measure what the change was worth."""
    rollout = _rollout_of(improvement)
    if bad := alarm(rollout):
        return bad
    now = timezone.now()
    since = rollout.full_since or now
    control, candidate = _before_and_after(rollout, since=since, until=now)
    early = judge(control, candidate, rules=rules(), early=True)
    if early.verdict is Verdict.FAIL:
        return _judged(rollout, 100, early)
    # Two whole collection rounds: before that there are no numbers to measure the benefit with.
    bake = max(settings.BAKE_SECONDS, 2.5 * settings.METRICS_COLLECTION_INTERVAL)
    passed = next((Judgement(Verdict.PASS, v["reason"]) for v in rollout.verdicts if _is_pass(v, share=100)), None)
    final = passed or _look(rollout, control, candidate, since=since, now=now, length=bake)
    if final is None:
        told = f"all traffic for {(now - since).total_seconds():.0f} s, judged after {bake:.0f} s."
        return Waiting(f"{told} {early.reason}", seconds=1)
    if final.verdict is not Verdict.PASS:
        return _judged(rollout, 100, final)
    if passed is None:
        _remember(rollout, 100, final)
    try:
        merge(improvement)
    except (BranchMoved, GitError) as error:
        return Outcome(Verdict.FAIL, f"it could not be merged: {error}")
    measured = measuring.benefit(improvement, rollout, now=now)
    Improvement.objects.filter(pk=improvement.pk).update(measured=measured.content)
    return Outcome(Verdict.PASS, f"{measured.summary} {final.reason}", (measured, _evidence(rollout)))


def watch(improvement: Improvement) -> Outcome | Waiting:
    """After the promotion: a regression still starts a rollback. It settles when it lasted and there was traffic."""
    rollout = _rollout_of(improvement)
    if bad := alarm(rollout):
        return bad
    now = timezone.now()
    full_since = rollout.full_since or now
    begun = full_since + WATCH_WINDOW * ((now - full_since) // WATCH_WINDOW)
    control, candidate = _before_and_after(rollout, since=begun, until=now)
    early = judge(control, candidate, rules=rules(), early=True)
    if early.verdict is Verdict.FAIL:
        return _judged(rollout, 100, early)
    lasted = (now - improvement.state_since).total_seconds()
    if lasted < settings.WATCH_SECONDS:
        pause = max(1.0, min(settings.WATCH_SECONDS / 100, 15.0))
        return Waiting(f"watched for {lasted:.0f} of {settings.WATCH_SECONDS} s. {early.reason}", seconds=pause)
    seen = traffic.arms(rollout.service, since=improvement.state_since, until=now)
    requests = seen.get(rollout.candidate_id, traffic.NOTHING).requests
    if requests < rules().candidate_requests and lasted > PATIENCE * settings.WATCH_SECONDS:
        return Outcome(Verdict.NO_DATA, f"only {requests} requests in {lasted:.0f} s: nothing shows that it is as good")
    if requests < rules().candidate_requests:
        return Waiting(f"only {requests} requests since the promotion: too few to let the old release go", seconds=15)
    return Outcome(Verdict.PASS, f"settled after {lasted:.0f} s and {requests} requests. {early.reason}")


def settle(improvement: Improvement, *, because: str) -> None:
    """Inside the transaction that records a watch without regression: from here on there is no way back, and the old
    release, which nobody needs any more, will be swept away."""
    now = timezone.now()
    Improvement.objects.filter(pk=improvement.pk).update(settled_at=now)
    Rollout.objects.filter(improvement=improvement).update(state=Rollout.State.DONE, ended_at=now)
    audit.record("rollout.done", improvement, because=because)


def roll_back(improvement: Improvement) -> Outcome | Waiting:
    """Traffic first, then the commit, then the proof. It needs nothing of what is being rolled back."""
    rollout = Rollout.objects.select_related("current", "candidate", "service").filter(improvement=improvement).first()
    if rollout is None:
        return Outcome(Verdict.PASS, "it had not touched anything")
    rollout.improvement = improvement
    out_of_time = timezone.now() - improvement.state_since > ROLLBACK_PATIENCE
    try:
        moved_ms = _give(rollout, 0, because="rollback")
    except DeployError as error:
        if not out_of_time:
            return Waiting(f"traffic is not back yet: {error}. {_help_up(rollout.current)}", seconds=0.2)
        return Outcome(Verdict.FAIL, f"traffic could not be given back to {rollout.current.short}: {error}")
    if rollout.traffic_back_at is None:
        rollout.traffic_back_at = timezone.now()
        rollout.save(update_fields=["traffic_back_at"])
    try:
        reverted = revert(improvement)
    except BranchMoved as moved:
        return Waiting(f"somebody pushed at the same moment: {moved}", seconds=0.5)
    except GitError as error:
        return Outcome(
            Verdict.FAIL, f"traffic is back on {rollout.current.short}, but the commit could not be reverted: {error}"
        )
    proof = prove_back(rollout, reverted)
    if proof.verdict is not Verdict.PASS:
        return proof if out_of_time else Waiting(proof.reason, seconds=0.5)
    with transaction.atomic():
        live = Rollout.objects.filter(pk=rollout.pk, state=Rollout.State.LIVE)
        if live.update(state=Rollout.State.ROLLED_BACK, ended_at=timezone.now()):
            audit.record("rollout.rolled_back", improvement, because=proof.reason, data={"reverted": reverted})
    back_seconds = (rollout.traffic_back_at - improvement.state_since).total_seconds()
    numbers = {"traffic_back_seconds": round(back_seconds, 3), "moved_ms": round(moved_ms, 1), "reverted": reverted}
    return Outcome(
        Verdict.PASS,
        f"traffic was back on {rollout.current.short} {back_seconds:.2f} s after the verdict. {proof.reason}",
        (
            *proof.evidence,
            Evidence("rollback", f"traffic back after {back_seconds:.2f} s", numbers),
            _evidence(rollout),
        ),
    )


def _help_up(release: Release) -> str:
    """Start a release that should serve, if its process is gone for good. What came of it, for the waiting reason."""
    try:
        deployer_for(release.service).start(release)
    except DeployError as error:
        return f"Starting {release.short} again failed: {error}"
    return f"{release.short} was told to start."


def merge(improvement: Improvement) -> None:
    """Fast-forward the service's branch to the improvement's commit. Merging twice does nothing."""
    repository = repository_of(improvement.service)
    with transaction.atomic():
        # Under the lock, although git is outside: a worker that lost its lease must not merge what was rolled back.
        improvement.hold()
        if not repository.contains(improvement.head_commit) or repository.head() == improvement.head_commit:
            repository.fast_forward(expected=improvement.base_commit, to=improvement.head_commit)
    if improvement.merged_commit == improvement.head_commit:
        return
    with transaction.atomic():
        Improvement.objects.filter(pk=improvement.pk).update(merged_commit=improvement.head_commit)
        audit.record("improvement.merged", improvement, became={"commit": improvement.head_commit})
    improvement.merged_commit = improvement.head_commit


def revert(improvement: Improvement) -> str:
    """Undo the merge with a commit of its own. Returns that commit, or an empty string when nothing was merged."""
    repository = repository_of(improvement.service)
    # Ask git, not the row: the worker may have died between the merge and writing it down.
    if not repository.contains(improvement.head_commit):
        return ""
    folder = worktree_folder(improvement.service.name, f"i{improvement.pk}-revert")
    commit = repository.revert(
        improvement.head_commit, because=f"Improvement {improvement.pk} was rolled back.", folder=folder
    )
    if improvement.revert_commit != commit:
        with transaction.atomic():
            Improvement.objects.filter(pk=improvement.pk).update(revert_commit=commit)
            audit.record("improvement.reverted", improvement, became={"commit": commit})
        improvement.revert_commit = commit
    return commit


def prove_back(rollout: Rollout, reverted: str) -> Outcome:
    """The service answers through the proxy, only the old release gets traffic, and the branch holds what it held."""
    service = rollout.service
    try:
        answer = httpx.get(
            deployer_for(service).base_url(service) + service.parsed.run.health, timeout=5, trust_env=False
        )
    except httpx.HTTPError as error:
        return Outcome(Verdict.FAIL, f"{service.name} does not answer through the proxy: {error}")
    if answer.status_code != 200:
        return Outcome(Verdict.FAIL, f"{service.name} answers {answer.status_code} through the proxy")
    serving = {release.short: release.share for release in Release.objects.filter(service=service, share__gt=0)}
    if serving != {rollout.current.short: 100}:
        return Outcome(Verdict.FAIL, f"the traffic is shared as {serving}, not all on {rollout.current.short}")
    repository = repository_of(service)
    if repository.contains(rollout.candidate.commit) and not reverted:
        return Outcome(Verdict.FAIL, f"{service.branch} still holds {rollout.candidate.short}")
    content = {
        "serving": serving,
        "health_status": answer.status_code,
        "branch_head": repository.head(),
        "same_files_as_before": repository.tree(repository.head()) == repository.tree(rollout.improvement.base_commit),
    }
    return Outcome(
        Verdict.PASS,
        f"{service.name} answers, all traffic is on {rollout.current.short}, {service.branch} is without the change.",
        (Evidence("rollback-proof", "the service answers from the old release", content),),
    )


def alarm(rollout: Rollout) -> Outcome | None:
    """A critical alert that began during the rollout ends it."""
    alerts = Alert.objects.firing().filter(service=rollout.service, severity="critical")
    alert = alerts.filter(fired_at__gte=rollout.started_at).first()
    return None if alert is None else Outcome(Verdict.FAIL, f"an alert fired during the rollout: {alert}")


def _rollout_of(improvement: Improvement) -> Rollout:
    rollout = Rollout.objects.select_related("current", "candidate", "service").get(improvement=improvement)
    rollout.improvement = improvement  # the one that holds the lease
    return rollout


def _is_pass(verdict: dict[str, Any], *, share: int) -> bool:
    return bool(verdict["share"] == share and verdict["verdict"] == Verdict.PASS)


def _give(rollout: Rollout, share: int, *, because: str) -> float:
    """Give the candidate `share` % and the current release the rest. Milliseconds until the proxy agreed."""
    return shift(
        rollout.service,
        {rollout.current_id: 100 - share, rollout.candidate_id: share},
        because=because,
        improvement=rollout.improvement,
    )


def _arms(rollout: Rollout, *, since: dt.datetime, until: dt.datetime) -> tuple[Arm, Arm]:
    arms = traffic.arms(rollout.service, since=since, until=until)
    return arms.get(rollout.current_id, traffic.NOTHING), arms.get(rollout.candidate_id, traffic.NOTHING)


def _with_hidden_failures(rollout: Rollout, *, since: dt.datetime, until: dt.datetime) -> tuple[Arm, Arm]:
    """The arms of a step, with the requests that a release dropped and the proxy retried elsewhere counted against it.

    Users did not see them fail, and a crashing candidate must not hide behind the retries.
    """
    control, candidate = _arms(rollout, since=since, until=until)
    counted = deployer_for(rollout.service).unanswered(rollout.service)
    seen = traffic.unanswered(rollout.service, since=since, until=until)

    def corrected(arm: Arm, pk: int) -> Arm:
        now, before = counted.get(pk, 0), rollout.unanswered.get(str(pk), 0)
        # A proxy that was restarted counts from zero again.
        dropped = now - before if now >= before else now
        hidden = max(0, dropped - seen.get(pk, 0))
        return Arm(arm.latencies_ms, errors=arm.errors + hidden, requests=arm.requests + hidden)

    return corrected(control, rollout.current_id), corrected(candidate, rollout.candidate_id)


def _before_and_after(rollout: Rollout, *, since: dt.datetime, until: dt.datetime) -> tuple[Arm, Arm]:
    """The old release up to when it lost the traffic, against the candidate from `since` on, when it had all of it."""
    control, _ = _arms(rollout, since=rollout.started_at - CONTROL_WINDOW, until=rollout.full_since or until)
    _, candidate = _arms(rollout, since=since, until=until)
    return control, candidate


def _remember(rollout: Rollout, share: int, judgement: Judgement) -> None:
    """Keep the verdict of a step on the rollout. The same step judged again replaces its entry."""
    entry: dict[str, Any] = {"share": share, **asdict(judgement), "verdict": judgement.verdict.value}
    entry["numbers"] = dict(judgement.numbers)
    entry["at"] = timezone.now().isoformat()
    rollout.verdicts = [*(old for old in rollout.verdicts if old["share"] != share), entry]
    rollout.save(update_fields=["verdicts"])


def _judged(rollout: Rollout, share: int, judgement: Judgement) -> Outcome:
    _remember(rollout, share, judgement)
    return Outcome(
        # Too little traffic for a verdict, for too long, is not a pass: it goes back.
        judgement.verdict,
        f"at {share} %: {judgement.reason}",
        (_evidence(rollout),),
    )


def _evidence(rollout: Rollout) -> Evidence:
    return Evidence("canary", "the verdicts of the rollout's steps", {"verdicts": rollout.verdicts})
