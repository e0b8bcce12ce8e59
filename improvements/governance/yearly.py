"""The facts of a year, for the CTO: the whole specification, promise by promise."""

from __future__ import annotations

from collections.abc import Iterable

from django.conf import settings
from django.db.models import Count
from django.urls import reverse

from approvals import diff, roles
from approvals.models import AuditEntry, Signature
from improvements.governance import escalation, monthly, quarterly, recorded
from improvements.governance.facts import Fact, Section, Window, unknown
from improvements.governance.weekly import median
from improvements.models import Rollout, State
from improvements.outcome import Verdict

IN_FORCE = (
    "SELF_BUILD_ENABLED",
    "SELF_BUILD_RISK_THRESHOLD",
    "SELF_BUILD_APPROVAL_REQUIRED",
    "ROLLOUT_STEPS",
    "ROLLOUT_STEP_REQUESTS",
    "BAKE_SECONDS",
    "WATCH_SECONDS",
)


def compose(window: Window) -> list[Section]:
    """The five principles with what was recorded of each, the success metrics, and what is in force."""
    return [
        quarterly.success(window),
        monthly.rollbacks(window),
        monthly.drills(window),
        small_steps(window),
        people_decide(window),
        monthly.gates(window),
        quarterly.milestones(window),
        quarterly.authors(window),
        quarterly.reviews(window),
        in_force(),
    ]


def small_steps(window: Window) -> Section:
    """Everything went out in steps with a verdict at each, and could be taken back."""
    rollouts = Rollout.objects.filter(recorded.within("started_at", window))
    link = recorded.rows_within("improvements_rollout", "started_at", window)
    verdicts = [step["verdict"] for told in rollouts.values_list("verdicts", flat=True) for step in told]
    counted = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in Verdict if verdict in verdicts)
    by_state = dict(rollouts.order_by().values_list("state").annotate(Count("pk")))
    ended = ", ".join(f"{count} {state}" for state, count in sorted(by_state.items()))
    return Section(
        "Small steps",
        (
            Fact("Rollouts", rollouts.count(), "", link, f"{ended}." if ended else ""),
            Fact("Verdicts on their steps", len(verdicts), "", link, f"{counted}." if counted else ""),
            unknown("Lines changed by a rollout", "no rollout began in this time", unit="lines")
            if not by_state
            else _lines(rollouts.values_list("improvement__diff", flat=True), link),
        ),
    )


def _lines(diffs: Iterable[str], link: str) -> Fact:
    sizes = [sum(diff.counts(diff.lines(text))) for text in diffs]
    return median("Lines changed by a rollout", sizes, "rollout began", link, unit="lines")


def people_decide(window: Window) -> Section:
    """Who signed, what happened without anybody, and where the record stands."""
    entries = AuditEntry.objects.filter(recorded.within("at", window))
    signed = Signature.objects.filter(recorded.within("at", window))
    settled = recorded.settled(window)
    alone = recorded.untouched(settled.only("pk", "proposed_by_id"))
    stuck = recorded.finished_steps(window, State.ROLLING_BACK).exclude(verdict=Verdict.PASS)
    holes = escalation.paths().holes
    return Section(
        "People decide what is critical",
        (
            Fact("Signatures", signed.count(), "", reverse("admin:approvals_approvalrequest_changelist"),
                 f"Of {signed.values('person').distinct().count()} people."),
            Fact("Promotions without anybody's hand", len(alone), "",
                 recorded.rows_of("improvements_improvement", alone), f"Of {settled.count()} that settled."),
            Fact("Rollbacks that needed a person", stuck.values("improvement").distinct().count(), "",
                 recorded.rows_of("improvements_improvement", stuck.values_list("improvement_id", flat=True))),
            Fact("Entries of the audit log", entries.count(), "",
                 recorded.rows_within("approvals_auditentry", "at", window)),
            Fact("Roles that nobody has, and other holes", len(holes), "", "", " ".join(holes)),
        ),
    )  # fmt: skip


def in_force() -> Section:
    """The settings that decide what happens without people, and who has which role, when this was written."""
    facts = [Fact(name, str(getattr(settings, name))) for name in IN_FORCE]
    for role, group in roles.GROUP_NAMES.items():
        names = roles.holders([role])
        facts.append(Fact(group, len(names), "people", "", ", ".join(names)))
    return Section("In force when these facts were written", tuple(facts))
