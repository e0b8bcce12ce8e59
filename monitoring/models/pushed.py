"""Metrics that services send by themselves, kept until a round reads them."""

from __future__ import annotations

from django.db import models

from monitoring.models.service import Target


class PushedProcess(models.Model):
    """One process that sends metrics: what it has counted so far, and what the rounds made of it.

    Whoever receives an export writes `state` and the times; rounds write `newest`, `before` and `read_at`.
    """

    target = models.ForeignKey(Target, on_delete=models.CASCADE, related_name="processes", db_index=False)
    # Its service.instance.id may name a person or a machine.
    process = models.CharField(max_length=16, help_text="A keyed hash of what it calls itself.")
    received_at = models.DateTimeField(help_text="When something new came last.")
    gap_seconds = models.FloatField(default=0.0, help_text="Between the last two exports.")
    state = models.BinaryField()  # monitoring.otlp.streams.pack
    newest = models.BinaryField(null=True)  # monitoring.prometheus.pack: what the rounds saw last …
    before = models.BinaryField(null=True)  # … and before that
    read_at = models.DateTimeField(null=True)

    class Meta:
        verbose_name_plural = "pushed processes"
        constraints = [models.UniqueConstraint(fields=["target", "process"], name="one_row_per_pushed_process")]

    def __str__(self) -> str:
        return f"{self.process} of {self.target_id}"
