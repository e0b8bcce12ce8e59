"""Baselines: what the signals of a service look like when all is well."""

from __future__ import annotations

from typing import Any

import numpy as np
from django.conf import settings
from django.db import models
from django.utils.timezone import now

from monitoring import baselines
from monitoring.baselines import Profile, Quantiles
from monitoring.models.samples import labels_key
from monitoring.models.service import Service


class BaselineQuerySet(models.QuerySet["Baseline"]):
    def current(self) -> BaselineQuerySet:
        """The newest of each service."""
        return self.order_by("service_id", "-version").distinct("service_id")


class Baseline(models.Model):
    """One version of a service's baseline: measured from `since` until `until`, made by whom and why."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="baselines", db_index=False)
    version = models.PositiveIntegerField()
    since = models.DateTimeField()
    until = models.DateTimeField()
    made_at = models.DateTimeField(default=now)
    made_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        help_text="Nobody: RuneRogue made it by itself.",
    )
    reason = models.CharField(max_length=500)
    series_count = models.PositiveIntegerField(default=0)

    objects = BaselineQuerySet.as_manager()

    class Meta:
        ordering = ["-made_at"]
        constraints = [
            models.UniqueConstraint(fields=["service", "version"], name="one_baseline_per_version"),
            models.CheckConstraint(condition=models.Q(until__gt=models.F("since")), name="baseline_ends_after_start"),
        ]

    def __str__(self) -> str:
        return f"{self.service} version {self.version}"

    @property
    def author(self) -> str:
        return self.made_by.get_username() if self.made_by else "RuneRogue"


class BaselineSeries(models.Model):
    """One series of a baseline: quantiles over all, by hour where the data support it, and some of its values."""

    baseline = models.ForeignKey(Baseline, on_delete=models.CASCADE, related_name="series", db_index=False)
    signal = models.CharField(max_length=60)
    labels = models.JSONField(default=dict)
    labels_key = models.CharField(max_length=700, editable=False)
    count = models.PositiveIntegerField()
    p05 = models.FloatField()
    p25 = models.FloatField()
    p50 = models.FloatField()
    p75 = models.FloatField()
    p95 = models.FloatField()
    p99 = models.FloatField()
    hours = models.JSONField(default=dict)  # see monitoring.baselines.packed_hours
    kept = models.BinaryField()  # float32, see monitoring.baselines.Profile

    class Meta:
        verbose_name_plural = "baseline series"
        ordering = ["signal", "labels_key"]
        constraints = [
            models.UniqueConstraint(fields=["baseline", "signal", "labels_key"], name="one_baseline_series_per_labels"),
        ]

    def __str__(self) -> str:
        return f"{self.signal}{self.labels_key}"

    @classmethod
    def of(cls, baseline: Baseline, signal: str, labels: dict[str, str], made: Profile) -> BaselineSeries:
        """A row, not saved yet."""
        return cls(
            baseline=baseline,
            signal=signal,
            labels=labels,
            labels_key=labels_key(labels),
            hours=baselines.packed_hours(made),
            kept=made.kept.astype("<f4").tobytes(),
            **{name: getattr(made.overall, name) for name in (*baselines.NAMES, "count")},
        )

    @property
    def quantiles(self) -> Quantiles:
        values: dict[str, Any] = {name: getattr(self, name) for name in (*baselines.NAMES, "count")}
        return Quantiles(**values)

    @property
    def profile(self) -> Profile:
        return baselines.unpacked(
            self.quantiles, self.hours, np.frombuffer(bytes(self.kept), dtype="<f4").astype(float)
        )
