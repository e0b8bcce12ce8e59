"""A digest composed once for a reader's rights and time zone; mail, text and preview only print it.

Which sections there are, who may see them and whom they need is in `sections`, in three tables.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from django.conf import settings
from django.contrib.auth.models import User
from django.urls import reverse

from approvals import roles
from approvals.models import PersonSettings
from improvements.digest import sections, weeks
from improvements.digest.parts import ADDED, Chapter, Digest, Facts, Reader, Section, SectionOf, address
from improvements.digest.weeks import Week

CHAPTERS = (
    ("needs", "What needs you", "Nothing needs you.", sections.NEEDS),
    ("changed", "What changed", "Nothing that you may view was measured or changed.", sections.CHANGED),
    ("next", "What is next", "Nothing is waiting to happen.", sections.NEXT),
)
LONGEST_SUBJECT = 160


def reader_of(user: User) -> Reader:
    """`user` as a reader, with what the database says now."""
    known = PersonSettings.objects.filter(user=user).first() or PersonSettings(user=user)
    zone, hint = weeks.zone_named(known.time_zone)
    return Reader(
        user=user,
        zone=zone,
        hint=hint,
        permissions=frozenset(user.get_all_permissions()),
        rights=roles.snapshot([user.pk]),
        wants_digest=known.wants_digest,
        is_service_account=known.is_service_account,
    )


def compose(reader: Reader, facts: Facts, *, unsubscribe_url: str = "") -> Digest:
    """What `reader` is told of the period of `facts`. Reads the database, changes nothing."""
    needs, changed, ahead = (
        Chapter(title, sections_of(reader, facts, [*own, *ADDED[name]]), quiet) for name, title, quiet, own in CHAPTERS
    )
    news = sections.news(reader, facts)
    needed = f"{needs.total} need you" if needs.total > 1 else "1 needs you" if needs.total else "nothing needs you"
    return Digest(
        week=facts.week,
        reader=reader.user.username,
        subject=f"RuneRogue {facts.week}: {', '.join([needed, *(part for part in news if part)])}"[:LONGEST_SUBJECT],
        period=f"{reader.clock(facts.since)} to {reader.clock(facts.until)}",
        composed_at=reader.clock(facts.at),
        zone=str(reader.zone),
        summary=(needs_in_words(needs), *sections.summary(reader, facts), *next_in_words(ahead)),
        chapters=(needs, changed, ahead),
        hint=reader.hint,
        home_url=address(reverse("admin:index")),
        settings_url=address(reverse("admin:improvements_digestsent_mine")),
        unsubscribe_url=unsubscribe_url,
    )


def sections_of(reader: Reader, facts: Facts, asked: Sequence[SectionOf]) -> tuple[Section, ...]:
    """Those that concern the reader and have something to say."""
    found = [section(reader, facts) for section in asked]
    return tuple(one for one in found if one is not None and (one.total or one.note or one.nothing))


def needs_in_words(needs: Chapter) -> str:
    if not needs.total:
        return "Nothing needs you."
    return f"{weeks.count(needs.total, 'thing needs', 'things need')} you: {counted(needs)}."


def next_in_words(ahead: Chapter) -> list[str]:
    return [f"Next: {counted(ahead)}."] if ahead.total else []


def counted(chapter: Chapter) -> str:
    return ", ".join(f"{one.title[0].lower()}{one.title[1:]} ({one.total})" for one in chapter.sections if one.total)


def zone_of(user: User) -> dt.tzinfo:
    """In which a person's weeks begin."""
    known = getattr(user, "person_settings", None)
    return weeks.zone_named(known.time_zone)[0] if known else dt.UTC


def last_week(zone: dt.tzinfo, at: dt.datetime) -> Week:
    """The newest week whose digest should have gone out by `at`."""
    return weeks.last_due(at, zone, weekday=settings.DIGEST_WEEKDAY, hour=settings.DIGEST_HOUR)


def due(week: Week, zone: dt.tzinfo) -> dt.datetime:
    """When the digest of `week` goes out."""
    return week.due(zone, weekday=settings.DIGEST_WEEKDAY, hour=settings.DIGEST_HOUR)
