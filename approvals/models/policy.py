"""Versions of the policy. `approvals.policies` is the only writer; the database refuses to change one afterwards."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q


class PolicyVersionQuerySet(models.QuerySet["PolicyVersion"]):
    def in_force(self) -> PolicyVersion | None:
        """The one that was put in force last; None while it is the policy as shipped."""
        return self.exclude(in_force_since=None).order_by("-in_force_since", "-number").first()

    def proposed(self) -> PolicyVersionQuerySet:
        """Those that never came into force."""
        return self.filter(in_force_since=None)


class PolicyVersion(models.Model):
    """One policy that somebody proposed, whole. Only `in_force_since` is ever written later, once."""

    number = models.PositiveIntegerField(primary_key=True)
    document = models.JSONField()
    digest = models.CharField("SHA-256 of the document", max_length=64)
    # What it was proposed in place of: put in force later, it would undo what came between, which nobody signed.
    instead_of = models.PositiveIntegerField("in place of version", help_text="0: the policy as shipped.")
    proposed_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    proposed_at = models.DateTimeField()
    because = models.TextField("reason")
    in_force_since = models.DateTimeField(null=True, blank=True)

    objects = PolicyVersionQuerySet.as_manager()

    class Meta:
        ordering = ["-number"]
        verbose_name = "policy"
        verbose_name_plural = "policies"
        constraints = [
            models.CheckConstraint(condition=Q(number__gt=0), name="policy_numbers_begin_at_one"),
            models.CheckConstraint(condition=~Q(because=""), name="policy_has_a_reason"),
        ]

    def __str__(self) -> str:
        return f"Policy {self.number}"
