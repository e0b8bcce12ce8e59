from __future__ import annotations

import datetime as dt
import io
import json
import threading
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.utils.timezone import now

from approvals import audit, chain, leafing
from approvals.models import AppendOnly, AuditEntry, AuditHead
from tests.audit_log import triggers_off, write


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Point:
    x: float


@pytest.mark.django_db
def test_records_who_what_when_and_why(alice: User, bob: User) -> None:
    before = now()
    entry = audit.record(
        "role.granted", bob, actor=alice, because="he leads", was=["viewer"], became=["lead"], data={"ticket": 7}
    )
    stored = AuditEntry.objects.get(pk=entry.pk)
    assert (stored.actor, stored.actor_id) == ("alice", alice.pk)
    assert (stored.subject_kind, stored.subject_id, stored.subject) == ("auth.user", str(bob.pk), "bob")
    assert before <= stored.at <= now()
    assert (stored.action, stored.because) == ("role.granted", "he leads")
    assert (stored.was, stored.became, stored.data) == (["viewer"], ["lead"], {"ticket": 7})
    assert list(AuditEntry.objects.about(bob)) == [stored]


@pytest.mark.django_db
def test_names_the_system_when_no_person_acted() -> None:
    assert audit.record("a", None).actor == audit.SYSTEM
    anonymous = audit.record("a", None, actor=AnonymousUser())
    assert (anonymous.actor, anonymous.actor_id) == (audit.SYSTEM, None)


@pytest.mark.django_db
def test_keeps_names_of_deleted_users() -> None:
    gone = User.objects.create(username="gone")
    entry = audit.record("a", gone, actor=gone)
    gone.delete()
    stored = AuditEntry.objects.get(pk=entry.pk)
    assert (stored.actor, stored.subject) == ("gone", "gone")


@pytest.mark.django_db
def test_puts_everything_a_caller_has_into_words() -> None:
    moment = dt.datetime(2025, 3, 1, 12, 0, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    data = {
        "when": moment,
        "day": dt.date(2025, 3, 1),
        "long": dt.timedelta(seconds=90),
        "colour": Colour.RED,
        "point": Point(1.5),
        "path": Path("a/b"),
        "price": Decimal("1.10"),
        "nan": float("nan"),
        "huge": 2**60,
        "numpy": np.float64(0.5),
        "count": np.int64(3),
        "many": {"b", "a"},
        "text": "a\0b\ud800",
        3: None,
    }
    entry = audit.record("a", None, data=data)
    assert AuditEntry.objects.get(pk=entry.pk).data == {
        "when": "2025-03-01T10:00:00.000000Z",
        "day": "2025-03-01",
        "long": 90,
        "colour": "red",
        "point": {"x": 1.5},
        "path": "a/b",
        "price": "1.10",
        "nan": "nan",
        "huge": str(2**60),
        "numpy": 0.5,
        "count": 3,
        "many": ["a", "b"],
        "text": "a\ufffdb?",
        "3": None,
    }
    assert audit.verify().fault is None
    with pytest.raises(TypeError, match="bytes"):
        audit.record("a", None, data={"raw": b"x"})


@pytest.mark.django_db
def test_takes_reasons_longer_than_a_search_index_can_hold() -> None:
    """PostgreSQL's to_tsvector refuses a megabyte of words, and would take the caller's work down with the entry."""
    because = "first " + " ".join(f"word{number}" for number in range(200_000))
    entry = audit.record("a", None, because=because)
    assert AuditEntry.objects.get(pk=entry.pk).because == because
    assert leafing.leaf(leafing.Asked("first word77")).entries == [entry]
    assert audit.verify().fault is None


@pytest.mark.django_db(transaction=True)
def test_refuses_to_write_outside_a_transaction() -> None:
    with pytest.raises(audit.OutsideTransaction, match=r"transaction\.atomic"):
        audit.record("a", None)


@pytest.mark.django_db
def test_a_tests_own_transaction_hides_none_that_is_missing() -> None:
    product: dict[str, Any] = {"__name__": "monitoring.made_up", "audit": audit}
    exec("def act(): audit.record('test.acted', None)", product)
    with pytest.raises(audit.OutsideTransaction):
        product["act"]()
    with transaction.atomic():
        product["act"]()
    assert AuditEntry.objects.get().action == "test.acted"


@pytest.mark.django_db(transaction=True)
def test_leaves_no_gap_when_a_transaction_is_rolled_back() -> None:
    write(2)

    def fail() -> None:
        with transaction.atomic():
            audit.record("lost", None)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with transaction.atomic():
        audit.record("outer", None)
        with pytest.raises(ZeroDivisionError):
            fail()
        audit.record("outer", None)
    assert list(AuditEntry.objects.order_by("sequence").values_list("sequence", "action")) == [
        (1, "test.written"),
        (2, "test.written"),
        (3, "outer"),
        (4, "outer"),
    ]
    assert audit.verify().fault is None


@pytest.mark.django_db
def test_refuses_changes_kindly() -> None:
    entry = audit.record("a", None)
    for change in (
        entry.save,
        entry.delete,
        AuditEntry.objects.all().delete,
        lambda: AuditEntry.objects.update(action="b"),
        lambda: AuditEntry.objects.bulk_update([entry], ["action"]),
        lambda: AuditEntry.objects.create(sequence=2),
    ):
        with pytest.raises(AppendOnly, match="append-only"):
            change()


MIDDLE = "at, actor_id, actor, action, subject_kind, subject_id, subject, because"
REFUSED_BY_THE_DATABASE = [
    "UPDATE approvals_auditentry SET because = 'x' WHERE sequence = 2",
    "UPDATE approvals_auditentry SET because = because",
    "DELETE FROM approvals_auditentry WHERE sequence = 3",
    "DELETE FROM approvals_audithead",
    "UPDATE approvals_audithead SET sequence = 2",
    f"INSERT INTO approvals_auditentry SELECT 9, 'x', 'y', {MIDDLE}, payload, '', '', '', ''"
    " FROM approvals_auditentry WHERE sequence = 3",
    f"INSERT INTO approvals_auditentry SELECT 4, hash, 'y', {MIDDLE}, payload, '', '', '', ''"
    " FROM approvals_auditentry WHERE sequence = 3",
    "INSERT INTO approvals_audithead VALUES (2, 0, '')",
]


@pytest.mark.django_db
@pytest.mark.parametrize("statement", REFUSED_BY_THE_DATABASE)
def test_has_the_database_refuse(statement: str) -> None:
    write(3)
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert audit.verify() == chain.Checked(3, 3, AuditHead.objects.get().hash, None)


@pytest.mark.django_db
@pytest.mark.parametrize("table", ["approvals_auditentry", "approvals_audithead"])
def test_has_the_database_refuse_truncate(table: str) -> None:
    write(3)
    # Off in the test database, on in every other: see tests/audit_log.py.
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE approvals_auditentry ENABLE ALWAYS TRIGGER audit_refuse_truncate")
        cursor.execute("ALTER TABLE approvals_audithead ENABLE ALWAYS TRIGGER audit_head_refuse_truncate")
    with pytest.raises(IntegrityError, match="TRUNCATE"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {table}")


COLUMNS = [
    "sequence = 30",
    "prev_hash = repeat('1', 64)",
    "hash = repeat('1', 64)",
    "at = at + interval '1 microsecond'",
    "actor_id = 99",
    "actor = 'mallory'",
    "action = 'other'",
    "subject_kind = 'x'",
    "subject_id = '1'",
    "subject = 'x'",
    "because = 'x'",
    "on_behalf_of = 'x'",
    "origin = 'x'",
    "correlation = 'x'",
    "outcome = 'failed'",
    "payload = replace(payload, '\"number\":4', '\"number\":5')",
    "payload = payload || ' '",
]
FORGERIES = [
    *[(f"UPDATE approvals_auditentry SET {column} WHERE sequence = 5", 5) for column in COLUMNS],
    ("DELETE FROM approvals_auditentry WHERE sequence = 5", 5),
    ("DELETE FROM approvals_auditentry WHERE sequence = 1", 1),
    ("DELETE FROM approvals_auditentry WHERE sequence > 8", 9),  # the tail: shows against the head row
    ("DELETE FROM approvals_auditentry", 1),
    (
        "UPDATE approvals_auditentry SET sequence = CASE sequence WHEN 5 THEN -6 ELSE -5 END WHERE sequence IN (5, 6);"
        "UPDATE approvals_auditentry SET sequence = -sequence WHERE sequence < 0",
        5,
    ),
    (
        "UPDATE approvals_auditentry a SET payload = b.payload FROM approvals_auditentry b"
        " WHERE (a.sequence, b.sequence) IN ((5, 6), (6, 5))",
        5,
    ),
    (
        f"INSERT INTO approvals_auditentry SELECT 11, hash, 'made up', {MIDDLE}, payload, '', '', '', ''"
        " FROM approvals_auditentry WHERE sequence = 10",
        11,
    ),
    (  # an entry with everything right, appended behind the head's back
        "INSERT INTO approvals_auditentry SELECT 11, hash,"
        " encode(sha256(convert_to(hash || replace(payload, '\"sequence\":10', '\"sequence\":11'), 'UTF8')), 'hex'),"
        f" {MIDDLE}, replace(payload, '\"sequence\":10', '\"sequence\":11'),"
        " correlation, on_behalf_of, origin, outcome FROM approvals_auditentry WHERE sequence = 10",
        11,
    ),
    ("UPDATE approvals_audithead SET hash = repeat('0', 64)", 10),
    ("UPDATE approvals_audithead SET sequence = 9", 9),
    ("DELETE FROM approvals_audithead", 10),
]


@pytest.mark.django_db
@pytest.mark.parametrize(("forgery", "place"), FORGERIES)
def test_finds_what_the_triggers_did_not_stop(forgery: str, place: int) -> None:
    write(10)
    with triggers_off(), connection.cursor() as cursor:
        cursor.execute(forgery)
        assert cursor.rowcount
    fault = audit.verify().fault
    assert fault is not None
    assert fault.sequence == place
    out = io.StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("verify_audit", "--json", stdout=out)
    assert ended.value.code == 1
    assert json.loads(out.getvalue())["first_bad_entry"] == {"sequence": place, "what": fault.what}


@pytest.mark.django_db
def test_reports_a_good_log() -> None:
    write(5)
    out = io.StringIO()
    call_command("verify_audit", "--json", stdout=out)
    report = json.loads(out.getvalue())
    assert (report["ok"], report["entries"], report["first_bad_entry"]) == (True, 5, None)
    assert report["head"] == {"sequence": 5, "hash": AuditHead.objects.get().hash}
    call_command("verify_audit", stdout=out)
    assert "All 5 entries are as written" in out.getvalue()


@pytest.mark.django_db(transaction=True)
def test_grows_as_one_chain_under_parallel_writers_while_it_is_verified() -> None:
    writers, each = 8, 25
    start = threading.Barrier(writers + 1)
    faults: list[object] = []

    def append(writer: int) -> None:
        try:
            start.wait()
            for number in range(each):
                with transaction.atomic():
                    audit.record("test.parallel", None, data={"writer": writer, "number": number})
        except Exception as error:  # noqa: BLE001 (a thread's error is told to the test)
            faults.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=append, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    start.wait()
    while any(thread.is_alive() for thread in threads):
        checked = audit.verify()
        if checked.fault:
            faults.append(checked.fault)
    for thread in threads:
        thread.join()
    assert faults == []
    assert audit.verify() == chain.Checked(writers * each, writers * each, AuditHead.objects.get().hash, None)
    told = [(entry.data["writer"], entry.data["number"]) for entry in AuditEntry.objects.order_by("sequence")]
    assert sorted(told) == [(writer, number) for writer in range(writers) for number in range(each)]
    for writer in range(writers):
        assert [number for who, number in told if who == writer] == list(range(each))
