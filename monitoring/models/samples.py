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
        about = ", ".join(f"{name} {value}" for name, value in sorted(self.labels.items()))
        return f"{self.signal} ({about})" if about else self.signal

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.labels_key = labels_key(self.labels)
        super().save(*args, **kwargs)


class Sample(models.Model):
    """One recent value of a series at one time: the table is partitioned by day, and sealed days leave it.

    Read through `monitoring.reading`, which knows the other tiers, and write through `monitoring.storing`.
    """

    pk = models.CompositePrimaryKey("series_id", "at")
    # Without a constraint in the database: checking it would cost a round more than writing its samples.
    series = models.ForeignKey(
        Series, on_delete=models.CASCADE, related_name="samples", db_index=False, db_constraint=False
    )
    at = models.DateTimeField()
    value = models.FloatField()

    class Meta:
        # A round is asked for by time alone; rows arrive in that order, so a block range index is enough and tiny.
        indexes = [BrinIndex(fields=["at"], name="sample_at", autosummarize=True)]

    def __str__(self) -> str:
        return f"{self.value:g} at {self.at:%Y-%m-%d %H:%M:%S}"


class SealedDay(models.Model):
    """A day (UTC) of which samples were sealed. Retention counts these days and not those of a clock that may jump."""

    day = models.DateField(primary_key=True)
    sealed_at = models.DateTimeField(default=now)

    def __str__(self) -> str:
        return str(self.day)


class SealedAxis(models.Model):
    """The times that the sealed series of one chunk share; see `monitoring.blocks`."""

    day = models.DateField()
    body = models.BinaryField()

    class Meta:
        verbose_name_plural = "sealed axes"
        indexes = [BrinIndex(fields=["day"], name="sealed_axis_day", autosummarize=True)]

    def __str__(self) -> str:
        return f"axis {self.pk} of {self.day}"


class SealedBlock(models.Model):
    """All samples of a series on one day (UTC), compressed."""

    pk = models.CompositePrimaryKey("series_id", "day")
    series = models.ForeignKey(Series, on_delete=models.CASCADE, related_name="+", db_index=False, db_constraint=False)
    day = models.DateField()
    axis = models.ForeignKey(
        SealedAxis, on_delete=models.DO_NOTHING, related_name="+", db_index=False, db_constraint=False
    )
    count = models.IntegerField()
    present = models.BinaryField(help_text="Which points of the axis; empty for all of them.")
    body = models.BinaryField()

    class Meta:
        # They go by day, and came in that order.
        indexes = [BrinIndex(fields=["day"], name="sealed_block_day", autosummarize=True)]

    def __str__(self) -> str:
        return f"{self.count} samples of series {self.series_id} on {self.day}"


class Rollup(models.Model):
    """One day (UTC) of a series in steps: count, mean, minimum, maximum and percentiles of each, compressed."""

    pk = models.CompositePrimaryKey("series_id", "step_seconds", "day")
    series = models.ForeignKey(Series, on_delete=models.CASCADE, related_name="+", db_index=False, db_constraint=False)
    step_seconds = models.IntegerField()
    day = models.DateField()
    body = models.BinaryField()

    class Meta:
        indexes = [BrinIndex(fields=["day"], name="rollup_day", autosummarize=True)]

    def __str__(self) -> str:
        return f"series {self.series_id} on {self.day} in steps of {self.step_seconds} s"


class Round(models.Model):
    """A claimed piece of periodic work: whoever inserts the row does it, every doubled message finds it taken."""

    job = models.CharField(max_length=40)
    period = models.BigIntegerField(help_text="Unix seconds divided by the interval.")
    started_at = models.DateTimeField(default=now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["job", "period"], name="one_round_per_job_and_period")]

    def __str__(self) -> str:
        return f"{self.job} {self.period}"
