"""The facts of a month, for the architecture team: how risky the changes were, and whether the safety mechanisms were
exercised and held."""

from __future__ import annotations

from django.db.models import Count, Max

from approvals.models import ApprovalRequest, AuditEntry
from approvals.policy import RequestState, Tier
from improvements.cadence import Kind
from improvements.governance import recorded
from improvements.governance.facts import Fact, Section, Window, unknown
from improvements.governance.quarterly import as_fact
from improvements.governance.scoring import value
from improvements.governance.weekly import median
from improvements.models import EvidenceRecord, Improvement, Release, Review, RollbackDrill, Rollout, State, StepRun
from improvements.outcome import Verdict
from monitoring.models import Silence

GATES = (State.TESTING, State.SCANNING, State.STAGING, State.ROLLING_OUT, State.VALIDATING, State.PROMOTED)
RIGHTS = {"role.granted": "Roles granted", "role.revoked": "Roles taken away", "apitoken.issued": "API tokens issued"}


def compose(window: Window) -> list[Section]:
    """Risk, rollbacks, gates, alarms, rights."""
    return [risk(window), rollbacks(window), drills(window), gates(window), alarms(window), rights(window)]


def risk(window: Window) -> Section:
    """The assessed tiers of what was rolled out, against what became of it."""
    rollouts = Rollout.objects.filter(recorded.within("started_at", window))
    rows = rollouts.order_by().values("improvement__tier").annotate(all=Count("pk"), highest=Max("improvement__risk"))
    by_tier = {row["improvement__tier"]: row for row in rows}
    back = dict(
        rollouts.exclude(improvement__state__in=[State.PROMOTED, State.ROLLING_OUT, State.VALIDATING])
        .order_by()
        .values_list("improvement__tier")
        .annotate(Count("pk"))
    )
    link = recorded.rows_within("improvements_rollout", "started_at", window)
    facts = []
    for tier in Tier:
        row = by_tier.get(tier.value)
        note = f"{back.get(tier.value, 0)} of them went back." if row else ""
        note += f" Highest risk {row['highest']:.2f}." if row and row["highest"] is not None else ""
        facts.append(Fact(f"Rollouts of {tier} risk", row["all"] if row else 0, "", link, note))
    facts.append(as_fact("incidents", value("incidents", window), link))
    return Section("Risk", tuple(facts))


def rollbacks(window: Window) -> Section:
    """Every rollback is the drill of the next one: what did not run for long is not known to work."""
    runs = recorded.first_rollbacks(window)
    ids = list(runs.values_list("improvement_id", flat=True))
    link = recorded.rows_of("improvements_improvement", ids)
    worked = runs.filter(verdict=Verdict.PASS).count()
    stuck = Improvement.objects.filter(state=State.STUCK).count()
    took = EvidenceRecord.objects.filter(run__in=runs, kind="rollback").values_list("content", flat=True)
    seconds = [float(one["traffic_back_seconds"]) for one in took if "traffic_back_seconds" in one]
    last = (
        StepRun.objects.filter(state=State.ROLLING_BACK, verdict=Verdict.PASS, ended_at__lt=window.until)
        .order_by("-ended_at")
        .values_list("ended_at", flat=True)
        .first()
    )
    since_last = (
        unknown("Days since a rollback last worked", "none ever ran to its end", unit="days")
        if last is None
        else Fact("Days since a rollback last worked", (window.until - last).days, "days")
    )
    return Section(
        "Rollbacks",
        (
            Fact(
                "Rollbacks that ran", len(ids), "", link,
                f"{worked} of them worked at the first attempt." if ids else "The mechanism was not exercised.",
            ),
            median("Time until traffic was back", seconds, "rollback with this number ran", link),
            since_last,
            Fact("Stuck when these facts were written", stuck),
        ),
    )  # fmt: skip


def drills(window: Window) -> Section:
    """What people tried on purpose, in their own words, and whose rollback nobody saw work."""
    told = RollbackDrill.objects.filter(recorded.within("recorded_at", window))
    facts = [
        Fact(
            f"{one.service.name}, {one.drilled_at:%Y-%m-%d}", "worked" if one.worked else "did not work", "",
            one.get_absolute_url(),
            f"{took(one)}, told by {one.recorded_by} ({one.get_recorded_as_display()}): {one.tried}",
        )
        for one in told.select_related("service", "recorded_by")
    ]  # fmt: skip
    link = recorded.rows_within("improvements_rollbackdrill", "recorded_at", window)
    seen = recorded.finished_steps(window, State.ROLLING_BACK).filter(verdict=Verdict.PASS)
    exercised = {*told.filter(worked=True).values_list("service", flat=True)}
    exercised |= {*seen.values_list("improvement__service", flat=True)}
    serving = Release.objects.filter(share__gt=0, service__archived_at=None).exclude(service__in=exercised)
    unseen = sorted(set(serving.values_list("service__name", flat=True)))
    return Section(
        "Rollback drills",
        (
            Fact("Drills told", len(facts), "", link),
            *facts,
            Fact("Services whose rollback nobody saw work",
                 len(unseen), "", "", ", ".join(unseen)),
        ),
    )  # fmt: skip


def took(drill: RollbackDrill) -> str:
    return "Traffic did not come back" if drill.seconds is None else f"Traffic was back after {drill.seconds} s"


def gates(window: Window) -> Section:
    """What each gate held up; a gate that never does is either not needed or does not work."""
    runs = recorded.finished_steps(window, *GATES)
    rows = runs.order_by().values_list("state", "verdict").annotate(Count("pk"))
    counted = {(state, verdict): count for state, verdict, count in rows}
    held = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.NO_DATA)
    stopped = runs.exclude(verdict=Verdict.PASS).values_list("state", "improvement_id")
    facts = []
    for state in GATES:
        total = sum(counted.get((state.value, verdict.value), 0) for verdict in Verdict)
        by = {verdict: counted.get((state.value, verdict.value), 0) for verdict in held}
        link = recorded.rows_of("improvements_improvement", {pk for at, pk in stopped if at == state.value})
        note = ", ".join(f"{count} {verdict}" for verdict, count in by.items() if count)
        of = f"Of {total}{': ' + note if note else ''}." if total else "This step did not run."
        facts.append(Fact(f"Held up at {state.label}", sum(by.values()), "", link, of))
    said_no = (RequestState.REJECTED, RequestState.EXPIRED, RequestState.VOID)
    refused = dict(
        ApprovalRequest.objects.filter(recorded.within("decided_at", window), state__in=said_no)
        .order_by()
        .values_list("state")
        .annotate(Count("pk"))
    )
    for ending in said_no:
        link = recorded.rows_within("approvals_approvalrequest", "decided_at", window, state__exact=ending.value)
        facts.append(Fact(f"Requests {ending}", refused.get(ending.value, 0), "", link))
    crashed = StepRun.objects.filter(recorded.within("ended_at", window), crashed=True)
    facts.append(
        Fact(
            "Steps that crashed and were taken again", crashed.count(), "",
            recorded.rows_of("improvements_improvement", set(crashed.values_list("improvement_id", flat=True))),
        )
    )  # fmt: skip
    return Section("Gates", tuple(facts))


def alarms(window: Window) -> Section:
    link = recorded.rows_within("monitoring_alert", "fired_at", window)
    silences = Silence.objects.filter(recorded.within("starts_at", window))
    return Section(
        "Alarms",
        (
            Fact("Alerts that fired", recorded.fired(window).count(), "", link),
            as_fact("false_positives", value("false_positives", window), link),
            as_fact("time_to_detect", value("time_to_detect", window), link),
            Fact(
                "Silences", silences.count(), "", recorded.rows_within("monitoring_silence", "starts_at", window),
                "While one holds, nobody is told.",
            ),
        ),
    )  # fmt: skip


def rights(window: Window) -> Section:
    """Who gained or lost what, and when rules were set aside."""
    entries = AuditEntry.objects.filter(recorded.within("at", window), action__in=RIGHTS)
    counts = dict(entries.order_by().values_list("action").annotate(Count("pk")))
    facts = [
        Fact(
            words, counts.get(action, 0), "", recorded.rows_within("approvals_auditentry", "at", window, action=action)
        )
        for action, words in RIGHTS.items()
    ]
    broken = Review.objects.filter(recorded.within("since", window), kind=Kind.BREAK_GLASS)
    facts.append(
        Fact(
            "Emergencies in which rules were set aside", broken.count(), "",
            recorded.rows_within("improvements_review", "since", window, kind__exact=Kind.BREAK_GLASS.value),
        )
    )  # fmt: skip
    return Section("Rights", tuple(facts))
