"""Leafing through the audit log finds exactly what the slow definition finds, page by page in both directions."""

from __future__ import annotations

import datetime as dt
import random
import re
from typing import Any

import pytest
from django.db import connection

from approvals import leafing
from approvals.leafing import PART, Asked
from approvals.models.audit import AuditEntry
from tests.audit_log import triggers_off

# Around the ends of parts, with nothing between: the numbers are all that matters here.
PLACES = [*range(1, 15), *range(PART - 9, PART + 9), *range(2 * PART - 3, 2 * PART + 4), *range(5 * PART, 5 * PART + 9)]
WORDS = ("guild", "guilds", "Prefetch", "p95", "é", "4017", "on", "who:bob", "#5", "it's", "back\\slash", "0.31")


@pytest.fixture
def rows(django_user_model: Any) -> list[AuditEntry]:
    """Entries made up by dice that are always the same; they need be no chain to be found."""
    dice = random.Random(8)
    made = [
        AuditEntry(
            sequence=sequence,
            prev_hash=f"p{sequence}",
            hash=f"h{sequence}",
            at=dt.datetime(2026, 3, 1, tzinfo=dt.UTC),
            actor=dice.choice(["alice", "bob", "it's me"]),
            action=dice.choice(["approval.signed", "finding.opened"]),
            subject_kind=dice.choice(["", "improvements.improvement"]),
            subject_id=dice.choice(["", "4", "5"]),
            subject=dice.choice(WORDS),
            because=" ".join(dice.sample(WORDS, 3)),
            correlation=dice.choice(["", "request-1"]),
            payload="{}",
        )
        for sequence in PLACES
    ]
    with triggers_off():
        AuditEntry.objects.bulk_create(made)
        with connection.cursor() as cursor:
            cursor.execute("UPDATE approvals_audithead SET sequence = %s", [PLACES[-1]])
    return made


def matches(row: AuditEntry, asked: Asked) -> bool:
    """The definition."""
    text = f"{row.actor} {row.action} {row.subject} {row.because}".lower()
    there = re.findall(r"\w+", text.replace("_", " "))
    wanted = re.findall(r"(\w+)(\*?)", asked.words.lower().replace("_", " "))
    return all(getattr(row, name) == value for name, value in asked.filters.items()) and all(
        any(one == word or (star and one.startswith(word)) for one in there) for word, star in wanted
    )


QUESTIONS = [
    Asked("guild"),
    Asked("guild*"),
    Asked("GUILD p95"),
    Asked("guild* who"),
    Asked("o*"),  # what the index has beside words does not begin so
    Asked("did*"),
    Asked("on"),
    Asked("0.31"),
    Asked("it's"),
    Asked("back\\slash"),
    Asked("é 4017"),
    Asked("nobody"),
    Asked("", {"actor": "it's me"}),
    Asked("", {"action": "approval.signed", "actor": "bob"}),
    Asked("guilds", {"subject_kind": "improvements.improvement"}),
    Asked("pre*", {"actor": "alice"}),
    Asked("", {"subject_kind": "improvements.improvement", "subject_id": "4"}),
    Asked("p95 gui*", {"correlation": "request-1"}),
    Asked("", {"actor": "nobody"}),
]


@pytest.mark.django_db
@pytest.mark.parametrize("near", [leafing.NEAR, 3])
def test_finds_every_entry_that_matches_once_and_in_order(
    rows: list[AuditEntry], near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leafing, "SIZE", 5)
    monkeypatch.setattr(leafing, "NEAR", near)
    for asked in QUESTIONS:
        wanted = [row.sequence for row in reversed(rows) if matches(row, asked)]
        assert older(asked) == wanted, asked
        assert newer(asked) == wanted, asked


def older(asked: Asked) -> list[int]:
    found: list[int] = []
    page = leafing.leaf(asked)
    while True:
        assert page.has_newer is bool(found)
        found += [entry.sequence for entry in page.entries]
        if not page.has_older:
            return found
        page = leafing.leaf(Asked(asked.words, asked.filters, before=page.oldest))


def newer(asked: Asked) -> list[int]:
    found: list[int] = []
    page = leafing.leaf(Asked(asked.words, asked.filters, after=0))
    while True:
        numbers = [entry.sequence for entry in page.entries]
        assert numbers == sorted(numbers, reverse=True)
        found = [number for number in numbers if number not in found] + found
        if not page.has_newer:
            return found
        page = leafing.leaf(Asked(asked.words, asked.filters, after=page.newest))


@pytest.mark.django_db
def test_looks_into_the_index_however_common_a_word_is(rows: list[AuditEntry]) -> None:
    """The expression of the query is that of the index, letter by letter, or PostgreSQL would read every entry."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(
            f"EXPLAIN SELECT 1 FROM approvals_auditentry WHERE {leafing._FOUND} @@ to_tsquery('simple', 'guild')"
        )
        assert "audit_found" in str(cursor.fetchall())
