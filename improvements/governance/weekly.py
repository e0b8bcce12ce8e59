"""The facts of a week, for the lead developers: how the services were, and what became of suggestions."""

from __future__ import annotations

import datetime as dt
import statistics
from collections.abc import Iterable, Sequence

from django.db.models import Avg, Count, Min
from django.urls import reverse

from approvals.models import ApprovalRequest, Signature
from approvals.policy import RequestState
from improvements.governance import recorded
from improvements.governance.facts import Fact, Section, Window, unknown
from improvements.models import Improvement, State
from improvements.outcome import Verdict
from monitoring.models import Alert, AlertState, Feedback, HealthScore, Service
from monitoring.storing import KEEP_SCORES_DAYS

MOST_NAMED = 5
SECONDS, HOURS, POINTS = "s", "h", "of 100"


def compose(window: Window) -> list[Section]:
    """Health, alerts, findings, suggestions, decisions."""
    return [health(window), alerts(window), findings(window), suggestions(window), decisions(window)]


def health(window: Window) -> Section:
    """The scores of each watched service, and what people said."""
    rows = HealthScore.objects.filter(recorded.within("at", window)).order_by().values("service")
    told = {row["service"]: row for row in rows.annotate(mean=Avg("score"), low=Min("score"), known=Count("score"))}
    forgotten = window.at - window.since > dt.timedelta(days=KEEP_SCORES_DAYS)
    why = f"scores are kept for {KEEP_SCORES_DAYS} days" if forgotten else "nothing was scored in this time"
    facts = []
    for service in Service.objects.active().only("pk", "name").order_by("name"):
        link = recorded.rows_within("monitoring_healthscore", "at", window, service__id__exact=service.pk)
        row = told.get(service.pk)
        if row is None or not row["known"]:
            facts.append(unknown(f"Health of {service.name}", why, unit=POINTS, link=link))
            continue
        note = f"Lowest {row['low']:.1f}, of {row['known']} rounds."
        note += f" Only of the last part of the period: {why}." if forgotten else ""
        facts.append(Fact(f"Health of {service.name}, mean", round(row["mean"], 1), POINTS, link, note))
    if not facts:
        facts.append(unknown("Health", "no service is watched"))
    said = Feedback.objects.filter(recorded.within("at", window))
    facts.append(Fact("Remarks of users", said.count(), "", recorded.rows_within("monitoring_feedback", "at", window)))
    return Section("Health", tuple(facts))


def alerts(window: Window) -> Section:
    fired = recorded.fired(window)
    link = recorded.rows_within("monitoring_alert", "fired_at", window)
    critical = fired.filter(severity="critical").count()
    false, judged, total = recorded.judged(fired)
    to_acknowledge = [
        (acknowledged_at - fired_at).total_seconds()
        for fired_at, acknowledged_at in fired.exclude(acknowledged_at=None).values_list("fired_at", "acknowledged_at")
        if fired_at and acknowledged_at
    ]
    still = Alert.objects.firing().filter(fired_at__lt=window.until)
    return Section(
        "Alerts",
        (
            Fact("Alerts that fired", total, "", link, f"{critical} of them critical."),
            median("Time from the first bad round to the alert", recorded.seconds_to_fire(fired), "alert fired", link),
            median("Time to acknowledgement", to_acknowledge, "alert was acknowledged", link),
            Fact("False alarms", false, "", link, f"{judged} of {total} were judged.")
            if judged
            else unknown("False alarms", "nobody judged an alert of this time", link=link),
            Fact(
                "Still firing when these facts were written", still.count(), "",
                f"{reverse('admin:monitoring_alert_changelist')}?state__exact={AlertState.FIRING.value}",
            ),
        ),
    )  # fmt: skip


def findings(window: Window) -> Section:
    opened = recorded.opened_findings(window)
    closed = opened.model.objects.filter(recorded.within("closed_at", window))
    return Section(
        "Findings",
        (
            Fact(
                "Opened", opened.count(), "", recorded.rows_within("analysis_finding", "first_seen_at", window)
            ),
            Fact("Closed", closed.count(), "", recorded.rows_within("analysis_finding", "closed_at", window)),
            Fact(
                "Open when these facts were written", opened.model.objects.open().count(), "",
                f"{reverse('admin:analysis_finding_changelist')}?open=yes",
            ),
        ),
    )  # fmt: skip


def suggestions(window: Window) -> Section:
    """How many came, began and ended how; what the promoted were worth; the best that wait."""
    page = "improvements_improvement"
    counted = [
        Fact(name, Improvement.objects.filter(recorded.within(field, window)).count(), "",
             recorded.rows_within(page, field, window))
        for name, field in (("Suggested", "created_at"), ("Started", "started_at"), ("Settled", "settled_at"))
    ]  # fmt: skip
    ended = recorded.ended_suggestions(window).filter(settled_at=None)
    by_state = dict(ended.order_by().values_list("state").annotate(Count("pk")))
    for state in recorded.ENDED:
        link = recorded.rows_within(page, "state_since", window, state__exact=state.value)
        counted.append(Fact(state.label.capitalize(), by_state.get(state.value, 0), "", link))
    return Section("Suggestions", (*counted, *_promoted(window), *_waiting()))


def _promoted(window: Window) -> Iterable[Fact]:
    """What each improvement that was promoted in the window did to its endpoint's p95."""
    runs = recorded.finished_steps(window, State.VALIDATING).filter(verdict=Verdict.PASS)
    for run in runs.select_related("improvement"):
        one = run.improvement
        name, change = f"p95 after “{one.title}”", one.measured.get("change", {}).get("p95_ms")
        if change is None:
            yield unknown(name, "it has no number on both sides", unit="%", link=one.get_absolute_url())
            continue
        sure = one.measured.get("interval", {}).get("p95_ms")
        note = f"Between {sure[0]:+.0%} and {sure[1]:+.0%}." if sure else "Too few samples to say how sure that is."
        yield Fact(name, round(100 * change, 1), "%", one.get_absolute_url(), note)


def _waiting() -> Iterable[Fact]:
    best = Improvement.objects.filter(state=State.SUGGESTED, started_at=None).order_by("-rank", "pk")[:MOST_NAMED]
    for one in best:
        yield Fact(
            f"Waits: “{one.title}”", round(one.benefit, 1), "s of waiting an hour, estimated", one.get_absolute_url()
        )


def decisions(window: Window) -> Section:
    """What was asked of people, and how long they took."""
    page = "approvals_approvalrequest"
    asked = ApprovalRequest.objects.filter(recorded.within("created_at", window))
    decided = recorded.decided_requests(window).exclude(requirement__signatures=[])
    by_state = dict(decided.order_by().values_list("state").annotate(Count("pk")))
    hours = [
        (decided_at - created_at).total_seconds() / 3600
        for created_at, decided_at in decided.values_list("created_at", "decided_at")
        if decided_at
    ]
    counted = [
        Fact(f"Requests {state}", by_state.get(state.value, 0), "",
             recorded.rows_within(page, "decided_at", window, state__exact=state.value))
        for state in RequestState
        if state is not RequestState.OPEN
    ]  # fmt: skip
    signed = Signature.objects.filter(recorded.within("at", window))
    return Section(
        "Decisions of people",
        (
            Fact(
                "Requests made", asked.count(), "", recorded.rows_within(page, "created_at", window),
                "Those that the policy approved by itself are among them.",
            ),
            *counted,
            Fact("Signatures", signed.count(), "", reverse("admin:approvals_approvalrequest_changelist")),
            median("Time from request to its end", hours, "request that needed people ended", unit=HOURS),
        ),
    )  # fmt: skip


def median(name: str, values: Sequence[float], what: str, link: str = "", *, unit: str = SECONDS) -> Fact:
    """The median of `values`; without any, that no `what` in this time."""
    if not values:
        return unknown(name, f"no {what} in this time", unit=unit, link=link)
    note = f"Median of {len(values)}; the longest took {max(values):.1f} {unit}."
    return Fact(f"{name}, median", round(statistics.median(values), 1), unit, link, note)
