"""Broken glass: two people let one rollout start unsigned, or in a freeze. `breaking_glass` is the only writer."""

from __future__ import annotations

import datetime as dt

from django.conf import settings
from django.db import models
from django.db.models import F, Q

from approvals.models.request import ApprovalRequest

CONFIRM_WITHIN = dt.timedelta(minutes=30)
IN_FORCE_FOR = dt.timedelta(hours=4)
REVIEW_WITHIN = dt.timedelta(days=7)


class BreakGlassQuerySet(models.QuerySet["BreakGlass"]):
    def unsettled(self) -> BreakGlassQuerySet:
        """Those that everybody must see: under way, or confirmed and not reviewed yet."""
        return self.filter(UNSETTLED)

    def live(self) -> BreakGlassQuerySet:
        return self.filter(state__in=LIVE)


class BreakGlass(models.Model):
    """One use of the emergency door: who opened it, who confirmed it, what came of it, and who looked at it after."""

    class State(models.TextChoices):
        OPENED = "opened", "waits for the second person"
        CONFIRMED = "confirmed", "in force"
        USED = "used", "used"
        REVOKED = "revoked", "revoked"
        LAPSED = "lapsed", "lapsed"

    request = models.ForeignKey(ApprovalRequest, on_delete=models.PROTECT, related_name="broken_glass")
    fingerprint = models.CharField(max_length=64)
    reason = models.TextField()
    ticket = models.CharField(max_length=200, help_text="Where the emergency is written down: a number or an address.")
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPENED.value)
    opened_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    opened_at = models.DateTimeField()
    confirmed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    confirmed_at = models.DateTimeField(null=True, blank=True)
    used_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    ended_because = models.TextField(blank=True)
    reviewed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    reviewed_at = models.DateTimeField(null=True, blank=True)
    notes = models.TextField("what the review says", blank=True)

    objects = BreakGlassQuerySet.as_manager()

    class Meta:
        ordering = ["-opened_at", "-id"]
        verbose_name = "use of break-glass"
        verbose_name_plural = "uses of break-glass"
        constraints = [
            models.UniqueConstraint(
                fields=["request"], condition=Q(state__in=["opened", "confirmed"]), name="one_live_glass_per_request"
            ),
            models.CheckConstraint(condition=~Q(opened_by=F("confirmed_by")), name="glass_takes_two_people"),
            models.CheckConstraint(
                condition=~Q(reviewed_by=F("opened_by")) & ~Q(reviewed_by=F("confirmed_by")),
                name="glass_is_reviewed_by_a_third",
            ),
            models.CheckConstraint(
                condition=Q(state__in=["opened", "revoked", "lapsed"]) | Q(confirmed_at__isnull=False),
                name="glass_is_used_after_two",
            ),
        ]
        indexes = [
            models.Index(
                fields=["opened_at"],
                condition=Q(state="opened") | Q(confirmed_at__isnull=False, reviewed_at=None),
                name="glass_unsettled",
            )
        ]

    def __str__(self) -> str:
        return f"break-glass for {self.request.title}"[:200]

    @property
    def in_force_until(self) -> dt.datetime | None:
        return self.confirmed_at + IN_FORCE_FOR if self.confirmed_at else None

    @property
    def confirm_until(self) -> dt.datetime:
        return self.opened_at + CONFIRM_WITHIN

    @property
    def review_due_at(self) -> dt.datetime | None:
        return self.confirmed_at + REVIEW_WITHIN if self.confirmed_at else None

    @property
    def why(self) -> str:
        return f"Break-glass by {self.opened_by} and {self.confirmed_by} (ticket {self.ticket}): {self.reason}"


LIVE = (BreakGlass.State.OPENED, BreakGlass.State.CONFIRMED)
UNSETTLED = Q(state=BreakGlass.State.OPENED) | Q(confirmed_at__isnull=False, reviewed_at=None)
