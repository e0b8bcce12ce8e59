"""Which digest went to whom."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone


class DigestState(models.TextChoices):
    WAITING = "waiting", "waits"
    SENT = "sent", "sent"
    DEAD = "dead", "not delivered"
    SKIPPED = "skipped", "not meant for them"


class DigestSentQuerySet(models.QuerySet["DigestSent"]):
    def waiting(self) -> DigestSentQuerySet:
        return self.filter(state=DigestState.WAITING)

    def overtaken(self) -> DigestSentQuerySet:
        """Those that still wait while the digest of a later week is there for the same reader."""
        later = DigestSent.objects.filter(reader=OuterRef("reader"), week__gt=OuterRef("week"))
        return self.waiting().filter(Exists(later))


class DigestSent(models.Model):
    """The digest of one week for one reader. The constraint is the promise that a week is told once.

    `improvements.digest.sending` is the only writer.
    """

    week = models.CharField(max_length=8, help_text="ISO 8601, such as 2026-W47.")
    reader = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="digests")
    state = models.CharField(max_length=8, choices=DigestState.choices, default=DigestState.WAITING)
    subject = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    sent_at = models.DateTimeField(null=True, blank=True)
    tries = models.PositiveSmallIntegerField(default=0)
    next_at = models.DateTimeField(default=timezone.now, help_text="Not before this time.")
    problem = models.CharField(max_length=500, blank=True, help_text="Why it waits, or was not sent.")
    leased_until = models.DateTimeField(null=True, blank=True)
    lease = models.UUIDField(null=True, blank=True)

    objects = DigestSentQuerySet.as_manager()

    class Meta:
        verbose_name = "weekly digest"
        verbose_name_plural = "weekly digests"
        ordering = ["-week", "-pk"]
        constraints = [
            models.UniqueConstraint(fields=["week", "reader"], name="one_digest_per_week_and_reader"),
            models.CheckConstraint(
                condition=Q(state="sent", sent_at__isnull=False) | (~Q(state="sent") & Q(sent_at=None)),
                name="digest_was_sent_at_a_time",
            ),
        ]
        indexes = [models.Index(fields=["next_at"], condition=Q(state="waiting"), name="digest_waiting")]

    def __str__(self) -> str:
        return f"{self.week} to {self.reader}"
