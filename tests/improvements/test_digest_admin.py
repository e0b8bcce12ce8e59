"""The pages of the digest: a preview of what one may see, one's own settings, and what was sent."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from approvals import limits
from approvals.models import AuditEntry, PersonSettings
from approvals.policy import Role
from improvements.models import DigestSent
from tests.improvements.digests import MONDAY, busy_week, reader
from tests.monitoring.notices import mail_server
from tests.people import person

pytestmark = pytest.mark.django_db

LIST = reverse("admin:improvements_digestsent_changelist")
MINE, MAIL, SETTINGS, SEND = (
    reverse(f"admin:improvements_digestsent_{name}") for name in ("mine", "mail", "settings", "send")
)


@pytest.fixture
def bob() -> User:
    return reader("bob", Role.LEAD, zone="Europe/Berlin")


@pytest.fixture
def signed_in(client: Client, bob: User) -> Client:
    client.force_login(bob)
    return client


def page(client: Client, address: str, **query: str) -> str:
    answer = client.get(address, query)
    assert answer.status_code == 200, address
    return answer.content.decode()


def said(client: Client, address: str, **given: str) -> str:
    return re.sub(r"<[^>]+>|\s+", " ", client.post(address, given, follow=True).content.decode())


def test_previews_what_the_mail_will_say(signed_in: Client) -> None:
    busy_week()
    shown = page(signed_in, MINE, week="2026-W47")
    assert f'src="{MAIL}?week=2026-W47"' in shown
    assert 'sandbox="allow-popups allow-popups-to-escape-sandbox"' in shown
    assert "&lt;b&gt;player&lt;/b&gt;" in page(signed_in, MAIL, week="2026-W47")
    as_text = page(signed_in, MINE, week="2026-W47", form="text")
    assert "&lt;b&gt;player&lt;/b&gt;" in as_text
    assert "2026-11-18 13:00 +01:00" in as_text
    assert "<iframe" not in as_text
    assert not AuditEntry.objects.filter(action="digest.previewed").exists()


def test_cages_the_mail_and_lets_no_other_site_frame_it(signed_in: Client) -> None:
    answer = signed_in.get(MAIL)
    rules = answer["Content-Security-Policy"]
    for rule in ("default-src 'none'", "form-action 'none'", "frame-ancestors 'self'", "sandbox allow-popups"):
        assert rule in rules
    assert "allow-scripts" not in rules
    assert "allow-same-origin" not in rules
    assert answer["X-Frame-Options"] == "SAMEORIGIN"
    page_rules = signed_in.get(MINE)
    assert "unsafe-inline" not in page_rules["Content-Security-Policy"]
    assert page_rules["X-Frame-Options"] == "DENY"


def test_a_preview_holds_no_link_that_stops_anything(signed_in: Client) -> None:
    assert "unsubscribe" not in page(signed_in, MAIL)
    assert "unsubscribe" not in page(signed_in, MINE, form="text")


def test_only_a_superuser_looks_at_somebody_elses_and_it_is_written_down(client: Client, bob: User) -> None:
    busy_week()
    reader("alice")  # with no right at all
    client.force_login(bob)
    for address in (MINE, MAIL):
        assert client.get(address, {"as": "alice"}).status_code == 403
    client.force_login(person("mallory", is_superuser=True))
    assert "&lt;b&gt;player" not in page(client, MINE, **{"as": "alice", "week": "2026-W47", "form": "text"})
    html = page(client, MAIL, **{"as": "bob", "week": "2026-W47"})
    assert "&lt;b&gt;player" in html
    assert "Awaiting your signature" not in html, "bob signs nothing of high risk"
    entries = AuditEntry.objects.filter(action="digest.previewed").order_by("sequence")
    assert [(entry.actor, entry.subject) for entry in entries] == [("mallory", "alice"), ("mallory", "bob")]
    assert client.get(MINE, {"as": "nobody"}).status_code == 404


def test_knows_no_week_that_is_none(signed_in: Client) -> None:
    assert signed_in.get(MINE, {"week": "2026-W99"}).status_code == 404


@pytest.mark.parametrize("address", [LIST, MINE, MAIL, SETTINGS, SEND])
def test_asks_who_it_is(client: Client, address: str) -> None:
    assert client.get(address).status_code == 302
    client.force_login(User.objects.create(username="outsider"))
    assert client.get(address).status_code == 302


def test_keeps_what_a_person_chooses_and_writes_it_down(signed_in: Client, bob: User) -> None:
    assert "You get no weekly digest" in said(signed_in, SETTINGS, time_zone="Pacific/Auckland")
    kept = PersonSettings.objects.get(user=bob)
    assert (kept.wants_digest, kept.time_zone) == (False, "Pacific/Auckland")
    assert "They chose to get none" in page(signed_in, MINE)
    assert "You get the weekly digest" in said(signed_in, SETTINGS, time_zone="Pacific/Auckland", wants_digest="on")
    kept.refresh_from_db()
    assert kept.wants_digest
    entries = AuditEntry.objects.filter(action="person.settings-changed").order_by("sequence")
    assert [(entry.actor, entry.subject) for entry in entries] == [("bob", "bob")] * 3


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../../etc/localtime", "europe/berlin "])
def test_refuses_a_time_zone_that_is_none(signed_in: Client, bob: User, zone: str) -> None:
    assert "There is no time zone" in said(signed_in, SETTINGS, time_zone=zone, wants_digest="on")
    assert PersonSettings.objects.get(user=bob).time_zone == "Europe/Berlin"


def test_changes_nothing_on_get(signed_in: Client, bob: User) -> None:
    for address in (SETTINGS, SEND):
        assert signed_in.get(address).status_code == 302
    assert not AuditEntry.objects.exists()


def test_sends_a_copy_to_oneself_twice_a_minute(
    signed_in: Client, bob: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One minute, however long this takes; people of earlier tests had the same id.
    in_a_minute = functools.partial(limits.seconds_to_wait, at=MONDAY.timestamp())
    monkeypatch.setattr(limits, "seconds_to_wait", in_a_minute)
    limits.valkey().delete(f"runerogue:uses:digest copy {bob.pk}:{int(MONDAY.timestamp()) // 60}")
    with mail_server(settings) as box:
        answers = [said(signed_in, SEND, week="2026-W47") for _ in range(3)]
    assert "Sent to bob@example.org: accepted by 127.0.0.1." in answers[0]
    assert "Not sent: you had 2 this minute. Try again in 60 s." in answers[2]
    assert len(box.mails) == 2
    assert "2026-W47" in box.mails[0]["Subject"]
    assert not DigestSent.objects.exists()


def test_works_without_a_mail_server_and_says_what_to_set(signed_in: Client, settings: Any) -> None:
    settings.EMAIL_HOST = ""
    for address in (LIST, MINE):
        assert "set EMAIL_URL" in page(signed_in, address)
    assert "set EMAIL_URL" in said(signed_in, SEND, week="2026-W47")
    assert "<!DOCTYPE html>" in page(signed_in, MAIL)


def test_lists_what_was_sent_within_its_budget(signed_in: Client, django_assert_max_num_queries: Any) -> None:
    assert "No digest was due yet" in page(signed_in, LIST)
    for number in range(40):
        DigestSent.objects.create(week="2026-W47", reader=reader(f"reader{number}"), problem="They chose to get none.")
    with django_assert_max_num_queries(12):
        shown = page(signed_in, LIST)
    assert shown.count("They chose to get none.") == 40
    assert MINE in shown


def test_says_when_the_next_one_comes_and_how_the_last_one_went(signed_in: Client, bob: User, settings: Any) -> None:
    settings.EMAIL_HOST = "mail.example.org"
    DigestSent.objects.create(week="2026-W47", reader=bob, state="sent", sent_at=MONDAY)
    shown = page(signed_in, MINE)
    assert re.search(r"The next one is due \d{4}-\d\d-\d\d 08:00 \+0[12]:00, to bob@example.org", shown)
    assert "2026-W47: sent 2026-11-23 08:05 UTC" in shown
