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
from django.db import connection, transaction
from django.db.models import Model
from django.utils.timezone import now

from approvals import chain, occasion, statements, withholding
from approvals.fingerprint import canonical
from approvals.models.audit import AuditEntry, AuditHead, moment, subject_columns

READ_AGAIN = dt.timedelta(minutes=10)
SYSTEM = "RuneRogue"  # the actor of what no person did


class Outcome(enum.StrEnum):
    OK = "ok"
    REFUSED = "refused"  # a rule said no
    FAILED = "failed"  # it was tried, and did not work


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
    on_behalf_of: str = "",
    outcome: Outcome = Outcome.OK,
    origin: str | None = None,
    correlation: str | None = None,
) -> AuditEntry:
    """Append one entry in the caller's transaction; it is kept or lost together with what it tells.

    `was`, `became` and `data` may hold anything that `plain` can turn into JSON; what looks like a secret is withheld.
    `on_behalf_of` names whom the actor stands for; where from and in which connection comes from `approvals.occasion`.
    From here to the end of the transaction other writers of the log wait, so record late and do nothing slow
    afterwards. Raises OutsideTransaction outside a transaction, TypeError for what cannot be put into JSON.
    """
    if not connection.in_atomic_block:
        raise OutsideTransaction(action)
    kind, subject_id, text = subject_columns(subject)
    around = occasion.current()
    at = now()
    columns = {
        "at": moment(at),
        "actor_id": actor.pk if actor is not None else None,
        "actor": actor.get_username()[:150] if actor is not None and actor.pk is not None else SYSTEM,
        "action": str(action),
        "subject_kind": kind,
        "subject_id": subject_id,
        "subject": plain(text),
        "because": withholding.in_text(plain(because)),
        "on_behalf_of": plain(on_behalf_of)[:150],
        "origin": (around.origin if origin is None else plain(origin))[:80],
        "correlation": (around.correlation if correlation is None else plain(correlation))[:64],
        "outcome": Outcome(outcome).value,
    }
    details = {"was": plain(was), "became": plain(became), "data": plain(data or {})}
    written = _append(columns, canonical(withholding.in_values(details)).decode())
    if around.told is not None:
        around.told.add((kind, subject_id))
    entry = AuditEntry(**{**columns, **written, "at": at})
    entry._state.adding = False
    return entry


def record_read(actor: AbstractBaseUser | AnonymousUser, *, entry: AuditEntry | None = None, query: str = "") -> bool:
    """Note that a person reads the log: its list, or one entry. Once in READ_AGAIN for each; whether it was now.

    Bounded, or a page that reloads itself would fill the log with its own readers.
    """
    kind, subject_id, _ = subject_columns(entry)
    told = AuditEntry.objects.filter(action="audit.read", actor=actor.get_username()[:150])
    if told.filter(subject_kind=kind, subject_id=subject_id, at__gt=now() - READ_AGAIN).exists():
        return False
    with transaction.atomic():
        record("audit.read", entry, actor=actor, data={"query": query[:200]} if query else None)
    return True


def _append(columns: Mapping[str, Any], details: str) -> dict[str, Any]:
    """Let the database number, link and store the entry, in one round trip. Returns what only it knew before."""
    before, after = chain.payload_parts(columns, details)
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM approvals_audit_write(%s, %s)", [before, after])
        sequence, prev_hash, its_hash = cursor.fetchone()
    return {"sequence": sequence, "prev_hash": prev_hash, "hash": its_hash, "payload": f"{before}{sequence}{after}"}


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
            if type(value) is str and value.isascii() and "\0" not in value:
                return value  # nearly always
            return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
        case dict():
            return {plain(key) if isinstance(key, str) else str(key): plain(one) for key, one in value.items()}
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
            return plain(dict(value))
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
    """Re-hash every entry, follow every link, and compare with every checkpoint and with the head row. Takes no lock.

    The head is read before and after: what was at the head before must still be there, and nothing may lie beyond
    the head afterwards, however many entries were appended meanwhile.
    """
    try:
        known = statements.read()
    except statements.StatementsUnusable as error:
        return chain.Checked(0, 0, chain.GENESIS, chain.Fault(0, str(error)))
    if known.fault:
        return chain.Checked(0, 0, chain.GENESIS, chain.Fault(_vouched(known), f"{statements.folder()}: {known.fault}"))
    before = AuditHead.objects.filter(pk=1).first()
    marks = {before.sequence: before.hash} if before and before.sequence else {}
    # A checkpoint that differs from the head is for the walk to find out, at the entry of the smaller of both.
    checked = chain.walk(stored_links(), marks={**marks, **known.marks}, starts=known.starts)
    if fault := checked.fault or known.missing(checked.echoes) or _beyond(checked, marks):
        return dataclasses.replace(checked, fault=fault)
    return checked


def _vouched(known: chain.Statements) -> int:
    """The first entry that the good statements do not vouch for."""
    return known.last_checkpoint["sequence"] + 1 if known.last_checkpoint else 1


def _beyond(checked: chain.Checked, marks: Mapping[int, str]) -> chain.Fault | None:
    """What is wrong with the head row, for a chain that is good in itself."""
    after = AuditHead.objects.filter(pk=1).first()
    if after is None:
        return chain.Fault(checked.sequence, "The head row is gone.") if checked.count else None
    if checked.sequence > after.sequence:
        return chain.Fault(after.sequence + 1, f"The head row ends at {after.sequence}, the log goes beyond it.")
    if marks.get(checked.sequence, checked.hash) != checked.hash:
        return chain.Fault(checked.sequence, "The head row has another hash.")
    return None


# The columns come as canonical JSON: PostgreSQL escapes texts as RFC 8785 has it, and does so beside this process.
AT = """to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS at"""
COLUMNS = ", ".join(AT if name == "at" else name for name in chain.COLUMNS)
STORED = f"""SELECT sequence, prev_hash, hash, payload, (SELECT row_to_json(one)::text FROM (SELECT {COLUMNS}) AS one)
FROM approvals_auditentry WHERE sequence >= %s AND sequence <= %s ORDER BY sequence"""  # noqa: S608 (our own names)
LAST = 2**63 - 1
ROWS = 200  # that the driver hands over at once


def stored_links(first: int = 1, last: int = LAST) -> Iterator[chain.Link]:
    """Every entry in order, streamed: memory stays flat however long the log is. Both ends are included."""
    with connection.cursor() as cursor:
        yield from map(chain.Link._make, cursor.stream(STORED, [first, last], size=ROWS))
