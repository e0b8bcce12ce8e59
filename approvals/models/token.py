"""API tokens, and the answers that were given to repeated writes."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.utils.timezone import now

KEEP_ANSWERS = dt.timedelta(hours=24)


class Scope(StrEnum):
    """What a token may be used for; never more than its person may do."""

    READ = "read"
    OPERATE = "operate"
    APPROVE = "approve"
    REPORT = "report"

    @property
    def meaning(self) -> str:
        return MEANINGS[self]


MEANINGS = {
    Scope.READ: "see everything that the pages show",
    Scope.OPERATE: "start and stop, acknowledge, set baselines",
    Scope.APPROVE: "sign and reject as the person it belongs to",
    Scope.REPORT: "send reports, measurements and feedback",
}


class ApiTokenQuerySet(models.QuerySet["ApiToken"]):
    def usable(self, at: dt.datetime) -> ApiTokenQuerySet:
        """Neither revoked nor expired, and of somebody who is still here."""
        return self.filter(revoked_at=None, expires_at__gt=at, person__is_active=True)


class ApiToken(models.Model):
    """A key for the API. The token itself is shown once and never stored: `digest` is its SHA-256.

    It holds 256 random bits, so a plain hash is enough; slow hashes are for what people can remember.
    """

    name = models.CharField(max_length=100, help_text="What uses it, such as “CI of realm”.")
    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="api_tokens")
    prefix = models.CharField("begins with", max_length=11, unique=True, editable=False)
    digest = models.CharField(max_length=64, editable=False)
    scopes = ArrayField(models.CharField(max_length=10, choices=[(s.value, s.value) for s in Scope]))
    created_at = models.DateTimeField(default=now, editable=False)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    # A day, not a time: enough to find the ones that nobody uses, too little to follow somebody's work.
    last_used_on = models.DateField(null=True, blank=True, editable=False)

    objects = ApiTokenQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        verbose_name = "API token"
        constraints = [
            models.CheckConstraint(condition=Q(scopes__len__gt=0), name="api_token_has_a_scope"),
            models.CheckConstraint(condition=Q(expires_at__gt=models.F("created_at")), name="api_token_expires_later"),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    def allows(self, scope: Scope) -> bool:
        return scope.value in self.scopes


class StoredAnswerQuerySet(models.QuerySet["StoredAnswer"]):
    def forget_old(self, at: dt.datetime) -> int:
        """Delete what is older than a day; the keys may be used again. Returns how many went."""
        return self.filter(created_at__lt=at - KEEP_ANSWERS).delete()[0]


class StoredAnswer(models.Model):
    """What a write with an Idempotency-Key was answered, so that the same request again changes nothing."""

    caller = models.CharField(max_length=80, help_text="Whose key it is: a token, a person, or a service's visitors.")
    key = models.CharField(max_length=200)
    request_digest = models.CharField(max_length=64, help_text="SHA-256 of method, address and body.")
    status = models.PositiveSmallIntegerField(null=True)
    body = models.JSONField(null=True)
    created_at = models.DateTimeField(default=now, db_index=True)

    objects = StoredAnswerQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["caller", "key"], name="one_answer_per_caller_and_key")]

    def __str__(self) -> str:
        return f"{self.caller} {self.key}"
