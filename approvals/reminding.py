"""What happens when nobody decides: reminder, escalation, expiry, in the working hours of the service.

Nothing is approved by silence. Whoever is told can act at that time, and hears of each occasion once.
"""

from __future__ import annotations

import datetime as dt
import logging

from django.contrib.auth.models import User
from django.db import transaction
from django.urls import reverse

from approvals import audit, policy, signers, telling, terms
from approvals.circumstances import Circumstances
from approvals.law import Action, identity, move
from approvals.models.hours import WorkingHours
from approvals.models.request import ApprovalRequest, Signature
from approvals.policy import Decision, RequestState, Role, Tier
from approvals.rulebook import Row

log = logging.getLogger(__name__)


def timers(scope: str, tier: Tier) -> Row:
    """What the policy in force says of the service `scope`: after how many working hours who is told what.

    The escalation paths as shipped: medium → lead developers, high → architecture team, critical → CTO.
    """
    return terms.in_force().document.of(scope).tiers[tier]


def expiry(scope: str, tier: Tier, at: dt.datetime) -> dt.datetime:
    """When a request asked at `at` expires: after the policy's working hours for its tier."""
    return WorkingHours.objects.of(scope).after(at, dt.timedelta(hours=timers(scope, tier).expire_after_hours))


def run(at: dt.datetime) -> int:
    """Everything that is due. Returns how many requests expired. One that somebody decides on is left for next time."""
    expired = expire_due(at)
    for pk in list(ApprovalRequest.objects.pending().values_list("pk", flat=True)):
        with transaction.atomic():
            rows = ApprovalRequest.objects.pending().filter(pk=pk, expires_at__gt=at)
            row = rows.select_for_update(no_key=True, skip_locked=True).first()
            if row:
                remind(row, at)
    return expired


def expire_due(at: dt.datetime) -> int:
    """Expire the pending requests whose time is up; how many that were."""
    expired = 0
    for pk in list(ApprovalRequest.objects.overdue(at).values_list("pk", flat=True)):
        with transaction.atomic():
            rows = ApprovalRequest.objects.overdue(at).filter(pk=pk)
            row = rows.select_for_update(no_key=True, skip_locked=True).first()
            if row:
                because = f"Nobody decided by {row.expires_at:%Y-%m-%d %H:%M} UTC."
                move(row, RequestState.EXPIRED, Action.EXPIRED, because=because)
                expired += 1
    return expired


def remind(row: ApprovalRequest, at: dt.datetime) -> None:
    """Remind of a locked request, or escalate it, when so many working hours have passed. Each happens once."""
    when = timers(row.scope, row.needs.tier)
    waited = WorkingHours.objects.of(row.scope).worked(row.created_at, at) / dt.timedelta(hours=1)
    if row.reminded_at is None and waited >= when.remind_after_hours:
        told = tell(row, who_can_act(row, at), "reminder", f"Still waiting for {awaited(row)}: {row.title}")
        _note(row, "reminded_at", at, Action.REMINDED, f"{told} people were reminded after {waited:.1f} working hours.")
    if row.escalated_at is None and waited >= when.escalate_after_hours:
        who = who_can_act(row, at, having=frozenset({when.escalate_to}))
        told = tell(row, who, "escalated", f"Nobody has decided: {row.title}")
        because = f"Escalated to {when.escalate_to.title} after {waited:.1f} working hours; {told} people were told."
        if not who:
            log.warning("Request %s was escalated, and nobody who can act is %s", row.pk, when.escalate_to.title)
        _note(row, "escalated_at", at, Action.ESCALATED, because)


def _note(row: ApprovalRequest, field: str, at: dt.datetime, action: Action, because: str) -> None:
    setattr(row, field, at)
    row.save(update_fields=[field])
    audit.record(action, row, because=because, data=identity(row))


def who_can_act(row: ApprovalRequest, at: dt.datetime, *, having: frozenset[Role] = frozenset(Role)) -> list[User]:
    """Those who could sign now. While changes are asked for, those who asked, and who could end it with a no."""
    if row.state != RequestState.CHANGES_ASKED:
        return signers.able(row, at, having=having)
    return signers.able(row, at, decision=Decision.REJECT, having=having)


def awaited(row: ApprovalRequest) -> str:
    if row.state == RequestState.CHANGES_ASKED:
        return "the changes that were asked for"
    return policy.in_words(row.needs.signatures)


def tell_asked(row: ApprovalRequest, at: dt.datetime, *, again: str = "") -> int:
    """Tell who can sign that a request waits for them. `again` names the occasion when it was asked before."""
    subject = f"Asked again: {row.title}" if again else f"Your decision is asked for: {row.title}"
    return tell(row, who_can_act(row, at), f"asked-{again}", subject)


def tell_signers_void(row: ApprovalRequest, people: list[User], because: str) -> int:
    """Tell those who had signed that their signatures do not count any more, and why."""
    lines = [because, "Your signature does not count any more. If it is asked for again, you are told."]
    return tell(row, people, "void", f"Your signature is void: {row.title}", lines=lines)


def tell_of_changes(row: ApprovalRequest, ask: Signature) -> int:
    """Tell who can change it what is asked for: who proposed or edited it, and the lead developers."""
    editors = [user for user in (row.proposed_by, *row.edited_by.all()) if user is not None]
    leads = signers.with_roles(row, frozenset({Role.LEAD}))
    people = {user.pk: user for user in (*editors, *leads) if user.pk != ask.person_id}
    lines = [f"{ask.person} asks for changes:", ask.reason]
    return tell(row, list(people.values()), f"changes-{ask.pk}", f"Changes are asked for: {row.title}", lines=lines)


def tell(
    row: ApprovalRequest, people: list[User], occasion: str, subject: str, *, lines: list[str] | None = None
) -> int:
    """One letter about a request to each. The link opens its page, where people read and decide."""
    where = f" in {row.scope}" if row.scope else ""
    about = [
        f"{str(row.facts.get('what') or row.title)[:500]}{where} ({row.tier} risk).",
        row.needs.reason,
        *Circumstances.from_json(row.circumstances).in_words(),
        f"It expires at {row.expires_at:%Y-%m-%d %H:%M} UTC. Nothing is approved by silence.",
    ]
    return telling.tell(
        people,
        about=f"request {row.pk}",
        subject=subject,
        lines=about if lines is None else lines,
        url=reverse("admin:approvals_approvalrequest_change", args=[row.pk]),
        key=f"request-{row.pk}-{occasion}",
    )


# --- Working hours -------------------------------------------------------------------------------------------------


def set_hours(row: WorkingHours, *, actor: User) -> None:
    """Keep working hours that were made or changed. Deadlines of requests that wait stay as they were told."""
    with transaction.atomic():
        was = WorkingHours.objects.select_for_update().filter(pk=row.pk).first()
        row.save()
        audit.record(
            "workinghours.set",
            row,
            actor=actor,
            was=str(was) if was else None,
            became=str(row),
            data={"holidays": row.holidays, "holidays_before": was.holidays if was else []},
        )


def drop_hours(row: WorkingHours, *, actor: User) -> None:
    """Forget the working hours of a service; the general ones hold from now on."""
    with transaction.atomic():
        # The row before the head of the log, as everybody else locks them.
        found = WorkingHours.objects.select_for_update().filter(pk=row.pk).first()
        if found:
            audit.record("workinghours.dropped", found, actor=actor, was=str(found))
            found.delete()
