"""Messages to people. `approvals.telling` is the only writer."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.utils.timezone import now


class Delivery(StrEnum):
    WAITING = "waiting"
    SENT = "sent"
    DEAD = "dead"


class LetterQuerySet(models.QuerySet["Letter"]):
    def waiting(self, at: dt.datetime) -> LetterQuerySet:
        """Those that may be sent at `at` and that no worker has under way."""
        return self.filter(state=Delivery.WAITING, next_at__lte=at).filter(
            Q(leased_until=None) | Q(leased_until__lte=at)
        )


class Letter(models.Model):
    """One message to one person: a row of the outbox. What it says is settled when it is written."""

    key = models.CharField(max_length=150)  # the occasion: nobody is told twice of one
    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="letters")
    about = models.CharField(max_length=100)
    subject = models.CharField(max_length=200)
    lines = ArrayField(models.TextField(), default=list, blank=True)
    url = models.CharField("page", max_length=500, blank=True)
    state = models.CharField(
        max_length=10, choices=[(one.value, one.value) for one in Delivery], default=Delivery.WAITING.value
    )
    attempts = models.PositiveSmallIntegerField(default=0)
    next_at = models.DateTimeField(default=now, help_text="Not before this time.")
    last_error = models.CharField(max_length=500, blank=True, default="")
    created_at = models.DateTimeField(default=now)
    sent_at = models.DateTimeField(null=True, blank=True)
    leased_until = models.DateTimeField(null=True, blank=True)
    lease = models.UUIDField(null=True, blank=True)

    objects = LetterQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-pk"]
        constraints = [
            models.UniqueConstraint(fields=["key", "person"], name="one_letter_per_occasion_and_person"),
            models.CheckConstraint(
                condition=Q(state=Delivery.SENT.value, sent_at__isnull=False)
                | ~Q(state=Delivery.SENT.value) & Q(sent_at=None),
                name="letter_was_sent_at_a_time",
            ),
        ]
        indexes = [
            models.Index(fields=["next_at"], condition=Q(state=Delivery.WAITING.value), name="letter_outbox"),
            models.Index(fields=["-created_at"], name="letter_newest"),
        ]

    def __str__(self) -> str:
        return f"{self.subject} (to {self.person})"
