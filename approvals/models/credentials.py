"""When somebody else last reset what a person proves with that it is them. `approvals.settling` is the only writer."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class CredentialsReset(models.Model):
    """The newest one alone: the audit log has them all."""

    person = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, primary_key=True, related_name="credentials_reset"
    )
    what = models.CharField(max_length=40)
    by = models.CharField(max_length=150)  # a copy of the name: it outlives the account
    at = models.DateTimeField()

    class Meta:
        default_permissions = ()  # nobody looks at these rows; refusals say of them what people need

    def __str__(self) -> str:
        return f"{self.what} of {self.person}, by {self.by}"
