"""What programs reported of a commit."""

from __future__ import annotations

from django.db import models
from django.utils.timezone import now

from monitoring.models.service import Service


class QualityReport(models.Model):
    """One report of one commit: by CI, or by RuneRogue's own measuring."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="quality_reports", db_index=False)
    commit = models.CharField(max_length=40)
    branch = models.CharField(max_length=200, blank=True)
    on_main = models.BooleanField(default=True, help_text="Of the service's own branch; others are only compared.")
    kind = models.CharField(max_length=20)
    at = models.DateTimeField(default=now)
    source = models.CharField(max_length=100, help_text="Who reported it.")
    signals = models.JSONField(default=dict)
    content = models.JSONField(default=dict)
    sha256 = models.CharField(max_length=64)

    class Meta:
        get_latest_by = "at"
        constraints = [
            models.UniqueConstraint(
                fields=["service", "commit", "kind", "sha256"], name="one_quality_report_per_commit_and_content"
            ),
        ]
        indexes = [models.Index(fields=["service", "kind", "-at"], name="quality_report_newest")]

    def __str__(self) -> str:
        return f"{self.kind} of {self.service} {self.commit[:12]}"
