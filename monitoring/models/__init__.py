"""Rows of what is watched and what was measured."""

from monitoring.models.alerts import Alert, AlertQuerySet, AlertRule, AlertState, Comparison, Severity
from monitoring.models.baselines import Baseline, BaselineQuerySet, BaselineSeries
from monitoring.models.coverage import RouteMap
from monitoring.models.external import Access, ExternalService, ExternalServiceQuerySet
from monitoring.models.feedback import Feedback
from monitoring.models.heartbeats import Heartbeat
from monitoring.models.history import Backfill, BackfillQuerySet
from monitoring.models.notices import (
    Contact,
    EscalationStep,
    MaintenanceWindow,
    Mention,
    Notice,
    NoticeQuerySet,
    Page,
    PageQuerySet,
    Silence,
    SilenceQuerySet,
)
from monitoring.models.profiles import Profile, SpanIntake, Statement
from monitoring.models.pushed import PushedProcess
from monitoring.models.quality import QualityReport
from monitoring.models.samples import (
    Rollup,
    Round,
    Sample,
    SealedAxis,
    SealedBlock,
    SealedDay,
    Series,
    Snapshot,
    labels_key,
)
from monitoring.models.scores import HealthScore, Status
from monitoring.models.service import Service, ServiceQuerySet, Target, TargetQuerySet, clone_folder, is_url

__all__ = [
    "Access",
    "Alert",
    "AlertQuerySet",
    "AlertRule",
    "AlertState",
    "Backfill",
    "BackfillQuerySet",
    "Baseline",
    "BaselineQuerySet",
    "BaselineSeries",
    "Comparison",
    "Contact",
    "EscalationStep",
    "ExternalService",
    "ExternalServiceQuerySet",
    "Feedback",
    "HealthScore",
    "Heartbeat",
    "MaintenanceWindow",
    "Mention",
    "Notice",
    "NoticeQuerySet",
    "Page",
    "PageQuerySet",
    "Profile",
    "PushedProcess",
    "QualityReport",
    "Rollup",
    "Round",
    "RouteMap",
    "Sample",
    "SealedAxis",
    "SealedBlock",
    "SealedDay",
    "Series",
    "Service",
    "ServiceQuerySet",
    "Severity",
    "Silence",
    "SilenceQuerySet",
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
