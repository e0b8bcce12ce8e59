"""A week to tell of, for the tests of the digest: two services, one of each thing that a section can say."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction

from approvals import audit, policy, requests
from approvals.models import ApprovalRequest, AuditEntry, PersonSettings
from approvals.policy import Role, Tier
from approvals.subjects import SubjectRef
from improvements.digest.weeks import Week
from improvements.models import Improvement, State
from monitoring.models import HealthScore, Service
from tests.improvements.factories import FindingFactory, ImprovementFactory, ServiceFactory
from tests.monitoring.notices import firing, resolve
from tests.people import person

WEEK = Week(2026, 47)  # 2026-11-16 to 2026-11-22
MONDAY = dt.datetime(2026, 11, 23, 8, 5, tzinfo=dt.UTC)  # when the digest of that week is sent in UTC
WEDNESDAY = dt.datetime(2026, 11, 18, 12, tzinfo=dt.UTC)
NASTY = 'The <b>player</b> list & "its" guilds: игроки 玩家 ' + "x" * 60
MEASURED = {
    "endpoint": "player-list",
    "before": {"p95_ms": 84.75, "queries_per_request": 51.0},
    "after": {"p95_ms": 12.0, "queries_per_request": 2.0},
    "change": {"p95_ms": -0.8584, "queries_per_request": -0.9608},
    "interval": {"p95_ms": [-0.9, -0.8]},
}


def reader(name: str, *roles: Role, zone: str = "", **fields: Any) -> User:
    """Somebody who gets digests, since long before the week."""
    fields = {"email": f"{name}@example.org", "date_joined": WEDNESDAY - dt.timedelta(days=90)} | fields
    found = person(name, *roles, **fields)
    if zone:
        PersonSettings.objects.update_or_create(user=found, defaults={"time_zone": zone})
    return found


def scored(service: Service, at: dt.datetime, *scores: float | None) -> None:
    """A score a minute from `at` on."""
    HealthScore.objects.bulk_create(
        HealthScore(service=service, at=at + dt.timedelta(minutes=number), score=score, status="healthy")
        for number, score in enumerate(scores)
    )


def ended(title: str, action: str, at: dt.datetime, state: State, **fields: Any) -> Improvement:
    """An improvement that ended so, with the entry of the audit log that says when."""
    improvement = ImprovementFactory(title=title, finding__first_seen_at=at - dt.timedelta(days=60), **fields)
    Improvement.objects.filter(pk=improvement.pk).update(state=state, state_since=at)
    entered(action, improvement, at)
    return improvement


def entered(action: str, improvement: Improvement, at: dt.datetime) -> AuditEntry:
    """An entry of the audit log as it would have been written at `at`."""
    from unittest import mock

    with transaction.atomic(), mock.patch.object(audit, "now", return_value=at):
        return audit.record(action, improvement)


def ask(number: int = 1, tier: Tier = Tier.HIGH, at: dt.datetime = MONDAY, **times: dt.timedelta) -> ApprovalRequest:
    """A request that waits since half a day and expires in half a day."""
    found = requests.open_request(
        SubjectRef("thing", number, f"Prefetch the guilds {number}", "/things/1", "realm"),
        requirement=policy.required(tier),
        fingerprint="f" * 64,
        proposed_by=None,
        facts={},
        expires_at=at + times.get("left", dt.timedelta(hours=12)),
    )
    ApprovalRequest.objects.filter(pk=found.pk).update(created_at=at - dt.timedelta(hours=12))
    return found


def busy_week() -> Service:
    """Everything at once. Returns the service that most of it is about."""
    realm, shop = (
        ServiceFactory(name=name, created_at=WEDNESDAY - dt.timedelta(days=90)) for name in ("realm", "shop")
    )
    scored(realm, WEDNESDAY - dt.timedelta(days=7), 80.0, 81.0)
    scored(realm, WEDNESDAY, 92.0, 93.97)
    scored(realm, MONDAY - dt.timedelta(minutes=1), 93.0)
    scored(shop, WEDNESDAY, 70.0, None)
    ask(1)
    ask(2, left=dt.timedelta(days=2))
    ended(NASTY, "improvement.promoted", WEDNESDAY, State.PROMOTED, finding__service=realm, measured=MEASURED)
    ended("A new index", "improvement.rolled_back", WEDNESDAY, State.ROLLED_BACK, finding__service=realm)
    ended("A dead end", "improvement.failed", WEDNESDAY, State.FAILED, finding__service=realm)
    ended("A jammed one", "improvement.stuck", WEDNESDAY, State.STUCK, finding__service=realm)
    ended("Long ago", "improvement.promoted", WEDNESDAY - dt.timedelta(days=7), State.PROMOTED, finding__service=realm)
    firing(realm, at=WEDNESDAY)
    over = firing(realm, "latency-unusual", severity="warning", at=WEDNESDAY, labels={})
    resolve(over, WEDNESDAY + dt.timedelta(minutes=12))
    FindingFactory(service=realm, first_seen_at=WEDNESDAY, title="N+1 queries on item-list")
    FindingFactory(
        service=realm, first_seen_at=WEDNESDAY - dt.timedelta(days=30), closed_at=WEDNESDAY, closed_because="gone"
    )
    for number in range(7):
        ImprovementFactory(
            finding__service=realm, finding__first_seen_at=WEDNESDAY - dt.timedelta(days=30), rank=number,
            title=f"Suggestion {number}", benefit=100.0 * number,
        )  # fmt: skip
    going = ImprovementFactory(
        finding__service=realm, finding__first_seen_at=WEDNESDAY - dt.timedelta(days=30), title="A cache"
    )
    Improvement.objects.filter(pk=going.pk).update(state=State.ROLLING_OUT, tier="medium", risk=0.31, started_at=MONDAY)
    return realm
