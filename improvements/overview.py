"""What needs the signed-in person, and how things stand: composed once, printed by the admin's front page."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass

from django.contrib.auth.models import User
from django.db.models import Case, Count, IntegerField, OuterRef, Q, Subquery, Value, When, Window

from analysis.models import Finding
from approvals import forecasting, requests
from approvals.models import ApprovalRequest
from improvements.models import Improvement, State
from monitoring.models import Alert, HealthScore, Service, Severity, Status

# Who lacks one of these sees no overview at all: half a picture would pass for the whole.
NEEDED = (
    "approvals.view_approvalrequest",
    "improvements.view_improvement",
    "monitoring.view_alert",
    "monitoring.view_service",
)
MOST_ROWS = 10
CSS = {Status.HEALTHY: "pass", Status.DEGRADED: "inconclusive", Status.UNHEALTHY: "fail", Status.UNKNOWN: "waiting"}


@dataclass(frozen=True)
class ServiceLine:
    """A service and its latest health score, with that of each component."""

    service: Service
    health: str
    css: str
    trend: str
    parts: str
    at: dt.datetime | None


@dataclass(frozen=True)
class Overview:
    """`to_sign`, `firing` and `under_way` hold the first few, the most urgent first; the totals say how many."""

    to_sign: list[ApprovalRequest]
    to_sign_total: int
    firing: list[Alert]
    firing_total: int
    under_way: list[Improvement]
    under_way_total: int
    suggestions: int
    open_findings: int
    services: list[ServiceLine]
    gaps: list[str]  # what the policy asks for and nobody could sign; for superusers, who can change that


def overview_for(person: User, at: dt.datetime) -> Overview | None:
    """The overview as `person` may see it now; None without the rights to look."""
    if not person.has_perms(NEEDED):
        return None
    awaiting = requests.awaiting(person, at)
    firing = Alert.objects.firing().filter(service__archived_at=None).select_related("service")
    suggested = Q(state=State.SUGGESTED, started_at=None)
    unfinished = Improvement.objects.unfinished()
    counts = unfinished.aggregate(under_way=Count("pk", filter=~suggested), suggestions=Count("pk", filter=suggested))
    # The total comes along with the first rows: this page asks for much, and each question costs.
    urgent = firing.annotate(total=Window(Count("pk"))).order_by(_first("severity", Severity.CRITICAL), "fired_at")
    burning = list(urgent[:MOST_ROWS])
    return Overview(
        to_sign=[one.request for one in awaiting[:MOST_ROWS]],
        to_sign_total=len(awaiting),
        firing=burning,
        firing_total=burning[0].total if burning else 0,  # type: ignore[attr-defined]  # the annotation
        under_way=list(
            unfinished.exclude(suggested)
            .select_related("service")
            .defer("diff")
            .order_by(_first("state", State.STUCK), "state_since")[:MOST_ROWS]
        ),
        under_way_total=counts["under_way"],
        suggestions=counts["suggestions"],
        open_findings=Finding.objects.open().filter(service__archived_at=None).count(),
        services=_services(),
        gaps=forecasting.gaps(at) if person.is_superuser else [],
    )


def _first(field: str, value: str) -> Case:
    """Rows with this value before all others."""
    return Case(When(**{field: value}, then=Value(0)), default=Value(1), output_field=IntegerField())


def _services() -> list[ServiceLine]:
    """The watched services. One look into the index for the newest score of each, however long the history."""
    newest = HealthScore.objects.filter(service=OuterRef("pk")).order_by("-at").values("pk")[:1]
    watched = Service.objects.active()
    scores = HealthScore.objects.in_bulk([pk for pk in watched.values_list(Subquery(newest), flat=True) if pk])
    newest_of = {score.service_id: score for score in scores.values()}
    return [_line(one, newest_of.get(one.pk)) for one in watched.defer("environment", "manifest")]


def _line(service: Service, newest: HealthScore | None) -> ServiceLine:
    if newest is None:
        return ServiceLine(service, "not measured yet", CSS[Status.UNKNOWN], "", "", None)
    health = newest.status if newest.score is None else f"{newest.status} ({math.floor(newest.score)})"
    parts = (
        f"{name} {'unknown' if part['score'] is None else format(part['score'], '.0f')}"
        for name, part in newest.parts.items()
    )
    return ServiceLine(service, health, CSS[Status(newest.status)], newest.trend, ", ".join(parts), newest.at)
