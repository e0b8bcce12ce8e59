"""The law: which moves an improvement may make, and the only code that makes them."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.urls import reverse
from django.utils import timezone

from analysis.models import Finding
from approvals import audit
from approvals.fingerprint import digest, fingerprint
from approvals.policy import Tier
from improvements.binding import binding
from improvements.outcome import Evidence, Verdict
from monitoring.models import Service

if TYPE_CHECKING:
    from django.contrib.auth.models import User


class State(models.TextChoices):
    SUGGESTED = "SUGGESTED", "suggested"
    AUTHORING = "AUTHORING", "authoring"
    TESTING = "TESTING", "testing"
    SCANNING = "SCANNING", "scanning"
    STAGING = "STAGING", "staging"
    AWAITING_APPROVAL = "AWAITING_APPROVAL", "awaiting approval"
    ROLLING_OUT = "ROLLING_OUT", "rolling out"
    VALIDATING = "VALIDATING", "validating"
    PROMOTED = "PROMOTED", "promoted"
    ROLLING_BACK = "ROLLING_BACK", "rolling back"
    ROLLED_BACK = "ROLLED_BACK", "rolled back"
    STUCK = "STUCK", "stuck"
    FAILED = "FAILED", "failed"
    DISMISSED = "DISMISSED", "dismissed"
    REJECTED = "REJECTED", "rejected"
    EXPIRED = "EXPIRED", "expired"


# The law. Whatever is not here cannot happen.
MOVES: dict[State, frozenset[State]] = {
    State.SUGGESTED: frozenset({State.AUTHORING, State.DISMISSED, State.EXPIRED}),
    State.AUTHORING: frozenset({State.TESTING, State.FAILED, State.DISMISSED}),
    State.TESTING: frozenset({State.SCANNING, State.FAILED, State.DISMISSED}),
    State.SCANNING: frozenset({State.STAGING, State.FAILED, State.DISMISSED}),
    State.STAGING: frozenset({State.AWAITING_APPROVAL, State.FAILED, State.DISMISSED}),
    # Back to AUTHORING when the repository moved on meanwhile: what was proven is not what would go live.
    State.AWAITING_APPROVAL: frozenset({State.ROLLING_OUT, State.AUTHORING, State.REJECTED, State.EXPIRED}),
    State.ROLLING_OUT: frozenset({State.VALIDATING, State.ROLLING_BACK}),
    State.VALIDATING: frozenset({State.PROMOTED, State.ROLLING_BACK}),
    State.PROMOTED: frozenset({State.ROLLING_BACK}),
    State.ROLLING_BACK: frozenset({State.ROLLED_BACK, State.STUCK}),
    State.STUCK: frozenset({State.ROLLING_BACK}),
    State.ROLLED_BACK: frozenset(),
    State.FAILED: frozenset(),
    State.DISMISSED: frozenset(),
    State.REJECTED: frozenset(),
    State.EXPIRED: frozenset(),
}

# From here on live traffic is touched: a stop means a rollback.
LIVE = frozenset({State.ROLLING_OUT, State.VALIDATING, State.PROMOTED})
ENDED = frozenset(state for state, targets in MOVES.items() if not targets)


class IllegalMove(Exception):
    """The law has no such move."""

    def __init__(self, improvement: Improvement, origin: State, target: State) -> None:
        allowed = ", ".join(sorted(MOVES[origin])) or "nothing, it has ended"
        super().__init__(f"Improvement {improvement.pk} cannot move from {origin} to {target}. Allowed: {allowed}.")


class LostRace(Exception):
    """Somebody else moved it first. Look again; do not repeat the move."""

    def __init__(self, improvement: Improvement, origin: State, target: State) -> None:
        super().__init__(
            f"Improvement {improvement.pk} was no longer {origin}, or not this worker's; it does not become {target}."
        )


class ImprovementQuerySet(models.QuerySet["Improvement"]):
    def due(self) -> ImprovementQuerySet:
        """Those that could take a step now: not ended, not asleep, and not leased to a living worker."""
        return (
            self.exclude(state__in=[*ENDED, State.STUCK])
            .exclude(state=State.SUGGESTED, started_at=None)
            .exclude(state=State.PROMOTED, settled_at__isnull=False)
            .filter(Q(leased_until=None) | Q(leased_until__lte=Now()))
            .filter(wake_at__lte=Now())
        )

    def unfinished(self) -> ImprovementQuerySet:
        return self.exclude(state__in=ENDED).exclude(state=State.PROMOTED, settled_at__isnull=False)


class Improvement(models.Model):
    """One idea, from suggestion to history."""

    service = models.ForeignKey(Service, on_delete=models.PROTECT, related_name="improvements")
    finding = models.ForeignKey(Finding, on_delete=models.PROTECT, null=True, blank=True, related_name="improvements")
    author = models.CharField(max_length=60, help_text="The author that writes the patch.")
    title = models.CharField(max_length=200)
    why = models.TextField(blank=True)

    state = models.CharField(max_length=20, choices=State.choices, default=State.SUGGESTED, editable=False)
    state_since = models.DateTimeField(default=timezone.now, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    started_at = models.DateTimeField(null=True, blank=True, editable=False)
    settled_at = models.DateTimeField(null=True, blank=True, editable=False)
    proposed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+", editable=False
    )

    benefit = models.FloatField(default=0, help_text="Estimated: seconds of users' waiting saved per hour.")
    cost = models.FloatField(default=0, help_text="Estimated: share of one reviewer's hour.")
    estimated_tier = models.CharField(max_length=10, choices=[(tier.value, tier.value) for tier in Tier])
    rank = models.FloatField(default=0, db_index=True)

    base_commit = models.CharField(max_length=40, blank=True, editable=False)
    head_commit = models.CharField(max_length=40, blank=True, editable=False)
    merged_commit = models.CharField(max_length=40, blank=True, editable=False)
    revert_commit = models.CharField(max_length=40, blank=True, editable=False)
    diff = models.TextField(blank=True, editable=False)
    risk = models.FloatField(null=True, blank=True, editable=False)
    tier = models.CharField(
        max_length=10, blank=True, choices=[(tier.value, tier.value) for tier in Tier], editable=False
    )
    measured = models.JSONField(default=dict, blank=True, editable=False)
    # A person's patch in place of the author's: `improvements.editing`.
    edited_diff = models.TextField(blank=True, editable=False)
    edited_because = models.TextField(blank=True, editable=False)
    edited_by = models.ManyToManyField(settings.AUTH_USER_MODEL, blank=True, related_name="+", editable=False)

    leased_until = models.DateTimeField(null=True, blank=True, editable=False)
    leased_by = models.UUIDField(null=True, blank=True, editable=False)
    wake_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = ImprovementQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["finding", "author"],
                condition=~Q(state__in=["FAILED", "DISMISSED", "REJECTED", "EXPIRED", "ROLLED_BACK"]),
                name="one_unfinished_improvement_per_finding_and_author",
            ),
            models.CheckConstraint(condition=Q(state__in=State.values), name="improvement_state_is_known"),
        ]
        indexes = [models.Index(fields=["state", "wake_at"])]

    def __str__(self) -> str:
        return self.title

    def get_absolute_url(self) -> str:
        return reverse("admin:improvements_improvement_change", args=[self.pk])

    @property
    def branch(self) -> str:
        return f"runerogue/improvement-{self.pk}"

    @property
    def is_live(self) -> bool:
        return State(self.state) in LIVE

    @property
    def has_ended(self) -> bool:
        return State(self.state) in ENDED or self.settled_at is not None

    def move_to(self, target: State, *, actor: User | None, because: str) -> None:
        """Move to `target` and record it. Of two racing workers exactly one wins; the other gets LostRace."""
        origin = State(self.state)
        if target not in MOVES[origin]:
            raise IllegalMove(self, origin, target)
        with transaction.atomic():
            # It is awake at once in its new state, and the next step starts without waiting for a timer.
            won = (
                type(self)
                .objects.filter(pk=self.pk, state=origin, settled_at=None)
                .update(state=target, state_since=Now(), wake_at=Now())
            )
            if not won:
                raise LostRace(self, origin, target)
            audit.record(
                f"improvement.{target.value.lower()}",
                self,
                actor=actor,
                because=because,
                was={"state": origin.value},
                became={"state": target.value},
            )
        self.refresh_from_db(fields=["state", "state_since", "wake_at"])

    def claim(self, *, seconds: float) -> uuid.UUID | None:
        """A lease on the next step, or None when somebody else holds it."""
        token = uuid.uuid4()
        claimed = (
            type(self)
            .objects.filter(pk=self.pk)
            .due()
            .update(leased_by=token, leased_until=Now() + dt.timedelta(seconds=seconds))
        )
        if not claimed:
            return None
        self.refresh_from_db()
        return token

    def renew(self, token: uuid.UUID, *, seconds: float) -> bool:
        held = type(self).objects.filter(pk=self.pk, leased_by=token)
        return bool(held.update(leased_until=Now() + dt.timedelta(seconds=seconds)))

    def release_lease(self, token: uuid.UUID, *, sleep_seconds: float | None = None, state: str | None = None) -> None:
        """Let the next step be taken, after `sleep_seconds` if it is still in `state`: who moved it wants it awake."""
        held = type(self).objects.filter(pk=self.pk, leased_by=token)
        if sleep_seconds is not None:
            held.filter(state=state or self.state).update(wake_at=Now() + dt.timedelta(seconds=sleep_seconds))
        held.update(leased_by=None, leased_until=None)

    def hold(self) -> None:
        """Lock the row and see that this worker still has it; in a transaction, before anything outside is changed.

        Raises LostRace when it was moved or another has the lease: a worker that was away too long changes nothing.
        """
        mine = type(self).objects.select_for_update().filter(pk=self.pk, state=self.state, leased_by=self.leased_by)
        if not mine.exists():
            raise LostRace(self, State(self.state), State(self.state))

    def proof(self) -> list[StepRun]:
        """The last finished run of each step, in order: what a signer sees and signs."""
        last: dict[str, StepRun] = {}
        for run in self.runs.exclude(verdict="").order_by("pk").prefetch_related("evidence"):
            last[run.state] = run
        return sorted(last.values(), key=lambda run: run.pk)

    def fingerprint(self, *, policy_version: str) -> str:
        """Of patch, evidence and policy together: a signature holds for exactly this. A rebase that changes nothing
        keeps it (see `approvals.fingerprint.content` and `improvements.binding`).
        """
        before_rollout = (State.AUTHORING, State.TESTING, State.SCANNING, State.STAGING)
        return fingerprint(
            patch=self.diff,
            evidence=[
                f"{run.state} {run.verdict} {binding(item.kind, item.content, item.sha256)}"
                for run in self.proof()
                if run.state in before_rollout
                for item in run.evidence.all()
            ],
            policy_version=policy_version,
        )


class StepRun(models.Model):
    """One run of one step: when, by which worker, how it ended, and what it left behind."""

    improvement = models.ForeignKey(Improvement, on_delete=models.CASCADE, related_name="runs")
    state = models.CharField(max_length=20, choices=State.choices)
    started_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)
    lease = models.UUIDField()
    verdict = models.CharField(max_length=12, blank=True, choices=[(v.value, v.value) for v in Verdict])
    reason = models.TextField(blank=True)
    crashed = models.BooleanField(default=False, help_text="It raised, or its worker died; the step was taken again.")

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["improvement"], condition=Q(ended_at=None), name="one_step_under_way_per_improvement"
            ),
            models.CheckConstraint(
                condition=Q(ended_at=None) | Q(ended_at__gte=F("started_at")), name="step_ends_after_it_started"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.state} {self.verdict or ('crashed' if self.crashed else 'under way')}"

    @property
    def seconds(self) -> float | None:
        return None if self.ended_at is None else (self.ended_at - self.started_at).total_seconds()

    def keep(self, evidence: Evidence) -> EvidenceRecord:
        content = audit.plain(evidence.content)  # what a test suite printed may hold what PostgreSQL cannot store
        return self.evidence.create(
            kind=evidence.kind,
            summary=audit.plain(evidence.summary)[:500],
            content=content,
            sha256=digest({"kind": evidence.kind, "content": content}),
        )


class EvidenceRecord(models.Model):
    """What a step left behind, with the hash that signatures and the audit log refer to."""

    run = models.ForeignKey(StepRun, on_delete=models.CASCADE, related_name="evidence")
    kind = models.CharField(max_length=40)
    summary = models.CharField(max_length=500)
    content = models.JSONField()
    sha256 = models.CharField(max_length=64)

    class Meta:
        ordering = ["pk"]
        verbose_name = "evidence"
        verbose_name_plural = "evidence"

    def __str__(self) -> str:
        return f"{self.kind}: {self.summary}"
