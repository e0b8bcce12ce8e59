"""The pages of governance: each composed once here, printed by its template, and told by the API."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import User

from approvals import roles
from improvements.cadence import Kind, local_day
from improvements.governance import escalation, reviewing, scorecard, scoring
from improvements.governance.facts import Window
from improvements.governance.scorecard import Trend
from improvements.governance.scoring import Metric
from improvements.models import Review

NEEDED = "improvements.view_review"
WINDOWS = (30, 90)  # days
TREND_CSS = {Trend.BETTER: "pass", Trend.WORSE: "fail", Trend.UNCLEAR: "waiting", Trend.UNKNOWN: "waiting"}
MOST_ROWS = 5


@dataclass(frozen=True)
class Status:
    """How a review stands, in words and as a colour."""

    words: str
    css: str


def status(review: Review, today: dt.date) -> Status:
    if review.signed_at is not None:
        return Status("signed", "pass")
    if review.is_overdue(today):
        return Status("overdue", "fail")
    return Status("due", "waiting")


@dataclass(frozen=True)
class ReviewPage:
    """`refused` is the rule that keeps the person from signing off; empty when they may."""

    review: Review
    status: Status
    sections: list[dict[str, Any]]
    asked: str
    people: list[str]
    barred: list[str]
    is_as_frozen: bool
    refused: str
    about_period: bool


def review_page(review: Review, person: User, at: dt.datetime) -> ReviewPage:
    """Everything the page of one review shows to `person` now."""
    barred = list(review.barred.order_by("username"))
    refused = ""
    try:
        reviewing.may_sign_off(review, roles.facts_of(person, scope=review.scope))
    except reviewing.Refused as rule:
        refused = str(rule)
    return ReviewPage(
        review=review,
        status=status(review, local_day(at, reviewing.zone())),
        sections=review.facts,
        asked=", or ".join(role.title for role in review.responsible),
        people=roles.holders(review.responsible, scope=review.scope, without=[one.pk for one in barred]),
        barred=[one.username for one in barred],
        is_as_frozen=reviewing.is_as_frozen(review),
        refused=refused,
        about_period=review.kind != Kind.BREAK_GLASS,
    )


@dataclass(frozen=True)
class Line:
    """One metric in words."""

    metric: Metric
    value: str
    sure: str
    counted: str
    before: str
    trend: Trend
    css: str


@dataclass(frozen=True)
class ScorecardPage:
    days: int
    since: dt.datetime
    until: dt.datetime
    lines: list[Line]
    windows: tuple[int, ...] = WINDOWS


def last(days: int, at: dt.datetime) -> Window:
    return Window(at - dt.timedelta(days=days), at, at)


def scorecard_page(days: int, at: dt.datetime) -> ScorecardPage:
    """The scorecard of the last `days` days."""
    window = last(days, at)
    return ScorecardPage(days, window.since, window.until, [_line(metric) for metric in scoring.score(window)])


def _line(metric: Metric) -> Line:
    now, before, name = metric.now, metric.before, metric.name
    words = scorecard.in_words
    sure = "" if now.low is None or now.high is None else f"{words(name, now.low)} to {words(name, now.high)}"
    hits = "" if now.hits is None else f"{now.hits:,} of "
    return Line(
        metric=metric,
        value="" if now.value is None else words(name, now.value),
        sure=sure,
        counted=f"{hits}{now.cases:,} {metric.definition.cases}",
        before="not enough data" if before.value is None else words(name, before.value),
        trend=metric.trend,
        css=TREND_CSS[metric.trend],
    )


@dataclass(frozen=True)
class Card:
    """What the front page says of governance."""

    mine: list[Review]
    mine_total: int
    today: dt.date
    holes: list[str]


def card(person: User, at: dt.datetime) -> Card | None:
    """The reviews that `person` may sign off, and where nobody is; None without the right to look."""
    if not person.has_perm(NEEDED):
        return None
    mine = reviewing.awaiting(person)
    holes = escalation.unmanned(escalation.members())
    return Card(mine[:MOST_ROWS], len(mine), local_day(at, reviewing.zone()), holes)
