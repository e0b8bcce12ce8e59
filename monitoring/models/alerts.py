"""Alert rules and alerts."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from monitoring.alerts import Kind, Rule
from monitoring.burnrate import Window
from monitoring.models.service import Service


class Severity(StrEnum):
    CRITICAL = "critical"
    WARNING = "warning"


class Comparison(StrEnum):
    ABOVE = "above"
    BELOW = "below"


def _windows_are_usable(given: Any) -> None:
    """[[factor, long seconds, short seconds], …], each number positive and each short window within its long one."""
    example = "Write [[14.4, 3600, 300], [6, 21600, 1800]]: factor, long and short window in seconds."
    if not isinstance(given, list):
        raise ValidationError(example)
    for row in given:
        numbers = isinstance(row, list) and len(row) == 3 and all(type(n) in (int, float) and n > 0 for n in row)
        if not numbers or row[2] >= row[1]:
            raise ValidationError(example)


class AlertRule(models.Model):
    """When a signal counts as a problem. Without a service the rule holds for every service.

    What the fields mean for each kind is said by `monitoring.alerts.Rule`, of which this is the row.
    """

    service = models.ForeignKey(Service, on_delete=models.CASCADE, null=True, blank=True, related_name="alert_rules")
    name = models.SlugField(max_length=60)
    summary = models.CharField(max_length=200, help_text="What a person reads when it fires.")
    kind = models.CharField(
        max_length=10,
        choices=[(k.value, k.replace("_", " ").capitalize()) for k in Kind],
        default=Kind.THRESHOLD.value,
        help_text="How it is judged: see docs/operations.md.",
    )
    signal = models.CharField(max_length=60)
    also = models.CharField(
        max_length=60, blank=True, default="", help_text="Deviation: a signal that must be raised as well."
    )
    labels = models.JSONField(default=dict, blank=True, help_text="Exactly these; empty for every series.")
    comparison = models.CharField(
        max_length=10, choices=[(c.value, c.capitalize()) for c in Comparison], default=Comparison.ABOVE.value
    )
    threshold = models.FloatField(
        default=0.0,
        help_text="In the unit of the signal, or times the usual value; for heartbeats in seconds. Not for burn rates.",
    )
    clear_threshold = models.FloatField(
        null=True, blank=True, help_text="Only beyond this it is over. Empty: as soon as the condition is not met."
    )
    is_relative = models.BooleanField(default=False, help_text="The threshold is a multiple of the usual value.")
    minimum_requests = models.PositiveIntegerField(
        default=0, help_text="Fewer requests than this in an interval say nothing about the service."
    )
    minimum_bad = models.PositiveIntegerField(
        default=0, help_text="Burn rate: so many bad requests at least in the long window."
    )
    for_intervals = models.PositiveSmallIntegerField(default=2, help_text="Collection intervals in a row.")
    clear_intervals = models.PositiveSmallIntegerField(
        default=1, help_text="It ends after so many clear collection intervals in a row."
    )
    strictness = models.FloatField(
        default=1.0, help_text="Deviation: above 1 it takes more to fire, below 1 less, in proportion."
    )
    horizon_seconds = models.PositiveIntegerField(
        default=0, help_text="Forecast: the threshold will be reached within so many seconds."
    )
    windows = models.JSONField(
        default=list,
        blank=True,
        validators=[_windows_are_usable],
        help_text="Burn rate: factor, long and short window in seconds, such as [[14.4, 3600, 300]].",
    )
    severity = models.CharField(
        max_length=10, choices=[(s.value, s.capitalize()) for s in Severity], default=Severity.WARNING.value
    )
    enabled = models.BooleanField(default=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["service", "name"], nulls_distinct=False, name="one_alert_rule_per_name"),
            models.CheckConstraint(condition=Q(for_intervals__gte=1), name="alert_rule_waits_at_least_one_interval"),
            models.CheckConstraint(condition=Q(clear_intervals__gte=1), name="alert_rule_ends_after_an_interval"),
            models.CheckConstraint(condition=Q(strictness__gt=0), name="alert_rule_strictness_is_above_zero"),
        ]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        if self.kind == Kind.BURN_RATE and not self.windows:
            raise ValidationError({"windows": "A burn rate needs windows, such as [[14.4, 3600, 300]]."})
        if self.kind == Kind.FORECAST and not self.horizon_seconds:
            raise ValidationError({"horizon_seconds": "A forecast needs a horizon, such as 14400 for four hours."})

    @property
    def plain(self) -> Rule:
        """The rule for the arithmetic."""
        return Rule(
            name=self.name,
            summary=self.summary,
            signal=self.signal,
            kind=self.kind,
            also=self.also,
            labels=tuple(sorted(self.labels.items())),
            is_below=self.comparison == Comparison.BELOW,
            threshold=self.threshold,
            clear_threshold=self.clear_threshold,
            is_relative=self.is_relative,
            minimum_requests=self.minimum_requests,
            minimum_bad=self.minimum_bad,
            for_intervals=self.for_intervals,
            clear_intervals=self.clear_intervals,
            strictness=self.strictness,
            horizon_seconds=self.horizon_seconds,
            windows=tuple(Window(*row) for row in self.windows),
            severity=self.severity,
        )


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
    calm_intervals = models.PositiveIntegerField(
        default=0, help_text="How many intervals in a row it has been clear while it fires."
    )
    is_flapping = models.BooleanField(
        default=False, help_text="It came and went too often; it goes on firing until it has been calm for a while."
    )
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
    was_false = models.BooleanField(
        "false alarm", null=True, blank=True, help_text="What somebody judged afterwards; empty: nobody did."
    )
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
        # How often it fired of late is asked whenever one is about to end; what is old is looked for every hour.
        indexes = [
            models.Index(fields=["service", "name", "fired_at"], name="alert_fired"),
            models.Index(fields=["resolved_at"], name="alert_resolved"),
        ]

    def __str__(self) -> str:
        return f"{self.name} on {self.service}: {self.state}"

    @property
    def since(self) -> datetime:
        """When it began to fire, or to be pending."""
        return self.fired_at or self.opened_at
