"""What the requests of a service spend their time on, folded from spans. No span is ever a row."""

from __future__ import annotations

from django.db import models
from django.utils.timezone import now

from monitoring.models.service import Service


class Profile(models.Model):
    """The sums of one endpoint in one window: a minute while it is fresh, an hour later."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="profiles", db_index=False)
    at = models.DateTimeField(help_text="When the window began.")
    seconds = models.PositiveSmallIntegerField(help_text="The length of the window.")
    endpoint = models.CharField(max_length=200)
    method = models.CharField(max_length=20)
    body = models.JSONField()  # monitoring.otlp.folding.as_json

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["service", "at", "seconds", "endpoint", "method"], name="one_profile_per_window_and_endpoint"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.method} {self.endpoint} of {self.service_id}, {self.at:%Y-%m-%d %H:%M}"


class Statement(models.Model):
    """A statement without its literals. Profiles name it by its digest."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="statements", db_index=False)
    digest = models.CharField(max_length=16)
    text = models.TextField()
    seen_at = models.DateTimeField(default=now)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["service", "digest"], name="one_statement_per_digest")]

    def __str__(self) -> str:
        return self.text[:100]


class SpanIntake(models.Model):
    """What became of the spans of a service: totals since the first one, and the state of the newest fold."""

    service = models.OneToOneField(Service, on_delete=models.CASCADE, primary_key=True, related_name="span_intake")
    folded_at = models.DateTimeField(help_text="The newest round that found spans.")
    # A batch that was interrupted after this row was written is not counted again.
    batch = models.BigIntegerField(default=0, editable=False)
    spans = models.BigIntegerField(default=0, help_text="Counted.")
    requests = models.BigIntegerField(default=0)
    without_request = models.BigIntegerField(
        default=0, help_text="Calls whose request never came; counted by dependency alone."
    )
    late_requests = models.BigIntegerField(
        default=0, help_text="Requests that came when their calls had been given up; not counted."
    )
    dropped = models.BigIntegerField(default=0, help_text="Spans for which there was no room to wait.")
    waiting = models.IntegerField(default=0, help_text="Spans that wait for the rest of their request now.")

    class Meta:
        verbose_name = "profile"
        verbose_name_plural = "profiles"

    def __str__(self) -> str:
        return f"{self.spans:,} spans"
