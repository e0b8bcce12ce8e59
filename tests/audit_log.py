"""What tests may do to the audit log that nobody else may."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction


def let_tests_flush() -> None:
    """Take the TRUNCATE triggers off the test database: between tests that commit, Django empties every table."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE approvals_auditentry DISABLE TRIGGER audit_refuse_truncate")
        cursor.execute("ALTER TABLE approvals_audithead DISABLE TRIGGER audit_head_refuse_truncate")
        cursor.execute("ALTER TABLE approvals_audittombstone DISABLE TRIGGER audit_refuse_truncate")


@contextmanager
def triggers_off() -> Iterator[None]:
    """As somebody who owns the tables could: everything is possible, only the verifier is left."""
    tables = {
        "approvals_auditentry": ["audit_append", "audit_refuse_change", "audit_remove", "audit_refuse_truncate"],
        "approvals_audithead": ["audit_head_guard", "audit_head_refuse_truncate"],
    }
    with connection.cursor() as cursor:
        for table, triggers in tables.items():
            for trigger in triggers:
                cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")
        yield
        for table, triggers in tables.items():
            for trigger in triggers:
                cursor.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}")


def write(count: int) -> None:
    """So many entries, numbered from 0."""
    from approvals import audit  # after Django is set up: conftest names this module before

    with transaction.atomic():
        for number in range(count):
            audit.record("test.written", None, because=f"entry {number}", data={"number": number})


@pytest.fixture
def audit_home(settings: Any, tmp_path: Path) -> Path:
    """Checkpoints and keys of this test alone."""
    settings.AUDIT_CHECKPOINT_DIR = tmp_path / "checkpoints"
    settings.AUDIT_KEY_DIR = tmp_path / "keys"
    return tmp_path


@pytest.fixture(autouse=True)
def _entries_want_a_transaction_of_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction around a test would hide that the product began none; `audit.record` refuses that."""
    from approvals import audit

    record = audit.record

    def checked(action: str, *given: Any, **named: Any) -> Any:
        of_a_test = sys._getframe(1).f_globals["__name__"].startswith("tests.")
        if not of_a_test and all(block._from_testcase for block in connection.atomic_blocks):
            raise audit.OutsideTransaction(action)
        return record(action, *given, **named)

    monkeypatch.setattr(audit, "record", checked)
