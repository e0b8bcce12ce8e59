"""Rows of what is watched and what was measured."""

from __future__ import annotations

import json
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.postgres.indexes import BrinIndex
from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from monitoring.manifest import Manifest


class ServiceQuerySet(models.QuerySet["Service"]):
    def active(self) -> ServiceQuerySet:
        """The services that are watched; archived ones are history."""
        return self.filter(archived_at=None)


class Service(models.Model):
    """A watched application: a repository with a manifest, a metrics source, a place to run."""

    name = models.SlugField(max_length=40, unique=True)
    repository = models.CharField(max_length=1000, help_text="A path or a git URL.")
    branch = models.CharField(max_length=200, default="main")
    manifest = models.JSONField()
    # Secrets such as DATABASE_URL live here: pages and logs show the names, never the values.
    environment = models.JSONField(default=dict, blank=True)
    is_self = models.BooleanField(default=False, editable=False)
    slot = models.PositiveSmallIntegerField(null=True, blank=True, unique=True, help_text="Its place in the proxy.")
    created_at = models.DateTimeField(default=now, editable=False)
    archived_at = models.DateTimeField(null=True, blank=True)

    objects = ServiceQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["is_self"], condition=Q(is_self=True), name="one_service_is_runerogue"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_remote(self) -> bool:
        """Whether `repository` is a URL, of which RuneRogue keeps its own clone."""
        return is_url(self.repository)

    @property
    def checkout(self) -> Path:
        """The local git repository that is read and committed to."""
        return clone_folder(self.name) if self.is_remote else Path(self.repository)

    @property
    def parsed(self) -> Manifest:
        """The manifest as it was when the service was registered or refreshed."""
        return Manifest.model_validate(self.manifest)


def is_url(repository: str) -> bool:
    """Whether `repository` names a remote (https://…, ssh://…, git@host:path) and not a folder."""
    if "://" in repository:
        return True
    host, colon, _ = repository.partition(":")
    return bool(colon) and "@" in host and "/" not in host


def clone_folder(name: str) -> Path:
    """Where the clone of the remote service `name` lives."""
    return settings.HOME.repository(name)


class TargetQuerySet(models.QuerySet["Target"]):
    def active(self) -> TargetQuerySet:
        """What the collector scrapes."""
        return self.filter(active=True, service__archived_at=None)

    def serving(self) -> TargetQuerySet:
        """What users get answers from; only these are judged."""
        return self.active().filter(serving=True)


class Target(models.Model):
    """One address that the collector scrapes: a running release of a service."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="targets")
    url = models.CharField(max_length=500)
    release = models.CharField(max_length=12, blank=True, default="", help_text="The release's short commit.")
    active = models.BooleanField(default=True)
    serving = models.BooleanField(
        default=True, help_text="Users get answers from it. A release that is tried in private is measured, not judged."
    )
    last_scraped_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="The last success.")
    last_error = models.CharField(max_length=500, blank=True, default="", editable=False)

    objects = TargetQuerySet.as_manager()

    class Meta:
        ordering = ["service", "url"]
        constraints = [
            models.UniqueConstraint(fields=["service", "release", "url"], name="one_target_per_release_and_url"),
            # Without a release its numbers are stored as those of the whole service.
            models.CheckConstraint(condition=Q(serving=True) | ~Q(release=""), name="private_target_has_a_release"),
        ]

    def __str__(self) -> str:
        return f"{self.url} ({self.release})" if self.release else self.url


class Snapshot(models.Model):
    """The last raw numbers of a target: rates are differences, and a restart must not cost an interval."""

    target = models.OneToOneField(Target, on_delete=models.CASCADE, primary_key=True)
    at = models.DateTimeField()
    body = models.BinaryField()  # zlib-compressed JSON, see monitoring.collecting

    def __str__(self) -> str:
        return f"{self.target_id} at {self.at:%Y-%m-%d %H:%M:%S}"


def labels_key(labels: dict[str, str]) -> str:
    """One spelling for one set of labels, for the unique constraint."""
    return json.dumps(labels, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class Series(models.Model):
    """One signal of one service under one set of labels."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="series")
    signal = models.CharField(max_length=60)
    labels = models.JSONField(default=dict)
    labels_key = models.CharField(max_length=700, editable=False)

    class Meta:
        verbose_name_plural = "series"
        constraints = [
            models.UniqueConstraint(fields=["service", "signal", "labels_key"], name="one_series_per_labels"),
        ]

    def __str__(self) -> str:
        return f"{self.signal}{self.labels_key}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.labels_key = labels_key(self.labels)
        super().save(*args, **kwargs)


class Sample(models.Model):
    """One value of a series at one time."""

    series = models.ForeignKey(Series, on_delete=models.CASCADE, related_name="samples", db_index=False)
    at = models.DateTimeField()
    value = models.FloatField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["series", "at"], name="one_sample_per_series_and_time")]
        # Retention asks by time alone; rows arrive in that order, so a block range index is enough and tiny.
        indexes = [BrinIndex(fields=["at"], name="sample_at", autosummarize=True)]

    def __str__(self) -> str:
        return f"{self.value:g} at {self.at:%Y-%m-%d %H:%M:%S}"


class Round(models.Model):
    """A claimed piece of periodic work: whoever inserts the row does it, every doubled message finds it taken."""

    job = models.CharField(max_length=40)
    period = models.BigIntegerField(help_text="Unix seconds divided by the interval.")
    started_at = models.DateTimeField(default=now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["job", "period"], name="one_round_per_job_and_period")]

    def __str__(self) -> str:
        return f"{self.job} {self.period}"


class Status(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class HealthScore(models.Model):
    """How well a service was in one round: 0 to 100, or nothing when nothing was known."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="health_scores", db_index=False)
    at = models.DateTimeField()
    score = models.FloatField(null=True)
    status = models.CharField(max_length=10, choices=[(s.value, s.capitalize()) for s in Status])
    trend = models.CharField(max_length=10, default="unknown")
    confidence = models.FloatField(default=0, help_text="0 to 1: the share of what should be known that is known.")
    components = models.JSONField(default=dict)  # name → {score, status, message, confidence, drivers}

    class Meta:
        get_latest_by = "at"
        constraints = [models.UniqueConstraint(fields=["service", "at"], name="one_health_score_per_round")]

    def __str__(self) -> str:
        return f"{self.service}: {self.status}" + ("" if self.score is None else f" ({self.score:.0f})")


class Severity(StrEnum):
    CRITICAL = "critical"
    WARNING = "warning"


class Comparison(StrEnum):
    ABOVE = "above"
    BELOW = "below"


class AlertRule(models.Model):
    """When a signal counts as a problem. Without a service the rule holds for every service."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, null=True, blank=True, related_name="alert_rules")
    name = models.SlugField(max_length=60)
    summary = models.CharField(max_length=200, help_text="What a person reads when it fires.")
    signal = models.CharField(max_length=60)
    labels = models.JSONField(default=dict, blank=True, help_text="Exactly these; empty for every series.")
    comparison = models.CharField(
        max_length=10, choices=[(c.value, c.capitalize()) for c in Comparison], default=Comparison.ABOVE.value
    )
    threshold = models.FloatField(help_text="In the unit of the signal, or times the usual value.")
    is_relative = models.BooleanField(default=False, help_text="The threshold is a multiple of the usual value.")
    minimum_requests = models.PositiveIntegerField(
        default=0, help_text="Fewer requests than this in an interval say nothing about the service."
    )
    for_intervals = models.PositiveSmallIntegerField(default=2, help_text="Collection intervals in a row.")
    severity = models.CharField(
        max_length=10, choices=[(s.value, s.capitalize()) for s in Severity], default=Severity.WARNING.value
    )
    enabled = models.BooleanField(default=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["service", "name"], nulls_distinct=False, name="one_alert_rule_per_name"),
            models.CheckConstraint(condition=Q(for_intervals__gte=1), name="alert_rule_waits_at_least_one_interval"),
        ]

    def __str__(self) -> str:
        return self.name


class AlertState(StrEnum):
    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


class AlertQuerySet(models.QuerySet["Alert"]):
    def open(self) -> AlertQuerySet:
        """Pending or firing."""
        return self.exclude(state=AlertState.RESOLVED)

    def firing(self) -> AlertQuerySet:
        return self.filter(state=AlertState.FIRING)


class Alert(models.Model):
    """A rule that holds for one series of one service. Its state is written by `monitoring.alerting` alone."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="alerts")
    rule = models.ForeignKey(AlertRule, on_delete=models.SET_NULL, null=True, related_name="alerts")
    name = models.CharField(max_length=60, help_text="The rule's name when it was opened.")
    severity = models.CharField(max_length=10)
    labels = models.JSONField(default=dict)
    labels_key = models.CharField(max_length=700)
    state = models.CharField(
        max_length=10, choices=[(s.value, s.capitalize()) for s in AlertState], default=AlertState.PENDING.value
    )
    state_since = models.DateTimeField(default=now)
    opened_at = models.DateTimeField(default=now)
    fired_at = models.DateTimeField(null=True, blank=True)
    resolved_at = models.DateTimeField(null=True, blank=True)
    intervals = models.PositiveIntegerField(default=1, help_text="How many intervals in a row the rule has held.")
    value = models.FloatField(null=True)
    seen_at = models.DateTimeField(default=now, help_text="The last round that measured its series.")
    message = models.CharField(max_length=500)

    objects = AlertQuerySet.as_manager()

    class Meta:
        ordering = ["-opened_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["service", "name", "labels_key"],
                condition=~Q(state="resolved"),
                name="one_open_alert_per_rule_and_labels",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} on {self.service}: {self.state}"

    @property
    def since(self) -> datetime:
        """When it began to fire, or to be pending."""
        return self.fired_at or self.opened_at
