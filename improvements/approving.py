"""The step AWAITING_APPROVAL: the risk of the real patch, the policy's answer, and the people's.

The request is bound to the fingerprint of patch, evidence and policy. What was signed is checked once more, under the
lock of the request, in the transaction that starts the rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from approvals import audit, diff, policy, requests, subjects, terms
from approvals.models import ApprovalRequest
from approvals.policy import Tier
from approvals.requests import Standing, StandingState
from approvals.subjects import SubjectRef
from improvements import categories, circumstances, reliability, risk
from improvements.models import Improvement, Release, Rollout, State
from improvements.outcome import Evidence, Outcome, Verdict, Waiting
from improvements.releasing import current_release
from improvements.suggesting import track_record
from monitoring.repository import repository_of

# The share of the traffic wavers with every round of measuring; an entry for each would bury the log.
WORTH_RECORDING = 0.05
CHECKED = (State.TESTING, State.SCANNING, State.STAGING)


def await_approval(improvement: Improvement) -> Outcome | Waiting:
    """Ask for what the policy requires, and end when it is there, refused, expired, or no longer about what is true."""
    repository = repository_of(improvement.service)
    head = repository.head()
    if head != improvement.base_commit:
        because = f"{improvement.service.branch} moved on to {head[:12]}: what was proven is not what would go live"
        return Outcome(Verdict.FAIL, because, ending="outdated")

    current = current_release(improvement.service)
    if current is None or repository.tree(current.commit) != repository.tree(improvement.base_commit):
        # Rolling out would also put live whatever else the branch holds, which nobody looked at here.
        serving = "nothing" if current is None else current.short
        return Waiting(
            f"{improvement.service.name} serves {serving}, and the patch was made for {improvement.base_commit[:12]}: "
            f"deploy the branch first (manage.py deploy {improvement.service.name} --newest)",
            seconds=10,
        )

    runs = {run.state: run for run in improvement.proof()}
    inconclusive = [state for state in CHECKED if state not in runs or runs[state].verdict != Verdict.PASS]
    assessed = assess(improvement, inconclusive=len(inconclusive))
    concern = concern_of(improvement, repository.changed_paths(improvement.base_commit, improvement.head_commit))
    requirement = policy.required(assessed.tier, concern, all_pass=not inconclusive, terms=terms.in_force())
    fingerprint = improvement.fingerprint(policy_version=requirement.policy_version)
    evidence = (
        Evidence(
            "risk",
            assessed.reason,
            {
                "score": assessed.score,
                "tier": assessed.tier.value,
                "probability": assessed.probability,
                "size": assessed.size,
                "drivers": [{"what": d.what, "points": round(d.points, 4), "on": d.on} for d in assessed.drivers],
                "categories": sorted(concern.categories),
                "requirement": requirement.as_json(),
                "fingerprint": fingerprint,
            },
        ),
    )
    with transaction.atomic():
        # Ask, recheck and start in one transaction: meanwhile no stop can come in between, no right can be revoked and
        # no signature be voided.
        improvement.hold()
        requests.keep_rules()
        known = circumstances.read(improvement, timezone.now())
        request = requests.open_request(
            SubjectRef(
                "improvement",
                improvement.pk,
                improvement.title,
                improvement.get_absolute_url(),
                scope=improvement.service.name,
            ),
            requirement=requirement,
            fingerprint=fingerprint,
            proposed_by=improvement.proposed_by,
            facts=facts_for_signers(improvement, assessed),
            expires_at=requests.expiry(improvement.service.name, requirement.tier, timezone.now()),
            edited_by=improvement.edited_by.all(),
            circumstances=known,
            categories=concern.categories,
        )
        standing = requests.standing(request, fingerprint, known)
        if standing.satisfied:
            return _start_rollout(improvement, request, current, standing, evidence)
        # A worker may have died between preparing the rollout and moving on; what it prepared no longer holds.
        discard_prepared(improvement)
    return UNSATISFIED[standing.state](standing.why, evidence)


# What the step says when nothing may start.
UNSATISFIED: Mapping[StandingState, Callable[[str, tuple[Evidence, ...]], Outcome | Waiting]] = {
    # Whoever decides wakes it at once. What got worse, a freeze that is lifted and broken glass are seen soon enough;
    # a month of the error budget is not read all the time.
    StandingState.WAITING: lambda why, _: Waiting(why, seconds=10),
    StandingState.CHANGES_ASKED: lambda why, _: Waiting(why, seconds=10),
    StandingState.HELD: lambda why, _: Waiting(why, seconds=10),
    StandingState.VOID: lambda why, _: Waiting(f"asked again: {why}", seconds=0),
    StandingState.EXPIRED: lambda why, evidence: Outcome(Verdict.FAIL, why, evidence, ending="expired"),
    StandingState.REJECTED: lambda why, evidence: Outcome(Verdict.FAIL, why, evidence),
}


def concern_of(improvement: Improvement, paths: Sequence[str]) -> policy.Subject:
    """What the policy asks about an improvement beside its tier; `paths` is what its patch touches, if there is one."""
    finding = improvement.finding
    known = circumstances.vulnerabilities(improvement.service, improvement.head_commit)
    change = categories.ChangeFacts(finding.kind if finding else "", improvement.author, paths, bool(known))
    is_fix = reliability.is_fix(finding.kind if finding else "")
    return policy.Subject(categories.of(change), improvement.service.name, is_reliability_fix=is_fix)


def forecast(improvement_id: int) -> subjects.Forecast:
    """What is known by now that decides who must sign: the estimate, and then the risk of the real patch."""
    improvement = Improvement.objects.select_related("service", "finding").get(pk=improvement_id)
    runs = [run for run in improvement.proof() if run.state in CHECKED]
    return subjects.Forecast(
        Tier(improvement.tier or improvement.estimated_tier),
        concern_of(improvement, [line.text for line in diff.lines(improvement.diff) if line.kind is diff.Kind.FILE]),
        all_pass=all(run.verdict == Verdict.PASS for run in runs),
        is_estimate=not improvement.tier,
        proposed_by=improvement.proposed_by_id,
    )


def assess(improvement: Improvement, *, inconclusive: int) -> risk.Risk:
    """The risk of the real patch, stored on the improvement and audited when that tells something new.

    For one patch it never falls: while people decide, traffic and the author's record move, and what the architecture
    team was asked must not turn into something that nobody needs to sign. AUTHORING starts afresh.
    """
    lines = [line for line in improvement.diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    repository = repository_of(improvement.service)
    paths = repository.changed_paths(improvement.base_commit, improvement.head_commit)
    finding = improvement.finding
    assessed = risk.assess(
        risk.PatchFacts(
            lines_changed=len(lines),
            files_changed=len(paths),
            touches_migration=any("/migrations/" in f"/{path}" for path in paths),
            touches_dependencies=any(
                path.rsplit("/", 1)[-1] in ("pyproject.toml", "uv.lock") or "requirements" in path for path in paths
            ),
            inconclusive_checks=inconclusive,
            traffic_share=finding.impact.get("traffic_share") if finding else None,
            **track_record(improvement.author),
        )
    )
    if improvement.risk is not None and improvement.tier:
        tier = max(assessed.tier, Tier(improvement.tier), key=lambda one: one.rank)
        assessed = replace(assessed, score=max(assessed.score, improvement.risk), tier=tier)
    moved = improvement.risk is None or abs(assessed.score - improvement.risk) >= WORTH_RECORDING
    if moved or improvement.tier != assessed.tier.value:
        with transaction.atomic():
            Improvement.objects.filter(pk=improvement.pk).update(risk=assessed.score, tier=assessed.tier.value)
            audit.record(
                "improvement.risk",
                improvement,
                because=assessed.reason,
                was={"risk": improvement.risk, "tier": improvement.tier},
                became={"risk": assessed.score, "tier": assessed.tier.value},
            )
        improvement.risk, improvement.tier = assessed.score, assessed.tier.value
    return assessed


def facts_for_signers(improvement: Improvement, assessed: risk.Risk) -> dict[str, object]:
    """What a signer sees: what changes, why, the proof, the risk, what happens next, how it is undone; the diff."""
    steps = ", ".join(f"{share} %" for share in settings.ROLLOUT_STEPS)
    return {
        "what": f"{improvement.title} in {improvement.service.name}",
        "why": improvement.why,
        "proof": [
            {"name": State(run.state).label, "verdict": run.verdict, "summary": run.reason}
            for run in improvement.proof()
            if run.state in CHECKED
        ],
        "risk": assessed.score,
        "risk_drivers": [f"{d.what} (+{d.points:.2f} {d.on})" for d in assessed.drivers if d.points],
        "on_approve": f"The candidate gets {steps} of live traffic, with a verdict at each step; then it is merged.",
        "undo": "Traffic goes back to the old release at once, which keeps running; a merged commit is reverted.",
        "diff": improvement.diff,
        "is_reliability_fix": reliability.is_fix(improvement.finding.kind if improvement.finding else ""),
    }


def withdraw(improvement: Improvement, because: str) -> None:
    """Withdraw what was asked for an improvement, and a rollout that was prepared and has not moved any traffic.

    Every end without a rollout takes this along, in the transaction of its move.
    """
    discard_prepared(improvement)
    for request in ApprovalRequest.objects.about("improvement", improvement.pk):
        requests.void(request, because)


def discard_prepared(improvement: Improvement) -> None:
    """What was prepared did not begin: whoever signed may take that back again."""
    if Rollout.objects.filter(improvement=improvement, step_since=None, step=0).delete()[0]:
        requests.mark_not_started("improvement", improvement.pk)


def _start_rollout(
    improvement: Improvement,
    request: ApprovalRequest,
    current: Release,
    standing: Standing,
    evidence: tuple[Evidence, ...],
) -> Outcome | Waiting:
    """Inside the transaction that rechecked the signatures. The database allows one live rollout a service."""
    if not Rollout.objects.filter(improvement=improvement).exists():
        candidate = Release.objects.get(service=improvement.service, commit=improvement.head_commit)
        try:
            with transaction.atomic():
                Rollout.objects.create(
                    service=improvement.service, improvement=improvement, current=current, candidate=candidate
                )
        except IntegrityError:
            return Waiting(f"another rollout of {improvement.service.name} is live", seconds=5)
        requests.used(request, standing)
        audit.record(
            "rollout.started",
            improvement,
            because=standing.why,
            data={"current": current.commit, "candidate": candidate.commit, "steps": list(settings.ROLLOUT_STEPS)},
        )
    return Outcome(Verdict.PASS, standing.why, evidence)
