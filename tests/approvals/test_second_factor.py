"""One-time codes: each counts once, wrong ones wait, and nothing of them is readable in the database or the log."""

from __future__ import annotations

import datetime as dt
import io
import re
from threading import Thread
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.test import Client, RequestFactory
from django.urls import reverse
from django.utils.timezone import now

from approvals import concealing, policy, requests, second_factor
from approvals.models import ApprovalRequest, AuditEntry, Authenticator, RecoveryCode
from approvals.policy import Channel, How, Tier
from approvals.subjects import SubjectRef
from tests.authenticators import code_of, enrolled
from tests.people import FRESH, give_second_factor

pytestmark = pytest.mark.django_db

AT = dt.datetime(2026, 5, 4, 12, 0, 10, tzinfo=dt.UTC)
STEP_UP, ENROL, SETTINGS = (reverse(f"second-factor{end}") for end in ("", "-enrol", "-settings"))
STALE = How(Channel.PAGE, policy.FRESH_SECONDS + 1)


def seconds(count: float) -> dt.timedelta:
    return dt.timedelta(seconds=count)


def actions() -> list[str]:
    return list(
        AuditEntry.objects.filter(action__startswith="signin.").order_by("sequence").values_list("action", flat=True)
    )


def signed_in(person: User) -> Client:
    client = Client()
    client.force_login(person)
    return client


# --- Codes ----------------------------------------------------------------------------------------------------------


def test_agrees_with_the_standard(bob: User) -> None:
    """RFC 6238, appendix B, SHA-1: its eight digits end in these six."""
    for moment, code in ((59, "287082"), (1111111109, "081804"), (1234567890, "005924"), (20000000000, "353130")):
        Authenticator.objects.all().delete()
        at = dt.datetime.fromtimestamp(moment, dt.UTC)
        Authenticator.objects.create(
            user=bob, confirmed=True, concealed_key=concealing.conceal(b"12345678901234567890".hex()), created_at=at
        )
        assert second_factor.verify(bob, code, at)


@pytest.mark.parametrize(("of_seconds", "accepted"), [(-60, False), (-30, True), (0, True), (30, True), (60, False)])
def test_accepts_codes_of_half_a_minute_around(bob: User, of_seconds: int, accepted: bool) -> None:
    key = enrolled(bob, AT)
    assert second_factor.verify(bob, code_of(key, AT + seconds(of_seconds)), AT) is accepted


@pytest.mark.parametrize("typed", ["", "12345", "1234567", "abcdef", "１２３４５６", "-12345", "0x1234", "1" * 5_000])
def test_refuses_what_is_no_code(bob: User, typed: str) -> None:
    enrolled(bob, AT)
    assert not second_factor.verify(bob, typed, AT)


def test_counts_a_code_once_and_none_older_than_it(bob: User) -> None:
    key = enrolled(bob, AT)
    assert second_factor.verify(bob, f" {code_of(key, AT)[:3]} {code_of(key, AT)[3:]} ", AT)
    assert not second_factor.verify(bob, code_of(key, AT), AT)
    Authenticator.objects.update(throttling_failure_count=0)
    assert not second_factor.verify(bob, code_of(key, AT - seconds(30)), AT)
    Authenticator.objects.update(throttling_failure_count=0)
    assert second_factor.verify(bob, code_of(key, AT + seconds(30)), AT + seconds(30))
    assert actions()[-4:] == [
        "signin.factor_given",
        "signin.factor_failed",
        "signin.factor_failed",
        "signin.factor_given",
    ]


def test_makes_wrong_codes_wait_twice_as_long_each_time_but_not_for_ever(bob: User) -> None:
    key = enrolled(bob, AT)
    assert not second_factor.verify(bob, "000000", AT)
    assert second_factor.seconds_to_wait(bob) == 1
    assert not second_factor.verify(bob, code_of(key, AT), AT), "the right one has to wait, too"
    assert actions().count("signin.factor_failed") == 1, "what was not looked at fills no log"
    for _ in range(20):
        Authenticator.objects.update(throttling_failure_timestamp=now() - dt.timedelta(hours=1))
        assert not second_factor.verify(bob, "000000", AT)
    assert second_factor.seconds_to_wait(bob) == pytest.approx(1024, abs=2)
    Authenticator.objects.update(throttling_failure_timestamp=now() - seconds(1025))
    assert second_factor.verify(bob, code_of(key, AT), AT)
    assert second_factor.seconds_to_wait(bob) == 0


def test_counts_wrong_codes_whatever_becomes_of_the_caller(bob: User) -> None:
    enrolled(bob, AT)
    with pytest.raises(RuntimeError, match="durable"), transaction.atomic():
        second_factor.verify(bob, "000000", AT)


def test_knows_nobody_without_an_authenticator(bob: User) -> None:
    assert not second_factor.has_device(bob)
    assert not second_factor.verify(bob, "123456", AT)
    second_factor.begin(bob, AT)
    assert not second_factor.has_device(bob), "one that no code was verified of does not count"


def test_keeps_keys_and_codes_unreadable(bob: User) -> None:
    device = second_factor.begin(bob, AT)
    key = second_factor.shown_key(device)
    codes = second_factor.confirm(bob, code_of(key, AT), AT)
    assert codes
    with connection.cursor() as cursor:
        cursor.execute("SELECT string_agg(a::text, ' ') FROM approvals_authenticator a")
        stored = cursor.fetchone()[0]
        cursor.execute("SELECT string_agg(r::text, ' ') FROM approvals_recoverycode r")
        stored += cursor.fetchone()[0]
    stored += "".join(AuditEntry.objects.values_list("payload", flat=True))
    secrets = [key, device.key.hex(), code_of(key, AT), *codes, *(code.replace("-", "") for code in codes)]
    assert [one for one in secrets if one in stored] == []


def test_refuses_codes_of_a_key_that_cannot_be_read_any_more(bob: User, settings: Any) -> None:
    key = enrolled(bob, AT)
    former = settings.SECRET_KEY
    settings.SECRET_KEY = "another-key-0123456789-0123456789-0123456789"
    assert not second_factor.verify(bob, code_of(key, AT), AT)
    settings.SECRET_KEY_FALLBACKS = [former]
    Authenticator.objects.update(throttling_failure_count=0)
    assert second_factor.verify(bob, code_of(key, AT), AT)


@pytest.mark.django_db(transaction=True)
def test_of_two_that_give_the_same_code_one_is_believed(bob: User) -> None:
    at = now()
    code = code_of(enrolled(bob, at), at)
    results: list[bool] = []

    def give() -> None:
        try:
            results.append(second_factor.verify(bob, code, at))
        finally:
            connections.close_all()

    threads = [Thread(target=give) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 5 + [True]


# --- Recovery codes ---------------------------------------------------------------------------------------------------


def test_counts_each_recovery_code_once_however_it_is_typed(bob: User) -> None:
    device = second_factor.begin(bob, AT)
    codes = second_factor.confirm(bob, code_of(second_factor.shown_key(device), AT), AT)
    assert codes
    assert len(set(codes)) == 10
    assert all(re.fullmatch(r"([a-z2-7]{4}-){3}[a-z2-7]{4}", code) for code in codes)
    assert second_factor.verify(bob, codes[0].replace("-", " ").upper(), AT)
    assert not second_factor.verify(bob, codes[0], AT)
    assert actions()[-2:] == ["signin.recovery_code_used", "signin.factor_failed"]
    Authenticator.objects.update(throttling_failure_count=0)
    new = second_factor.new_recovery_codes(bob, by=FRESH, at=AT)
    assert not second_factor.verify(bob, codes[1], AT), "new ones take the place of all old ones"
    Authenticator.objects.update(throttling_failure_count=0)
    assert second_factor.verify(bob, new[1], AT)
    assert RecoveryCode.objects.left(bob.pk).count() == 9


def test_does_not_take_the_recovery_codes_of_others(bob: User, carol: User) -> None:
    enrolled(bob, AT)
    enrolled(carol, AT)
    codes = second_factor.new_recovery_codes(carol, by=FRESH, at=AT)
    assert not second_factor.verify(bob, codes[0], AT)


# --- Enrolment, removal, reset ----------------------------------------------------------------------------------------


def test_shows_the_same_key_again_for_an_hour(bob: User) -> None:
    first = second_factor.begin(bob, AT)
    assert second_factor.begin(bob, AT + dt.timedelta(minutes=59)).pk == first.pk
    later = AT + dt.timedelta(minutes=61)
    assert second_factor.confirm(bob, code_of(second_factor.shown_key(first), later), later) is None
    assert second_factor.begin(bob, later).pk != first.pk


def test_puts_an_authenticator_into_force_with_its_first_code(bob: User) -> None:
    key = second_factor.shown_key(second_factor.begin(bob, AT))
    assert second_factor.confirm(bob, "000000", AT) is None
    assert not second_factor.has_device(bob)
    Authenticator.objects.update(throttling_failure_count=0)
    assert second_factor.confirm(bob, code_of(key, AT), AT)
    assert second_factor.has_device(bob)
    assert not second_factor.verify(bob, code_of(key, AT), AT), "the first code counted already"
    assert actions() == ["signin.factor_failed", "signin.factor_enrolled", "signin.factor_failed"]


def test_replaces_the_authenticator_there_was(bob: User) -> None:
    old = enrolled(bob, AT)
    new = second_factor.shown_key(second_factor.begin(bob, AT))
    assert second_factor.confirm(bob, code_of(new, AT), AT)
    assert not second_factor.verify(bob, code_of(old, AT + seconds(30)), AT + seconds(30))
    entry = AuditEntry.objects.filter(action="signin.factor_enrolled").latest("sequence")
    assert entry.data["replaced"] is True


@pytest.mark.parametrize("by", [STALE, How(Channel.PAGE), How(Channel.TOKEN)])
def test_takes_nothing_away_without_a_fresh_factor(bob: User, carol: User, mallory: User, by: How) -> None:
    enrolled(bob, AT)
    for refused in (
        lambda: second_factor.remove(bob, by=by, at=AT),
        lambda: second_factor.new_recovery_codes(bob, by=by, at=AT),
        lambda: second_factor.reset(bob, actor=mallory, by=by, because="He called.", at=AT),
    ):
        with pytest.raises(second_factor.NotAllowed, match="five minutes"):
            refused()
    assert second_factor.has_device(bob)
    second_factor.remove(bob, by=FRESH, at=AT)
    assert not second_factor.has_device(bob)
    assert not RecoveryCode.objects.filter(person=bob).exists()
    assert actions()[-1] == "signin.factor_removed"


def test_is_reset_by_another_administrator_with_a_reason(bob: User, mallory: User, dave: User, settings: Any) -> None:
    enrolled(bob, AT)
    signed_in(bob)
    for actor, because, rule in (
        (dave, "He called.", "Only an administrator"),
        (mallory, " ", "Say why"),
    ):
        with pytest.raises(second_factor.NotAllowed, match=rule):
            second_factor.reset(bob, actor=actor, by=FRESH, because=because, at=AT)
    with pytest.raises(second_factor.NotAllowed, match="their own"):
        second_factor.reset(mallory, actor=mallory, by=FRESH, because="Lost.", at=AT)
    second_factor.reset(bob, actor=mallory, by=FRESH, because="He called, I know his voice.", at=AT)
    assert not second_factor.has_device(bob)
    assert not Session.objects.exists(), "whoever sits in his sessions is out"
    entry = AuditEntry.objects.get(action="signin.factor_reset")
    assert (entry.actor, entry.subject, entry.because) == ("mallory", "bob", "He called, I know his voice.")
    assert entry.data == {"sessions_ended": 1}


def test_is_reset_at_the_machine_when_no_administrator_can(mallory: User) -> None:
    enrolled(mallory, AT)
    with pytest.raises(CommandError, match="Say why"):
        call_command("reset_second_factor", "mallory", "--because", " ")
    with pytest.raises(CommandError, match="no user"):
        call_command("reset_second_factor", "nobody", "--because", "Lost.")
    call_command("reset_second_factor", "mallory", "--because", "Lost with the phone.", stdout=io.StringIO())
    assert not second_factor.has_device(mallory)
    entry = AuditEntry.objects.get(action="signin.factor_reset")
    assert (entry.actor, entry.because) == ("RuneRogue", "Lost with the phone.")


def test_tells_the_person_of_everything_that_others_could_do_in_their_name(
    bob: User, mallory: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []

    def tell(people: Any, *, about: str, subject: str, lines: Any, url: str, key: str) -> int:
        assert url == SETTINGS
        told.extend((str(one), subject) for one in people)
        return len(told)

    monkeypatch.setattr(second_factor.telling, "tell", tell)
    enrolled(bob, AT)
    codes = second_factor.new_recovery_codes(bob, by=FRESH, at=AT)
    assert second_factor.verify(bob, codes[0], AT)
    second_factor.remove(bob, by=FRESH, at=AT)
    second_factor.reset(bob, actor=mallory, by=FRESH, because="He called.", at=AT)
    assert told == [
        ("bob", "RuneRogue: An authenticator was set up for your account"),
        ("bob", "RuneRogue: New recovery codes were made for your account"),
        ("bob", "RuneRogue: A recovery code was used"),
        ("bob", "RuneRogue: Your second factor was removed"),
        ("bob", "RuneRogue: mallory reset your second factor"),
    ]


# --- Where one is led -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "led_to"),
    [
        ("/admin/approvals/approvalrequest/1/change/#decide", "/admin/approvals/approvalrequest/1/change/#decide"),
        ("/admin/?a=b&c=d", "/admin/?a=b&c=d"),
        ("https://evil.example/", ""),
        ("//evil.example/", ""),
        ("/\\evil.example/", ""),
        ("/\t/evil.example/", ""),
        ("javascript:alert(1)", ""),
        ("admin/", ""),
        ("", ""),
    ],
)
def test_leads_to_pages_of_this_site_only(asked: str, led_to: str) -> None:
    assert second_factor.safe_next(RequestFactory().get("/"), asked) == led_to


def test_believes_a_token_with_a_code_and_not_a_token_alone(bob: User) -> None:
    key = enrolled(bob, AT)
    request = RequestFactory().post("/")
    request.user = bob
    assert second_factor.how_by_token(request, "", AT) == How(Channel.TOKEN)
    given = second_factor.how_by_token(request, code_of(key, AT), AT)
    assert given.channel is Channel.TOKEN
    assert given.is_fresh
    assert not second_factor.how_by_token(request, code_of(key, AT), AT).is_fresh


# --- Pages ------------------------------------------------------------------------------------------------------------


def critical() -> ApprovalRequest:
    return requests.open_request(
        SubjectRef("thing", 1, "Drop a column"),
        requirement=policy.required(Tier.HIGH),
        fingerprint="f" * 64,
        proposed_by=None,
        facts={},
        expires_at=now() + dt.timedelta(hours=1),
    )


def test_comes_back_to_the_request_with_nothing_lost(carol: User) -> None:
    row, client = critical(), signed_in(carol)
    page = reverse("admin:approvals_approvalrequest_change", args=[row.pk])
    form = {"decision": "approve", "reason": "Read <it> twice.", "fingerprint": row.fingerprint}
    led = client.post(page, form)
    assert led.url.startswith(STEP_UP)
    led = client.get(led.url)
    assert led.url.startswith(ENROL), "without an authenticator one is set up first"
    shown = client.get(led.url).content.decode()
    assert 'class="qr"' in shown
    key = second_factor.shown_key(Authenticator.objects.get(user=carol))
    codes = client.post(led.url, {"code": code_of(key)})
    assert f'href="{page}#decide"' in codes.content.decode()
    assert "Read &lt;it&gt; twice." in client.get(page).content.decode()
    assert "Your decision is recorded" in client.post(page, form, follow=True).content.decode()
    row.refresh_from_db()
    assert row.state == "approved"
    assert row.signatures.get().second_factor
    assert "typed" not in client.session or not client.session["typed"]


def test_asks_who_has_an_authenticator_for_a_code_alone(carol: User) -> None:
    key, client = enrolled(carol), signed_in(carol)
    before = client.session.session_key
    address = f"{STEP_UP}?next=/admin/approvals/"
    assert "Type the six digits" in client.get(address).content.decode()
    refused = client.post(address, {"code": "000000"})
    assert "each code counts once" in refused.content.decode()
    assert second_factor.GIVEN_AT not in client.session
    Authenticator.objects.update(throttling_failure_count=0)
    given = client.post(address, {"code": code_of(key)})
    assert given.url == "/admin/approvals/"
    assert client.session.session_key != before, "the session that may sign has a key that nobody knew before"


def test_lets_nobody_put_another_phone_in_the_place_of_the_first_without_a_code(carol: User) -> None:
    enrolled(carol)
    client = signed_in(carol)
    assert client.get(ENROL).url.startswith(STEP_UP)
    assert client.post(ENROL, {"code": "123456"}).url.startswith(STEP_UP)
    for do in ("codes", "remove"):
        assert client.post(SETTINGS, {"do": do}).url.startswith(STEP_UP)
    assert second_factor.has_device(carol)
    give_second_factor(client)
    assert 'class="qr"' in client.get(ENROL).content.decode()
    shown = client.post(SETTINGS, {"do": "codes"}).content.decode()
    assert len(re.findall(r"^.*\b(?:[a-z2-7]{4}-){3}[a-z2-7]{4}$", shown, re.MULTILINE)) == 10
    client.post(SETTINGS, {"do": "remove"})
    assert not second_factor.has_device(carol)
    assert second_factor.GIVEN_AT not in client.session


def test_sets_up_no_second_key_in_another_tab(carol: User) -> None:
    client, other, onward = signed_in(carol), signed_in(carol), reverse("admin:approvals_approvalrequest_changelist")
    address = f"{ENROL}?{urlencode({'next': onward})}"
    for tab in (client, other):
        assert 'class="qr"' in tab.get(address).content.decode()
    key = second_factor.shown_key(Authenticator.objects.get(user=carol))
    assert "Keep your recovery codes" in client.post(address, {"code": code_of(key)}).content.decode()
    assert client.post(address, {"code": code_of(key)}).url == onward
    assert "is set up already" in client.get(address, follow=True).content.decode()
    assert other.post(address, {"code": code_of(key)}).url == f"{STEP_UP}?{urlencode({'next': onward})}"
    assert second_factor.shown_key(Authenticator.objects.get(user=carol)) == key
    assert 'class="qr"' in client.get(ENROL).content.decode(), "another phone is still a choice, from the settings"


def test_shows_keys_and_codes_to_nobody_else(bob: User) -> None:
    for page in (STEP_UP, ENROL, SETTINGS):
        assert "/admin/login/" in Client().get(page).url
    client = signed_in(bob)
    page = client.get(ENROL)
    assert "no-store" in page.headers["Cache-Control"]
    assert " style=" not in page.content.decode()
