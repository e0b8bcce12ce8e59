"""What people said about a service."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from monitoring.models.service import Service


class Feedback(models.Model):
    """One remark of somebody who is not named. Written by `monitoring.feedback` alone, which takes people out of it."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="feedback", db_index=False)
    at = models.DateTimeField(default=now)
    rating = models.PositiveSmallIntegerField(null=True, blank=True, help_text="1 (bad) to 5 (good).")
    text = models.TextField(blank=True, max_length=2000)
    endpoint = models.CharField(max_length=200, blank=True, help_text="The route it is about.")

    class Meta:
        ordering = ["-at"]
        verbose_name_plural = "feedback"
        indexes = [models.Index(fields=["service", "-at"], name="feedback_of_service")]
        constraints = [
            models.CheckConstraint(condition=Q(rating=None) | Q(rating__range=(1, 5)), name="rating_is_1_to_5"),
            models.CheckConstraint(condition=~Q(rating=None, text=""), name="feedback_says_something"),
        ]

    def __str__(self) -> str:
        return f"{self.service}: {self.rating or '–'} {self.text[:60]}".rstrip()
