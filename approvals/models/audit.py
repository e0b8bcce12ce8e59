"""The audit log: one hash-chained line per thing that happened.

Rows are written by `approvals.audit.record` alone. The database's triggers refuse UPDATE, DELETE and TRUNCATE and check
every appended entry against the head; the refusals here only say the same in kinder words.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Never

from django.db import connection, models

from approvals import chain


class AppendOnly(TypeError):
    """Somebody tried to change what is already history."""

    def __init__(self) -> None:
        super().__init__("The audit log is append-only: write a new entry with approvals.audit.record instead.")


class AuditEntryQuerySet(models.QuerySet["AuditEntry"]):
    def about(self, subject: models.Model) -> AuditEntryQuerySet:
        """Everything recorded about one row, oldest first."""
        kind, subject_id, _ = subject_columns(subject)
        return self.filter(subject_kind=kind, subject_id=subject_id).order_by("sequence")

    def values_of(self, column: str) -> list[str]:
        """The distinct values of an indexed column, by skipping from one to the next in its index.

        PostgreSQL's own DISTINCT would read every entry.
        """
        field = self.model._meta.get_field(column)
        assert isinstance(field, models.Field)
        name = connection.ops.quote_name(str(field.column))
        table = connection.ops.quote_name(self.model._meta.db_table)
        with connection.cursor() as cursor:
            # Both names come from the model, quoted.
            cursor.execute(
                f"""WITH RECURSIVE found AS (
                    (SELECT {name} AS value FROM {table} ORDER BY {name} LIMIT 1)
                    UNION ALL
                    SELECT (SELECT {name} FROM {table} WHERE {name} > found.value ORDER BY {name} LIMIT 1)
                    FROM found WHERE found.value IS NOT NULL
                ) SELECT value FROM found WHERE value IS NOT NULL"""  # noqa: S608
            )
            return [value for (value,) in cursor.fetchall()]

    def update(self, **kwargs: Any) -> Never:
        raise AppendOnly

    def delete(self) -> Never:
        raise AppendOnly

    def bulk_update(self, objs: Iterable[AuditEntry], fields: Any, batch_size: int | None = None) -> Never:
        raise AppendOnly


class AuditEntry(models.Model):
    """One line of the log. Names are copied as text, so that they outlive the users and rows they name."""

    sequence = models.BigIntegerField(primary_key=True)
    prev_hash = models.CharField(max_length=64)
    hash = models.CharField(max_length=64)
    at = models.DateTimeField()
    actor_id = models.BigIntegerField(null=True)
    actor = models.CharField(max_length=150)
    action = models.CharField(max_length=80)
    subject_kind = models.CharField(max_length=80, blank=True)
    subject_id = models.CharField(max_length=64, blank=True)
    subject = models.CharField(max_length=200, blank=True)
    because = models.TextField(blank=True)
    on_behalf_of = models.CharField(max_length=150, blank=True, default="", db_default="")
    origin = models.CharField(max_length=80, blank=True, default="", db_default="", verbose_name="where from")
    correlation = models.CharField(max_length=64, blank=True, default="", db_default="")
    outcome = models.CharField(max_length=10, blank=True, default="", db_default="")
    # Canonical JSON of all of the above and of was, became and data: the text that was hashed.
    payload = models.TextField()

    objects = AuditEntryQuerySet.as_manager()

    class Meta:
        ordering = ["-sequence"]
        verbose_name_plural = "audit log"
        # Not unique=True: Django would add an index for LIKE, which every append would pay for.
        constraints = [models.UniqueConstraint(fields=["prev_hash"], name="audit_continues_once")]
        indexes = [
            models.Index(fields=["action", "-sequence"], name="audit_action"),
            models.Index(fields=["actor", "-sequence"], name="audit_actor"),
            models.Index(fields=["subject_kind", "subject_id", "-sequence"], name="audit_subject"),
            models.Index(fields=["correlation"], condition=~models.Q(correlation=""), name="audit_correlation"),
        ]

    def __str__(self) -> str:
        return f"#{self.sequence} {self.action}"

    def save(self, *args: Any, **kwargs: Any) -> Never:
        raise AppendOnly

    def delete(self, *args: Any, **kwargs: Any) -> Never:
        raise AppendOnly

    @cached_property
    def details(self) -> dict[str, Any]:
        """What only the payload holds. In format 1 it stood beside the columns."""
        read = json.loads(self.payload)
        found = read.get("details", read) if isinstance(read, dict) else {}
        return found if isinstance(found, dict) else {}

    @property
    def was(self) -> Any:
        return self.details.get("was")

    @property
    def became(self) -> Any:
        return self.details.get("became")

    @property
    def data(self) -> dict[str, Any]:
        return self.details.get("data") or {}

    def columns(self) -> dict[str, Any]:
        """What the columns say, in the form in which the payload holds it."""
        return {**{name: getattr(self, name) for name in chain.COLUMNS}, "at": moment(self.at)}

    def as_link(self) -> chain.Link:
        return chain.Link(self.sequence, self.prev_hash, self.hash, self.payload, chain.columns_text(self.columns()))


class AuditHead(models.Model):
    """Where the log ends. One row: appends queue up behind its lock, and a lost tail shows against it.

    The database advances it with every appended entry and refuses any other change. It lives beside the log, so whoever
    can rewrite the one can rewrite the other: only checkpoints kept elsewhere would show that.
    """

    id = models.SmallIntegerField(primary_key=True, default=1)
    sequence = models.BigIntegerField(default=0)
    hash = models.CharField(max_length=64, default=chain.GENESIS)

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="audit_has_one_head")]

    def __str__(self) -> str:
        return f"#{self.sequence} {self.hash[:12]}"


class AuditTombstone(models.Model):
    """A part of the log that was archived and removed. It is what lets the triggers pass the removal.

    The signed statement is outside the database; this row and an entry in the log name it.
    """

    through = models.BigIntegerField(primary_key=True)
    first = models.BigIntegerField()
    prev_hash = models.CharField(max_length=64)
    hash = models.CharField(max_length=64)
    statement = models.CharField(max_length=64, help_text="The digest of the signed statement.")
    archive = models.CharField(max_length=64, help_text="The digest of the archive's manifest.")
    at = models.DateTimeField()
    # Set by a trigger: entries may be removed in the transaction that made this row, and in no other.
    transaction = models.CharField(max_length=24, blank=True, default="", db_default="")

    class Meta:
        ordering = ["-through"]

    def __str__(self) -> str:
        return f"entries {self.first} to {self.through}"


def moment(at: dt.datetime) -> str:
    """A time as the log writes it: UTC, microseconds, always 27 characters."""
    return at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def subject_columns(subject: models.Model | None) -> tuple[str, str, str]:
    """(kind, id, text) of a row as the log writes it. The kind is "app.model", the text is cut to 200 characters."""
    if subject is None:
        return "", "", ""
    return subject._meta.label_lower, str(subject.pk), str(subject).replace("\0", " ")[:200]
