"""Hosts outside that RuneRogue may reach, and who said so."""

from __future__ import annotations

from enum import StrEnum

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from monitoring.addresses import Approval


class Access(StrEnum):
    """How far an external service is."""

    REQUESTED = "requested"
    APPROVED = "approved"
    REVOKED = "revoked"


class ExternalServiceQuerySet(models.QuerySet["ExternalService"]):
    def approved(self) -> ExternalServiceQuerySet:
        """Those that may be reached now."""
        return self.filter(approved_at__isnull=False, revoked_at=None)

    def waiting(self) -> ExternalServiceQuerySet:
        """Those that nobody has decided about."""
        return self.filter(approved_at=None, revoked_at=None)


class ExternalService(models.Model):
    """A host that RuneRogue may reach once a person approved it. Written by `monitoring.hosts` alone."""

    host = models.CharField(max_length=253, help_text="A name or an address, without http:// and without a path.")
    port = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(65535)],
        help_text="Empty for any port.",
    )
    purpose = models.CharField(max_length=200, help_text="What it is asked for, such as “metrics of shop”.")
    allows_private = models.BooleanField(
        default=False,
        verbose_name="private addresses",
        help_text="Its name may lead to a private or loopback address, such as 10.0.0.7.",
    )
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    requested_at = models.DateTimeField(default=now)
    request_reason = models.CharField(max_length=500, blank=True, verbose_name="why it is needed")
    approved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    approved_at = models.DateTimeField(null=True, blank=True)
    approve_reason = models.CharField(max_length=500, blank=True)
    revoked_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoke_reason = models.CharField(max_length=500, blank=True)

    objects = ExternalServiceQuerySet.as_manager()

    class Meta:
        ordering = ["host", "port"]
        constraints = [
            models.UniqueConstraint(
                fields=["host", "port", "allows_private"], nulls_distinct=False, name="one_row_per_external_address"
            ),
            models.CheckConstraint(
                condition=Q(approved_at=None) | ~Q(approve_reason=""), name="approved_host_has_a_reason"
            ),
            models.CheckConstraint(condition=Q(port=None) | Q(port__range=(1, 65535)), name="external_port_is_a_port"),
        ]

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def access(self) -> Access:
        if self.revoked_at is not None:
            return Access.REVOKED
        return Access.APPROVED if self.approved_at is not None else Access.REQUESTED

    @property
    def approval(self) -> Approval:
        """What it permits once it is approved."""
        return Approval(self.host, self.port, self.allows_private)
