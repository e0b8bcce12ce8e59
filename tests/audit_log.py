"""What tests may do to the audit log that nobody else may."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection


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
