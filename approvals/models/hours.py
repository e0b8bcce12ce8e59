"""When the people of a service work."""

from __future__ import annotations

import datetime as dt
import zoneinfo

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import F, Q

from approvals import working_hours
from approvals.working_hours import DAYS, Week


class WorkingHoursQuerySet(models.QuerySet["WorkingHours"]):
    def of(self, scope: str) -> Week:
        """The working hours of a service: its own, else those of the whole installation, else the setting's."""
        rows = {row.scope: row for row in self.filter(scope__in=["", scope])}
        row = rows.get(scope) or rows.get("")
        return row.week if row else working_hours.parse(settings.WORKING_HOURS)


class WorkingHours(models.Model):
    """Reminders, escalation and expiry of requests count in these."""

    scope = models.CharField(
        "service", max_length=100, unique=True, blank=True, help_text="Its name. Empty: every service without its own."
    )
    zone = models.CharField("time zone", max_length=64, default="UTC", help_text="IANA name, such as Europe/Berlin.")
    weekdays = ArrayField(models.SmallIntegerField(), help_text="Days on which people work, 0 (Monday) to 6 (Sunday).")
    opens = models.TimeField("from", default=dt.time(9), help_text="By a clock in that time zone.")
    closes = models.TimeField(
        "to", default=dt.time(17), help_text="By a clock in that time zone; 00:00: the end of the day."
    )
    holidays = ArrayField(
        models.DateField(), default=list, blank=True, help_text="Dates such as 2026-12-25, separated by commas."
    )

    objects = WorkingHoursQuerySet.as_manager()

    class Meta:
        ordering = ["scope"]
        verbose_name = verbose_name_plural = "working hours"
        constraints = [
            models.CheckConstraint(
                condition=Q(closes=dt.time(0)) | Q(opens__lt=F("closes")),
                name="a_working_day_ends_after_it_began",
                violation_error_message="The day has to end after it began.",
            ),
        ]

    def __str__(self) -> str:
        days = ", ".join(DAYS[day] for day in sorted(self.weekdays) if 0 <= day < 7)
        return f"{self.scope or 'every other service'}: {days} {self.opens:%H:%M}-{self.closes:%H:%M} {self.zone}"

    @property
    def week(self) -> Week:
        opens, closes = (time.hour * 60 + time.minute for time in (self.opens, self.closes))
        return Week(
            self.zone, frozenset(self.weekdays), opens, closes or working_hours.DAY_MINUTES, frozenset(self.holidays)
        )

    def clean(self) -> None:
        if self.zone not in zoneinfo.available_timezones():
            raise ValidationError({"zone": "This is no time zone. Name one such as Europe/Berlin."})
        if not self.weekdays or not set(self.weekdays) <= set(range(7)):
            raise ValidationError({"weekdays": "Name days from 0 (Monday) to 6 (Sunday), such as 0,1,2,3,4."})
