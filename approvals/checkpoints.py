"""Checkpoints of the audit log: now and then its head is signed and written down outside the database."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection, transaction

from approvals import audit, statements
from approvals.models.audit import AuditEntry, AuditHead

ACTION = "audit.checkpoint"


@dataclass(frozen=True)
class Uncovered:
    """What no checkpoint covers yet: how many entries, and since when."""

    entries: int
    since: dt.datetime | None

    def age_seconds(self, at: dt.datetime) -> float:
        return max(0.0, (at - self.since).total_seconds()) if self.since else 0.0


def uncovered() -> Uncovered:
    """Read from the files, which are what counts. The entry that tells of the last checkpoint is no news by itself.

    Raises StatementsUnusable.
    """
    last = statements.newest("checkpoint")
    return _uncovered_after(last[0]["sequence"] if last else 0)


def _uncovered_after(sequence: int) -> Uncovered:
    news = AuditEntry.objects.filter(sequence__gt=sequence).exclude(sequence=sequence + 1, action=ACTION)
    first = news.order_by("sequence").values_list("at", flat=True).first()
    if first is None:
        return Uncovered(0, None)
    head = AuditHead.objects.values_list("sequence", flat=True).get(pk=1)
    return Uncovered(head - sequence, first)


def write_if_due(at: dt.datetime) -> int | None:
    """Write a checkpoint after AUDIT_CHECKPOINT_ENTRIES entries or AUDIT_CHECKPOINT_MINUTES, if anything is new.

    Returns the sequence it covers; None when nothing was due. Raises StatementsUnusable: never skip that silently.
    """
    waiting = uncovered()
    late = waiting.age_seconds(at) >= 60 * settings.AUDIT_CHECKPOINT_MINUTES
    if not waiting.entries or (waiting.entries < settings.AUDIT_CHECKPOINT_ENTRIES and not late):
        return None
    return write(at)


def write(at: dt.datetime) -> int:
    """Sign the head as it is, write it down, and tell so in the log. Returns the sequence it covers.

    The file comes first: a statement of which no entry tells harms nothing, the reverse would look like a removed one.
    """
    with statements.locked():
        with transaction.atomic(durable=True):  # refused within a transaction, whose own entries may yet be taken back
            head = AuditHead.objects.get(pk=1)
        last = statements.newest("checkpoint")
        if last and last[0]["sequence"] == head.sequence:
            return head.sequence
        _wait_for_the_disk()
        fields: dict[str, Any] = {"sequence": head.sequence, "hash": head.hash, "count": head.sequence}
        told, digest = statements.append("checkpoint", fields, at=at)
    tell(ACTION, told, digest, because=f"{head.sequence} entries")
    return head.sequence


def _wait_for_the_disk() -> None:
    """Return when everything committed so far is on the disk.

    It is already, unless somebody gave the database `synchronous_commit = off`; a head that a crash takes back after it
    was signed would look like a log that lost its tail.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_logical_emit_message(false, 'audit', '', true)")


def rotate(at: dt.datetime, *, actor: User | None, because: str) -> str:
    """Sign with a new key from now on. Returns its id. Raises StatementsUnusable."""
    write(at)  # what the old key saw, it vouches for
    told, digest = statements.rotate(at)
    tell("audit.rotation", told, digest, actor=actor, because=because)
    return str(told["new_key_id"])


def tell(action: str, told: dict[str, Any], digest: str, *, actor: User | None = None, because: str = "") -> AuditEntry:
    """The entry by which the log itself notices when a statement is taken away."""
    with transaction.atomic():
        data = {**told, "statement": told["number"], "digest": digest}
        return audit.record(action, None, actor=actor, because=because, data=data)
