"""Who is told of alerts, what keeps alerts quiet, and the outbox of what is told."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.utils.timezone import now

from approvals import concealing, recurrence
from approvals.recurrence import Window
from monitoring.models.alerts import Alert, Severity
from monitoring.models.service import Service
from monitoring.routing import Kind, Outbox

LONGEST_SILENCE = timedelta(days=30)
MOST_MINUTES = 7 * 24 * 60


class Contact(models.Model):
    """A way to reach somebody: an address in a medium. The secret signs webhooks and is shown nowhere."""

    name = models.CharField(max_length=60, unique=True, help_text="Who is reached, such as “On-call phone”.")
    medium = models.CharField(max_length=40, default="email")
    address = models.CharField(max_length=500, help_text="An email address, or the URL of a webhook.")
    concealed_secret = models.CharField(max_length=1200, blank=True, default="", editable=False)
    enabled = models.BooleanField(default=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @property
    def secret(self) -> str:
        """In plain text. Raises `concealing.Unreadable`."""
        return concealing.reveal(self.concealed_secret)

    @secret.setter
    def secret(self, text: str) -> None:
        self.concealed_secret = concealing.conceal(text)


class EscalationStep(models.Model):
    """When a contact is told of a service's alerts. A service with steps of its own has none of the general ones."""

    service = models.ForeignKey(
        Service,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="escalation_steps",
        help_text="Empty: for every service that has no steps of its own.",
    )
    contact = models.ForeignKey(Contact, on_delete=models.CASCADE, related_name="steps")
    after_minutes = models.PositiveIntegerField(
        "after minutes",
        default=0,
        validators=[MaxValueValidator(MOST_MINUTES)],
        help_text="Told after so long without an acknowledgement; 0: at once.",
    )
    repeat_minutes = models.PositiveIntegerField(
        default=240,
        validators=[MaxValueValidator(MOST_MINUTES)],
        help_text="Told again while nobody acknowledges; 0: once.",
    )
    critical_only = models.BooleanField(default=False, help_text="Is not told of warnings.")

    class Meta:
        ordering = ["service", "after_minutes", "contact"]
        constraints = [
            models.UniqueConstraint(
                fields=["service", "contact"], nulls_distinct=False, name="one_escalation_step_per_contact",
                violation_error_message="This contact has a step there already.",
            ),
        ]  # fmt: skip

    def __str__(self) -> str:
        when = f"after {self.after_minutes} min" if self.after_minutes else "at once"
        return f"{self.contact} {when}"


class SilenceQuerySet(models.QuerySet["Silence"]):
    def open(self, at: datetime) -> SilenceQuerySet:
        return self.filter(starts_at__lte=at, ends_at__gt=at)


class Silence(models.Model):
    """Alerts that nobody is told of for a while, because a person said so and why."""

    service = models.ForeignKey(
        Service, on_delete=models.CASCADE, null=True, blank=True, help_text="Empty: every service."
    )
    rule = models.CharField("rule name", max_length=60, blank=True, default="", help_text="Empty: every rule.")
    labels = models.JSONField(
        default=dict, blank=True, help_text='Labels that an alert must have, such as {"endpoint": "/players"}.'
    )
    starts_at = models.DateTimeField(default=now)
    ends_at = models.DateTimeField(help_text="At most 30 days after its start.")
    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, editable=False)
    reason = models.CharField(max_length=500)
    created_at = models.DateTimeField(default=now, editable=False)

    objects = SilenceQuerySet.as_manager()

    class Meta:
        ordering = ["-ends_at"]
        constraints = [
            models.CheckConstraint(condition=Q(ends_at__gte=F("starts_at")), name="silence_ends_after_it_starts"),
            models.CheckConstraint(
                condition=Q(ends_at__lte=F("starts_at") + LONGEST_SILENCE), name="silence_lasts_at_most_30_days"
            ),
            models.CheckConstraint(condition=~Q(reason=""), name="silence_has_a_reason"),
        ]

    def __str__(self) -> str:
        return f"{self.rule or 'every rule'} on {self.service or 'every service'}"

    def clean(self) -> None:
        if not self.starts_at or not self.ends_at:
            return
        if self.ends_at <= self.starts_at:
            raise ValidationError({"ends_at": "It must end after it starts."})
        if self.ends_at - self.starts_at > LONGEST_SILENCE:
            raise ValidationError({"ends_at": f"A silence lasts at most {LONGEST_SILENCE.days} days."})
        if not isinstance(self.labels, dict) or not all(isinstance(value, str) for value in self.labels.values()):
            raise ValidationError({"labels": 'Labels are names and texts, such as {"endpoint": "/players"}.'})

    def state(self, at: datetime) -> str:
        return "planned" if self.starts_at > at else "open" if self.ends_at > at else "over"


class MaintenanceWindow(models.Model):
    """Planned times in which alerts are not told, once or recurring, on the wall clock of a time zone."""

    name = models.CharField(max_length=60, unique=True)
    service = models.ForeignKey(
        Service, on_delete=models.CASCADE, null=True, blank=True, help_text="Empty: every service."
    )
    reason = models.CharField(max_length=500)
    timezone = models.CharField("time zone", max_length=60, default="UTC")
    first_day = models.DateField()
    begins = models.TimeField(help_text="On the wall clock of its time zone, summer and winter.")
    duration_minutes = models.PositiveIntegerField(
        "duration in minutes",
        validators=[MinValueValidator(1), MaxValueValidator(int(recurrence.LONGEST.total_seconds() // 60))],
    )
    recurrence = models.CharField(
        max_length=200,
        blank=True,
        default="",
        help_text="Empty: once. Otherwise a rule of RFC 5545, such as FREQ=WEEKLY;BYDAY=SU or FREQ=MONTHLY;BYDAY=1SA.",
    )
    enabled = models.BooleanField(default=True)

    class Meta:
        ordering = ["name"]

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

    def clean(self) -> None:
        if self.first_day is None or self.begins is None or self.duration_minutes is None:
            return
        try:
            recurrence.zone_of(self.timezone)
        except recurrence.BadWindow as error:
            raise ValidationError({"timezone": str(error)}) from error
        try:
            recurrence.check(self.window)
        except recurrence.BadWindow as error:
            raise ValidationError({"recurrence" if self.recurrence else "duration_minutes": str(error)}) from error


class PageQuerySet(models.QuerySet["Page"]):
    def open(self) -> PageQuerySet:
        return self.filter(ended_at=None)


class Page(models.Model):
    """Something that is no rule's alert and that people hear of until somebody takes it, or it is over."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="pages")
    key = models.CharField(max_length=100)
    severity = models.CharField(max_length=10, choices=[(s.value, s.capitalize()) for s in Severity])
    title = models.CharField(max_length=200)
    body = models.TextField()
    url = models.CharField(max_length=200, blank=True, default="", help_text="A path of RuneRogue's own.")
    opened_at = models.DateTimeField(default=now)
    taken_at = models.DateTimeField(null=True, blank=True)
    taken_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    ended_at = models.DateTimeField(null=True, blank=True)
    because = models.CharField(max_length=500, blank=True, default="", help_text="Why it was taken, or is over.")

    objects = PageQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["service", "key"], name="one_page_per_key"),
            models.CheckConstraint(
                condition=Q(taken_at=None, taken_by=None) | Q(taken_at__isnull=False, taken_by__isnull=False),
                name="page_is_taken_by_somebody",
            ),
        ]
        indexes = [models.Index(fields=["opened_at"], condition=Q(ended_at=None), name="page_open")]

    def __str__(self) -> str:
        return self.title


class NoticeQuerySet(models.QuerySet["Notice"]):
    def waiting(self) -> NoticeQuerySet:
        return self.filter(state=Outbox.WAITING)

    def dead(self) -> NoticeQuerySet:
        return self.filter(state=Outbox.DEAD)


class Notice(models.Model):
    """One message to one contact: a row of the outbox. What it says is settled when it is decided on.

    `key` is the idempotency key.
    """

    key = models.CharField(max_length=120, unique=True)
    kind = models.CharField(max_length=10, choices=[(k.value, k.capitalize()) for k in Kind])
    contact = models.ForeignKey(Contact, on_delete=models.PROTECT, related_name="notices")
    service = models.ForeignKey(Service, on_delete=models.CASCADE, null=True, related_name="notices")
    severity = models.CharField(max_length=10, choices=[(s.value, s.capitalize()) for s in Severity])
    title = models.CharField(max_length=200)
    message = models.JSONField()
    page = models.ForeignKey(Page, on_delete=models.CASCADE, null=True, blank=True, related_name="notices")
    state = models.CharField(
        max_length=10, choices=[(s.value, s.capitalize()) for s in Outbox], default=Outbox.WAITING.value
    )
    attempts = models.PositiveSmallIntegerField(default=0)
    next_at = models.DateTimeField(default=now, help_text="Not before this time.")
    last_error = models.CharField(max_length=500, blank=True, default="")
    answer = models.CharField(max_length=200, blank=True, default="", help_text="What the medium said.")
    created_at = models.DateTimeField(default=now)
    sent_at = models.DateTimeField(null=True, blank=True)
    leased_until = models.DateTimeField(null=True, blank=True)
    lease = models.UUIDField(null=True, blank=True)
    alerts = models.ManyToManyField(Alert, through="Mention", related_name="notices")

    objects = NoticeQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-pk"]
        indexes = [
            models.Index(fields=["next_at"], condition=Q(state="waiting"), name="notice_outbox"),
            models.Index(fields=["created_at"], condition=Q(state="dead"), name="notice_dead"),
            models.Index(fields=["-created_at"], name="notice_newest"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(state="sent", sent_at__isnull=False) | (~Q(state="sent") & Q(sent_at=None)),
                name="notice_was_sent_at_a_time",
            ),
        ]

    def __str__(self) -> str:
        return self.title


class Mention(models.Model):
    """An alert that a notice tells of. The constraint is the promise that nobody is told the same thing twice."""

    notice = models.ForeignKey(Notice, on_delete=models.CASCADE, related_name="mentions")
    alert = models.ForeignKey(Alert, on_delete=models.CASCADE, related_name="mentions")
    contact = models.ForeignKey(Contact, on_delete=models.PROTECT, related_name="+")
    kind = models.CharField(max_length=10)
    number = models.PositiveIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["alert", "contact", "kind", "number"], name="one_mention_per_occasion"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.number} of {self.alert_id} to {self.contact_id}"
