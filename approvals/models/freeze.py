"""Freeze windows: when rollouts may start. `approvals.holding` is the only writer."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models

from approvals import freezing, recurrence
from approvals.freezing import Kind, Rule
from approvals.recurrence import Window


class FreezeWindow(models.Model):
    """Times in which nothing rolls out, or in which alone something does: once or recurring, on a wall clock.

    It is switched off and never deleted: why a rollout waited, or did not, can be looked up later.
    """

    name = models.CharField(max_length=60, unique=True)
    kind = models.CharField(
        "what it does",
        max_length=10,
        choices=[(kind.value, kind.meaning) for kind in Kind],
        default=Kind.FREEZE.value,
        help_text="A freeze beats a window for rollouts. Where there are windows for rollouts, nothing starts outside.",
    )
    scope = models.CharField(
        "service", max_length=100, blank=True, default="", help_text="The name of a service. Empty: every service."
    )
    reason = models.CharField(max_length=500)
    timezone = models.CharField("time zone", max_length=60, default="UTC", help_text="A name such as Europe/Berlin.")
    first_day = models.DateField()
    begins = models.TimeField(help_text="On the wall clock of its time zone, summer and winter.")
    duration_minutes = models.PositiveIntegerField(
        "duration in minutes",
        validators=[MinValueValidator(1), MaxValueValidator(int(freezing.LONGEST.total_seconds() // 60))],
        help_text="A day has 1440; the longest window is 62 days.",
    )
    recurrence = models.CharField(
        max_length=200,
        blank=True,
        default="",
        help_text="Empty: once. Otherwise a rule of RFC 5545, such as FREQ=WEEKLY;BYDAY=FR or FREQ=MONTHLY;BYDAY=1SA.",
    )
    enabled = models.BooleanField(default=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.CheckConstraint(condition=models.Q(kind__in=list(Kind)), name="freeze_window_kind_is_known")
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def window(self) -> Window:
        return Window(
            first=datetime.combine(self.first_day, self.begins),
            duration=timedelta(minutes=self.duration_minutes),
            zone=self.timezone,
            rule=self.recurrence,
        )

    @property
    def rule(self) -> Rule:
        return Rule(self.name, Kind(self.kind), self.window, self.scope, self.reason)

    def clean(self) -> None:
        if self.first_day is None or self.begins is None or self.duration_minutes is None:
            return
        try:
            recurrence.zone_of(self.timezone)
        except recurrence.BadWindow as error:
            raise ValidationError({"timezone": str(error)}) from error
        try:
            recurrence.check(self.window, longest=freezing.LONGEST)
        except recurrence.BadWindow as error:
            raise ValidationError({"recurrence" if self.recurrence else "duration_minutes": str(error)}) from error
