"""Signs of life of RuneRogue's own programs."""

from __future__ import annotations

from django.db import models


class Heartbeat(models.Model):
    """The last sign of life of one kind of program, such as "beat" or "collector". Of several, the newest counts."""

    program = models.CharField(max_length=60, unique=True)
    at = models.DateTimeField()

    class Meta:
        ordering = ["program"]

    def __str__(self) -> str:
        return f"{self.program}: {self.at:%Y-%m-%d %H:%M:%S}"
