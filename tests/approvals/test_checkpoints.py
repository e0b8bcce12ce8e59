from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import logging
import logging.config
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from celery import current_app
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test import Client
from django.utils.timezone import now

from approvals import audit, bundling, chain, checkpoints, statements, verifying
from approvals.models import AuditEntry
from monitoring import exporting, guarding, tasks
from monitoring.models import Page, Service
from tests.audit_log import write

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("audit_home")]
AT = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)


def the_file() -> Path:
    (path,) = statements.folder().glob("*.jsonl")
    return path


def verified() -> chain.Fault | None:
    return verifying.verify().fault


def test_writes_after_so_many_entries_or_minutes_and_only_news(settings: Any) -> None:
    settings.AUDIT_CHECKPOINT_ENTRIES, settings.AUDIT_CHECKPOINT_MINUTES = 5, 10
    assert checkpoints.write_if_due(now()) is None
    write(4)
    assert checkpoints.write_if_due(now()) is None
    assert checkpoints.write_if_due(now() + dt.timedelta(minutes=10)) == 4
    assert checkpoints.write_if_due(now() + dt.timedelta(days=1)) is None, "its own entry is no news"
    assert checkpoints.uncovered().entries == 0
    write(5)
    assert checkpoints.write_if_due(now()) == 10
    assert verified() is None
    told = AuditEntry.objects.filter(action="audit.checkpoint").values_list("sequence", flat=True)
    assert sorted(told) == [5, 11]


def test_keeps_the_key_to_itself_and_signs_what_it_says(settings: Any) -> None:
    write(3)
    checkpoints.write(AT)
    key = statements.key_folder() / statements.CURRENT
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    first, second = statements.read().all
    assert (first["kind"], second["kind"]) == ("key", "checkpoint")
    assert (second["sequence"], second["count"], second["at"]) == (3, 3, "2026-05-01T12:00:00.000000Z")
    assert second["hash"] == AuditEntry.objects.get(pk=3).hash
    assert second["previous"] == statements.read().digests[0]
    settings.AUDIT_PUBLIC_KEY = first["public"]
    assert verified() is None
    settings.AUDIT_PUBLIC_KEY = "ab" * 32
    fault = verified()
    assert fault is not None
    assert "pinned" in fault.what


def test_signs_only_what_is_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit in the tests' database waits for no disk, as with synchronous_commit = off in somebody's own."""
    write(3)
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == ("off",)
        cursor.execute("SELECT pg_current_wal_insert_lsn()")
        (written,) = cursor.fetchone()
    append = statements.append
    flushed: list[bool] = []

    def look_first(kind: str, fields: dict[str, Any], *, at: dt.datetime) -> tuple[dict[str, Any], str]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn", [written])
            flushed.append(cursor.fetchone()[0])
        return append(kind, fields, at=at)

    monkeypatch.setattr(statements, "append", look_first)
    checkpoints.write(AT)
    assert flushed == [True]


def test_refuses_to_sign_within_a_transaction_that_may_be_taken_back() -> None:
    with transaction.atomic():
        write(3)
        with pytest.raises(RuntimeError, match="durable"):
            checkpoints.write(AT)
    assert statements.lines() == []


def test_misses_the_statements_of_a_pinned_key(settings: Any) -> None:
    """Whoever removes all of them, and the key, does not start anew unnoticed."""
    write(3)
    assert verified() is None
    settings.AUDIT_PUBLIC_KEY = "ab" * 32
    assert verified() == chain.Fault(
        1, f"{statements.folder()}: A public key is pinned, and there is no statement at all: they were removed."
    )
    with pytest.raises(statements.StatementsUnusable, match="pins a key"):
        checkpoints.write(AT)


def test_changes_keys_and_keeps_the_old_proofs() -> None:
    write(3)
    old = checkpoints.write(AT)
    before = (statements.key_folder() / statements.CURRENT).read_bytes()
    out = io.StringIO()
    call_command("rotate_audit_key", "--because", "yearly", stdout=out)
    write(1)
    checkpoints.write(AT)
    read = statements.read()
    assert read.fault is None
    assert [one["kind"] for one in read.all] == ["key", "checkpoint", "checkpoint", "rotation", "checkpoint"]
    assert old in read.marks
    assert len(read.keys) == 2
    assert (statements.key_folder() / statements.CURRENT).read_bytes() != before
    assert not (statements.key_folder() / statements.NEXT).exists()
    entry = AuditEntry.objects.get(action="audit.rotation")
    assert entry.because == "yearly"
    assert entry.data["new_key_id"] in out.getvalue()
    assert verified() is None


def test_completes_a_rotation_that_was_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    write(3)
    checkpoints.write(AT)
    with statements.locked():
        public = statements.public_half(statements._new_key(statements.NEXT))
        statements.append("rotation", {"new_key_id": chain.key_id_of(public), "new_public": public}, at=AT)
    write(1)
    checkpoints.write(AT)
    assert verified() is None
    assert statements.read().public == public


def test_refuses_to_continue_files_that_were_changed() -> None:
    write(3)
    checkpoints.write(AT)
    the_file().write_text(the_file().read_text().replace('"count":3', '"count":4'))
    write(1)
    with pytest.raises(statements.StatementsUnusable, match="not signed by the key in force"):
        checkpoints.write(AT)


def test_is_loud_when_its_folder_cannot_be_used(settings: Any, tmp_path: Path) -> None:
    service = Service.objects.create(name="runerogue", repository="/x", manifest={}, is_self=True)
    write(1)
    blocked = tmp_path / "file"
    blocked.write_text("")
    settings.AUDIT_CHECKPOINT_DIR = blocked / "checkpoints"
    with pytest.raises(statements.StatementsUnusable, match="can't be written"):
        checkpoints.write_if_due(now() + dt.timedelta(hours=1))
    settings.AUDIT_CHECKPOINT_DIR = tmp_path / "checkpoints"
    guarding.watch_checkpoints(now())
    assert not service.pages.exists()
    guarding.watch_checkpoints(now() + dt.timedelta(minutes=31))
    assert "31 minutes old" in Page.objects.get().body
    checkpoints.write(now())
    guarding.watch_checkpoints(now() + dt.timedelta(minutes=32))
    assert not Page.objects.open().exists()


def test_tells_metrics_how_long_nothing_vouched() -> None:
    write(1)
    found = {metric.name: metric.samples[0].value for metric in exporting.audit_log()}
    assert found["runerogue_audit_checkpoints_up"] == 1
    assert 0 <= found["runerogue_audit_uncovered_age_seconds"] < 60
    checkpoints.write(now())
    found = {metric.name: metric.samples[0].value for metric in exporting.audit_log()}
    assert found["runerogue_audit_uncovered_age_seconds"] == 0
    the_file().write_bytes(b"\xff\xfe")
    found = {metric.name: (metric.samples or [None])[0] for metric in exporting.audit_log()}
    assert found["runerogue_audit_checkpoints_up"].value == 0


def test_pages_on_call_about_a_log_that_is_not_what_was_written() -> None:
    Service.objects.create(name="runerogue", repository="/x", manifest={}, is_self=True)
    write(3)
    checkpoints.write(AT)
    assert guarding.verify_log(now())
    assert verifying.last().outcome == "ok"  # type: ignore[union-attr]
    the_file().write_text(the_file().read_text().splitlines()[0] + "\n")
    assert not guarding.verify_log(now())
    assert "tells of statement 2" in Page.objects.get().body
    told = verifying.last()
    assert told is not None
    assert (told.outcome, told.data["first_bad_entry"]["sequence"]) == ("failed", 4)


def test_says_in_its_exit_code_what_it_found() -> None:
    write(2)
    checkpoints.write(AT)
    out = io.StringIO()
    call_command("verify_audit", stdout=out)
    assert "1 checkpoints, the last at 2" in out.getvalue()
    kept = the_file().read_bytes()
    the_file().write_bytes(b"\xff\xfe")
    with pytest.raises(SystemExit) as ended:
        call_command("verify_audit", stderr=out)
    assert ended.value.code == 2
    the_file().write_bytes(kept[:-200])
    with pytest.raises(SystemExit) as ended:
        call_command("verify_audit", stdout=out)
    assert ended.value.code == 1


# --- Exports -----------------------------------------------------------------------------------------------------


def run_alone(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The program of the bundle, where nothing of the project can be imported."""
    folder = Path(str(arguments[-1]))
    command = [sys.executable, "-I", str(folder / bundling.PROGRAM), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env={"PATH": os.defpath}, capture_output=True, text=True)


def test_exports_what_proves_itself_without_the_product(tmp_path: Path, alice: User) -> None:
    write(5)
    with transaction.atomic():
        audit.record("test.odd", alice, actor=alice, because='=HYPERLINK("x")\t\n\\N "é😀"', data={"a": [1.5, None]})
    checkpoints.write(AT)
    write(5)
    folder = tmp_path / "out"
    call_command("export_audit", str(folder), "--first", "3", "--last", "6", "--by", "alice", stdout=io.StringIO())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["first"], manifest["last"], manifest["wanted"]) == (3, 6, {"first": 3, "last": 6})
    told = run_alone("--public-key", statements.read().all[0]["public"], folder, cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    assert "All 4 entries (3 to 6) are as they were written, signed with the key you named." in told.stdout
    assert run_alone("--public-key", "ab" * 32, folder, cwd=tmp_path).returncode == 1
    entry = AuditEntry.objects.get(action="audit.exported")
    assert (entry.actor, entry.data["first"], entry.data["last"]) == ("alice", 3, 6)
    table = (folder / "entries.csv").read_text()
    assert "'=HYPERLINK" in table


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", " =1"])
def test_lets_no_cell_be_a_formula(text: str) -> None:
    assert bundling.safe_cell(text) == f"'{text}"
    assert bundling.safe_cell("a=1") == "a=1"
    assert bundling.safe_cell(-5) == -5


def test_exports_by_time_and_refuses_what_is_not_there(tmp_path: Path) -> None:
    write(3)
    with pytest.raises(CommandError, match="No entry is in that range"):
        call_command("export_audit", str(tmp_path / "a"), "--until", "2001-01-01")
    with pytest.raises(CommandError, match="Nobody is called"):
        call_command("export_audit", str(tmp_path / "a"), "--by", "nobody")
    with pytest.raises(CommandError, match="does not exist yet"):
        call_command("export_audit", str(tmp_path))
    manifest = bundling.export(tmp_path / "b", at=AT, since=now() - dt.timedelta(hours=1))
    assert (manifest["first"], manifest["last"]) == (1, 4)
    assert chain.verify_folder(tmp_path / "b").fault is None
    assert run_alone(tmp_path, cwd=tmp_path).returncode == 2


def test_ships_each_statement_to_the_log_as_it_was_signed(settings: Any) -> None:
    """Whoever keeps the logs elsewhere has the checkpoints there, whole: the usual lines have such words withheld."""
    shipped = settings.LOGGING["loggers"]["approvals.statements"]
    (handler,) = (settings.LOGGING["handlers"][name] for name in shipped["handlers"])
    written = logging.config.DictConfigurator(settings.LOGGING).configure_formatter(
        dict(settings.LOGGING["formatters"][handler["formatter"]])
    )
    records: list[logging.LogRecord] = []
    listener = logging.Handler()
    listener.emit = records.append  # type: ignore[method-assign]
    statements.log.addHandler(listener)
    try:
        write(3)
        checkpoints.write(AT)
    finally:
        statements.log.removeHandler(listener)
    assert shipped["propagate"] is False, "or the usual formatter writes it once more"
    lines = [written.format(record).partition("audit statement ")[2] for record in records]
    assert lines == statements.lines()
    assert chain.read_statements(lines).fault is None


# --- The page ----------------------------------------------------------------------------------------------------

VERIFY = "/admin/approvals/auditentry/verify/"


def test_is_verified_from_a_page_by_a_worker(client: Client, carol: User, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def run(name: str, kwargs: Any) -> None:  # what a worker does with the message
        asked.append((name, kwargs))
        tasks.verify_audit(**kwargs)

    monkeypatch.setattr(current_app, "send_task", run)
    client.force_login(carol)
    assert "Nobody has verified this log yet" in client.get(VERIFY).content.decode()
    write(3)
    checkpoints.write(AT)
    shown = client.post(VERIFY, follow=True).content.decode()
    assert asked == [("monitoring.tasks.verify_audit", {"asked_by": carol.pk})]
    entry = AuditEntry.objects.get(action="audit.verified")
    assert (entry.actor, entry.outcome) == ("carol", "ok")
    assert "as written" in shown
    assert "asked for by carol" in shown
    assert statements.read().all[0]["public"] in shown


def test_says_on_the_page_when_the_log_or_its_checkpoints_are_bad(client: Client, carol: User) -> None:
    client.force_login(carol)
    write(3)
    checkpoints.write(AT)
    path = the_file()
    path.write_text(path.read_text().replace('"count":3', '"count":2'))
    with contextlib.suppress(statements.StatementsUnusable):
        verifying.verify_and_tell(actor=carol)
    shown = client.get(VERIFY).content.decode()
    assert "NOT as written" in shown
    assert 'class="worries"' in shown


def test_shows_the_page_to_nobody_without_the_right(client: Client) -> None:
    client.force_login(User.objects.create(username="guest", is_staff=True))
    assert client.get(VERIFY).status_code == 403
    assert client.post(VERIFY).status_code == 403
