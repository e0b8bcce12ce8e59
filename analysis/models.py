"""What analysis established: findings, and the probes of the code that they rest on."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils import timezone

from monitoring.models import Service


class FindingQuerySet(models.QuerySet["Finding"]):
    def open(self) -> FindingQuerySet:
        return self.filter(closed_at=None)


class Finding(models.Model):
    """Something established, with its evidence: what, where, how sure, and what it costs."""

    class Kind(models.TextChoices):
        N_PLUS_ONE = "n-plus-one", "N+1 queries"

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="findings")
    kind = models.CharField(max_length=30, choices=Kind.choices)
    key = models.CharField(max_length=300, help_text="The same thing found again has the same key.")
    title = models.CharField(max_length=200)
    endpoint = models.CharField(max_length=200, blank=True)
    location = models.CharField(max_length=300, blank=True, help_text="file:line")
    confidence = models.FloatField(help_text="0 to 1")
    impact = models.JSONField(default=dict, help_text="Numbers, with their units in the names.")
    evidence = models.JSONField(default=dict)
    commit = models.CharField(max_length=40, blank=True)
    first_seen_at = models.DateTimeField(default=timezone.now)
    last_seen_at = models.DateTimeField(default=timezone.now)
    closed_at = models.DateTimeField(null=True, blank=True)
    closed_because = models.CharField(max_length=300, blank=True)

    objects = FindingQuerySet.as_manager()

    class Meta:
        ordering = ["-last_seen_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["service", "key"], condition=Q(closed_at=None), name="one_open_finding_per_key"
            ),
            models.CheckConstraint(condition=Q(confidence__gte=0, confidence__lte=1), name="confidence_is_a_share"),
        ]

    def __str__(self) -> str:
        return self.title


class CodeProbe(models.Model):
    """One run of a service's own tests under the N+1 detector, for one commit: a second would tell nothing new."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="probes")
    commit = models.CharField(max_length=40)
    ran_at = models.DateTimeField(default=timezone.now)
    seconds = models.FloatField()
    error = models.TextField(blank=True)
    found = models.JSONField(default=list)

    class Meta:
        ordering = ["-ran_at"]
        constraints = [models.UniqueConstraint(fields=["service", "commit"], name="one_probe_per_commit")]

    def __str__(self) -> str:
        return f"{self.service.name} {self.commit[:12]}"
