"""One hash that stands for a patch, its evidence and the policy: what a signature is bound to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import rfc8785


def canonical(value: Any) -> bytes:
    """`value` as canonical JSON (RFC 8785): one spelling for one meaning. ValueError for what JSON cannot say."""
    try:
        return _ENCODER.encode(value).encode() if _is_usual(value) else rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise ValueError(
            f"{error}. Only text, whole numbers below 2**53, finite floats, lists and dicts can be hashed."
        ) from error


_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _is_usual(value: Any) -> bool:
    """Whether Python's own encoder, which is five times as quick, spells it as RFC 8785 does.

    It orders names by code points, which for ASCII is the same, and floats look alike where neither has an exponent.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is dict:
        return all(type(name) is str and name.isascii() for name in value) and all(map(_is_usual, value.values()))
    if kind is list:
        return all(map(_is_usual, value))
    if kind is int:
        return bool(abs(value) < 2**53)
    return kind is float and bool(1e-4 <= abs(value) < 1e15 and not value.is_integer())


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, as 64 hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def fingerprint(*, patch: str, evidence: Iterable[str], policy_version: str) -> str:
    """What a signature is bound to, as 64 hex digits.

    `patch` is git's diff, or any other text that says all of what is to be done; `evidence` the hashes of what the
    steps left behind, in any order. Of a diff its content counts (see `content`); any other change of patch, evidence
    or policy version gives another fingerprint.
    """
    return digest({"patch": content(patch), "evidence": sorted(evidence), "policy_version": policy_version})


# --- What a diff says ----------------------------------------------------------------------------------------------

HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)", re.DOTALL)
SECTION = "diff --git "
# How alike two whole files are moves when somebody else edits another place of them.
BY_THE_WAY = ("similarity index ", "dissimilarity index ")
# Bytes that text could not hold came out as one of these: two patches may look alike then, and git's hashes count.
LOSSY = ("\ufffd", "␀")


@dataclass
class Hunk:
    """One place of a file. `start` is its first line in the old version, counted from 1; 0 for an empty one."""

    start: int
    heading: str
    lines: list[str] = field(default_factory=list)

    @property
    def before(self) -> list[str]:
        """What it finds in the old version: the lines it keeps and those it removes."""
        return [line[1:] for line in self.lines if line[:1] in (" ", "-")]


@dataclass
class Section:
    """One file of a diff."""

    header: list[str] = field(default_factory=list)
    hunks: list[Hunk] = field(default_factory=list)

    @property
    def old_path(self) -> str | None:
        """The file that it changes, as git quotes it where that is needed; None when there was none."""
        named = next((line[4:].split("\t")[0] for line in self.header if line.startswith("--- ")), "/dev/null")
        return None if named == "/dev/null" else named.removeprefix("a/")


def content(diff: str) -> Any:
    """What a patch does, whatever it is applied to: files, modes, and every line added, removed or kept beside them.

    The numbers of lines, the hashes of whole files and how alike they are do not count: they move when somebody else
    changes another place, and the patch still does the same. Text that is no diff of git's counts as it is.
    """
    sections = list(_sections(diff))
    if not sections:
        return diff
    return [_said(section) for section in sections]


def places(diff: str, read: Callable[[str], str]) -> dict[str, list[int]]:
    """For each file and hunk of a diff: how many equal places come before it in the old version, which `read` gives.

    Without its line number a hunk fits every place that looks like its own. With this it fits one.
    """
    found: dict[str, list[int]] = {}
    for section in _sections(diff):
        path = section.old_path
        if path is None:
            continue
        if path.startswith('"'):
            found[path] = [hunk.start for hunk in section.hunks]  # a name as odd as that is not read; it fits one too
        else:
            lines = read(path).split("\n")
            found[path] = [_equal_before(lines, hunk) for hunk in section.hunks]
    return found


def _equal_before(lines: list[str], hunk: Hunk) -> int:
    wanted = hunk.before
    if not wanted:
        return 0
    return sum(lines[at : at + len(wanted)] == wanted for at in range(max(hunk.start - 1, 0)))


def _said(section: Section) -> dict[str, Any]:
    text = [*section.header, *(line for hunk in section.hunks for line in hunk.lines)]
    by_the_way = BY_THE_WAY if any(sign in line for line in text for sign in LOSSY) else (*BY_THE_WAY, "index ")
    return {
        "header": [line for line in section.header if not line.startswith(by_the_way)],
        "hunks": [[hunk.heading, *hunk.lines] for hunk in section.hunks],
    }


def _sections(diff: str) -> Iterator[Section]:
    """The files of a diff. A hunk's own counts say where it ends: no line of a file is taken for a header."""
    section: Section | None = None
    old_left = new_left = 0
    for line in diff.split("\n"):
        if section and section.hunks and (old_left > 0 or new_left > 0 or line.startswith("\\")):
            section.hunks[-1].lines.append(line)
            old_left -= line[:1] in (" ", "-")
            new_left -= line[:1] in (" ", "+")
        elif line.startswith(SECTION):
            if section:
                yield section
            section = Section([line])
        elif section and (hunk := HUNK.fullmatch(line)):
            section.hunks.append(Hunk(int(hunk[1]), hunk[5]))
            old_left, new_left = int(hunk[2] or 1), int(hunk[4] or 1)
        elif section and line:
            section.header.append(line)
        elif line:
            return  # no diff of git's begins like this
    if section:
        yield section
