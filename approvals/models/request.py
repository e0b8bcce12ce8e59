"""Approval requests and the signatures under them. `approvals.requests` is the only writer."""

from __future__ import annotations

import datetime as dt

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q

from approvals.policy import PENDING, Category, Channel, Decision, RequestState, Requirement, Role, Tier


class ApprovalRequestQuerySet(models.QuerySet["ApprovalRequest"]):
    def open(self) -> ApprovalRequestQuerySet:
        return self.filter(state=RequestState.OPEN)

    def pending(self) -> ApprovalRequestQuerySet:
        """Those that somebody has to decide."""
        return self.filter(state__in=sorted(PENDING))

    def overdue(self, now: dt.datetime) -> ApprovalRequestQuerySet:
        return self.pending().filter(expires_at__lte=now)

    def about(self, kind: str, subject_id: int) -> ApprovalRequestQuerySet:
        return self.filter(subject_kind=kind, subject_id=subject_id)


class ApprovalRequest(models.Model):
    """One question to people: may exactly this, with exactly this evidence, under exactly this policy, go ahead?"""

    subject_kind = models.CharField(max_length=80)
    subject_id = models.BigIntegerField()
    title = models.CharField(max_length=200)
    url = models.CharField("page", max_length=500, blank=True)
    tier = models.CharField(max_length=10, choices=[(tier.value, tier.value) for tier in Tier])
    scope = models.CharField("service", max_length=100, blank=True, help_text="Empty: the whole installation.")
    categories = ArrayField(
        models.CharField(max_length=20, choices=[(one.value, one.value) for one in Category]), default=list, blank=True
    )
    requirement = models.JSONField()
    fingerprint = models.CharField(max_length=64)
    policy_version = models.CharField(max_length=40)
    # None: RuneRogue proposed it by itself. People who took part are never deleted, only made inactive.
    proposed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    edited_by = models.ManyToManyField(settings.AUTH_USER_MODEL, blank=True, related_name="+")
    facts = models.JSONField(default=dict)
    # What was true around it when it was asked: `approvals.circumstances`.
    circumstances = models.JSONField(default=dict)
    state = models.CharField(
        max_length=20, choices=[(state.value, state.value) for state in RequestState], default=RequestState.OPEN.value
    )
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    decided_at = models.DateTimeField(null=True, blank=True)
    because = models.TextField("why it is in this state", blank=True)
    started_at = models.DateTimeField(
        null=True, blank=True, help_text="When what it allows began: from then on no signature is taken back."
    )
    reminded_at = models.DateTimeField(null=True, blank=True)
    escalated_at = models.DateTimeField(null=True, blank=True)

    objects = ApprovalRequestQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["subject_kind", "subject_id"],
                condition=Q(state__in=sorted(PENDING)),
                name="one_open_request_per_subject",
                violation_error_message="This subject has an open request already.",
            ),
            models.CheckConstraint(
                condition=Q(state__in=sorted(PENDING), decided_at=None)
                | ~Q(state__in=sorted(PENDING)) & Q(decided_at__isnull=False),
                name="decided_requests_have_a_time",
            ),
            models.CheckConstraint(
                condition=Q(started_at=None) | Q(state=RequestState.APPROVED.value),
                name="only_the_approved_starts",
            ),
        ]
        indexes = [
            models.Index(fields=["subject_kind", "subject_id", "-created_at"], name="request_subject"),
            models.Index(fields=["expires_at"], condition=Q(state__in=sorted(PENDING)), name="request_overdue"),
        ]

    def __str__(self) -> str:
        return f"{self.title} ({self.tier})"

    @property
    def needs(self) -> Requirement:
        return Requirement.from_json(self.requirement)


class SignatureQuerySet(models.QuerySet["Signature"]):
    def standing(self) -> SignatureQuerySet:
        """Those that count: given and not voided."""
        return self.filter(voided_at=None)


class Signature(models.Model):
    """One person's decision on one request, and the fingerprint they saw when they made it."""

    request = models.ForeignKey(ApprovalRequest, on_delete=models.PROTECT, related_name="signatures")
    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    role = models.CharField("as", max_length=20, choices=[(role.value, role.title) for role in Role])
    decision = models.CharField(max_length=20, choices=[(one.value, one.value) for one in Decision])
    reason = models.TextField(blank=True)
    fingerprint = models.CharField(max_length=64)
    channel = models.CharField(
        "through", max_length=10, choices=[(one.value, one.value) for one in Channel], default=Channel.PAGE.value
    )
    second_factor = models.BooleanField("with a fresh second factor", default=False)
    # Whose right was used when it was not the signer's own: a deputy signs as such, and both are named.
    on_behalf_of = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    at = models.DateTimeField()
    voided_at = models.DateTimeField(null=True, blank=True)
    voided_because = models.TextField(blank=True)

    objects = SignatureQuerySet.as_manager()

    class Meta:
        ordering = ["at", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["request", "person"],
                condition=Q(voided_at=None),
                name="one_standing_signature_per_person",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.person} {self.decision}"

    @property
    def did(self) -> str:
        """In words, after the person's name."""
        return {"approve": "approved", "reject": "rejected", "ask-for-changes": "asked for changes"}[self.decision]


class Comment(models.Model):
    """What somebody said about a request without deciding anything."""

    request = models.ForeignKey(ApprovalRequest, on_delete=models.PROTECT, related_name="comments")
    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    text = models.TextField()
    channel = models.CharField(
        "through", max_length=10, choices=[(one.value, one.value) for one in Channel], default=Channel.PAGE.value
    )
    at = models.DateTimeField()

    class Meta:
        ordering = ["at", "id"]

    def __str__(self) -> str:
        return f"{self.person}: {self.text[:60]}"
