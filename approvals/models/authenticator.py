"""What a person proves with that it is them: an authenticator app, and codes on paper for the day it is lost."""

from __future__ import annotations

import datetime as dt
import hashlib
import re

from django.conf import settings
from django.db import models
from django.db.models import Q
from django_otp.models import Device, ThrottlingMixin
from django_otp.oath import TOTP

from approvals import concealing

DIGITS = re.compile(r"[0-9]{6}")
STEP_SECONDS = 30
TOLERANCE_STEPS = 1  # a phone's clock may be half a minute off, and typing takes time
# django-otp waits 1, 2, 4 … seconds after wrong codes. Without an end, whoever has a person's password could shut the
# second factor for years; with 17 minutes between guesses, finding one takes about forty years' worth of luck.
MOST_FAILURES = 11


class AuthenticatorQuerySet(models.QuerySet["Authenticator"]):
    def of(self, person_id: int) -> AuthenticatorQuerySet:
        """The one that counts, if there is one."""
        return self.filter(user_id=person_id, confirmed=True)

    def begun(self, person_id: int) -> AuthenticatorQuerySet:
        """The one that no code was verified of yet."""
        return self.filter(user_id=person_id, confirmed=False)


class Authenticator(ThrottlingMixin, Device, models.Model):  # type: ignore[misc]  # django-otp has no types
    """A device of django-otp: time-based one-time passwords (RFC 6238, SHA-1, 6 digits, 30 s) from one secret.

    Not django-otp's own TOTPDevice, which keeps the secret in plain text: who reads a copy of the database could sign.
    """

    concealed_key = models.TextField(editable=False)
    last_step = models.BigIntegerField(default=-1, editable=False, help_text="The newest time step a code was used of.")
    created_at = models.DateTimeField(editable=False)

    objects = AuthenticatorQuerySet.as_manager()

    class Meta:
        default_permissions = ()  # nobody looks at these rows; pages say of them what people need
        constraints = [
            models.UniqueConstraint(fields=["user", "confirmed"], name="one_authenticator_per_person_and_state")
        ]

    def __str__(self) -> str:
        return f"authenticator of {self.user}"

    @property
    def key(self) -> bytes:
        """The secret. Raises `concealing.Unreadable`."""
        return bytes.fromhex(concealing.reveal(self.concealed_key))

    def get_throttle_factor(self) -> int:
        return 1

    def accepts(self, code: str, at: dt.datetime) -> bool:
        """Whether `code` is one of this device at that time and newer than all used before; then it is used.

        The caller holds the row's lock and has asked `verify_is_allowed`.
        """
        if not DIGITS.fullmatch(code):
            return False
        totp = TOTP(self.key, step=STEP_SECONDS)
        totp.time = at.timestamp()
        if not totp.verify(int(code), tolerance=TOLERANCE_STEPS, min_t=self.last_step + 1):
            return False
        self.last_step = totp.t()
        self.throttle_reset(commit=False)
        self.save(update_fields=["last_step", "throttling_failure_count", "throttling_failure_timestamp"])
        return True

    def refuse(self) -> None:
        """Count a wrong code: the next one must wait longer."""
        self.throttle_increment(commit=False)
        self.throttling_failure_count = min(self.throttling_failure_count, MOST_FAILURES)  # type: ignore[has-type]
        self.save(update_fields=["throttling_failure_count", "throttling_failure_timestamp"])


class RecoveryCodeQuerySet(models.QuerySet["RecoveryCode"]):
    def left(self, person_id: int) -> RecoveryCodeQuerySet:
        return self.filter(person_id=person_id, used_at=None)


class RecoveryCode(models.Model):
    """One of the codes on paper. Only its SHA-256 is kept: it holds 80 random bits, so a plain hash is enough."""

    person = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="recovery_codes")
    digest = models.CharField(max_length=64)
    used_at = models.DateTimeField(null=True)

    objects = RecoveryCodeQuerySet.as_manager()

    class Meta:
        default_permissions = ()  # nobody looks at these rows; pages say of them what people need
        constraints = [
            models.UniqueConstraint(fields=["person", "digest"], name="one_recovery_code_of_a_kind"),
            models.CheckConstraint(condition=Q(digest__regex="^[0-9a-f]{64}$"), name="recovery_codes_are_hashed"),
        ]

    def __str__(self) -> str:
        return f"recovery code of {self.person}"

    @staticmethod
    def digest_of(code: str) -> str:
        """Of the letters and digits alone: people type dashes, spaces and capitals as they like."""
        return hashlib.sha256(re.sub(r"[^a-z0-9]", "", code.lower()).encode()).hexdigest()
