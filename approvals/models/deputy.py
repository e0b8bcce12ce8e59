"""Who stands in for whom, from when until when. `approvals.deputies` is the only writer."""

from __future__ import annotations

import datetime as dt

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils.timezone import now

from approvals.tiers import Role


class DeputyQuerySet(models.QuerySet["Deputy"]):
    def in_force(self, at: dt.datetime) -> DeputyQuerySet:
        return self.filter(since__lte=at, until__gt=at).filter(Q(ended_at=None) | Q(ended_at__gt=at))


class Deputy(models.Model):
    """`deputy` may sign with the right of `principal`, in one role or in all. Kept when it is over."""

    principal = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", verbose_name="who is away"
    )
    deputy = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", verbose_name="who stands in"
    )
    role = models.CharField(
        "as",
        max_length=20,
        blank=True,
        choices=[(role.value, role.title) for role in Role],
        help_text="Empty: in every role.",
    )
    since = models.DateTimeField("from (UTC)", default=now)
    until = models.DateTimeField("until (UTC)")
    because = models.CharField("reason", max_length=500)
    made_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", editable=False)
    made_at = models.DateTimeField(default=now, editable=False)
    ended_at = models.DateTimeField("ended early", null=True, blank=True, editable=False)

    objects = DeputyQuerySet.as_manager()

    class Meta:
        ordering = ["-until", "-pk"]
        verbose_name_plural = "deputies"
        constraints = [
            models.CheckConstraint(condition=Q(until__gt=F("since")), name="deputy_ends_after_it_begins"),
            models.CheckConstraint(condition=~Q(principal=F("deputy")), name="nobody_is_their_own_deputy"),
        ]

    def __str__(self) -> str:
        return f"{self.deputy} for {self.principal}"
