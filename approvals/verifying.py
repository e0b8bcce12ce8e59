"""Verifying the audit log, and keeping the result in it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.utils.timezone import now

from approvals import audit, chain, checkpoints, statements
from approvals.models.audit import AuditEntry, AuditHead

ACTION = "audit.verified"


@dataclass(frozen=True)
class Found:
    """What verifying found. `covered` is the last entry that a checkpoint vouches for, `public` the log's first key."""

    count: int
    sequence: int
    hash: str
    fault: chain.Fault | None
    checkpoints: int
    covered: int
    public: str

    def as_json(self) -> dict[str, Any]:
        bad = {"sequence": self.fault.sequence, "what": self.fault.what} if self.fault else None
        return {
            "ok": self.fault is None,
            "entries": self.count,
            "head": {"sequence": self.sequence, "hash": self.hash},
            "first_bad_entry": bad,
            "checkpoints": self.checkpoints,
            "covered_to": self.covered,
            "public_key": self.public,
        }

    def covered_in_words(self) -> str:
        if not self.checkpoints:
            return "There is no checkpoint yet: only the links and the head row vouch for it."
        return f"{self.checkpoints} checkpoints, the last at {self.covered}; first public key {self.public}"


def verify() -> Found:
    """Re-hash and compare everything; see `audit.verify`. Raises StatementsUnusable when that can't be done wholly."""
    known = statements.read()
    checked = audit.verify()
    last = known.last_checkpoint
    return Found(
        count=checked.count,
        sequence=checked.sequence,
        hash=checked.hash,
        fault=checked.fault,
        checkpoints=len(known.marks),
        covered=last["sequence"] if last else 0,
        public=known.all[0]["public"] if known.all else "",
    )


def verify_and_tell(*, actor: User | None = None) -> Found:
    """Verify, and keep in the log itself when that was and what it found. Raises StatementsUnusable, told as failed."""
    started = now()
    try:
        found = verify()
    except statements.StatementsUnusable as error:
        _tell({}, started, actor=actor, because=str(error), outcome=audit.Outcome.FAILED)
        raise
    good = found.fault is None
    because = f"All {found.count} entries are as written." if found.fault is None else found.fault.what
    outcome = audit.Outcome.OK if good else audit.Outcome.FAILED
    _tell(found.as_json(), started, actor=actor, because=because, outcome=outcome)
    return found


def _tell(
    told: dict[str, Any], started: dt.datetime, *, actor: User | None, because: str, outcome: audit.Outcome
) -> None:
    with transaction.atomic():
        data = {**told, "seconds": round((now() - started).total_seconds(), 3)}
        audit.record(ACTION, None, actor=actor, because=because, data=data, outcome=outcome)


def last() -> AuditEntry | None:
    """The entry of the last verification."""
    return AuditEntry.objects.filter(action=ACTION).order_by("-sequence").first()


@dataclass(frozen=True)
class Standing:
    """How the log stands, for a page. `problem` says why the checkpoints can't be read; empty when they can."""

    verified: AuditEntry | None
    is_good: bool
    entries: int
    checkpoints: int
    covered: int
    uncovered: int
    waiting_seconds: float
    public: str
    problem: str


def standing(at: dt.datetime) -> Standing:
    """What is known without walking the log."""
    verified = last()
    entries = AuditHead.objects.values_list("sequence", flat=True).filter(pk=1).first() or 0
    good = verified is not None and verified.outcome == audit.Outcome.OK
    try:
        known, waiting = statements.read(), checkpoints.uncovered()
    except statements.StatementsUnusable as error:
        return Standing(verified, good, entries, 0, 0, entries, 0.0, "", str(error))
    newest = known.last_checkpoint
    return Standing(
        verified=verified,
        is_good=good and known.fault is None,
        entries=entries,
        checkpoints=len(known.marks),
        covered=newest["sequence"] if newest else 0,
        uncovered=waiting.entries,
        waiting_seconds=waiting.age_seconds(at),
        public=known.all[0]["public"] if known.all else "",
        problem=str(known.fault or ""),
    )
