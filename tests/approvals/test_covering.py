"""What the audit log covers beyond the calls of the domain: settings, Django's own admin pages, and its readers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse
from django_celery_beat.models import IntervalSchedule

from approvals import audit, configuration
from approvals.models import AuditEntry

pytestmark = pytest.mark.django_db
LOG = reverse("admin:approvals_auditentry_changelist")


def test_notes_settings_when_they_changed_since_the_last_start() -> None:
    given = {"TICK_SECONDS": "5", "SECRET_KEY": "planted-secret", "DATABASE_URL": "postgresql://a:planted@h/b", "X": ""}
    first = configuration.note(given)
    assert first is not None
    assert first.became["TICK_SECONDS"] == "5"
    assert "planted" not in first.payload
    assert first.became["DATABASE_URL"].startswith("digest:")
    assert configuration.note(given) is None
    second = configuration.note({**given, "TICK_SECONDS": "", "DATABASE_URL": "postgresql://a:other@h/b"})
    assert second is not None
    assert second.was["TICK_SECONDS"] == "5"
    assert second.became["TICK_SECONDS"] == ""
    assert set(second.became) == {"TICK_SECONDS", "DATABASE_URL"}
    assert configuration.note() is not None, "the settings of this very process"
    assert settings.SECRET_KEY not in str(configuration.told("SECRET_KEY", settings.SECRET_KEY))


def test_notes_what_is_changed_on_pages_that_record_nothing_themselves(client: Client, mallory: User) -> None:
    client.force_login(mallory)
    tasks = {"periodictask_set-TOTAL_FORMS": "0", "periodictask_set-INITIAL_FORMS": "0"}
    form = {"every": "5", "period": "seconds", **tasks}
    client.post(reverse("admin:django_celery_beat_intervalschedule_add"), form)
    row = IntervalSchedule.objects.get(every=5)
    client.post(reverse("admin:django_celery_beat_intervalschedule_change", args=[row.pk]), {**form, "every": "6"})
    client.post(reverse("admin:django_celery_beat_intervalschedule_delete", args=[row.pk]), {"post": "yes"})
    told = AuditEntry.objects.filter(subject_kind="django_celery_beat.intervalschedule").order_by("sequence")
    assert [entry.action for entry in told] == ["admin.added", "admin.changed", "admin.deleted"]
    assert {entry.actor for entry in told} == {"mallory"}
    assert all(entry.origin.startswith("address:") for entry in told)


def test_notes_a_change_whatever_id_the_request_brings(client: Client, mallory: User) -> None:
    client.force_login(mallory)
    row = IntervalSchedule.objects.create(every=81, period="days")
    tasks = {"periodictask_set-TOTAL_FORMS": "0", "periodictask_set-INITIAL_FORMS": "0"}
    for every in ("82", "83"):
        client.post(
            reverse("admin:django_celery_beat_intervalschedule_change", args=[row.pk]),
            {"every": every, "period": "days", **tasks},
            headers={"x-request-id": "the-same-twice"},
        )
    assert AuditEntry.objects.filter(action="admin.changed", subject_id=str(row.pk)).count() == 2


def test_notes_once_what_a_page_records_itself(client: Client, mallory: User) -> None:
    client.force_login(mallory)
    client.post(reverse("admin:auth_group_add"), {"name": "Auditors"})
    group = Group.objects.get(name="Auditors")
    client.post(reverse("admin:auth_group_change", args=[group.pk]), {"name": "Examiners"})
    client.post(reverse("admin:auth_group_delete", args=[group.pk]), {"post": "yes"})
    told = AuditEntry.objects.filter(subject_kind="auth.group").order_by("sequence")
    assert [entry.action for entry in told] == ["group.created", "group.changed", "group.deleted"]


def test_notes_each_of_many_that_are_deleted_at_once(client: Client, mallory: User) -> None:
    client.force_login(mallory)
    rows = [IntervalSchedule.objects.create(every=number, period="days") for number in (71, 72, 73)]
    chosen = {"action": "delete_selected", "_selected_action": [row.pk for row in rows], "post": "yes"}
    client.post(reverse("admin:django_celery_beat_intervalschedule_changelist"), chosen)
    told = AuditEntry.objects.filter(action="admin.deleted", actor="mallory").values_list("subject_id", flat=True)
    assert sorted(told) == sorted(str(row.pk) for row in rows)


def test_notes_who_reads_the_log_once_in_ten_minutes(client: Client, carol: User, dave: User) -> None:
    entry = audit.record("a", None)
    for person in (carol, carol, dave):
        client.force_login(person)
        client.get(LOG, {"action": "a"})
        client.get(reverse("admin:approvals_auditentry_change", args=[entry.pk]))
    told = AuditEntry.objects.filter(action="audit.read").order_by("sequence")
    assert [(one.actor, one.subject_id) for one in told] == [
        ("carol", ""),
        ("carol", str(entry.pk)),
        ("dave", ""),
        ("dave", str(entry.pk)),
    ]
    assert told[0].data == {"query": "action=a"}


def test_does_not_note_who_was_not_let_in(client: Client) -> None:
    client.get(LOG)
    assert not AuditEntry.objects.filter(action="audit.read").exists()


def test_has_the_actions_of_the_documentation_in_the_code() -> None:
    """The table of docs/operations.md, the column of actions."""
    page = (settings.BASE_DIR / "docs/operations.md").read_text()
    table = page[page.index("### What is in the log") : page.index("### Checkpoints")]
    packages = ("approvals", "monitoring", "analysis", "improvements", "runerogue")
    code = "".join(path.read_text() for name in packages for path in Path(settings.BASE_DIR / name).rglob("*.py"))
    actions = re.findall(r"`([a-z_]+)\.([a-z_-]+|…)`", table)
    assert len(actions) > 20
    missing = [f"{kind}.{verb}" for kind, verb in actions if not _is_written(kind, verb, code)]
    assert missing == []


def _is_written(kind: str, verb: str, code: str) -> bool:
    return f'"{kind}.' in code if verb == "…" else f'"{kind}.{verb}"' in code
