"""What the weekly digest says of reviews: those that its reader may sign off, and those that others have to."""

from __future__ import annotations

import datetime as dt

from django.urls import reverse

from improvements.cadence import local_day
from improvements.digest import parts
from improvements.digest.parts import MOST_LINES, Facts, Line, Mood, Reader, Section, address
from improvements.governance import reviewing
from improvements.models import Review

NEEDED = "improvements.view_review"
AHEAD = dt.timedelta(days=7)


def watch() -> None:
    """Have it told in every digest."""
    parts.add("needs", to_sign_off)
    parts.add("next", due_elsewhere)


def to_sign_off(reader: Reader, facts: Facts) -> Section | None:
    """Reviews that this reader may sign off, of emergencies too, the most overdue first."""
    if not reader.may(NEEDED):
        return None
    return section("Reviews to sign off", awaiting(reader, facts), facts, "?standing=me")


def due_elsewhere(reader: Reader, facts: Facts) -> Section | None:
    """Reviews that others have to sign off by the end of a week, or had to."""
    if not reader.may(NEEDED):
        return None
    mine = [review.pk for review in awaiting(reader, facts)]
    until = local_day(facts.at + AHEAD, reviewing.zone())
    due = Review.objects.open().filter(due_on__lte=until).exclude(pk__in=mine).defer("facts").order_by("due_on", "pk")
    return section("Reviews due", list(due), facts, "?standing=open")


def awaiting(reader: Reader, facts: Facts) -> list[Review]:
    return facts.once("reviews", reader.user.pk, ask=lambda: reviewing.awaiting(reader.user, reader.rights))


def section(title: str, reviews: list[Review], facts: Facts, query: str) -> Section:
    today = local_day(facts.at, reviewing.zone())
    lines = tuple(line(one, today) for one in reviews[:MOST_LINES])
    url = address(reverse("admin:improvements_review_changelist") + query)
    return Section(title, lines, len(reviews), url)


def line(review: Review, today: dt.date) -> Line:
    late = review.is_overdue(today)
    asked = review.responsible[-1].title
    return Line(
        review.title,
        "; ".join(part for part in (review.scope, f"due by the end of {review.due_on}", f"asked: {asked}") if part),
        address(review.get_absolute_url()),
        "overdue" if late else "due",
        Mood.BAD if late else Mood.PLAIN,
    )
