"""Whoever owns the tables or the files can change anything; none of it stays unnoticed.

Two judges look at each forgery: the product's verifier at the database, and the stand-alone program at an export.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, ProgrammingError, connection, transaction
from django.utils.timezone import now

from approvals import audit, bundling, chain, checkpoints, occasion, statements, verifying
from approvals.models import AuditEntry, AuditHead
from approvals.models.audit import AuditEntry as Entry
from tests.audit_log import triggers_off

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("audit_home")]

# One entry of each sort that the product writes: with and without a person, a subject, a reason, before and after.
KINDS: tuple[dict[str, Any], ...] = (
    {"action": "approval.signed", "because": "sound", "data": {"fingerprint": "ab" * 32, "tier": "high"}},
    {"action": "finding.opened", "data": {"score": 0.25, "where": ["a.py", 7]}},
    {"action": "improvement.rolling_out", "was": "awaiting_approval", "became": "rolling_out"},
    {"action": "rollout.rolled_back", "because": "p95 rose", "outcome": "failed"},
    {"action": "settings.changed", "was": {"TICK_SECONDS": "5"}, "became": {"TICK_SECONDS": "6"}},
    {"action": "signin.refused", "outcome": "refused", "origin": "address:0011223344556677"},
    {"action": "approval.signed", "on_behalf_of": "dave", "because": 'é "quoted"\n\\N'},
    {"action": "audit.read", "correlation": "request-1"},
    {"action": "role.granted", "data": {"role": "lead"}},
)
COLUMNS = [
    *(name for name in chain.COLUMNS if name not in ("sequence", "at", "actor_id")),
    *("sequence", "at", "actor_id", "prev_hash", "hash", "payload"),
]


def fill(person: User) -> None:
    """Three checkpoints over three rounds of every kind."""
    for number in range(3):
        for index, kind in enumerate(KINDS):
            told = {**kind, "action": kind["action"]}
            action = told.pop("action")
            with transaction.atomic(), occasion.within(correlation=f"round-{number}"):
                audit.record(action, person if index % 2 else None, actor=person if index % 3 else None, **told)
        checkpoints.write(now())


@pytest.fixture
def last(alice: User) -> int:
    fill(alice)
    assert verifying.verify().fault is None
    return AuditHead.objects.get().sequence


def at_the_database() -> chain.Fault | None:
    return verifying.verify().fault


def sql(statement: str, *values: object) -> int:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.rowcount


@contextmanager
def forging() -> Iterator[None]:
    """Everything may be done to the tables in this block, and is undone after it."""
    with triggers_off():
        point = transaction.savepoint()
        try:
            yield
        finally:
            transaction.savepoint_rollback(point)


def other_value(name: str) -> str:
    """An expression that is certainly another value, and fits the column."""
    match name:
        case "sequence":
            return "sequence + 1000"
        case "actor_id":
            return "coalesce(actor_id, 0) + 1"
        case "at":
            return "at + interval '1 microsecond'"
        case _:
            return f"overlay({name} placing chr(ascii(left({name} || 'a', 1)) # 1) from 1 for 1)"


def test_finds_a_change_of_any_column_of_any_kind_of_entry(last: int) -> None:
    missed = []
    with triggers_off():
        for sequence in range(1, last + 1):
            for name in COLUMNS:
                point = transaction.savepoint()
                assert sql(
                    f"UPDATE approvals_auditentry SET {name} = {other_value(name)} WHERE sequence = %s", sequence
                )
                fault = at_the_database()
                if fault is None or fault.sequence != sequence:
                    missed.append((sequence, name, fault))
                transaction.savepoint_rollback(point)
    assert missed == []


def test_finds_any_single_bit_of_what_was_hashed(last: int) -> None:
    dice = random.Random(20)
    links = list(audit.stored_links())
    known = statements.read()
    for _ in range(1500):
        place, name = dice.randrange(last), dice.choice(["prev_hash", "hash", "payload", "columns"])
        data = bytearray(getattr(links[place], name).encode())
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(7)
        forged = links[place]._replace(**{name: data.decode("utf-8", "replace")})
        found = chain.walk([*links[:place], forged, *links[place + 1 :]], marks=known.marks)
        assert found.fault is not None, (place, name)
        assert found.fault.sequence == place + 1


SHAPES = {
    "deleted in the middle": ("DELETE FROM approvals_auditentry WHERE sequence = 7", 7),
    "the first deleted": ("DELETE FROM approvals_auditentry WHERE sequence = 1", 1),
    "the end cut off, with the head": (
        "DELETE FROM approvals_auditentry WHERE sequence > 25; UPDATE approvals_audithead SET sequence = 25,"
        " hash = (SELECT hash FROM approvals_auditentry WHERE sequence = 25)",
        26,
    ),
    "everything deleted, with the head": (
        "DELETE FROM approvals_auditentry; UPDATE approvals_audithead SET sequence = 0, hash = repeat('0', 64)",
        1,
    ),
    "two swapped": (
        "UPDATE approvals_auditentry SET sequence = CASE sequence WHEN 5 THEN -6 ELSE -5 END WHERE sequence IN (5, 6);"
        "UPDATE approvals_auditentry SET sequence = -sequence WHERE sequence < 0",
        5,
    ),
    "one inserted, the rest moved on": (
        "UPDATE approvals_auditentry SET sequence = -sequence - 1 WHERE sequence > 6;"
        "UPDATE approvals_auditentry SET sequence = -sequence WHERE sequence < 0;"
        "INSERT INTO approvals_auditentry SELECT 7, repeat('b', 64), repeat('a', 64), at, actor_id, actor, action,"
        " subject_kind, subject_id, subject, because, payload, correlation, on_behalf_of, origin, outcome"
        " FROM approvals_auditentry WHERE sequence = 6",
        7,
    ),
}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_finds_entries_removed_added_and_moved(last: int, shape: str) -> None:
    statement, place = SHAPES[shape]
    with forging():
        sql(statement)
        fault = at_the_database()
    assert fault is not None
    assert fault.sequence == place


def rewrite(first: int) -> None:
    """Another reason in entry `first`, and every hash after it made anew, the head row's too: all is consistent."""
    rows = list(Entry.objects.filter(sequence__gte=first).order_by("sequence"))
    previous = rows[0].prev_hash
    forged = []
    for row in rows:
        because = "forged" if row.sequence == first else row.because
        columns = {**row.columns(), "because": because}
        before, after = chain.payload_parts(columns, bundling.json.dumps(row.details))
        payload = f"{before}{row.sequence}{after}"
        forged.append((previous, chain.link_hash(previous, payload), payload, because, row.sequence))
        previous = forged[-1][1]
    for *values, sequence in forged:
        sql(
            "UPDATE approvals_auditentry SET prev_hash = %s, hash = %s, payload = %s, because = %s WHERE sequence = %s",
            *(value if index != 0 else f"{value}" for index, value in enumerate(values)),
            sequence,
        )
    sql("UPDATE approvals_audithead SET hash = %s", previous)


@pytest.mark.parametrize("first", [1, 9, 15, 26])
def test_finds_a_chain_rewritten_with_all_its_hashes_by_the_checkpoints(last: int, first: int) -> None:
    with forging():
        rewrite(first)
        assert chain.walk(audit.stored_links()).fault is None, "the forgery must be good in itself"
        fault = at_the_database()
    assert fault is not None
    assert fault.sequence == next(mark for mark in sorted(statements.read().marks) if mark >= first)


# --- The files ---------------------------------------------------------------------------------------------------


def forge_line(lines: list[str], number: int, **changes: object) -> list[str]:
    told = {**json.loads(lines[number]), **changes}
    return [*lines[:number], chain.spelled(told), *lines[number + 1 :]]


def sign_anew(lines: list[str]) -> list[str]:
    """With a key of somebody else's, everything right otherwise."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    public = statements.public_half(key)
    made: list[str] = []
    for line in lines:
        told = {name: value for name, value in json.loads(line).items() if name != "signature"}
        told |= {"key_id": chain.key_id_of(public)} | ({"public": public} if told["kind"] == "key" else {})
        told["previous"] = chain.digest_of(made[-1]) if made else chain.GENESIS
        made.append(chain.spelled({**told, "signature": key.sign(chain.spelled(told).encode()).hex()}))
    return made


Forgery = Callable[[list[str]], list[str]]
FILES: dict[str, Forgery] = {
    "the last line removed": lambda lines: lines[:-1],
    "all lines removed": lambda lines: [],
    "a line in the middle removed": lambda lines: [*lines[:2], *lines[3:]],
    "the first line removed": lambda lines: lines[1:],
    "two lines swapped": lambda lines: [*lines[:1], lines[2], lines[1], *lines[3:]],
    "an old checkpoint replayed": lambda lines: [*lines, lines[1]],
    "the last checkpoint doubled": lambda lines: [*lines, lines[-1]],
    "a hash edited": lambda lines: forge_line(lines, 2, hash="ab" * 32),
    "a sequence edited": lambda lines: forge_line(lines, 2, sequence=3),
    "a count edited": lambda lines: forge_line(lines, 2, count=3),
    "a time edited": lambda lines: forge_line(lines, 2, at="2026-01-01T00:00:00.000000Z"),
    "a signature edited": lambda lines: forge_line(lines, 2, signature="00" * 64),
    "a field added": lambda lines: forge_line(lines, 2, more="x"),
    "spelled otherwise": lambda lines: [*lines[:2], json.dumps(json.loads(lines[2])), *lines[3:]],
    "signed with another key": sign_anew,
    "no statement at all": lambda lines: [*lines, "[]"],
}


@pytest.mark.parametrize("name", list(FILES))
def test_finds_every_change_of_the_files(last: int, name: str) -> None:
    (path,) = statements.folder().glob("*.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in FILES[name](lines)))
    assert at_the_database() is not None


# --- Exports -----------------------------------------------------------------------------------------------------


def edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    lines = path.read_text().split("\n")[:-1]
    path.write_text("".join(f"{line}\n" for line in change(lines)))


def reseal(folder: Path) -> None:
    """The manifest made to fit what is in the folder now; only its signature can't be."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: chain.file_digest(folder / name) for name in manifest["files"]}
    lines = (folder / "entries.jsonl").read_text().splitlines()
    ends = [json.loads(lines[index]) for index in (0, -1)] if lines else []
    if ends:
        manifest |= {"first": ends[0]["sequence"], "prev_hash": ends[0]["prev_hash"]}
        manifest |= {"last": ends[1]["sequence"], "hash": ends[1]["hash"], "count": len(lines)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def one_bit(lines: list[str]) -> list[str]:
    return [
        *lines[:4],
        lines[4].replace('"actor":"alice"', '"actor":"alicd"').replace("approval", "approvam"),
        *lines[5:],
    ]


EXPORTS: dict[str, Callable[[list[str]], list[str]]] = {
    "one bit": one_bit,
    "swapped": lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]],
    "inserted": lambda lines: [*lines[:3], lines[2], *lines[3:]],
    "deleted in the middle": lambda lines: [*lines[:3], *lines[4:]],
    "cut off at the end": lambda lines: lines[:-2],
    "cut off at the beginning": lambda lines: lines[2:],
    "emptied": lambda lines: [],
    "no JSON": lambda lines: [*lines[:3], "{", *lines[4:]],
}


@pytest.mark.parametrize("is_resealed", [False, True])
@pytest.mark.parametrize("name", list(EXPORTS))
def test_finds_forged_exports_without_the_database(last: int, tmp_path: Path, name: str, is_resealed: bool) -> None:
    bundling.export(tmp_path / "out", at=now())
    assert chain.verify_folder(tmp_path / "out").fault is None
    edit(tmp_path / "out" / "entries.jsonl", EXPORTS[name])
    if is_resealed:
        reseal(tmp_path / "out")
    assert chain.verify_folder(tmp_path / "out").fault is not None


def test_finds_any_column_of_any_kind_of_exported_entry(last: int, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    bundling.export(folder, at=now())
    links = list(chain.exported_links(folder / "entries.jsonl"))
    known = statements.read()
    assert chain.walk(links, marks=known.marks).fault is None
    for place in range(len(KINDS)):
        columns = json.loads(links[place].columns)
        for name in chain.COLUMNS:
            value = columns[name]
            columns[name] = (value or 0) + 1 if name in ("sequence", "actor_id") else f"{value}x"
            forged = links[place]._replace(columns=chain.columns_text(columns), sequence=columns["sequence"])
            fault = chain.walk([*links[:place], forged, *links[place + 1 :]], marks=known.marks).fault
            assert fault is not None, (place, name)
            columns[name] = value


@pytest.mark.parametrize("name", list(FILES))
def test_finds_forged_statements_in_an_export(last: int, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    bundling.export(folder, at=now())
    pinned = statements.read().all[0]["public"]
    edit(folder / "statements.jsonl", FILES[name])
    assert chain.verify_folder(folder, pinned=pinned).fault is not None
    reseal(folder)
    assert chain.verify_folder(folder, pinned=pinned).fault is not None


@pytest.mark.parametrize("name", ["entries.csv", bundling.PROGRAM])
def test_finds_other_files_changed(last: int, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    bundling.export(folder, at=now())
    with (folder / name).open("a") as file:
        file.write("#")
    fault = chain.verify_folder(folder).fault
    assert fault is not None
    assert name in fault.what


def test_finds_a_whole_export_made_by_somebody_else(last: int, tmp_path: Path) -> None:
    """Another installation's export is good in itself; the pinned key tells that it is not this log's."""
    bundling.export(tmp_path / "mine", at=now())
    pinned = statements.read().all[0]["public"]
    shutil.copytree(tmp_path / "mine", tmp_path / "theirs")
    folder = tmp_path / "theirs"
    edit(folder / "statements.jsonl", sign_anew)
    reseal(folder)
    assert chain.verify_folder(tmp_path / "mine", pinned=pinned).fault is None
    assert chain.verify_folder(folder, pinned=pinned).fault is not None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE approvals_auditentry SET because = 'x'",
        "DELETE FROM approvals_auditentry WHERE sequence = 1",
        "UPDATE approvals_audithead SET sequence = 0",
        "DELETE FROM approvals_audithead",
        "TRUNCATE approvals_auditentry",
        "TRUNCATE approvals_audithead",
    ],
)
def test_is_refused_to_the_owner_of_the_tables(statement: str, alice: User) -> None:
    audit.record("a", None, actor=alice)
    for table, trigger in (("entry", "audit_refuse_truncate"), ("head", "audit_head_refuse_truncate")):
        sql(f"ALTER TABLE approvals_audit{table} ENABLE ALWAYS TRIGGER {trigger}")  # off in the test database alone
    with pytest.raises(IntegrityError, match="refused"), transaction.atomic():
        sql(statement)
    assert AuditEntry.objects.count() == 1


def test_has_every_trigger_fire_also_for_replicas() -> None:
    """Under session_replication_role = replica only ALWAYS triggers fire; and this role may not even set that."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tgname, tgenabled FROM pg_trigger WHERE NOT tgisinternal AND tgrelid::regclass::text IN"
            " ('approvals_auditentry', 'approvals_audithead', 'approvals_audittombstone')"
        )
        found = cursor.fetchall()
    assert len(found) == 9
    # let_tests_flush has switched these off, in the test database alone.
    off = {"audit_refuse_truncate", "audit_head_refuse_truncate"}
    assert {name for name, enabled in found if enabled != "A"} <= off
    with pytest.raises(ProgrammingError, match="permission denied"), transaction.atomic():
        sql("SET LOCAL session_replication_role = replica")
