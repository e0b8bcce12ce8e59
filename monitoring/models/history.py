"""What of a service's past is still to be asked for."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q
from django.utils.timezone import now

from monitoring.models.service import Target

FIRST_POINTS = 240


class BackfillQuerySet(models.QuerySet["Backfill"]):
    def open(self) -> BackfillQuerySet:
        """Those of which a part is still to be asked for, of targets that are asked."""
        return self.filter(until__gt=F("since"), target__active=True, target__service__archived_at=None)


class Backfill(models.Model):
    """A time in which nobody measured a target whose series are in a Prometheus: before it was watched, or a pause.

    [since, until) is what is still to be asked for; it is filled from its end. The row of the time before stays when it
    is done: it says that it was done.
    """

    target = models.ForeignKey(Target, on_delete=models.CASCADE, related_name="backfills")
    is_first = models.BooleanField(default=False, help_text="The time before the target was watched.")
    since = models.DateTimeField()
    until = models.DateTimeField()
    asked_at = models.DateTimeField(default=now)
    points = models.PositiveSmallIntegerField(default=FIRST_POINTS, help_text="How many are asked for at once.")
    samples = models.PositiveBigIntegerField(default=0)
    oldest = models.DateTimeField(null=True, help_text="The oldest moment that had anything.")
    problem = models.CharField(max_length=500, blank=True)
    tried_at = models.DateTimeField(null=True)

    objects = BackfillQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["target"], condition=Q(is_first=True), name="one_past_of_a_target_before_it_was_watched"
            )
        ]

    def __str__(self) -> str:
        return f"{self.target} from {self.since:%Y-%m-%d %H:%M} to {self.until:%Y-%m-%d %H:%M}"

    @property
    def is_done(self) -> bool:
        return self.until <= self.since
