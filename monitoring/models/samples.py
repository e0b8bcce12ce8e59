"""What was measured, and who measured it."""

from __future__ import annotations

import json
from typing import Any

from django.contrib.postgres.indexes import BrinIndex
from django.db import models
from django.utils.timezone import now

from monitoring.models.service import Service, Target


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
