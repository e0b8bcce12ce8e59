"""What is recorded of a window of time: the questions that packets of facts and the scorecard share."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from urllib.parse import urlencode

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.urls import reverse

from analysis.models import Finding
from approvals.models import ApprovalRequest, AuditEntry, Signature
from improvements.governance.facts import Window
from improvements.models import Improvement, Rollout, State, StepRun
from improvements.outcome import Verdict
from monitoring.models import Alert

MOST_IN_A_LINK = 200  # ids; addresses have an end
ENDED = (State.ROLLED_BACK, State.FAILED, State.DISMISSED, State.REJECTED, State.EXPIRED)


def within(field: str, window: Window) -> Q:
    """`field` lies in the window."""
    return Q(**{f"{field}__gte": window.since, f"{field}__lt": window.until})


def rows_within(page: str, field: str, window: Window, **more: object) -> str:
    """The address of a list in the admin ("monitoring_alert") with the rows whose `field` lies in the window."""
    query = {f"{field}__gte": window.since.isoformat(), f"{field}__lt": window.until.isoformat(), **more}
    return f"{reverse(f'admin:{page}_changelist')}?{urlencode(query)}"


def rows_of(page: str, ids: Iterable[int]) -> str:
    """The address of a list with the rows of these ids, the first of them if they are many; empty without any."""
    wanted = sorted(ids)[:MOST_IN_A_LINK]
    if not wanted:
        return ""
    return f"{reverse(f'admin:{page}_changelist')}?{urlencode({'id__in': ','.join(map(str, wanted))})}"


def fired(window: Window) -> QuerySet[Alert]:
    return Alert.objects.filter(within("fired_at", window))


def seconds_to_fire(alerts: QuerySet[Alert]) -> list[float]:
    """From the first round in which the rule held to the alert, of those that were not false alarms."""
    times = alerts.exclude(was_false=True).values_list("opened_at", "fired_at")
    return [(fired_at - opened_at).total_seconds() for opened_at, fired_at in times if fired_at]


def judged(alerts: QuerySet[Alert]) -> tuple[int, int, int]:
    """(marked as false alarms, judged at all, all)."""
    told = list(alerts.values_list("was_false", flat=True))
    return told.count(True), len(told) - told.count(None), len(told)


def opened_findings(window: Window) -> QuerySet[Finding]:
    return Finding.objects.filter(within("first_seen_at", window))


def ended_suggestions(window: Window) -> QuerySet[Improvement]:
    """Improvements that came to their end in the window, in whatever way."""
    settled = within("settled_at", window)
    return Improvement.objects.filter(settled | Q(state__in=ENDED) & within("state_since", window))


def settled(window: Window) -> QuerySet[Improvement]:
    """Improvements that were promoted and have lasted."""
    return Improvement.objects.filter(within("settled_at", window))


def finished_steps(window: Window, *states: State) -> QuerySet[StepRun]:
    """Steps that ended in the window with a verdict; crashed ones were taken again and have none."""
    return StepRun.objects.filter(within("ended_at", window), state__in=states).exclude(verdict="")


def first_rollbacks(window: Window) -> QuerySet[StepRun]:
    """The first attempt of each rollback that ended in the window: what the machine managed without help."""
    earlier = StepRun.objects.filter(
        improvement=OuterRef("improvement"), state=State.ROLLING_BACK, pk__lt=OuterRef("pk")
    ).exclude(verdict="")
    return finished_steps(window, State.ROLLING_BACK).exclude(Exists(earlier))


def ended_rollouts(window: Window) -> QuerySet[Rollout]:
    return Rollout.objects.filter(within("ended_at", window))


def caused_incident(rollouts: QuerySet[Rollout]) -> QuerySet[Rollout]:
    """Those with a critical alert on their service while they were live, and those taken back after the promotion."""
    alerts = Alert.objects.filter(
        service=OuterRef("service"),
        severity="critical",
        fired_at__gte=OuterRef("started_at"),
        fired_at__lt=OuterRef("ended_at"),
    ).exclude(was_false=True)
    promoted = StepRun.objects.filter(improvement=OuterRef("improvement"), state=State.VALIDATING, verdict=Verdict.PASS)
    return rollouts.filter(Exists(alerts) | Q(state=Rollout.State.ROLLED_BACK) & Exists(promoted))


def untouched(improvements: Iterable[Improvement]) -> list[int]:
    """The ids of those about which no person did anything: see DEFINITIONS["autonomous"]."""
    alone = {one.pk for one in improvements if one.proposed_by_id is None}
    acted = AuditEntry.objects.filter(
        subject_kind=Improvement._meta.label_lower, subject_id__in=[str(pk) for pk in alone], actor_id__isnull=False
    )
    signed = Signature.objects.filter(request__subject_kind="improvement", request__subject_id__in=alone)
    touched = {int(pk) for pk in acted.values_list("subject_id", flat=True)}
    return sorted(alone - touched - set(signed.values_list("request__subject_id", flat=True)))


def decided_requests(window: Window) -> QuerySet[ApprovalRequest]:
    return ApprovalRequest.objects.filter(within("decided_at", window))


def began_at() -> dt.datetime | None:
    """When this installation began: the time of the oldest entry of its log. None before there is any."""
    return AuditEntry.objects.order_by("sequence").values_list("at", flat=True).first()
