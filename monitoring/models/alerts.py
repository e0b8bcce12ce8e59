"""Alert rules and alerts."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from monitoring.models.service import Service


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
    # What people did about it (monitoring.answering), and what keeps it quiet (monitoring.notifying).
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="owned_alerts"
    )
    acknowledged_at = models.DateTimeField(null=True, blank=True)
    acknowledged_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    acknowledgement = models.CharField(max_length=500, blank=True, default="")
    suppressed_by = models.CharField(max_length=700, blank=True, default="", help_text="In words; empty: nothing.")
    audible_since = models.DateTimeField(
        null=True, blank=True, help_text="Since when it fires and nothing keeps it quiet; escalation counts from here."
    )

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
