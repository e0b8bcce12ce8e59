"""Exports of the audit log that prove themselves: entries, checkpoints, keys and the program that verifies them."""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Max, Min

from approvals import audit, chain, checkpoints, statements
from approvals.models.audit import AuditEntry

PROGRAM = "verify_audit_export.py"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would run


class CannotExport(ValueError):
    """Nothing was exported; the message says why."""


@dataclass(frozen=True)
class Span:
    """The entries that were wanted, and the last that has to come along: one that a checkpoint vouches for."""

    first: int
    last: int
    sealed: int


def export(
    folder: Path,
    *,
    at: dt.datetime,
    first: int | None = None,
    last: int | None = None,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    actor: User | None = None,
    because: str = "",
) -> dict[str, Any]:
    """Write the entries of a range (both ends included, `until` not) into a new folder. Returns the signed manifest.

    The entries up to the next checkpoint come along, since it is what proves them; the first one's own link proves
    nothing more of what was before. Raises CannotExport, StatementsUnusable.
    """
    wanted_first, wanted_last = _range(first, last, since, until)
    new_folder(folder)
    with transaction.atomic():
        # First the record, then the data: who stops this half-way has read it all the same.
        data = {"first": wanted_first, "last": wanted_last, "folder": folder.name}
        audit.record("audit.exported", None, actor=actor, because=because, data=data)
    checkpoints.write(at)
    marks = statements.read().marks
    sealed = min(mark for mark in marks if mark >= wanted_last)
    return write(folder, Span(wanted_first, wanted_last, sealed), at=at)


def _range(
    first: int | None, last: int | None, since: dt.datetime | None, until: dt.datetime | None
) -> tuple[int, int]:
    """The sequences of the first and last entry asked for. Raises CannotExport when there are none."""
    entries = AuditEntry.objects.order_by()
    if since:
        entries = entries.filter(at__gte=since)
    if until:
        entries = entries.filter(at__lt=until)
    if first:
        entries = entries.filter(sequence__gte=first)
    if last:
        entries = entries.filter(sequence__lte=last)
    ends = entries.aggregate(Min("sequence"), Max("sequence"))
    if ends["sequence__min"] is None:
        raise CannotExport("No entry is in that range. It may have been archived: see manage.py archive_audit.")
    return ends["sequence__min"], ends["sequence__max"]


def new_folder(folder: Path) -> None:
    """Make it, for this user alone. Raises CannotExport when it is there already."""
    try:
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise CannotExport(f"{folder} can't be made: {error}. Name a folder that does not exist yet.") from error


class Digesting:
    """A file that is written once; its SHA-256 is known at the end."""

    def __init__(self, path: Path) -> None:
        self.file: IO[bytes] = path.open("xb")
        self.hash = hashlib.sha256()

    def write(self, text: str) -> int:
        data = text.encode()
        self.hash.update(data)
        return self.file.write(data)

    def close(self) -> str:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return self.hash.hexdigest()


def write(folder: Path, span: Span, *, at: dt.datetime) -> dict[str, Any]:
    """Stream the entries of `span` into files, one pass, one entry in memory; then the proof. Returns the manifest."""
    entries, table = Digesting(folder / "entries.jsonl"), Digesting(folder / "entries.csv")
    row = csv.writer(table).writerow
    row([*chain.COLUMNS, "details", "prev_hash", "hash"])
    start = None
    link = None
    for link in audit.stored_links(span.first, span.sealed):
        start = start or link
        entries.write(jsonl_of(link))
        _write_row(row, link)
    if start is None or link is None:
        raise CannotExport(f"Entries {span.first} to {span.sealed} are not there.")
    proof = Digesting(folder / "statements.jsonl")
    for line in statements.lines():
        proof.write(line + "\n")
    program = Digesting(folder / PROGRAM)
    program.write(Path(chain.__file__).read_text(encoding="utf-8"))
    body = {
        "kind": "export",
        "at": f"{at.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "first": span.first,
        "last": span.sealed,
        "count": span.sealed - span.first + 1,
        "wanted": {"first": span.first, "last": span.last},
        "prev_hash": start.prev_hash,
        "hash": link.hash,
        "files": {
            "entries.jsonl": entries.close(),
            "entries.csv": table.close(),
            "statements.jsonl": proof.close(),
            PROGRAM: program.close(),
        },
    }
    manifest = statements.sign(body)
    written = Digesting(folder / "manifest.json")
    written.write(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    written.close()
    return manifest


def jsonl_of(link: chain.Link) -> str:
    """One line of `entries.jsonl`: every column, and what was hashed."""
    payload = json.dumps(link.payload, ensure_ascii=False)
    return f'{link.columns[:-1]},"hash":"{link.hash}","payload":{payload},"prev_hash":"{link.prev_hash}"}}\n'


def _write_row(row: Callable[[list[Any]], Any], link: chain.Link) -> None:
    columns = json.loads(link.columns)
    payload = json.loads(link.payload)
    details = payload.get("details") or {name: payload.get(name) for name in ("was", "became", "data")}
    texts = [*(columns[name] for name in chain.COLUMNS), json.dumps(details, ensure_ascii=False, sort_keys=True)]
    row([*map(safe_cell, texts), link.prev_hash, link.hash])


def safe_cell(value: Any) -> Any:
    """A text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA) else value


def remove(folder: Path) -> None:
    """Take away what an export left that did not succeed."""
    shutil.rmtree(folder, ignore_errors=True)
