"""Putting old entries of the audit log away: whole parts between checkpoints, a signed tombstone in their place."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.db import connection, transaction

from approvals import bundling, chain, checkpoints, roles, statements, verifying
from approvals.models.audit import AuditEntry, AuditTombstone
from approvals.policy import Role

PIECE = 10_000  # entries removed in one transaction, during which nobody else can write to the log


class CannotArchive(ValueError):
    """Nothing was removed; the message says why."""


def archive(
    folder: Path, *, before: dt.datetime, by: User, because: str, at: dt.datetime, pinned: str = ""
) -> dict[str, Any]:
    """Move the entries up to the last checkpoint that is wholly older than `before` into `folder`. Its manifest.

    Removed is only what the stand-alone verifier found whole in the folder. `by` is the CTO or a superuser.
    Raises CannotArchive, bundling.CannotExport, StatementsUnusable.
    """
    if not by.is_active or not (by.is_superuser or Role.CTO in roles.facts_of(by).roles):
        raise CannotArchive(f"{by} is neither the CTO nor a superuser, and may not archive the audit log.")
    found = verifying.verify()
    if found.fault:
        raise CannotArchive(f"Entry {found.fault.sequence}: {found.fault.what} Nothing is archived from such a log.")
    span = _span(before)
    bundling.new_folder(folder)
    manifest = bundling.write(folder, span, at=at)
    _verify_alone(folder, pinned)
    digest = chain.file_digest(folder / "manifest.json")
    for first in range(span.first, span.sealed + 1, PIECE):
        _remove(first, min(first + PIECE - 1, span.sealed), digest, by=by, because=because, at=at)
    return manifest


def _remove(first: int, through: int, archive: str, *, by: User, because: str, at: dt.datetime) -> None:
    """One piece from the beginning of the log, with a tombstone of its own: the log is whole after each of them.

    The file comes first. Cut short, the next run archives what is left.
    """
    prev_hash = AuditEntry.objects.values_list("prev_hash", flat=True).get(pk=first)
    its_hash = AuditEntry.objects.values_list("hash", flat=True).get(pk=through)
    with statements.locked():
        fields = {"from": first, "to": through, "prev_hash": prev_hash, "hash": its_hash}
        fields |= {"count": through - first + 1, "archive": archive}
        told, statement = statements.append("tombstone", fields, at=at)
    with transaction.atomic():
        checkpoints.tell("audit.tombstone", told, statement, actor=by, because=because)
        AuditTombstone.objects.create(
            first=first,
            through=through,
            prev_hash=prev_hash,
            hash=its_hash,
            statement=statement,
            archive=archive,
            at=at,
        )
        with connection.cursor() as cursor:  # the model refuses; the triggers pass what the tombstone names
            cursor.execute("DELETE FROM approvals_auditentry WHERE sequence <= %s", [through])


def _span(before: dt.datetime) -> bundling.Span:
    """From the log's first entry to the last checkpoint before the first entry that is to stay."""
    first = AuditEntry.objects.order_by("sequence").values_list("sequence", flat=True).first()
    stays = AuditEntry.objects.filter(at__gte=before).order_by("sequence").values_list("sequence", flat=True).first()
    marks = [mark for mark in statements.read().marks if first and stays and first <= mark < stays]
    if first is None or not marks:
        raise CannotArchive(f"No checkpoint lies wholly before {before:%Y-%m-%d %H:%M}: there is nothing to archive.")
    return bundling.Span(first, max(marks), max(marks))


def _verify_alone(folder: Path, pinned: str) -> None:
    """By the program that lies in the archive, in a process that knows nothing of this one."""
    command = [sys.executable, "-I", str(folder / bundling.PROGRAM), str(folder)]
    done = subprocess.run([*command, "--public-key", pinned] if pinned else command, capture_output=True, text=True)
    if done.returncode:
        raise CannotArchive(f"The archive does not verify: {done.stdout.strip()} {done.stderr.strip()}")
