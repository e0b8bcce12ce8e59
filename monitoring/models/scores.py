"""Health scores."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

from django.db import models

from monitoring import health
from monitoring.models.service import Service


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
        constraints = [
            # The scores of weeks are read from the index alone: the rows are thirty times as large.
            models.UniqueConstraint(fields=["service", "at"], include=["score"], name="one_health_score_per_round")
        ]

    def __str__(self) -> str:
        return f"{self.service}: {self.status}" + ("" if self.score is None else f" ({math.floor(self.score)})")

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """`components` in the order of the scorecard: PostgreSQL keeps an order of its own."""
        return health.in_order(self.components)
