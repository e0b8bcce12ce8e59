"""Rows of what is watched and what was measured."""

from monitoring.models.alerts import Alert, AlertQuerySet, AlertRule, AlertState, Comparison, Severity
from monitoring.models.coverage import RouteMap
from monitoring.models.feedback import Feedback
from monitoring.models.samples import Round, Sample, Series, Snapshot, labels_key
from monitoring.models.scores import HealthScore, Status
from monitoring.models.service import Service, ServiceQuerySet, Target, TargetQuerySet, clone_folder, is_url

__all__ = [
    "Alert",
    "AlertQuerySet",
    "AlertRule",
    "AlertState",
    "Comparison",
    "Feedback",
    "HealthScore",
    "Round",
    "RouteMap",
    "Sample",
    "Series",
    "Service",
    "ServiceQuerySet",
    "Severity",
    "Snapshot",
    "Status",
    "Target",
    "TargetQuerySet",
    "clone_folder",
    "is_url",
    "labels_key",
]
