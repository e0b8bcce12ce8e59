"""Writing the audit log and checking that nobody rewrote it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import math
import numbers
import uuid
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import PurePath
from typing import Any

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db import connection
from django.db.models import Model
from django.utils.timezone import now

from approvals import chain
from approvals.models.audit import AuditEntry, AuditHead, moment, subject_columns

SYSTEM = "RuneRogue"  # the actor of what no person did
CHUNK = 2_000  # rows fetched at a time while verifying


class OutsideTransaction(RuntimeError):
    """An entry was to be written outside the transaction of what it tells."""

    def __init__(self, action: str) -> None:
        super().__init__(
            f"audit.record({action!r}) was called outside a transaction, so the entry and what it tells could part. "
            "Put both into one `with transaction.atomic():` block."
        )


def record(
    action: str,
    subject: Model | None,
    *,
    actor: AbstractBaseUser | AnonymousUser | None = None,
    because: str = "",
    was: Any = None,
    became: Any = None,
    data: Mapping[str, Any] | None = None,
) -> AuditEntry:
    """Append one entry in the caller's transaction; it is kept or lost together with what it tells.

    `was`, `became` and `data` may hold anything that `plain` can turn into JSON. From here to the end of the
    transaction other writers of the log wait, so record late and do nothing slow afterwards.
    Raises OutsideTransaction outside a transaction, TypeError for what cannot be put into JSON.
    """
    if not connection.in_atomic_block:
        raise OutsideTransaction(action)
    head = locked_head()
    kind, subject_id, text = subject_columns(subject)
    entry = AuditEntry(
        sequence=head.sequence + 1,
        prev_hash=head.hash,
        at=now(),
        actor_id=actor.pk if actor is not None else None,
        actor=actor.get_username()[:150] if actor is not None and actor.pk is not None else SYSTEM,
        action=str(action),
        subject_kind=kind,
        subject_id=subject_id,
        subject=plain(text),
        because=plain(because),
    )
    details = {"was": plain(was), "became": plain(became), "data": plain(data or {})}
    entry.payload = chain.payload_of(entry.hashed_fields(), details=details)
    entry.hash = chain.link_hash(entry.prev_hash, entry.payload)
    AuditEntry.objects.bulk_create([entry])  # a trigger checks it against the head and moves the head on
    return entry


def locked_head() -> AuditHead:
    """The head row, locked until the transaction ends."""
    try:
        return AuditHead.objects.select_for_update().get(pk=1)
    except AuditHead.DoesNotExist:
        ensure_head()
        return AuditHead.objects.select_for_update().get(pk=1)


def ensure_head() -> None:
    """Make the head row of a new log. For a log that has entries this raises no alarm: the next append does."""
    AuditHead.objects.bulk_create([AuditHead(pk=1)], ignore_conflicts=True)


def plain(value: Any) -> Any:
    """`value` as JSON can say it: times in UTC, floats that are no numbers as text, rows as their text.

    Whole numbers from 2**53 on become text, characters that PostgreSQL cannot store are replaced. Raises TypeError
    for what has no meaning in a log (bytes, functions).
    """
    match value:
        case None | bool():
            return value
        case enum.Enum():
            return plain(value.value)
        case str():
            return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
        case dt.datetime():
            return moment(value)
        case dt.date() | dt.time() | PurePath() | uuid.UUID() | Decimal():
            return str(value)
        case dt.timedelta():
            return value.total_seconds()
        case numbers.Integral():
            whole = int(value)
            return whole if abs(whole) < 2**53 else str(whole)
        case numbers.Real():
            return float(value) if math.isfinite(value) else str(float(value))
        case Mapping():
            return {plain(key) if isinstance(key, str) else str(key): plain(one) for key, one in value.items()}
        case list() | tuple():
            return [plain(one) for one in value]
        case set() | frozenset():
            return sorted((plain(one) for one in value), key=str)
        case Model():
            return f"{value._meta.label_lower} {value.pk}: {plain(str(value))}"
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
        case _:
            raise TypeError(f"The audit log cannot hold a {type(value).__name__}: {value!r}. Give it text or numbers.")


def verify() -> chain.Checked:
    """Re-hash every entry, follow every link, and compare the end with the head row. Takes no lock.

    The head is read before and after: what was at the head before must still be there, and nothing may lie beyond
    the head afterwards, however many entries were appended meanwhile.
    """
    before = AuditHead.objects.filter(pk=1).first()
    marks = {before.sequence: before.hash} if before and before.sequence else {}
    checked = chain.walk(stored_links(), marks=marks)
    if checked.fault:
        return checked
    after = AuditHead.objects.filter(pk=1).first()
    if after is None:
        lost = chain.Fault(checked.sequence, "The head row is gone.") if checked.count else None
        return dataclasses.replace(checked, fault=lost)
    if checked.sequence > after.sequence:
        beyond = chain.Fault(after.sequence + 1, f"The head row ends at {after.sequence}, the log goes beyond it.")
        return dataclasses.replace(checked, fault=beyond)
    return checked


def stored_links() -> Iterator[chain.Link]:
    """Every entry in order, through a server-side cursor: memory stays flat however long the log is."""
    entries = AuditEntry.objects.order_by("sequence").iterator(chunk_size=CHUNK)
    return (entry.as_link() for entry in entries)
