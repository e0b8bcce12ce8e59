"""Releases of services, the rollout that moves traffic between two of them, and what the proxy saw."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from improvements.models.lifecycle import Improvement
from monitoring.models import Service


class Release(models.Model):
    """One commit of a service, installed and runnable. `share` is the wanted percentage of traffic: the truth that
    the proxy is made to agree with."""

    class State(models.TextChoices):
        WANTED = "wanted"
        INSTALLED = "installed"
        RUNNING = "running"
        STOPPED = "stopped"

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="releases")
    commit = models.CharField(max_length=40)
    folder = models.CharField(max_length=500, blank=True)
    port = models.PositiveIntegerField(null=True, blank=True)
    server = models.CharField(max_length=20, blank=True, help_text="Its server slot in the proxy.")
    share = models.PositiveSmallIntegerField(default=0, validators=[MinValueValidator(0), MaxValueValidator(100)])
    state = models.CharField(max_length=10, choices=State.choices, default=State.WANTED)
    started_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(fields=["service", "commit"], name="one_release_per_commit"),
            models.UniqueConstraint(
                fields=["service", "server"], condition=~Q(server=""), name="one_release_per_proxy_server"
            ),
            models.CheckConstraint(condition=Q(share__lte=100), name="release_share_is_a_percentage"),
        ]

    def __str__(self) -> str:
        return f"{self.service.name} {self.short}"

    @property
    def short(self) -> str:
        return self.commit[:12]

    @property
    def program(self) -> str:
        """The name of its process under the process manager."""
        return f"release-{self.service.name}-{self.short}"


class Rollout(models.Model):
    """Traffic moving from the current release to a candidate. Live until the improvement has settled or is back."""

    class State(models.TextChoices):
        LIVE = "live"
        DONE = "done"
        ROLLED_BACK = "rolled back"

    service = models.ForeignKey(Service, on_delete=models.PROTECT, related_name="rollouts")
    improvement = models.OneToOneField(Improvement, on_delete=models.PROTECT, related_name="rollout")
    current = models.ForeignKey(Release, on_delete=models.PROTECT, related_name="+")
    candidate = models.ForeignKey(Release, on_delete=models.PROTECT, related_name="+")
    state = models.CharField(max_length=12, choices=State.choices, default=State.LIVE)
    step = models.PositiveSmallIntegerField(default=0, help_text="Index into the rollout steps.")
    step_since = models.DateTimeField(null=True, blank=True)
    full_since = models.DateTimeField(null=True, blank=True, help_text="When the candidate first had all traffic.")
    traffic_back_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)
    looks = models.PositiveSmallIntegerField(default=0, help_text="Final judgements made of the present step.")
    unanswered = models.JSONField(
        default=dict, help_text="Per release, what the proxy had counted as not answered when the step began."
    )
    verdicts = models.JSONField(default=list, help_text="One entry a step: share, verdict, reason, numbers.")

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.UniqueConstraint(fields=["service"], condition=Q(state="live"), name="one_live_rollout_per_service"),
        ]

    def __str__(self) -> str:
        return f"{self.current.short} → {self.candidate.short}"


class TrafficSlice(models.Model):
    """What the proxy saw of one release in one second: every request's status, method and times."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="+")
    release = models.ForeignKey(Release, on_delete=models.CASCADE, null=True, related_name="+")
    second = models.DateTimeField()
    latencies_ms = ArrayField(
        models.FloatField(), help_text="Time to the whole response, in milliseconds; one per request."
    )
    statuses = ArrayField(models.SmallIntegerField(), help_text="HTTP status; -1 when there was no answer.")
    methods = ArrayField(models.CharField(max_length=8))
    lost = models.PositiveIntegerField(
        default=0, help_text="Requests of which the proxy's line never came, by the second in which they were missed."
    )

    class Meta:
        ordering = ["second"]
        indexes = [models.Index(fields=["service", "second"])]

    def __str__(self) -> str:
        return f"{self.service_id}/{self.release_id} {self.second:%H:%M:%S} {len(self.statuses)} requests"
