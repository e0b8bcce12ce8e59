"""The facts of a quarter, for the CTO: what was reached, and whether the direction is right."""

from __future__ import annotations

from urllib.parse import urlencode

from django.db.models import Count, Sum
from django.urls import reverse

from improvements.cadence import Kind
from improvements.governance import recorded
from improvements.governance.facts import Fact, Section, Window, unknown
from improvements.governance.scorecard import DEFINITIONS, UNITS, Value, as_number, in_words
from improvements.governance.scoring import score
from improvements.models import Review
from monitoring.models import Service


def compose(window: Window) -> list[Section]:
    """The scorecard, what was reached for each service and by each author, and the reviews themselves."""
    return [success(window), milestones(window), authors(window), reviews(window)]


def success(window: Window) -> Section:
    """The scorecard of the period, each number against the period before."""
    facts = []
    for metric in score(window):
        fact = as_fact(metric.name, metric.now, metric.link)
        before = metric.before.value
        told = "" if before is None else f" Before: {in_words(metric.name, before)}: {metric.trend}."
        facts.append(Fact(fact.name, fact.value, fact.unit, fact.link, f"{fact.note}{told}".strip()))
    return Section("Success metrics", tuple(facts))


def milestones(window: Window) -> Section:
    """What lasted, for each service."""
    settled = recorded.settled(window)
    rows = settled.order_by("service__name").values("service", "service__name")
    told = rows.annotate(count=Count("pk"), benefit=Sum("benefit"))
    facts = [
        Fact(
            f"Improvements of {row['service__name']} that stayed", row["count"], "",
            recorded.rows_within("improvements_improvement", "settled_at", window, service__id__exact=row["service"]),
            f"{row['benefit']:,.0f} s of users' waiting saved an hour, as estimated beforehand.",
        )
        for row in told
    ]  # fmt: skip
    if not facts:
        facts = [Fact("Improvements that stayed", 0)]
    watched = Service.objects.active()
    facts.append(Fact("Services watched when these facts were written", watched.count()))
    return Section("Milestones", tuple(facts))


def authors(window: Window) -> Section:
    """How the patches of each author ended: where to invest, and what to switch off."""
    rows = recorded.ended_suggestions(window).order_by("author").values("author").annotate(all=Count("pk"))
    stayed = dict(recorded.settled(window).order_by().values_list("author").annotate(Count("pk")))
    facts = [
        Fact(
            f"By {row['author']}: suggestions that ended", row["all"], "",
            f"{reverse('admin:improvements_improvement_changelist')}?{urlencode({'author__exact': row['author']})}",
            f"{stayed.get(row['author'], 0)} of them stayed.",
        )
        for row in rows
    ]  # fmt: skip
    return Section("Strategy: what each author achieved", tuple(facts) or (unknown("Authors", "no suggestion ended"),))


def reviews(window: Window) -> Section:
    """Whether the reviews were done in time."""
    due = Review.objects.filter(recorded.within("made_at", window))
    facts = []
    for kind in Kind:
        rows = list(due.filter(kind=kind).values_list("signed_at", "level"))
        if not rows and kind is Kind.BREAK_GLASS:
            continue
        link = recorded.rows_within("improvements_review", "made_at", window, kind__exact=kind.value)
        if not rows:
            facts.append(unknown(f"Reviews: {kind}", "none was due in this time", link=link))
            continue
        signed, late = sum(at is not None for at, _ in rows), sum(level > 0 for _, level in rows)
        note = f"Of {len(rows)}; {late} had to be escalated."
        facts.append(Fact(f"Reviews signed off: {kind}", signed, "", link, note))
    return Section("Reviews", tuple(facts))


def as_fact(name: str, told: Value, link: str = "") -> Fact:
    """A value of the scorecard as a fact: shares as percentages, with the interval and the number of cases."""
    wanted = DEFINITIONS[name]
    unit = UNITS[wanted.unit]
    if told.value is None or told.low is None or told.high is None:
        return Fact(wanted.title, None, unit, link, told.note)
    of = f"{told.cases:,} {wanted.cases}" if told.hits is None else f"{told.hits:,} of {told.cases:,} {wanted.cases}"
    sure = f"95 % sure: {as_number(name, told.low):g} to {in_words(name, told.high)}"
    return Fact(wanted.title, as_number(name, told.value), unit, link, f"{of}. {sure}. {told.note}".strip())
