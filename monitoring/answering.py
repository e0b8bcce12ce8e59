"""What people do about alerts: acknowledge, own, silence, judge. Each is written with its reason, and audited."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from django.contrib.auth.models import User
from django.db import transaction

from approvals import audit
from monitoring.models import Alert, AlertState, Service, Silence


class Refused(ValueError):
    """It can't be done; the message says why, and what would do."""


def acknowledge(alert: Alert, *, actor: User, comment: str, at: datetime) -> None:
    """`actor` takes the alert, owns it unless somebody does, and nobody else is told of it. Raises Refused."""
    comment = _reason(comment, "comment")
    with transaction.atomic():
        alert.refresh_from_db(from_queryset=Alert.objects.select_for_update(of=("self",)))
        if alert.state != AlertState.FIRING:
            raise Refused(f"{alert.name} does not fire: there is nothing to acknowledge.")
        if alert.acknowledged_at is not None:
            raise Refused(f"{alert.acknowledged_by or 'Somebody'} acknowledged {alert.name} already.")
        alert.acknowledged_at, alert.acknowledged_by, alert.acknowledgement = at, actor, comment
        alert.owner = alert.owner or actor
        alert.save(update_fields=["acknowledged_at", "acknowledged_by", "acknowledgement", "owner"])
        audit.record("alert.acknowledged", alert, actor=actor, because=comment, data={"owner": str(alert.owner)})


def unacknowledge(alert: Alert, *, actor: User, comment: str, at: datetime) -> None:
    """Nobody has it after all: escalation begins anew from `at`. Raises Refused."""
    comment = _reason(comment, "comment")
    with transaction.atomic():
        alert.refresh_from_db(from_queryset=Alert.objects.select_for_update(of=("self",)))
        if alert.state != AlertState.FIRING or alert.acknowledged_at is None:
            raise Refused(f"{alert.name} is not acknowledged.")
        alert.acknowledged_at, alert.acknowledged_by, alert.acknowledgement, alert.owner = None, None, "", None
        if alert.audible_since is not None:
            alert.audible_since = at
        alert.save(update_fields=["acknowledged_at", "acknowledged_by", "acknowledgement", "owner", "audible_since"])
        audit.record("alert.given-back", alert, actor=actor, because=comment)


def assign(alert: Alert, owner: User, *, actor: User, comment: str) -> None:
    """Hand the alert to `owner`. Raises Refused."""
    comment = _reason(comment, "comment")
    if not owner.is_active:
        raise Refused(f"{owner} can't sign in any more.")
    with transaction.atomic():
        alert.refresh_from_db(from_queryset=Alert.objects.select_for_update(of=("self",)))
        if alert.state == AlertState.RESOLVED:
            raise Refused(f"{alert.name} is over.")
        was, alert.owner = alert.owner, owner
        alert.save(update_fields=["owner"])
        audit.record("alert.assigned", alert, actor=actor, because=comment, was=str(was), became=str(owner))


def judge(alert: Alert, *, was_false: bool, actor: User, comment: str) -> None:
    """Say whether it was a false alarm: nothing was wrong that a person had to look at. It may be said anew.

    Raises Refused.
    """
    comment = _reason(comment, "comment")
    with transaction.atomic():
        alert.refresh_from_db(from_queryset=Alert.objects.select_for_update(of=("self",)))
        if alert.fired_at is None:
            raise Refused(f"{alert.name} never fired: nobody was alarmed.")
        was, alert.was_false = alert.was_false, was_false
        if was == was_false:
            raise Refused(f"{alert.name} is judged so already.")
        alert.save(update_fields=["was_false"])
        audit.record(
            "alert.judged",
            alert,
            actor=actor,
            because=comment,
            was={"was_false": was},
            became={"was_false": was_false},
        )


def silence(
    *,
    actor: User,
    reason: str,
    starts_at: datetime,
    ends_at: datetime,
    service: Service | None = None,
    rule: str = "",
    labels: Mapping[str, str] | None = None,
) -> Silence:
    """Keep the alerts that match quiet until `ends_at`. Raises ValidationError, Refused."""
    row = Silence(
        service=service,
        rule=rule,
        labels=dict(labels or {}),
        starts_at=starts_at,
        ends_at=ends_at,
        author=actor,
        reason=_reason(reason, "reason"),
    )
    row.clean()
    return begin(row, actor=actor)


def begin(row: Silence, *, actor: User) -> Silence:
    """Write a checked silence down, with who wants it."""
    with transaction.atomic():
        row.author = actor
        row.save()
        audit.record(
            "silence.added",
            row,
            actor=actor,
            because=row.reason,
            became={"labels": row.labels, "starts_at": row.starts_at, "ends_at": row.ends_at},
        )
    return row


def silence_alert(alert: Alert, *, actor: User, reason: str, hours: float, at: datetime) -> Silence:
    """Keep this one series of this rule quiet for some hours."""
    return silence(
        actor=actor,
        reason=reason,
        starts_at=at,
        ends_at=at + timedelta(hours=hours),
        service=alert.service,
        rule=alert.name,
        labels=alert.labels,
    )


def end_silence(row: Silence, *, actor: User, comment: str, at: datetime) -> None:
    """End it now; one that has not begun never does. Raises Refused."""
    comment = _reason(comment, "comment")
    with transaction.atomic():
        row.refresh_from_db(from_queryset=Silence.objects.select_for_update(of=("self",)))
        if row.ends_at <= at:
            raise Refused("This silence is over.")
        was, row.ends_at = row.ends_at, max(at, row.starts_at)
        row.save(update_fields=["ends_at"])
        audit.record("silence.ended", row, actor=actor, because=comment, was=was, became=row.ends_at)


def _reason(text: str, what: str) -> str:
    text = " ".join(text.split())[:500]
    if not text:
        raise Refused(f"Write a {what}: whoever looks next reads it.")
    return text
