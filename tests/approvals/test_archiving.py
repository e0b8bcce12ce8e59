from __future__ import annotations

import datetime as dt
import io
import json
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.utils.timezone import now

from approvals import archiving, audit, bundling, chain, checkpoints, statements, verifying
from approvals.models import AuditEntry, AuditTombstone
from tests.approvals.test_checkpoints import run_alone
from tests.audit_log import triggers_off, write

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("audit_home")]
SOON = dt.timedelta(hours=1)


def fill() -> dt.datetime:
    """Entries 1 to 5, a checkpoint (6 tells of it), 7 to 10; a time between; 11 and 12."""
    write(5)
    checkpoints.write(now())
    write(4)
    between = now()
    write(2)
    return between


def archive(folder: Path, before: dt.datetime, by: str = "dave") -> str:
    out = io.StringIO()
    words = ["--before", before.isoformat(), "--by", by, "--because", "older than ten years"]
    call_command("archive_audit", str(folder), *words, stdout=out)
    return out.getvalue()


def test_archives_whole_parts_and_both_halves_still_verify(tmp_path: Path, dave: User, client: Client) -> None:
    before = fill()
    assert "Entries 1 to 5 are in" in archive(tmp_path / "old", before)
    assert AuditEntry.objects.order_by("sequence").values_list("sequence", flat=True).first() == 6
    assert verifying.verify().fault is None
    entry = AuditEntry.objects.get(action="audit.tombstone")
    assert (entry.actor, entry.because, entry.data["to"]) == ("dave", "older than ten years", 5)
    assert AuditTombstone.objects.get().through == 5
    bundling.export(tmp_path / "new", at=now())
    told = run_alone(tmp_path / "old", tmp_path / "new", cwd=tmp_path)
    assert told.returncode == 0, told.stdout
    assert "entries (1 to" in told.stdout
    assert run_alone(tmp_path / "new", tmp_path / "old", cwd=tmp_path).returncode == 1
    client.force_login(dave)
    assert "/auditentry/6/change/" in client.get("/admin/approvals/auditentry/").content.decode()
    checkpoints.write(now())
    with pytest.raises(CommandError, match="nothing to archive"):
        archive(tmp_path / "none", before)


def test_removes_in_pieces_and_goes_on_after_it_was_cut_short(
    tmp_path: Path, dave: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fill()
    monkeypatch.setattr(archiving, "PIECE", 2)
    tell = checkpoints.tell

    def tell_once(action: str, told: dict[str, Any], digest: str, **more: Any) -> AuditEntry:
        if told["from"] > 1:
            raise KeyboardInterrupt
        return tell(action, told, digest, **more)

    monkeypatch.setattr(checkpoints, "tell", tell_once)
    with pytest.raises(KeyboardInterrupt):
        archive(tmp_path / "cut", before)
    first = AuditEntry.objects.order_by("sequence").values_list("sequence", flat=True)
    assert first[0] == 3
    assert verifying.verify().fault is None
    monkeypatch.setattr(checkpoints, "tell", tell)
    assert "Entries 3 to 5 are in" in archive(tmp_path / "rest", before)
    assert first[0] == 6
    assert verifying.verify().fault is None
    spans = AuditTombstone.objects.order_by("first").values_list("first", "through")
    assert list(spans) == [(1, 2), (3, 4), (5, 5)]
    bundling.export(tmp_path / "new", at=now())
    for old in ("cut", "rest"):
        assert run_alone(tmp_path / old, tmp_path / "new", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(("by", "why"), [("bob", "neither the CTO"), ("nobody", "Nobody is called")])
def test_archives_only_for_who_may(tmp_path: Path, bob: User, by: str, why: str) -> None:
    before = fill()
    with pytest.raises(CommandError, match=why):
        archive(tmp_path / "old", before, by)
    assert AuditEntry.objects.filter(sequence=1).exists()


def test_archives_nothing_from_a_log_that_was_changed(tmp_path: Path, dave: User) -> None:
    before = fill()
    with triggers_off(), connection.cursor() as cursor:
        cursor.execute("UPDATE approvals_auditentry SET because = 'x' WHERE sequence = 8")
    with pytest.raises(CommandError, match="Entry 8"):
        archive(tmp_path / "old", before)
    assert AuditEntry.objects.filter(sequence=1).exists()


BURY = (
    "INSERT INTO approvals_audittombstone (first, through, prev_hash, hash, statement, archive, at)"
    " SELECT 1, {through}, repeat('0', 64), hash, '{statement}', 'x', now()"
    " FROM approvals_auditentry WHERE sequence = {through}"
)


def sql(statement: str) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


def test_needs_a_tombstone_that_the_log_tells_of_to_remove_anything(dave: User) -> None:
    fill()
    with pytest.raises(IntegrityError, match="append-only"):
        sql("DELETE FROM approvals_auditentry WHERE sequence <= 5")
    with pytest.raises(IntegrityError, match="an audit entry of its own"):
        sql(BURY.format(through=5, statement="ab" * 32))
    audit.record("audit.tombstone", None, data={"statement": 3, "digest": "ab" * 32})
    with pytest.raises(IntegrityError, match="does not name the beginning"):
        sql(BURY.format(through=5, statement="ab" * 32).replace("SELECT 1,", "SELECT 2,"))
    sql(BURY.format(through=5, statement="ab" * 32))
    with pytest.raises(IntegrityError, match="append-only"):
        sql("DELETE FROM approvals_auditentry WHERE sequence <= 6")
    for statement in ("UPDATE approvals_audittombstone SET through = 9", "DELETE FROM approvals_audittombstone"):
        with pytest.raises(IntegrityError, match="append-only"):
            sql(statement)


def test_finds_a_removal_that_nobody_signed(dave: User) -> None:
    """Whoever has the product's rights in the database can do this, and no more; it does not stay unnoticed."""
    fill()
    audit.record("audit.tombstone", None, data={"statement": 3, "digest": "ab" * 32})
    sql(BURY.format(through=5, statement="ab" * 32))
    sql("DELETE FROM approvals_auditentry WHERE sequence <= 5")
    assert verifying.verify().fault == chain.Fault(1, "Entry 1 is missing: after 0 comes 6.")


def test_finds_entries_missing_after_the_archive(tmp_path: Path, dave: User) -> None:
    archive(tmp_path / "old", fill())
    with triggers_off():
        sql("DELETE FROM approvals_auditentry WHERE sequence = 6")
    fault = verifying.verify().fault
    assert fault is not None
    assert fault.sequence == 1


def test_refuses_an_old_tombstone_for_new_removals(tmp_path: Path, dave: User) -> None:
    archive(tmp_path / "old", fill())
    with triggers_off():  # as if it had been made in another transaction
        sql("ALTER TABLE approvals_audittombstone DISABLE TRIGGER audit_refuse_change")
        sql("UPDATE approvals_audittombstone SET transaction = '1', through = 9")
        sql("ALTER TABLE approvals_audittombstone ENABLE ALWAYS TRIGGER audit_refuse_change")
    with pytest.raises(IntegrityError, match="append-only"):
        sql("DELETE FROM approvals_auditentry WHERE sequence <= 9")


def test_writes_the_tombstone_where_the_database_cannot_reach(tmp_path: Path, dave: User) -> None:
    archive(tmp_path / "old", fill())
    (told,) = (one for one in statements.read().all if one["kind"] == "tombstone")
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    assert (told["from"], told["to"], told["count"], told["hash"]) == (1, 5, 5, manifest["hash"])
    assert told["archive"] == chain.file_digest(tmp_path / "old" / "manifest.json")
