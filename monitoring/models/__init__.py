"""Rows of what is watched and what was measured."""

from monitoring.models.alerts import Alert, AlertQuerySet, AlertRule, AlertState, Comparison, Severity
from monitoring.models.profiles import Profile, SpanIntake, Statement
from monitoring.models.samples import Round, Sample, Series, Snapshot, labels_key
from monitoring.models.scores import HealthScore, Status
from monitoring.models.service import Service, ServiceQuerySet, Target, TargetQuerySet, clone_folder, is_url

__all__ = [
    "Alert",
    "AlertQuerySet",
    "AlertRule",
    "AlertState",
    "Comparison",
    "HealthScore",
    "Profile",
    "Round",
    "Sample",
    "Series",
    "Service",
    "ServiceQuerySet",
    "Severity",
    "Snapshot",
    "SpanIntake",
    "Statement",
    "Status",
    "Target",
    "TargetQuerySet",
    "clone_folder",
    "is_url",
    "labels_key",
]
