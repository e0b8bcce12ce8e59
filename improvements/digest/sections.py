"""The sections of a digest: each asks the rows one question, for who may see the answer.

What needs somebody follows from their role; what changed and what is next from their right to view it.
"""

from __future__ import annotations

import datetime as dt
import math
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

from django.conf import settings
from django.db.models import Avg, Count, Max, Q
from django.urls import reverse
from django.utils.text import capfirst

from analysis.models import Finding
from approvals import outline, recurrence, requests
from approvals.freezing import Kind
from approvals.models import ApprovalRequest, AuditEntry, FreezeWindow
from approvals.policy import Role
from approvals.roles import ANYWHERE, OPERATING_ROLES
from improvements.digest.parts import MOST_LINES, Facts, Line, Mood, Reader, Section, address
from improvements.digest.weeks import count, span
from improvements.models import Improvement, State
from monitoring.models import Alert, HealthScore, Service, Severity

SOON = dt.timedelta(hours=24)
# How far "what is next" looks. No rule opens more often than daily.
AHEAD, MOST_TIMES = dt.timedelta(days=7), 8
OPEN_NOW = {Kind.FREEZE: ("frozen now", Mood.WARN), Kind.ROLLOUTS: ("open now", Mood.GOOD)}
TO_COME = {Kind.FREEZE: "freeze", Kind.ROLLOUTS: "rollouts only then"}
ON_DUTY = (Role.ON_CALL, Role.LEAD)
# A service without a score for so many rounds, and ten minutes at least, is not measured.
MISSED_ROUNDS = 5
# A mean of two weeks' scores that differs by less is the same for people.
SAME_SCORE = 0.5
ENDINGS = {
    "improvement.promoted": ("promoted", Mood.GOOD),
    "improvement.rolled_back": ("rolled back", Mood.WARN),
    "improvement.stuck": ("rollback stuck", Mood.BAD),
}
ENDED_UNSEEN = {
    "improvement.failed": "failed before it went live",
    "improvement.rejected": "rejected",
    "improvement.dismissed": "dismissed",
    "improvement.expired": "expired",
}

T = TypeVar("T")


def kept(ask: Callable[[Facts], T]) -> Callable[[Facts], T]:
    """Ask the database once for all readers of the same facts."""

    @wraps(ask)
    def answer(facts: Facts) -> T:
        return facts.once(ask.__name__, ask=lambda: ask(facts))

    return answer


def page(model: str, pk: int) -> str:
    return address(reverse(f"admin:{model}_change", args=[pk]))


def listed(model: str, query: str = "") -> str:
    return address(reverse(f"admin:{model}_changelist") + query)


def is_any(reader: Reader, wanted: Collection[Role], scope: str | None) -> bool:
    """Whether they have one of these roles for the service `scope`: a service may name its own people."""
    return bool(reader.roles(scope).intersection(wanted))


# -- What needs the reader --------------------------------------------------------------------------------------------


def awaiting(reader: Reader, facts: Facts) -> list[int]:
    """The ids of the requests that they may sign, the first to expire first."""
    return facts.once(
        "awaiting", reader.user.pk, ask=lambda: [one.id for one in requests.awaiting(reader.user, facts.at)]
    )


def signatures(reader: Reader, facts: Facts) -> Section | None:
    """Requests that this reader may sign, the first to expire first."""
    if not reader.may("approvals.view_approvalrequest"):
        return None
    theirs = awaiting(reader, facts)
    rows = ApprovalRequest.objects.defer("facts").in_bulk(theirs[:MOST_LINES])
    return Section(
        "Awaiting your signature",
        tuple(request_line(rows[pk], reader, facts.at) for pk in theirs[:MOST_LINES]),
        len(theirs),
        listed("approvals_approvalrequest", "?awaiting=me"),
    )


def request_line(row: ApprovalRequest, reader: Reader, at: dt.datetime) -> Line:
    left = row.expires_at - at
    where = f"{row.scope}, " if row.scope else ""
    return Line(
        row.title,
        f"{where}waits for {span(at - row.created_at)}, expires {reader.clock(row.expires_at)} (in {span(left)})",
        page("approvals_approvalrequest", row.pk),
        f"{row.tier} risk",
        Mood.BAD if left < SOON else Mood.WARN,
    )


def firing(reader: Reader, facts: Facts) -> Section | None:
    """Alerts that nobody has taken, and the reader's own, for who is called."""
    if not reader.may("monitoring.view_alert") or not is_any(reader, ON_DUTY, ANYWHERE):
        return None
    theirs = Q(acknowledged_at=None) | Q(owner=reader.user)
    rows = Alert.objects.firing().filter(theirs, service__archived_at=None)
    ordered = sorted(
        (
            one
            for one in rows.select_related("service").order_by("fired_at", "pk")
            if is_any(reader, ON_DUTY, one.service.name)
        ),
        key=lambda one: one.severity != Severity.CRITICAL,
    )
    return Section(
        "Alerts firing",
        tuple(
            Line(
                f"{alert.name} on {alert.service.name}",
                f"{alert.message} Since {reader.clock(alert.since)} ({span(facts.at - alert.since)}).",
                page("monitoring_alert", alert.pk),
                alert.severity,
                Mood.BAD if alert.severity == Severity.CRITICAL else Mood.WARN,
            )
            for alert in ordered[:MOST_LINES]
        ),
        len(ordered),
        listed("monitoring_alert", "?state__exact=firing"),
    )


def stuck(reader: Reader, facts: Facts) -> Section | None:
    """Rollbacks that could not be completed."""
    if not reader.may("improvements.view_improvement") or not is_any(reader, OPERATING_ROLES, ANYWHERE):
        return None
    known = Improvement.objects.filter(state=State.STUCK).select_related("service").defer("diff")
    rows = [one for one in known.order_by("state_since") if is_any(reader, OPERATING_ROLES, one.service.name)]
    return Section(
        "Improvements stuck",
        tuple(
            Line(
                one.title,
                f"{one.service.name}, since {reader.clock(one.state_since)} ({span(facts.at - one.state_since)})",
                page("improvements_improvement", one.pk),
                "stuck",
                Mood.BAD,
            )
            for one in rows[:MOST_LINES]
        ),
        len(rows),
        listed("improvements_improvement", f"?state__exact={State.STUCK}"),
    )


@kept
def unmeasured_services(facts: Facts) -> list[tuple[Service, dt.datetime | None]]:
    """Watched services without a score of late, and when their last one was."""
    patience = max(dt.timedelta(minutes=10), MISSED_ROUNDS * dt.timedelta(seconds=settings.METRICS_COLLECTION_INTERVAL))
    watched = list(Service.objects.active().filter(created_at__lt=facts.at - patience).defer("environment", "manifest"))
    scored = HealthScore.objects.filter(service__in=watched, score__isnull=False, at__lte=facts.at)
    fresh = set(scored.filter(at__gte=facts.at - patience).values_list("service", flat=True).distinct())
    missing = [service for service in watched if service.pk not in fresh]
    return [(one, scored.filter(service=one).aggregate(last=Max("at"))["last"]) for one in missing]


def unmeasured(reader: Reader, facts: Facts) -> Section | None:
    """Services that nobody can say anything about."""
    if not reader.may("monitoring.view_service") or not is_any(reader, ON_DUTY, ANYWHERE):
        return None
    found = [(one, last) for one, last in unmeasured_services(facts) if is_any(reader, ON_DUTY, one.name)]
    return Section(
        "Services not measured",
        tuple(
            Line(
                service.name,
                f"last score {reader.clock(last)}" if last else "it never had a score",
                page("monitoring_service", service.pk),
                "no data",
                Mood.BAD,
            )
            for service, last in found[:MOST_LINES]
        ),
        len(found),
        listed("monitoring_service"),
    )


# -- What changed -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Happened:
    """What became of an improvement in the period, as the audit log has it."""

    action: str
    at: dt.datetime
    improvement: Improvement


@kept
def happened(facts: Facts) -> list[Happened]:
    entries = list(
        AuditEntry.objects.filter(
            action__in=[*ENDINGS, *ENDED_UNSEEN], subject_kind="improvements.improvement", at__gte=facts.since,
            at__lt=facts.until,
        ).order_by("sequence").values_list("action", "at", "subject_id")
    )  # fmt: skip
    rows = Improvement.objects.select_related("service").defer("diff").in_bulk([int(pk) for *_, pk in entries])
    return [Happened(action, at, rows[int(pk)]) for action, at, pk in entries if int(pk) in rows]


def improved(reader: Reader, facts: Facts) -> Section | None:
    """What went live or came back, and what it did to the numbers."""
    if not reader.may("improvements.view_improvement"):
        return None
    seen = [one for one in reversed(happened(facts)) if one.action in ENDINGS]
    unseen = Counter(one.action for one in happened(facts))
    others = ", ".join(f"{unseen[action]} {words}" for action, words in ENDED_UNSEEN.items() if unseen[action])
    return Section(
        "Improvements",
        tuple(ending_line(one, reader) for one in seen[:MOST_LINES]),
        len(seen),
        listed("improvements_improvement"),
        f"Others ended: {others}." if others else "",
        "No improvement went live or came back.",
    )


def ending_line(one: Happened, reader: Reader) -> Line:
    badge, mood = ENDINGS[one.action]
    numbers = measured_in_words(one.improvement.measured)
    if one.action == "improvement.promoted":
        numbers = numbers or "what it did to the numbers could not be measured"
    elif numbers:
        numbers = f"while it was live: {numbers}"
    return Line(
        one.improvement.title,
        "; ".join(part for part in (f"{one.improvement.service.name}, {reader.clock(one.at)}", numbers) if part),
        page("improvements_improvement", one.improvement.pk),
        badge,
        mood,
    )


def measured_in_words(measured: dict[str, Any]) -> str:
    """p95 84.75 ms → 12 ms, -86% (95 % interval -90% to -80%). Empty without numbers on both sides.

    The interval is that of the relative change, where enough was measured for one.
    """
    before, after, change, interval = (measured.get(part, {}) for part in ("before", "after", "change", "interval"))
    found = []
    for name in before:
        if before[name] is None or after.get(name) is None:
            continue
        called, was = outline.quantity(name, before[name])
        share = "" if change.get(name) is None else f", {change[name]:+.0%}"
        low, high = interval.get(name, (0.0, 0.0))
        ends = f" (95 % interval {low:+.0%} to {high:+.0%})" if name in interval else ""
        found.append(f"{called} {was} → {outline.quantity(name, after[name])[1]}{share}{ends}")
    return "; ".join(found)


@dataclass(frozen=True)
class Health:
    """A service's mean score and number of scored rounds in the period, and in the one before it."""

    service_id: int
    name: str
    score: float | None
    rounds: int
    before: float | None

    @property
    def change(self) -> float | None:
        return None if self.score is None or self.before is None else self.score - self.before


@kept
def health(facts: Facts) -> list[Health]:
    """Means over whole weeks. Answered by the index that carries the scores, whatever else a round keeps."""
    this = scores(facts.since, facts.until)
    last = scores(facts.since - dt.timedelta(days=7), facts.since)
    return [
        Health(pk, name, *this.get(pk, (None, 0)), before=last.get(pk, (None, 0))[0])
        for pk, name in Service.objects.active().values_list("pk", "name")
    ]


def scores(since: dt.datetime, until: dt.datetime) -> dict[int, tuple[float | None, int]]:
    """Service → its mean score in [since, until), and how many rounds had one."""
    rows = HealthScore.objects.filter(at__gte=since, at__lt=until).order_by().values("service")
    rows = rows.annotate(mean=Avg("score"), rounds=Count("score"))
    return {row["service"]: (row["mean"], row["rounds"]) for row in rows}


def healthy(reader: Reader, facts: Facts) -> Section | None:
    """Each service's score against the week before: those without one first, then the greatest change."""
    if not reader.may("monitoring.view_healthscore"):
        return None
    rows = sorted(health(facts), key=lambda one: (one.score is not None, -abs(one.change or 0.0), one.name))
    return Section(
        "Health",
        tuple(health_line(one) for one in rows[:MOST_LINES]),
        len(rows),
        listed("monitoring_service"),
        nothing="No service is watched.",
    )


def health_line(one: Health) -> Line:
    url = page("monitoring_service", one.service_id)
    rounds = f"{count(one.rounds, 'round')} measured"
    if one.score is None:
        return Line(f"{one.name}: no score", rounds, url, "no data", Mood.BAD)
    if one.before is None or one.change is None:
        return Line(f"{one.name}: {downwards(one.score)} of 100", f"no score the week before; {rounds}", url)
    if abs(one.change) < SAME_SCORE:
        badge, mood = "same", Mood.PLAIN
    else:
        badge, mood = ("better", Mood.GOOD) if one.change > 0 else ("worse", Mood.WARN)
    return Line(
        f"{one.name}: {downwards(one.score)} of 100",
        f"{downwards(one.before)} the week before ({one.change:+.1f}); {rounds}",
        url,
        badge,
        mood,
    )


def downwards(score: float) -> str:
    """To a tenth, downwards, as everywhere: 79.96 is not yet healthy."""
    return f"{math.floor(10 * score + 1e-6) / 10:.1f}"


@dataclass(frozen=True)
class Alerts:
    fired: Sequence[tuple[str, str, str]]  # severity, rule, service
    resolved: Sequence[dt.timedelta]  # from firing to the end


@kept
def alerts(facts: Facts) -> Alerts:
    watched = Alert.objects.filter(service__archived_at=None, fired_at__isnull=False)
    period = {"gte": facts.since, "lt": facts.until}
    fired = watched.filter(**{f"fired_at__{key}": value for key, value in period.items()})
    ended = watched.filter(**{f"resolved_at__{key}": value for key, value in period.items()})
    return Alerts(
        list(fired.values_list("severity", "name", "service__name")),
        [end - begin for begin, end in ended.values_list("fired_at", "resolved_at") if begin and end],
    )


def alerted(reader: Reader, facts: Facts) -> Section | None:
    """What fired and how long it took to end."""
    if not reader.may("monitoring.view_alert"):
        return None
    week = alerts(facts)
    url = listed("monitoring_alert")
    often = Counter((name, service) for _, name, service in week.fired).most_common()
    worst = {(name, service) for severity, name, service in week.fired if severity == Severity.CRITICAL}
    lines = [
        Line(
            f"{name} on {service}",
            f"fired {count(times, 'time')}",
            url,
            *(("critical", Mood.BAD) if (name, service) in worst else ("warning", Mood.WARN)),
        )
        for (name, service), times in often
    ]
    return Section(
        "Alerts",
        tuple(lines[:MOST_LINES]),
        len(lines),
        url,
        alerts_in_words(week),
        "No alert fired and none ended.",
    )


def alerts_in_words(week: Alerts) -> str:
    """How many there were, and how long they took."""
    parts = []
    if week.fired:
        parts.append(f"{len(week.fired):,} fired")
    if week.resolved:
        middle = dt.timedelta(seconds=statistics.median(one.total_seconds() for one in week.resolved))
        took = f"after {span(middle)} in the median and {span(max(week.resolved))} at most"
        parts.append(f"{len(week.resolved):,} resolved, {took}")
    return f"{'; '.join(parts)}." if parts else ""


@kept
def findings(facts: Facts) -> tuple[list[Finding], int]:
    """Those first seen in the period, the costliest first, and how many were closed in it."""
    watched = Finding.objects.filter(service__archived_at=None).select_related("service").defer("evidence")
    new = watched.filter(first_seen_at__gte=facts.since, first_seen_at__lt=facts.until)
    closed = watched.filter(closed_at__gte=facts.since, closed_at__lt=facts.until).count()
    return sorted(new, key=lambda one: (-waiting_seconds(one), one.pk)), closed


def waiting_seconds(finding: Finding) -> float:
    return float(finding.impact.get("waiting_seconds_per_hour") or 0.0)


def found(reader: Reader, facts: Facts) -> Section | None:
    """New findings by what they cost, and how many are closed."""
    if not reader.may("analysis.view_finding"):
        return None
    new, closed = findings(facts)
    url = listed("analysis_finding")
    lines = [
        Line(
            one.title,
            "; ".join(
                part
                for part in (
                    f"{one.service.name}, {one.confidence:.0%} sure",
                    f"users wait {waiting_seconds(one):,.0f} s an hour for it" if waiting_seconds(one) else "",
                )
                if part
            ),
            page("analysis_finding", one.pk),
            "closed again" if one.closed_at else "new",
        )
        for one in new
    ]
    return Section(
        "Findings",
        tuple(lines[:MOST_LINES]),
        len(lines),
        url,
        f"{count(closed, 'finding')} closed." if closed else "",
        "Nothing new was found, and nothing was closed.",
    )


# -- What is next -----------------------------------------------------------------------------------------------------


def under_way(reader: Reader, facts: Facts) -> Section | None:
    """Rollouts that wait for signatures or for their turn, and those that touch traffic now."""
    if not reader.may("improvements.view_improvement"):
        return None
    states = [State.AWAITING_APPROVAL, State.ROLLING_OUT, State.VALIDATING, State.ROLLING_BACK]
    rows = Improvement.objects.filter(state__in=states).select_related("service").defer("diff").order_by("state_since")
    return Section(
        "Rollouts",
        tuple(
            Line(
                one.title,
                f"{one.service.name}, since {reader.clock(one.state_since)}"
                + (f", {one.tier} risk ({one.risk:.2f})" if one.risk is not None else ""),
                page("improvements_improvement", one.pk),
                State(one.state).label,
                Mood.WARN if one.state == State.ROLLING_BACK else Mood.PLAIN,
            )
            for one in rows[:MOST_LINES]
        ),
        rows.count(),
        listed("improvements_improvement", f"?state__exact={State.AWAITING_APPROVAL}"),
    )


def suggested(reader: Reader, facts: Facts) -> Section | None:
    """What could be started, the best first."""
    if not reader.may("improvements.view_improvement"):
        return None
    rows = Improvement.objects.filter(state=State.SUGGESTED, started_at=None, service__archived_at=None)
    return Section(
        "Suggestions",
        tuple(
            Line(
                one.title,
                f"{one.service.name}; saves users about {one.benefit:,.0f} s of waiting an hour",
                page("improvements_improvement", one.pk),
                f"about {one.estimated_tier} risk",
            )
            for one in rows.select_related("service").defer("diff").order_by("-rank", "pk")[:MOST_LINES]
        ),
        rows.count(),
        listed("improvements_improvement", f"?state__exact={State.SUGGESTED}"),
    )


def expiring(reader: Reader, facts: Facts) -> Section | None:
    """Requests that end unanswered within a week and wait for others than the reader."""
    if not reader.may("approvals.view_approvalrequest"):
        return None
    soon = ApprovalRequest.objects.open().filter(expires_at__gt=facts.at, expires_at__lte=facts.at + AHEAD)
    rows = list(soon.exclude(pk__in=awaiting(reader, facts)).defer("facts").order_by("expires_at", "pk"))
    return Section(
        "Requests that expire",
        tuple(request_line(row, reader, facts.at) for row in rows[:MOST_LINES]),
        len(rows),
        listed("approvals_approvalrequest"),
    )


@kept
def windows(facts: Facts) -> list[tuple[dt.datetime, dt.datetime, FreezeWindow, int]]:
    """Begin and end of what is open now or opens within a week, and how often it opens again in that time.

    What cannot be read comes first and holds everything, as `freezing.held` has it.
    """
    found = []
    for row in FreezeWindow.objects.filter(enabled=True).order_by("pk"):
        try:
            end = recurrence.open_until(row.window, facts.at)
            times = recurrence.upcoming(row.window, facts.at, MOST_TIMES)
        except recurrence.BadWindow:
            found.append((facts.at, facts.at, row, 0))
            continue
        times = [one for one in times if one[0] < facts.at + AHEAD]
        begin, end = (facts.at, end) if end else times.pop(0) if times else (None, None)
        if begin and end:
            found.append((begin, end, row, len(times)))
    return sorted(found, key=lambda one: (one[0], one[1], one[2].pk))


def freezes(reader: Reader, facts: Facts) -> Section | None:
    """When nothing rolls out, or only then, now and in the week to come."""
    if not reader.may("approvals.view_freezewindow"):
        return None
    found = windows(facts)
    return Section(
        "Freezes and rollout windows",
        tuple(window_line(*one, reader, facts.at) for one in found[:MOST_LINES]),
        len(found),
        listed("approvals_freezewindow"),
    )


def window_line(
    begin: dt.datetime, end: dt.datetime, row: FreezeWindow, again: int, reader: Reader, at: dt.datetime
) -> Line:
    if begin == end:
        badge, mood, when = "unreadable", Mood.BAD, "it cannot be read, and holds everything"
    elif begin == at:
        badge, mood = OPEN_NOW[Kind(row.kind)]
        when = f"until {reader.clock(end)}"
    else:
        badge, mood = TO_COME[Kind(row.kind)], Mood.PLAIN
        when = f"{reader.clock(begin)} to {reader.clock(end)}"
    more = f"{count(again, 'more time', 'more times')} within a week" if again else ""
    told = (row.scope or "every service", when, more, row.reason)
    return Line(row.name, "; ".join(part for part in told if part), page("approvals_freezewindow", row.pk), badge, mood)


NEEDS = (signatures, stuck, firing, unmeasured)
CHANGED = (improved, healthy, alerted, found)
NEXT = (freezes, expiring, under_way, suggested)


# -- The whole in a few words -----------------------------------------------------------------------------------------


def news(reader: Reader, facts: Facts) -> list[str]:
    """For the subject: what ended in the period."""
    if not reader.may("improvements.view_improvement"):
        return []
    ended = Counter(one.action for one in happened(facts))
    return [f"{ended[action]} {words}" for action, (words, _) in ENDINGS.items() if ended[action]]


def summary(reader: Reader, facts: Facts) -> list[str]:
    """A sentence for each of what happened and what was measured, in numbers: a quiet week has them as well."""
    said = []
    if reader.may("improvements.view_improvement"):
        ended = ", ".join(news(reader, facts))
        said.append(f"improvements: {ended}" if ended else "no improvement went live or came back")
    if reader.may("monitoring.view_alert"):
        fired = len(alerts(facts).fired)
        said.append(f"{count(fired, 'alert')} fired" if fired else "no alert fired")
    if reader.may("analysis.view_finding"):
        new, closed = findings(facts)
        said.append(f"{count(len(new), 'finding')} new, {closed} closed" if new or closed else "nothing new was found")
    sentences = [f"{capfirst('; '.join(said))}."] if said else []
    if reader.may("monitoring.view_healthscore"):
        rows = health(facts)
        rounds = sum(one.rounds for one in rows)
        measured = "was measured" if rounds == 1 else "were measured"
        sentences.append(f"{count(rounds, 'round')} of {count(len(rows), 'service')} {measured}.")
    return sentences
