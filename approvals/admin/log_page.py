"""One page of the audit log as its template prints it: rows, filters in use, and the links to older and newer ones."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, urlencode

from django.urls import NoReverseMatch, reverse

from approvals import leafing
from approvals.models import AuditEntry

NAMES = {
    "action": "action",
    "actor": "who",
    "subject_kind": "kind of subject",
    "subject_id": "its number",
    "correlation": "correlation",
}
CHOICES = ("action", "actor", "subject_kind")
LONGEST = 120  # characters of a reason in the list


@dataclass(frozen=True)
class Row:
    entry: AuditEntry
    at: str
    at_iso: str
    page: str  # of the subject, where it has one
    reason: str
    outcome: str  # where it is not ok


@dataclass(frozen=True)
class InUse:
    """A filter that is in use, and the same page without it."""

    name: str
    value: str
    without: str


@dataclass(frozen=True)
class Choice:
    parameter: str
    name: str
    values: list[str]
    chosen: str


@dataclass(frozen=True)
class LogPage:
    rows: list[Row]
    words: str
    choices: list[Choice]
    kept: dict[str, str]  # filters that are links only: the form carries them along
    in_use: list[InUse]
    counted: str
    links: list[tuple[str, str, str]]  # (address, text, relation)
    begun: str  # the words with a star behind each, where nothing was found without
    begun_address: str


def compose(given: Mapping[str, str]) -> LogPage:
    """From the parameters of the address. What they do not know is passed over, as a cursor that is no number is."""
    filters = {name: given[name][:200] for name in leafing.FILTERS if given.get(name)}
    words = given.get("q", "").strip()[:200]
    asked = leafing.Asked(words, filters, before=_number(given, "before"), after=_number(given, "after"))
    leaf = leafing.leaf(asked)
    same = {**({"q": words} if words else {}), **filters}
    terms = [] if leaf.entries else asked.terms()
    begun = " ".join(f"{word}*" for word, _ in terms) if not all(goes_on for _, goes_on in terms) else ""
    return LogPage(
        rows=[_row(entry) for entry in leaf.entries],
        words=words,
        choices=[_choice(name, filters.get(name, "")) for name in CHOICES],
        kept={name: value for name, value in filters.items() if name not in CHOICES},
        in_use=[
            InUse("words" if name == "q" else NAMES[name], value, _address(same, name)) for name, value in same.items()
        ],
        counted=_counted(leaf, asked),
        links=_links(leaf, asked, same),
        begun=begun,
        begun_address=_address({**same, "q": begun}),
    )


def _number(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _row(entry: AuditEntry) -> Row:
    reason = entry.because if len(entry.because) <= LONGEST else entry.because[: LONGEST - 1] + "…"
    outcome = entry.outcome if entry.outcome not in ("", "ok") else ""
    at = entry.at.astimezone(dt.UTC)
    page = subject_page(entry.subject_kind, entry.subject_id)
    return Row(entry, f"{at:%Y-%m-%d %H:%M:%S}", at.isoformat(), page, reason, outcome)


def subject_page(kind: str, subject_id: str) -> str:
    """The address of a subject's page, "" where it has none. Whether the row is still there is not asked.

    Entries outlive rows.
    """
    return _pattern(kind).replace("\0", quote(subject_id, safe="")) if kind and subject_id and _pattern(kind) else ""


@lru_cache(maxsize=200)
def _pattern(kind: str) -> str:
    """The address of the pages of this kind with a NUL where the number belongs: `reverse` for each row takes long."""
    try:
        return reverse(f"admin:{kind.replace('.', '_')}_change", args=["\0"]).replace("%00", "\0")
    except NoReverseMatch:
        return ""


def _choice(name: str, chosen: str) -> Choice:
    values = [value for value in AuditEntry.objects.values_of(name) if value]
    if chosen and chosen not in values:
        values.append(chosen)  # the form must not lose what the address asks for
    return Choice(name, NAMES[name], values, chosen)


def _address(same: Mapping[str, str], without: str = "", **more: int) -> str:
    return "?" + urlencode({**{name: value for name, value in same.items() if name != without}, **more})


def _counted(leaf: leafing.Leaf, asked: leafing.Asked) -> str:
    """How many there are, as far as that is known."""
    if not leaf.entries:
        return ""
    span = f"#{leaf.oldest} to #{leaf.newest}"
    if leaf.total is None:
        return f"{len(leaf.entries)} entries that match, {span}. How many match in all is not counted."
    entries = "entry" if leaf.total == 1 else "entries"
    if asked.is_everything:
        return f"{leaf.total:,} {entries}. Here: {span}."
    return f"{leaf.total:,} {entries} match{'es' if leaf.total == 1 else ''}."


def _links(leaf: leafing.Leaf, asked: leafing.Asked, same: Mapping[str, str]) -> list[tuple[str, str, str]]:
    links = []
    if leaf.has_newer or (asked.before is not None and not leaf.entries):
        links.append((_address(same), "Newest", "first"))
    if leaf.has_newer and leaf.newest:
        links.append((_address(same, after=leaf.newest), "Newer", "prev"))
    if leaf.has_older and leaf.oldest:
        links += [(_address(same, before=leaf.oldest), "Older", "next"), (_address(same, after=0), "Oldest", "last")]
    return links
