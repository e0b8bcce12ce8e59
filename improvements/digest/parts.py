"""What a digest is made of, and where other parts of the product `add` what they have to tell."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from django.conf import settings
from django.contrib.auth.models import User

from approvals.policy import Role
from approvals.roles import ANYWHERE, Snapshot
from improvements.digest import weeks
from improvements.digest.weeks import Week

T = TypeVar("T")
MOST_LINES = 5  # of a section; the rest is a link away
# Who has none of these, and no role, would read an empty page.
VIEW_RIGHTS = (
    "approvals.view_approvalrequest",
    "improvements.view_improvement",
    "analysis.view_finding",
    "monitoring.view_alert",
    "monitoring.view_healthscore",
    "monitoring.view_service",
)


class Mood(StrEnum):
    """How a line is marked, in words as well as by colour."""

    PLAIN = ""
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True)
class Line:
    """One thing that is told. `url` is where a person sees the whole of it; `badge` says its mood in a word."""

    text: str
    detail: str = ""
    url: str = ""
    badge: str = ""
    mood: Mood = Mood.PLAIN


@dataclass(frozen=True)
class Section:
    """The first few of `total` lines. `url` is where all of them are, `note` a sentence about them or beside them;
    `nothing` is said when there is neither.
    """

    title: str
    lines: tuple[Line, ...] = ()
    total: int = 0
    url: str = ""
    note: str = ""
    nothing: str = ""

    @property
    def more(self) -> int:
        return max(0, self.total - len(self.lines))


@dataclass(frozen=True)
class Chapter:
    """Sections under one of the three questions. Without any line it says `quiet` instead."""

    title: str
    sections: tuple[Section, ...]
    quiet: str

    @property
    def total(self) -> int:
        return sum(section.total for section in self.sections)


@dataclass(frozen=True)
class Reader:
    """Whom a digest is for, as they are now: rights, roles and time zone."""

    user: User
    zone: dt.tzinfo
    permissions: frozenset[str]
    rights: Snapshot
    hint: str = ""
    wants_digest: bool = True
    is_service_account: bool = False

    def roles(self, scope: str | None = "") -> frozenset[Role]:
        """Those that they hold for the service `scope`; for the whole installation, or ANYWHERE at all."""
        return self.rights.people(scope)[self.user.pk].roles

    def may(self, *permissions: str) -> bool:
        return self.permissions.issuperset(permissions)

    def clock(self, at: dt.datetime) -> str:
        return weeks.clock(at, self.zone)

    @property
    def obstacle(self) -> str:
        """Why no digest is for them; empty when one is."""
        if not self.user.is_active:
            return "The account is not active."
        if self.is_service_account:
            return "A program's account gets no mail."
        if not self.wants_digest:
            return "They chose to get none."
        if not self.user.email:
            return "The account has no email address."
        if not self.roles(ANYWHERE) and not self.permissions.intersection(VIEW_RIGHTS):
            return "They have no role and no right to view anything."
        return ""


@dataclass(frozen=True)
class Digest:
    """Everything that is told, in words. `unsubscribe_url` is empty in a preview."""

    week: Week
    reader: str
    subject: str
    period: str
    composed_at: str
    zone: str
    summary: tuple[str, ...]
    chapters: tuple[Chapter, ...]
    hint: str
    home_url: str
    settings_url: str
    unsubscribe_url: str = ""


@dataclass
class Facts:
    """The period that is told of, [since, until), and `at`: now. What was asked of the database is kept for others."""

    week: Week
    since: dt.datetime
    until: dt.datetime
    at: dt.datetime
    kept: dict[tuple[object, ...], Any] = field(default_factory=dict)

    def once(self, *question: object, ask: Callable[[], T]) -> T:
        """The answer to `question`, asked for once."""
        if question not in self.kept:
            self.kept[question] = ask()
        answer: T = self.kept[question]
        return answer

    @classmethod
    def of(cls, week: Week, zone: dt.tzinfo, at: dt.datetime) -> Facts:
        """A week that is not over is told of as far as it went."""
        begins = week.begins(zone)
        return cls(week, begins, max(begins, min(week.ends(zone), at)), at)


# What one part of the product tells; None where it is not for the reader.
SectionOf = Callable[[Reader, Facts], "Section | None"]
ADDED: dict[str, list[SectionOf]] = {"needs": [], "changed": [], "next": []}


def add(chapter: str, section: SectionOf) -> None:
    """Have `section` told in the chapter "needs", "changed" or "next", after its own. KeyError for another chapter."""
    if section not in ADDED[chapter]:
        ADDED[chapter].append(section)


def address(path: str) -> str:
    """Where people open a page. Opening it shows; nothing is done by following a link."""
    return settings.PUBLIC_URL.rstrip("/") + path
