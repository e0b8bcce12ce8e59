"""Leafing through the audit log: one page of what matches, newest first, and the way to older and newer ones.

Nothing is counted and nothing is skipped, and the search goes from part to part of the log and ends when the page is
full. Every part is one word of the index audit_found, as are the words of an entry (of a reason its first 10,000
characters), who, what and the kind of its subject. PostgreSQL follows all of them at once and jumps over what only some
of them have. What costs more in a long log: beginnings of common words, and common words that never stand together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import connection, transaction
from django.db.models import QuerySet

from approvals.models.audit import AuditEntry, AuditHead, AuditTombstone

SIZE = 100  # entries of a page
PART = 16_384  # entries of a part, as the index has it: more are slow to sort, fewer are many to ask
NEAR = 4_096  # the newest entries, which are read one by one for beginnings of words
MEMORY = "64MB"  # for the places of all beginnings of words: with less PostgreSQL reads whole pages again

_AS_SPACES = str.maketrans("./_-:#@", " " * 7)
_TEXT = (
    "translate(approvals_auditentry.actor || ' ' || approvals_auditentry.action || ' ' || approvals_auditentry.subject"
    " || ' ' || left(approvals_auditentry.because, 10000), './_-:#@', '       ')"
)
_WORDS = f"to_tsvector('simple'::regconfig, {_TEXT})"
# Spelled exactly as the index audit_found is.
_FOUND = (
    f"({_WORDS} || array_to_tsvector(ARRAY['#' || (approvals_auditentry.sequence / {PART})::text,"
    " '#who:' || approvals_auditentry.actor, '#did:' || approvals_auditentry.action,"
    " '#on:' || approvals_auditentry.subject_kind]))"
)
_MARKS = {"actor": "#who:", "action": "#did:", "subject_kind": "#on:"}  # the filters that the index has
FILTERS = ("action", "actor", "subject_kind", "subject_id", "correlation")


@dataclass(frozen=True)
class Asked:
    """What is looked for. Of `words` every one must be there; one with a `*` at its end may go on.

    `filters` are columns (of FILTERS) and their values. Only entries before or after a sequence, where one is given.
    """

    words: str = ""
    filters: Mapping[str, str] = field(default_factory=dict)
    before: int | None = None
    after: int | None = None

    @property
    def is_everything(self) -> bool:
        return not self.words.strip() and not self.filters

    def terms(self) -> list[tuple[str, bool]]:
        """The words as the index has them, each with whether it may go on."""
        return [(word, star == "*") for word, star in re.findall(r"(\w+)(\*?)", self.words.translate(_AS_SPACES))]


@dataclass(frozen=True)
class Leaf:
    """One page, newest entry first. `total` is known for the whole log and where everything that matches is here."""

    entries: list[AuditEntry]
    has_newer: bool
    has_older: bool
    total: int | None

    @property
    def newest(self) -> int | None:
        return self.entries[0].sequence if self.entries else None

    @property
    def oldest(self) -> int | None:
        return self.entries[-1].sequence if self.entries else None


def leaf(asked: Asked) -> Leaf:
    """The page that was asked for; the newest one where fewer than a page are newer than `after`."""
    forward = asked.after is not None
    head = AuditHead.objects.values_list("sequence", flat=True).first() or 0
    removed = (AuditTombstone.objects.values_list("through", flat=True).first() or 0) if asked.is_everything else 0
    found = _sequences(asked, max(removed, asked.after or 0) + 1, min(head, (asked.before or 2**62) - 1), SIZE + 1)
    if forward and asked.after and len(found) <= SIZE:
        return leaf(Asked(asked.words, asked.filters))
    shown = sorted(found[:SIZE], reverse=True)
    entries = list(AuditEntry.objects.filter(sequence__in=shown).defer("payload").order_by("-sequence"))
    there_are_more = len(found) > SIZE
    has_newer = there_are_more if forward else asked.before is not None
    has_older = (asked.after or 0) > removed if forward else there_are_more
    total = len(entries) if not has_newer and not has_older else None
    return Leaf(entries, has_newer, has_older, head - removed if asked.is_everything else total)


def _sequences(asked: Asked, first: int, last: int, most: int) -> list[int]:
    """Up to `most` entries from `first` to `last` that match, from the end on where the reader comes from."""
    terms = asked.terms()
    if asked.is_everything:  # the numbers have no gaps
        return list(range(first, last + 1)[:most] if asked.after is not None else range(last, first - 1, -1)[:most])
    if asked.words.strip() and not terms:
        return []
    if {"subject_id", "correlation"} & set(asked.filters):
        return _selective(asked, terms, first, last, most)
    if not any(goes_on for _, goes_on in terms):
        return _by_parts(asked, terms, first, last, most)
    if asked.after is None:
        found = _near(asked, terms, max(first, last - NEAR + 1), last, most)
        last = max(first - 1, last - NEAR)
        return found + (_at_once(asked, terms, first, last, most - len(found)) if len(found) < most else [])
    return _at_once(asked, terms, first, last, most)


def _query(term: str, goes_on: bool = False) -> str:
    """One word as a tsquery has it, quoted."""
    quoted = term.lower().replace("\\", "\\\\").replace("'", "''")
    return f"'{quoted}'{':*' if goes_on else ''}"


def _selective(asked: Asked, terms: list[tuple[str, bool]], first: int, last: int, most: int) -> list[int]:
    """By one row or one correlation, which have indexes of their own."""
    entries: QuerySet[AuditEntry] = AuditEntry.objects.filter(sequence__gte=first, sequence__lte=last, **asked.filters)
    for term in terms:
        entries = entries.extra(where=[f"{_WORDS} || '' @@ to_tsquery('simple', %s)"], params=[_query(*term)])  # noqa: S610
    order = "sequence" if asked.after is not None else "-sequence"
    return list(entries.order_by(order).values_list("sequence", flat=True)[:most])


def _by_parts(asked: Asked, terms: list[tuple[str, bool]], first: int, last: int, most: int) -> list[int]:
    """Whole words and marks: part by part, each of them one look into the index."""
    ends = (first // PART, last // PART, 1) if asked.after is not None else (last // PART, first // PART, -1)
    parts = ("format('''#%%s''', number)::tsquery", "generate_series(%s, %s, %s) AS number", list(ends))
    return _indexed(asked, terms, first, last, most, parts)


def _at_once(asked: Asked, terms: list[tuple[str, bool]], first: int, last: int, most: int) -> list[int]:
    """Beginnings of words: PostgreSQL gathers all their places for every look, so there is one look only."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT set_config('work_mem', %s, true)", [MEMORY])
        return _indexed(asked, terms, first, last, most, None)


def _indexed(
    asked: Asked,
    terms: list[tuple[str, bool]],
    first: int,
    last: int,
    most: int,
    parts: tuple[str, str, list[Any]] | None,
) -> list[int]:
    """The parts come first and in order, each asked only when those before it did not fill the page.

    What is looked for comes out of a table of its own, so that PostgreSQL keeps the conditions in the order in which
    they stand here, the part first, and does not guess from statistics that walking the whole log were quicker.
    """
    marks = [f"'{_escaped(_MARKS[name] + value)}'" for name, value in asked.filters.items() if name in _MARKS]
    wanted = ["%s::tsquery" for _ in marks] + ["to_tsquery('simple', %s)" for _ in terms]
    values: list[Any] = [*marks, *(_query(*term) for term in terms)]
    source = " FROM " + parts[1] if parts else ""
    columns = ", ".join(f"{one} AS w{at}" for at, one in enumerate([*([parts[0]] if parts else []), *wanted]))
    matches = " AND ".join(f"{_FOUND} @@ looked.w{at}" for at in range(len(wanted) + bool(parts)))
    exactly = "".join(f" AND {name} = %s" for name in asked.filters)
    order = "ASC" if asked.after is not None else "DESC"
    statement = (
        f"WITH looked AS MATERIALIZED (SELECT {columns}{source}) SELECT found.sequence FROM looked, LATERAL ("  # noqa: S608
        f"SELECT sequence FROM approvals_auditentry WHERE {matches} AND sequence BETWEEN %s AND %s{exactly}"
        f" ORDER BY sequence {order}) AS found LIMIT %s"
    )
    with connection.cursor() as cursor:
        given = [*values, *(parts[2] if parts else []), first, last, *asked.filters.values(), most]
        cursor.execute(statement, given)
        return [sequence for (sequence,) in cursor.fetchall()]


def _escaped(lexeme: str) -> str:
    return lexeme.replace("\\", "\\\\").replace("'", "''")


def _near(asked: Asked, terms: list[tuple[str, bool]], first: int, last: int, most: int) -> list[int]:
    """Row by row, backwards: most of what people look for is new. A plain look at the letters spares most rows."""
    entries: QuerySet[AuditEntry] = AuditEntry.objects.filter(sequence__gte=first, sequence__lte=last, **asked.filters)
    for term in terms:
        entries = entries.extra(  # noqa: S610
            where=[f"strpos(lower({_TEXT}), %s) > 0", f"{_WORDS} || '' @@ to_tsquery('simple', %s)"],
            params=[term[0].lower(), _query(*term)],
        )
    return list(entries.order_by("-sequence").values_list("sequence", flat=True)[:most])
