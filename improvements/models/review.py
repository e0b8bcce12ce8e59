"""Reviews with their facts, drills, and what rollouts did to users' requests. `improvements.governance` is the only
writer."""

from __future__ import annotations

import datetime as dt

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.urls import reverse

from approvals.policy import Role
from improvements.cadence import CHAIN, Kind, levels, responsible
from improvements.models.releases import Rollout
from monitoring.models import Service


class ReviewQuerySet(models.QuerySet["Review"]):
    def open(self) -> ReviewQuerySet:
        return self.filter(signed_at=None)

    def overdue(self, today: dt.date) -> ReviewQuerySet:
        """Not signed off by the end of the day on which they were due."""
        return self.open().filter(due_on__lt=today)

    def to_escalate(self, today: dt.date) -> ReviewQuerySet:
        """Those whose last asked had their time, and of whom there is somebody to tell yet."""
        has_next = Q(*(Q(role=role, level__lt=levels(role)) for role in CHAIN), _connector=Q.OR)
        return self.open().filter(has_next, escalates_after__lt=today)


class Review(models.Model):
    """One look back by people: the facts of a period as they were when it ended, and who signed it off with what."""

    kind = models.CharField(max_length=12, choices=[(kind.value, kind.value) for kind in Kind])
    period = models.CharField(max_length=80, help_text="Such as 2026-W47; for an emergency, which one.")
    title = models.CharField(max_length=200)
    scope = models.CharField(
        "service",
        max_length=100,
        blank=True,
        default="",
        help_text="Whose people review it. Empty: everybody's.",
    )
    url = models.CharField("page", max_length=500, blank=True, help_text="What it is about, where that has a page.")
    since = models.DateTimeField()
    until = models.DateTimeField()
    facts = models.JSONField(default=list)
    facts_sha256 = models.CharField(max_length=64)
    role = models.CharField("given to", max_length=20, choices=[(role.value, role.title) for role in Role])
    level = models.PositiveSmallIntegerField("escalated", default=0, help_text="How often it was escalated.")
    barred = models.ManyToManyField(
        settings.AUTH_USER_MODEL, blank=True, related_name="+", help_text="Whose deed it is about: they don't sign it."
    )
    made_at = models.DateTimeField()
    due_on = models.DateField(help_text="By the end of this day, where the installation is.")
    escalates_after = models.DateField(help_text="Who was asked last has until the end of this day.")
    signed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    signed_as = models.CharField(max_length=20, blank=True, choices=[(role.value, role.title) for role in Role])
    signed_at = models.DateTimeField(null=True, blank=True)
    notes = models.TextField(blank=True)

    objects = ReviewQuerySet.as_manager()

    class Meta:
        ordering = ["-made_at", "-id"]
        constraints = [
            models.UniqueConstraint(fields=["kind", "period"], name="one_review_per_kind_and_period"),
            models.CheckConstraint(
                condition=Q(signed_at=None, signed_by=None, signed_as="")
                | Q(signed_at__isnull=False, signed_by__isnull=False) & ~Q(signed_as="") & ~Q(notes=""),
                name="signed_reviews_say_who_and_what",
            ),
            models.CheckConstraint(condition=Q(until__gte=F("since")), name="review_ends_after_it_begins"),
        ]
        indexes = [models.Index(fields=["due_on"], condition=Q(signed_at=None), name="review_open")]

    def __str__(self) -> str:
        return self.title

    def get_absolute_url(self) -> str:
        return reverse("admin:improvements_review_change", args=[self.pk])

    @property
    def responsible(self) -> tuple[Role, ...]:
        """The roles that may sign it off now; the last one was asked last."""
        return responsible(Role(self.role), self.level)

    def is_overdue(self, today: dt.date) -> bool:
        return self.signed_at is None and self.due_on < today


class RolloutTraffic(models.Model):
    """The requests to a service while one of its rollouts was live: counted when it ended, because the rows of the
    proxy are kept for days only and the scorecard looks back for months."""

    rollout = models.OneToOneField(Rollout, on_delete=models.CASCADE, primary_key=True, related_name="traffic")
    requests = models.BigIntegerField()
    failed = models.BigIntegerField(help_text="Answered with 5xx, or not at all.")
    is_complete = models.BooleanField(help_text="No row of this time was deleted before it was counted.")
    counted_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(requests__gte=0, failed__gte=0, failed__lte=F("requests")), name="failed_requests_are_some"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.failed} of {self.requests} requests failed"


class RollbackDrill(models.Model):
    """A rollback that people tried out on purpose, as one of them tells it with their name. It is added and never
    changed: who was wrong tells it once more."""

    service = models.ForeignKey(Service, on_delete=models.PROTECT, related_name="drills")
    drilled_at = models.DateTimeField("when", help_text="When the rollback was asked for, in UTC.")
    tried = models.TextField("what was tried", help_text="What was live, what was taken back, and by which means.")
    seconds = models.PositiveIntegerField(
        "seconds until traffic was back",
        null=True,
        blank=True,
        help_text="From asking for it until the old release had all traffic. Empty when it never had.",
    )
    worked = models.BooleanField("it worked", help_text="Traffic came back, and the service answered as before.")
    notes = models.TextField("what follows from it")
    recorded_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    recorded_as = models.CharField(max_length=20, choices=[(role.value, role.title) for role in Role])
    recorded_at = models.DateTimeField()

    class Meta:
        ordering = ["-recorded_at", "-pk"]
        constraints = [
            models.CheckConstraint(condition=Q(recorded_at__gte=F("drilled_at")), name="drill_is_told_afterwards"),
            models.CheckConstraint(condition=~Q(tried="") & ~Q(notes=""), name="drill_says_what_and_what_follows"),
            models.CheckConstraint(
                condition=Q(worked=False) | Q(seconds__isnull=False),
                name="drill_that_worked_took_a_time",
                violation_error_message="Say how many seconds it took until traffic was back.",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.service}, {self.drilled_at:%Y-%m-%d}"

    def get_absolute_url(self) -> str:
        return reverse("admin:improvements_rollbackdrill_change", args=[self.pk])
