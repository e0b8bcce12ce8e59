"""From findings to suggestions, ranked by benefit, cost and risk; and which of them start by themselves."""

from __future__ import annotations

import datetime as dt

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.utils import timezone

from analysis.models import Finding
from approvals import audit
from approvals.policy import Tier
from improvements import risk
from improvements.authors import Author, author_for
from improvements.models import Improvement, State
from improvements.outcome import Outcome, Verdict

# A suggestion that nobody wanted for this long is not wanted.
SUGGESTION_LIFETIME = dt.timedelta(days=30)
TIERS = tuple(Tier)


def suggest() -> list[Improvement]:
    """A suggestion for each open finding that an author can act on and that was not acted on before.

    A finding whose improvement failed or was taken back is not suggested again: doing the same thing twice would end
    the same way. It is open again when analysis finds it anew in other code.
    """
    untouched = Finding.objects.open().filter(improvements=None, service__archived_at=None).select_related("service")
    made = []
    for finding in untouched:
        author = author_for(finding)
        if author is not None:
            made.append(propose(finding, author, by=None))
    return made


def propose(finding: Finding, author: Author, *, by: User | None) -> Improvement:
    """The suggestion that `author` acts on `finding`; the existing one when there is one already."""
    facts = risk.PatchFacts(
        lines_changed=author.estimate.lines,
        files_changed=1,
        touches_migration=False,
        touches_dependencies=False,
        inconclusive_checks=0,
        traffic_share=finding.impact.get("traffic_share"),
        **track_record(author.name),
    )
    estimated = risk.assess(facts)
    benefit = float(finding.impact.get("waiting_seconds_per_hour", 0.0)) * finding.confidence
    cost = author.estimate.review_hours
    try:
        with transaction.atomic():
            improvement = Improvement.objects.create(
                service=finding.service,
                finding=finding,
                author=author.name,
                title=f"Fix: {finding.title}"[:200],
                why=f"{finding.title}. {author.estimate.promise}",
                proposed_by=by,
                benefit=benefit,
                cost=cost,
                estimated_tier=estimated.tier.value,
                rank=benefit * (1 - estimated.score) / max(cost, 0.05),
            )
            audit.record(
                "improvement.suggested",
                improvement,
                actor=by,
                because=improvement.why,
                data={"finding": finding.pk, "estimated_risk": estimated.score, "estimated_tier": estimated.tier.value},
            )
    except IntegrityError:
        return Improvement.objects.filter(finding=finding, author=author.name).latest("created_at")
    return improvement


def track_record(author: str) -> dict[str, int]:
    """How an author's earlier patches ended: what it is trusted with depends on it."""
    ended = Improvement.objects.filter(author=author)
    return {
        "promoted": ended.filter(state=State.PROMOTED).count(),
        "harmful": ended.filter(state__in=[State.ROLLED_BACK, State.ROLLING_BACK, State.STUCK]).count(),
    }


def start_by_itself() -> list[int]:
    """Start the best suggestion of each service with nothing under way, up to the risk threshold. Small steps: one."""
    if not settings.SELF_BUILD_ENABLED:
        return []
    started = []
    allowed = [tier.value for tier in TIERS[: TIERS.index(Tier(settings.SELF_BUILD_RISK_THRESHOLD)) + 1]]
    waiting = Improvement.objects.filter(
        state=State.SUGGESTED,
        started_at=None,
        estimated_tier__in=allowed,
        service__is_self=False,
        service__archived_at=None,
    ).order_by("-rank", "pk")
    for improvement in waiting:
        busy = Improvement.objects.unfinished().filter(service=improvement.service).exclude(started_at=None)
        if not busy.exists() and begin(improvement, actor=None):
            started.append(improvement.pk)
    return started


def begin(improvement: Improvement, *, actor: User | None) -> bool:
    """Start a suggestion. False when it was started already."""
    with transaction.atomic():
        won = Improvement.objects.filter(pk=improvement.pk, state=State.SUGGESTED, started_at=None).update(
            started_at=Now(), wake_at=Now(), proposed_by=actor or improvement.proposed_by
        )
        if won:
            because = (
                "started by a person"
                if actor
                else f"estimated risk {improvement.estimated_tier} is within the threshold"
            )
            audit.record("improvement.started", improvement, actor=actor, because=because)
    return bool(won)


def start(improvement: Improvement) -> Outcome:
    """The step SUGGESTED: is what was found still there?"""
    if timezone.now() - improvement.created_at > SUGGESTION_LIFETIME:
        return Outcome(Verdict.FAIL, f"nobody started it in {SUGGESTION_LIFETIME.days} days", ending="expired")
    if improvement.finding is not None and improvement.finding.closed_at is not None:
        return Outcome(Verdict.FAIL, f"the finding is closed: {improvement.finding.closed_because}")
    return Outcome(Verdict.PASS, "the finding is still open")


def expire_old() -> int:
    """Wake suggestions that nobody started in their lifetime; their step lets them expire."""
    old = Improvement.objects.filter(
        state=State.SUGGESTED, started_at=None, created_at__lt=timezone.now() - SUGGESTION_LIFETIME
    )
    return old.update(started_at=Now())
