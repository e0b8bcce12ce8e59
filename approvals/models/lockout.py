"""Failed sign-ins: how many of each kind, and what the audit log is still to be told of them.

No name that was typed and no address is kept, only keyed hashes of them; rows live as long as they lock, or a minute.
"""

from __future__ import annotations

from enum import StrEnum

from django.conf import settings
from django.db import models


class Counted(StrEnum):
    """What failures are counted by."""

    PAIR = "pair"  # a name from an address
    NAME = "name"  # a name from anywhere
    ADDRESS = "address"  # any name from an address
    BROWSER = "browser"  # a name in a browser in which that person has signed in before


class SignInFailures(models.Model):
    """One counter. `key` is a keyed hash of what is counted by."""

    key = models.CharField(max_length=64, primary_key=True)
    kind = models.CharField(max_length=10, choices=[(kind.value, kind.value) for kind in Counted])
    person = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE, related_name="+")
    failures = models.PositiveIntegerField()
    last_at = models.DateTimeField(db_index=True)

    class Meta:
        default_permissions = ()  # nobody looks at these rows; pages say of them what people need

    def __str__(self) -> str:
        return f"{self.failures} by {self.kind}"


class UntoldFailure(models.Model):
    """Failures of one minute that the audit log is not told of yet. An empty name: one that nobody here has."""

    minute = models.DateTimeField()
    action = models.CharField(max_length=80)
    name = models.CharField(max_length=150, blank=True)
    origin = models.CharField(max_length=16, blank=True, help_text="A keyed hash of the address.")
    count = models.PositiveIntegerField()

    class Meta:
        default_permissions = ()  # nobody looks at these rows; pages say of them what people need
        constraints = [
            models.UniqueConstraint(
                fields=["minute", "action", "name", "origin"], name="one_count_per_minute_and_origin"
            )
        ]

    def __str__(self) -> str:
        return f"{self.count} {self.action}"
