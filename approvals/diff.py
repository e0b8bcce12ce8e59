"""A unified diff as lines that a page can colour."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


class Kind(StrEnum):
    FILE = "file"
    HUNK = "hunk"
    ADDED = "added"
    REMOVED = "removed"
    SAME = "same"
    NOTE = "note"


@dataclass(frozen=True)
class Line:
    """One line; `old` and `new` are its numbers in the two versions, None where it has none."""

    kind: Kind
    text: str
    old: int | None = None
    new: int | None = None

    @property
    def sign(self) -> str:
        return {Kind.ADDED: "+", Kind.REMOVED: "−"}.get(self.kind, "")


def lines(text: str) -> list[Line]:
    """The lines of a unified diff. A hunk's own counts say where it ends, so a removed "-- x" is no file header."""
    found: list[Line] = []
    old = new = old_left = new_left = 0
    old_name = ""
    for raw in text.split("\n"):
        if (old_left > 0 or new_left > 0) and raw[:1] in " +-\\":
            if raw.startswith("+"):
                found.append(Line(Kind.ADDED, raw[1:], new=new))
                new, new_left = new + 1, new_left - 1
            elif raw.startswith("-"):
                found.append(Line(Kind.REMOVED, raw[1:], old=old))
                old, old_left = old + 1, old_left - 1
            elif raw.startswith("\\"):
                found.append(Line(Kind.NOTE, raw[1:].strip()))
            else:
                found.append(Line(Kind.SAME, raw[1:], old=old, new=new))
                old, old_left, new, new_left = old + 1, old_left - 1, new + 1, new_left - 1
        elif hunk := HUNK.match(raw):
            old, new = int(hunk[1]), int(hunk[3])
            old_left, new_left = int(hunk[2] or 1), int(hunk[4] or 1)
            found.append(Line(Kind.HUNK, raw))
        elif raw.startswith("--- "):
            old_name = file_name(raw)
        elif raw.startswith("+++ "):
            gone = raw.startswith("+++ /dev/null")
            found.append(Line(Kind.FILE, old_name if gone else file_name(raw)))
            if gone:
                found.append(Line(Kind.NOTE, "The file is deleted."))
        elif raw and not raw.startswith(("diff ", "index ")):
            found.append(Line(Kind.NOTE, raw.lstrip("\\ ")))
    return found


def file_name(header: str) -> str:
    """'realm/views.py' from '+++ b/realm/views.py'."""
    return re.sub(r"^[ab]/", "", header[4:].split("\t")[0])


def counts(found: list[Line]) -> tuple[int, int]:
    """(lines added, lines removed)."""
    return (
        sum(line.kind is Kind.ADDED for line in found),
        sum(line.kind is Kind.REMOVED for line in found),
    )
