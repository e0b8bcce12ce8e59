"""What happened to Realm's improvement, as one JSON object: the demonstration's result, from recorded facts alone."""

from __future__ import annotations

from typing import Any

from approvals import audit
from improvements.models import Improvement, Rollout, State
from monitoring.models import Service

STAGES = frozenset(State) - {State.PROMOTED, State.STUCK}


def improvement_of(service: Service) -> Improvement | None:
    """The first improvement of a fresh service: the one that the story is about."""
    return Improvement.objects.filter(service=service).select_related("finding", "service").order_by("pk").first()


def result(service: Service, load: dict[str, Any], before_rollout: dict[str, Any]) -> dict[str, Any]:
    """Seconds per stage, the endpoint before and after, the load, the audit log. `load` and `before_rollout` are
    reports of the load generator: at the end, and just before the rollout ({} when there was none)."""
    improvement = improvement_of(service)
    return {
        "load": load_facts(load, before_rollout),
        "audit": audit_facts(),
        "serving": {release.short: release.share for release in service.releases.filter(share__gt=0)},
        **(improvement_facts(improvement) if improvement else {"improvement": None}),
    }


def load_facts(load: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Counts of requests; `posts_run_twice` is None when the generator could not ask."""
    return {
        "requests": load.get("requests", 0),
        "failed": load.get("failed", 0),
        "requests_during_rollout": load.get("requests", 0) - before["requests"] if before else 0,
        "failed_during_rollout": load.get("failed", 0) - before["failed"] if before else 0,
        "how_they_failed": load.get("failures", {}),
        "posts_run_twice": load.get("duplicates"),
    }


def audit_facts() -> dict[str, Any]:
    checked = audit.verify()
    return {"entries": checked.count, "verified": checked.fault is None, "fault": str(checked.fault or "") or None}


def improvement_facts(improvement: Improvement) -> dict[str, Any]:
    """How far it came, how long each stage took (seconds), what it changed, and how fast traffic was back."""
    stages: dict[str, float] = {}
    traffic_back_seconds = None
    for run in improvement.runs.prefetch_related("evidence"):
        if run.seconds is not None and run.state in STAGES:
            stages[run.state] = round(stages.get(run.state, 0) + run.seconds, 2)
        for item in run.evidence.all():
            traffic_back_seconds = item.content.get("traffic_back_seconds", traffic_back_seconds)
    rollout = Rollout.objects.filter(improvement=improvement).select_related("current", "candidate").first()
    last = improvement.runs.exclude(verdict="").last()
    finding = improvement.finding
    since_finding = (improvement.state_since - finding.first_seen_at).total_seconds() if finding else None
    return {
        "improvement": improvement.pk,
        "finding": {"title": finding.title, "location": finding.location} if finding else None,
        "because": last.reason if last else "",
        "seconds_per_stage": stages,
        "seconds_since_finding": None if since_finding is None else round(since_finding, 1),
        "before": improvement.measured.get("before"),
        "after": improvement.measured.get("after"),
        "change": improvement.measured.get("change"),
        "traffic_back_seconds": traffic_back_seconds,
        "old_release": rollout.current.short if rollout else None,
    }
