"""The arithmetic of the audit log: entry → hash, and the first entry of a chain that is not what it was.

An entry's hash is SHA-256 over the hash before it and its own payload (canonical JSON), so that changing, removing,
inserting or reordering anything changes every hash after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from approvals.fingerprint import canonical

GENESIS = "0" * 64  # the hash before the first entry
FORMAT = 1  # the layout of a payload


def payload_of(fields: Mapping[str, Any], *, details: Mapping[str, Any]) -> str:
    """The text that is hashed: the row's own fields, what only the payload holds, and the format's number."""
    return canonical({"format": FORMAT, **fields, **details}).decode()


def link_hash(prev_hash: str, payload: str) -> str:
    """The hash of an entry, as 64 hex digits. The database's trigger computes the same."""
    return hashlib.sha256(prev_hash.encode() + payload.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Link:
    """One stored entry. `fields` is what its columns say, to be compared with what its payload says."""

    sequence: int
    prev_hash: str
    hash: str
    payload: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Fault:
    """The first entry that is wrong or missing, and how."""

    sequence: int
    what: str


@dataclass(frozen=True)
class Checked:
    """What walking a chain found: links walked, where it ended, and the first fault if any."""

    count: int
    sequence: int
    hash: str
    fault: Fault | None


def walk(links: Iterable[Link], *, marks: Mapping[int, str] | None = None) -> Checked:
    """Follow `links`, which come in the order of their sequence, until the end or the first fault.

    `marks` are hashes known from elsewhere (sequence → hash), such as the head row's: an entry at a marked sequence
    must have that hash, and a chain that ends before a mark has lost its tail.
    """
    marks = marks or {}
    count, last, previous = 0, 0, GENESIS
    for link in links:
        wrong = fault_of(link, last, previous, marks.get(link.sequence))
        if wrong:
            return Checked(count, last, previous, Fault(min(link.sequence, last + 1), wrong))
        count, last, previous = count + 1, link.sequence, link.hash
    furthest = max(marks, default=0)
    if furthest > last:
        return Checked(count, last, previous, Fault(last + 1, f"The log ends at {last} but had reached {furthest}."))
    return Checked(count, last, previous, None)


def fault_of(link: Link, last: int, previous: str, mark: str | None) -> str | None:
    """What is wrong with `link` after an entry numbered `last` with hash `previous`, or None."""
    if link.sequence != last + 1:
        return f"Entry {last + 1} is missing: after {last} comes {link.sequence}."
    if link.prev_hash != previous:
        return "It does not continue the entry before it."
    if link_hash(link.prev_hash, link.payload) != link.hash:
        return "Its payload or its hash was changed."
    try:
        told = json.loads(link.payload)
    except ValueError:
        return "Its payload is not JSON."
    for name, value in link.fields.items():
        # `1 == True` in Python, but the two are not the same record.
        if name not in told or told[name] != value or type(told[name]) is not type(value):
            return f"Its column {name} does not say what was recorded."
    if mark is not None and link.hash != mark:
        return "Its hash is not the one noted when it was written: the chain was rewritten."
    return None
