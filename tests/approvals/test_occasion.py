from __future__ import annotations

import ipaddress
import re
from typing import Any

import pytest
from celery import shared_task
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client

from approvals import audit, occasion, whence
from approvals.models import AuditEntry

pytestmark = pytest.mark.django_db


def entry(**given: object) -> AuditEntry:
    return AuditEntry.objects.get(pk=audit.record("test.noted", None, **given).pk)  # type: ignore[arg-type]


@shared_task(name="tests.note")
def note() -> None:
    with transaction.atomic():
        audit.record("test.task", None)


def test_notes_on_whose_behalf_and_how_it_ended(alice: User) -> None:
    noted = entry(actor=alice, on_behalf_of="dave", outcome=audit.Outcome.REFUSED)
    assert (noted.actor, noted.on_behalf_of, noted.outcome) == ("alice", "dave", "refused")
    assert entry().outcome == "ok"
    with pytest.raises(ValueError, match="perhaps"):
        audit.record("a", None, outcome="perhaps")  # type: ignore[arg-type]
    assert audit.verify().fault is None


def test_notes_where_from_and_gives_way_to_what_the_caller_knows() -> None:
    with occasion.within(origin="task:t", correlation="one"):
        noted = entry()
        with occasion.within(correlation="two"):
            inner = entry()
        told = entry(origin="command:c", correlation="three")
    assert (noted.origin, noted.correlation) == ("task:t", "one")
    assert (inner.origin, inner.correlation) == ("task:t", "two")
    assert (told.origin, told.correlation) == ("command:c", "three")
    assert (entry().origin, entry().correlation) == ("", "")


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        ("0f8fad5b-d9cb-469f-a165-70867728950e", True),
        ("run:123.45_6", True),
        ("short", False),
        ("x" * 65, False),
        ("with space in it", False),
        ("<script>alert(1)</script>", False),
        ("-begins-with-a-dash", False),
        ("", False),
    ],
)
def test_answers_with_its_own_request_id_or_a_sane_one(client: Client, given: str, is_kept: bool) -> None:
    answer = client.get("/health/live", headers={"x-request-id": given})[occasion.HEADER]
    assert (answer == given) == is_kept
    assert occasion.SANE.fullmatch(answer)


def test_knows_addresses_by_pseudonym_only(client: Client, dave: User, settings: object) -> None:
    client.force_login(dave)
    client.get("/admin/approvals/auditentry/", REMOTE_ADDR="203.0.113.9", headers={"x-request-id": "my-request-1"})
    read = AuditEntry.objects.get(action="audit.read")
    assert re.fullmatch(r"address:[0-9a-f]{16}", read.origin)
    assert read.correlation == "my-request-1"
    assert "203.0.113.9" not in read.payload
    before = read.origin
    settings.SECRET_KEY = "another"  # type: ignore[attr-defined]
    assert whence.keyed("origin", "203.0.113.9")[:16] not in before


def test_knows_who_asks_through_a_proxy_that_is_trusted(client: Client, dave: User, settings: Any) -> None:
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("10.0.0.0/8")]
    client.force_login(dave)
    client.get("/admin/approvals/auditentry/", REMOTE_ADDR="10.1.2.3", headers={"x-forwarded-for": "203.0.113.9"})
    assert AuditEntry.objects.get(action="audit.read").origin == f"address:{whence.keyed('origin', '203.0.113.9')[:16]}"


def test_has_a_task_keep_the_connection_of_its_sender() -> None:
    note.apply(task_id="t-1")
    with occasion.within(correlation="request-77"):
        headers: dict[str, object] = {}
        occasion._carry(headers=headers)
    note.apply(task_id="t-2", headers=headers)
    first, second = AuditEntry.objects.filter(action="test.task").order_by("sequence")
    assert (first.origin, first.correlation) == ("task:tests.note", "t-1")
    assert (second.origin, second.correlation) == ("task:tests.note", "request-77")
    assert occasion.current() == occasion.Occasion()


def test_knows_commands_by_name_and_not_by_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(occasion, "_of_this_process", occasion.Occasion())
    occasion.begin_command(["manage.py", "verify_audit", "--password=x"])
    assert occasion.current().origin == "command:verify_audit"
    occasion.begin_command(["manage.py", "--odd"])
    assert occasion.current().origin == "command:manage"


# Everything a programmer might put into an entry by mistake.
PLANTED = {
    "password": "hunter2-planted",
    "newPassword": "hunter2-planted",
    "API_KEY": "hunter2-planted",
    "otp": 123456789,
    "tokens": ["hunter2-planted"],
    "session_key": "hunter2-planted",
    "recovery_codes": {"a": "hunter2-planted"},
    "deep": [{"secret": {"in": "hunter2-planted"}}],
    "url": "postgresql://me:hunter2-planted@db/x",
    "header": "Authorization: Bearer hunter2-planted-hunter2",
    "text": "password=hunter2-planted and more",
    "mine": "rr_abcd2345_hunter2-planted-hunter2-planted",
    "key": "-----BEGIN PRIVATE KEY-----\nhunter2-planted\n-----END PRIVATE KEY-----",
    "contact": "write to jane.planted@example.org soon",
}


@pytest.mark.parametrize("place", ["was", "became", "data"])
@pytest.mark.parametrize("name", list(PLANTED))
def test_withholds_secrets_and_addresses(place: str, name: str) -> None:
    payload = entry(**{place: {name: PLANTED[name]}}).payload
    assert "planted" not in payload
    assert "123456789" not in payload
    assert name in payload
    assert "withheld]" in payload


def test_withholds_them_in_reasons_and_keeps_what_is_harmless() -> None:
    noted = entry(because="token=hunter2-planted for jane.planted@example.org")
    assert "planted" not in noted.payload
    assert "planted" not in noted.because
    harmless = {
        "secret": "set",
        "token": None,
        "has_password": True,
        "tokens_used": 3,
        "key": "improvement-7",
        "a": "@x",
    }
    assert entry(data=harmless).data == harmless
