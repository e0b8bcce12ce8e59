"""What is known of a person beside the account."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class PersonSettings(models.Model):
    """A person without a row has the defaults: a human being whose times are UTC."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, primary_key=True, related_name="person_settings"
    )
    is_service_account = models.BooleanField(
        default=False, help_text="A program's account: it may read and operate through the API and never signs."
    )
    time_zone = models.CharField(max_length=64, default="UTC", help_text="IANA name, such as Europe/Berlin.")
    wants_digest = models.BooleanField("gets the weekly digest", default=True)

    class Meta:
        verbose_name = verbose_name_plural = "settings of a person"

    def __str__(self) -> str:
        return f"settings of {self.user}"
