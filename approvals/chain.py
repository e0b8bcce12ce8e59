#!/usr/bin/env python3
"""The arithmetic of the audit log, and by itself a program that verifies an export of it.

An entry's hash is SHA-256 over the hash before it and its own payload, so that changing, removing, inserting or
reordering anything changes every hash after it. Statements (checkpoints, changes of keys, tombstones) are signed with
Ed25519, form a chain of their own and are kept outside the database: they say which hashes the log once had.

This file goes into every export as `verify_audit_export.py`. It needs Python from 3.11 on and the package
`cryptography`, no database and nothing else of RuneRogue:

    python3 verify_audit_export.py [--public-key HEX] [--json] FOLDER [FOLDER ...]

Several folders (archives, then an export) must continue each other. Exit code 0: everything is as it was written;
1: something was changed, and what; 2: the folder or the arguments can't be used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from json.encoder import encode_basestring as quoted
from pathlib import Path
from typing import Any, NamedTuple

GENESIS = "0" * 64  # the hash before the first entry, and the digest before the first statement
FORMAT = 2  # the layout of a payload
# In the order in which canonical JSON (RFC 8785) has them.
COLUMNS = (
    "action",
    "actor",
    "actor_id",
    "at",
    "because",
    "correlation",
    "on_behalf_of",
    "origin",
    "outcome",
    "sequence",
    "subject",
    "subject_id",
    "subject_kind",
)
AROUND = COLUMNS[: COLUMNS.index("sequence")], COLUMNS[COLUMNS.index("sequence") + 1 :]
# Entries of format 1 were written before these columns were there: the columns must be empty.
NEW_IN_2 = {"correlation": "", "on_behalf_of": "", "origin": "", "outcome": ""}
ECHO = '{"action":"audit.'  # how the columns of an entry begin that tells of a statement


# --- Entries -----------------------------------------------------------------------------------------------------


class Link(NamedTuple):
    """One stored entry. `columns` is canonical JSON of what its columns say, to be compared with its payload."""

    sequence: int
    prev_hash: str
    hash: str
    payload: str
    columns: str


class Fault(NamedTuple):
    """The first entry that is wrong or missing, and how."""

    sequence: int
    what: str


@dataclass(frozen=True)
class Checked:
    """What walking a chain found: links walked, where it ended, and the first fault if any.

    `echoes` are the statements that entries tell of: number → (digest, the entry's sequence).
    """

    count: int
    sequence: int
    hash: str
    fault: Fault | None
    echoes: Mapping[int, tuple[str, int]] = field(default_factory=dict, compare=False, repr=False)


def columns_text(columns: Mapping[str, Any]) -> str:
    """The columns of an entry as canonical JSON: the same as RFC 8785 for these names, texts and whole numbers."""
    return spelled({name: columns[name] for name in COLUMNS})


def payload_parts(columns: Mapping[str, Any], details: str) -> tuple[str, str]:
    """The text that is hashed, before and after the entry's sequence, which only the database knows.

    `details` is canonical JSON of what only the payload holds.
    """
    before, after = (",".join(f'"{name}":{spelled(columns[name])}' for name in names) for names in AROUND)
    return f'{{"columns":{{{before},"sequence":', f',{after}}},"details":{details},"format":{FORMAT}}}'


def link_hash(prev_hash: str, payload: str) -> str:
    """The hash of an entry, as 64 hex digits. The database's trigger computes the same."""
    return hashlib.sha256(f"{prev_hash}{payload}".encode()).hexdigest()


def walk(
    links: Iterable[Link], *, marks: Mapping[int, str] | None = None, starts: Mapping[int, str] | None = None
) -> Checked:
    """Follow `links`, which come in the order of their sequence, until the end or the first fault.

    `marks` are hashes known from elsewhere (sequence → hash), such as those of checkpoints: an entry at a marked
    sequence must have that hash, and a chain that ends before a mark has lost its tail. `starts` are the ends of what
    was archived (sequence → hash): the chain may begin after one of them instead of with entry 1.
    """
    marks = marks or {}
    starts = {0: GENESIS, **(starts or {})}
    count, last, previous = 0, 0, GENESIS
    echoes: dict[int, tuple[str, int]] = {}
    for link in links:
        sequence, _, its_hash, _, columns = link
        if not count and sequence - 1 in starts:
            last, previous = sequence - 1, starts[sequence - 1]
        if wrong := fault_of(link, last, previous, marks.get(sequence)):
            return Checked(count, last, previous, Fault(min(sequence, last + 1), wrong), echoes)
        count, last, previous = count + 1, sequence, its_hash
        if columns.startswith(ECHO):
            echoes.update(_echo(link))
    furthest = max(marks, default=0)
    if furthest > last:
        lost = Fault(last + 1, f"The log ends at {last} but had reached {furthest}.")
        return Checked(count, last, previous, lost, echoes)
    return Checked(count, last, previous, None, echoes)


def fault_of(link: Link, last: int, previous: str, mark: str | None) -> str | None:
    """What is wrong with `link` after an entry numbered `last` with hash `previous`, or None."""
    sequence, prev_hash, its_hash, payload, columns = link
    if sequence != last + 1:
        return f"Entry {last + 1} is missing: after {last} comes {sequence}."
    if prev_hash != previous:
        return "It does not continue the entry before it."
    if sha256(f"{prev_hash}{payload}".encode()).hexdigest() != its_hash:
        return "Its payload or its hash was changed."
    # What is quick and nearly always so; which column it is when not, and the old format, take a closer look.
    if not payload.startswith(f'{{"columns":{columns},"details":{{') and (wrong := _differing(payload, columns)):
        return wrong
    if mark is not None and its_hash != mark:
        return "Its hash is not the one noted when it was written: the chain was rewritten."
    return None


def _differing(payload: str, columns: str) -> str | None:
    try:
        told, stored = json.loads(payload), json.loads(columns)
    except ValueError:
        return "Its payload or its columns are not JSON."
    if not isinstance(told, dict):
        return "Its payload is not an entry."
    recorded = {**told, **NEW_IN_2} if told.get("format") == 1 else told.get("columns")
    if not isinstance(recorded, dict):
        return "Its payload is not an entry."
    for name, value in stored.items():
        # `1 == True` in Python, but the two are not the same record.
        if name not in recorded or recorded[name] != value or type(recorded[name]) is not type(value):
            return f"Its column {name} does not say what was recorded."
    return None if told.get("format") == 1 else "Its payload is not spelled as it was recorded."


def _echo(link: Link) -> dict[int, tuple[str, int]]:
    data = (json.loads(link.payload).get("details") or {}).get("data") or {}
    return {data["statement"]: (data["digest"], link.sequence)} if "statement" in data else {}


# --- Statements --------------------------------------------------------------------------------------------------


def spelled(value: Any) -> str:
    """Canonical JSON (RFC 8785) of texts, whole numbers, null, and objects of them with plain ASCII names."""
    if isinstance(value, str):
        return quoted(value)
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{quoted(name)}:{spelled(value[name])}" for name in sorted(value)) + "}"
    if type(value) is int:
        return str(value)
    raise TypeError(f"A statement cannot hold a {type(value).__name__}")


def digest_of(line: str) -> str:
    """The digest by which the next statement, and the log, name this one."""
    return hashlib.sha256(line.encode()).hexdigest()


def key_id_of(public: str) -> str:
    """The short name of a public key that is given as 64 hex digits."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()[:16]


def is_signed(statement: Mapping[str, Any], public: str) -> bool:
    """Whether `public` signed all of the statement but the signature itself."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    body = {name: value for name, value in statement.items() if name != "signature"}
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(bytes.fromhex(statement["signature"]), spelled(body).encode())
    except (InvalidSignature, ValueError, TypeError, KeyError):
        return False
    return True


@dataclass
class Statements:
    """The good statements up to the first bad one, and what is wrong with that one.

    `public` is the key that signs now, `keys` are all there were: id → public key. `digests` are those of the lines, in
    order: the statement numbered n is at n - 1.
    """

    all: list[dict[str, Any]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    public: str = ""
    fault: str | None = None

    @property
    def marks(self) -> dict[int, str]:
        """The hashes that the log had: sequence → hash."""
        return {one["sequence"]: one["hash"] for one in self.all if one["kind"] == "checkpoint"}

    @property
    def starts(self) -> dict[int, str]:
        """Where what was archived ends: sequence → hash."""
        return {one["to"]: one["hash"] for one in self.all if one["kind"] == "tombstone"}

    @property
    def last_checkpoint(self) -> dict[str, Any] | None:
        return next((one for one in reversed(self.all) if one["kind"] == "checkpoint"), None)

    def missing(self, echoes: Mapping[int, tuple[str, int]]) -> Fault | None:
        """The first entry that tells of a statement which is not there, or is there as another one."""
        for number, (digest, sequence) in sorted(echoes.items()):
            if number > len(self.digests):
                return Fault(sequence, f"It tells of statement {number}, and the files end at {len(self.digests)}.")
            if self.digests[number - 1] != digest:
                return Fault(sequence, f"Statement {number} is not the one that it tells of.")
        return None


def read_statements(lines: Iterable[str], *, pinned: str = "") -> Statements:
    """Verify statements in order: number, link, key in force, signature. `pinned` is the first key's public half."""
    read = Statements()
    for line in lines:
        if wrong := _take(read, line, pinned):
            read.fault = f"Statement {len(read.all) + 1}: {wrong}"
            break
    if pinned and not read.all and not read.fault:
        read.fault = "A public key is pinned, and there is no statement at all: they were removed."
    return read


def _take(read: Statements, line: str, pinned: str) -> str | None:
    try:
        told = json.loads(line)
        if spelled(told) != line:
            return "it is not spelled as it was signed."
        kind, number, previous = told["kind"], told["number"], told["previous"]
        if number != len(read.all) + 1 or previous != (read.digests[-1] if read.digests else GENESIS):
            return "it does not continue the one before it: a line was removed, added or moved."
        if (kind == "key") != (number == 1):
            return "only the first one may name a key by itself."
        public = told["public"] if kind == "key" else read.public
        if kind == "key" and pinned and public != pinned:
            return "it names another key than the one that is pinned."
        if told["key_id"] != key_id_of(public) or not is_signed(told, public):
            return "it is not signed by the key in force."
        if kind == "checkpoint" and not _rises(read, told):
            return "it goes back behind an earlier checkpoint."
        if kind in ("key", "rotation"):
            read.public = public if kind == "key" else told["new_public"]
            read.keys[key_id_of(read.public)] = read.public
    except (ValueError, TypeError, KeyError, AttributeError):
        return "it is no statement."
    read.all.append(told)
    read.digests.append(digest_of(line))
    return None


def _rises(read: Statements, told: Mapping[str, Any]) -> bool:
    last = read.last_checkpoint
    return told["count"] == told["sequence"] and (last is None or told["sequence"] >= last["sequence"])


# --- Exports -----------------------------------------------------------------------------------------------------


class Unusable(Exception):
    """The folder is no export, or can't be read. Nothing is said of its content."""


@dataclass(frozen=True)
class Verdict:
    """What became of one exported folder: the manifest, and the first fault if any."""

    manifest: Mapping[str, Any]
    count: int
    fault: Fault | None


def exported_links(path: Path) -> Iterator[Link]:
    """The entries of an `entries.jsonl`, one at a time."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            one = json.loads(line)
            yield Link(one["sequence"], one["prev_hash"], one["hash"], one["payload"], columns_text(one))


def verify_folder(folder: Path, *, pinned: str = "") -> Verdict:
    """Check one export: signatures, digests of the files, every entry. Raises Unusable."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        lines = (folder / "statements.jsonl").read_text(encoding="utf-8").split("\n")
        digests = {name: file_digest(folder / Path(name).name) for name in manifest["files"]}
        first, last = int(manifest["first"]), int(manifest["last"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unusable(f"{folder} is not a whole export: {error!r}") from error
    statements = read_statements([line for line in lines if line], pinned=pinned)
    if statements.fault:
        return Verdict(manifest, 0, Fault(first, statements.fault))
    if not is_signed(manifest, statements.keys.get(manifest.get("key_id", ""), "")):
        return Verdict(manifest, 0, Fault(first, "The manifest is not signed by a key of this log."))
    starts = {first - 1: manifest["prev_hash"]}
    marks = {at: mark for at, mark in statements.marks.items() if first <= at <= last}
    try:
        checked = walk(exported_links(folder / "entries.jsonl"), marks={**marks, last: manifest["hash"]}, starts=starts)
    except (ValueError, KeyError, TypeError) as error:
        return Verdict(manifest, 0, Fault(first, f"entries.jsonl can't be read: {error!r}"))
    fault = checked.fault or statements.missing(checked.echoes)
    if not fault and (checked.sequence, checked.count) != (last, last - first + 1):
        fault = Fault(checked.sequence + 1, "There are other entries than the manifest says.")
    if not fault and last not in marks:
        fault = Fault(last, "No checkpoint vouches for the last entry.")
    for name, digest in digests.items():
        fault = fault or (Fault(first, f"{name} was changed.") if digest != manifest["files"][name] else None)
    return Verdict(manifest, checked.count, fault)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_folders(folders: Sequence[Path], *, pinned: str = "") -> list[Verdict]:
    """Check each export, and that each continues the one before it. Stops at the first fault."""
    found: list[Verdict] = []
    for folder in folders:
        verdict = verify_folder(folder, pinned=pinned)
        if found and not verdict.fault:
            before, after = found[-1].manifest, verdict.manifest
            if (after["first"], after["prev_hash"]) != (before["last"] + 1, before["hash"]):
                gap = Fault(before["last"] + 1, f"{folder} does not continue the folder before it.")
                verdict = Verdict(after, verdict.count, gap)
        found.append(verdict)
        if verdict.fault:
            break
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(description="Verify exports of RuneRogue's audit log.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--public-key", default="", metavar="HEX", help="the log's first public key, from elsewhere")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    try:
        found = verify_folders(given.folders, pinned=given.public_key.strip().lower())
    except Unusable as error:
        sys.stderr.write(f"{error}\n")
        return 2
    fault = found[-1].fault
    count = sum(one.count for one in found)
    if given.json:
        bad = {"sequence": fault.sequence, "what": fault.what} if fault else None
        sys.stdout.write(json.dumps({"ok": not fault, "entries": count, "first_bad_entry": bad}) + "\n")
    elif fault:
        sys.stdout.write(f"{given.folders[len(found) - 1]}: entry {fault.sequence} is wrong. {fault.what}\n")
    else:
        trust = "the key you named" if given.public_key else "the key in the export; name it by --public-key"
        span = f"{found[0].manifest['first']} to {found[-1].manifest['last']}"
        sys.stdout.write(f"All {count} entries ({span}) are as they were written, signed with {trust}.\n")
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main())
