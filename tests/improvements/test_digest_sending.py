"""The digest over a real SMTP server: what arrives, as a stranger's program reads it, and that it arrives once."""

from __future__ import annotations

import datetime as dt
import re
import socket
import threading
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test import Client

from approvals.models import AuditEntry, PersonSettings
from approvals.policy import Role
from improvements.digest import sending, subscribing
from improvements.models import DigestSent, DigestState
from tests.improvements.digests import MONDAY, NASTY, WEDNESDAY, WEEK, busy_week, reader
from tests.monitoring.notices import Mailbox, free_port, mail_server

pytestmark = pytest.mark.django_db

SENT, WAITING, DEAD, SKIPPED = DigestState.SENT, DigestState.WAITING, DigestState.DEAD, DigestState.SKIPPED
MINUTE, HOUR = dt.timedelta(minutes=1), dt.timedelta(hours=1)
DAY = dt.timedelta(days=1)


@pytest.fixture
def box(settings: Any) -> Iterator[Mailbox]:
    settings.PUBLIC_URL = "https://runerogue.a-rather-long-name-for-a-host.example.org"
    with mail_server(settings) as kept:
        yield kept


def states() -> dict[str, str]:
    return dict(DigestSent.objects.values_list("reader__username", "state"))


def run(at: dt.datetime) -> dict[str, int]:
    return {state.value: number for state, number in sending.run(at).items() if number}


# -- What arrives -----------------------------------------------------------------------------------------------------


def test_arrives_whole_in_every_mail_program(box: Mailbox) -> None:
    busy_week()
    carol = reader("carol", Role.ARCHITECTURE, Role.LEAD)
    assert run(MONDAY) == {"sent": 1}
    (got,) = box.mails
    assert box.recipients == ["carol@example.org"]
    assert got["To"] == "carol@example.org"
    assert got["From"] == "RuneRogue <runerogue@example.org>"
    assert got["Subject"] == "RuneRogue 2026-W47: 5 need you, 1 promoted, 1 rolled back, 1 rollback stuck"
    assert got["Date"].datetime == MONDAY
    assert got["List-Id"].endswith("<weekly-digest.runerogue.a-rather-long-name-for-a-host.example.org>")
    assert got["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert got["Auto-Submitted"] == "auto-generated"
    assert got["MIME-Version"] == "1.0"
    assert got.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in got.iter_parts()] == ["text/plain", "text/html"], "the best one last"
    for part in got.iter_parts():
        assert part.get_content_charset() == "utf-8"
        assert part["Content-Transfer-Encoding"] == "quoted-printable"
    text, html = (got.get_body((kind,)) for kind in ("plain", "html"))
    assert text is not None
    assert html is not None
    assert NASTY in text.get_content()
    assert "игроки 玩家" in html.get_content()
    assert re.search(rf"href=\"({re.escape(subscribing.unsubscribe_url(carol))})\"", html.get_content())
    row = DigestSent.objects.get()
    assert (row.state, row.week, row.tries, row.sent_at, row.lease) == ("sent", "2026-W47", 1, MONDAY, None)
    assert AuditEntry.objects.get(action="digest.sent").subject == "carol"


def test_is_within_the_limits_of_smtp_and_folds_no_address() -> None:
    """What is put on the wire: lines of at most 998 bytes, ASCII alone, and headers that are no encoded words."""
    busy_week()
    carol = sending.reader_of(reader("carol", Role.ARCHITECTURE))
    digest = sending.compose_for(carol, sending.Facts.of(WEEK, dt.UTC, MONDAY))
    raw = sending.mail_to(carol, digest, key="2026-W47", at=MONDAY).as_bytes()
    raw.decode("ascii")
    assert max(len(line) for line in raw.split(b"\r\n")) <= 998
    head, body = raw.split(b"\r\n\r\n", 1)
    assert b"=?" not in head
    assert max(len(line) for line in body.split(b"\r\n")) <= 78
    assert f"List-Unsubscribe: <{digest.unsubscribe_url}>".encode() in head.split(b"\r\n")
    parsed = message_from_bytes(raw, policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    assert not parsed.defects
    assert all(not part.defects for part in parsed.walk())


def test_a_line_break_in_a_name_makes_no_header(box: Mailbox) -> None:
    reader("bob\r\nBcc: mallory@example.org", Role.LEAD, email="bob@example.org")
    run(MONDAY)
    assert box.mails[0]["Bcc"] is None


# -- Stopping it ------------------------------------------------------------------------------------------------------


def one_click(box: Mailbox) -> str:
    header = str(box.mails[-1]["List-Unsubscribe"])
    assert re.fullmatch(r"<https://[^<>\s]+>", header)
    return header[1:-1].removeprefix("https://runerogue.a-rather-long-name-for-a-host.example.org")


def test_stops_with_one_click_without_signing_in(box: Mailbox) -> None:
    bob = reader("bob", Role.LEAD)
    run(MONDAY)
    address = one_click(box)
    client = Client(enforce_csrf_checks=True)
    for _ in range(2):  # what a scanner of mail does
        page = client.get(address)
        assert page.status_code == 200
        assert "Stop the weekly digest for bob?" in page.content.decode()
    assert not PersonSettings.objects.filter(user=bob, wants_digest=False).exists()
    for _ in range(2):  # a second click finds it done
        done = client.post(address, {"List-Unsubscribe": "One-Click"})
        assert done.status_code == 200
        assert "bob gets no more weekly digests" in done.content.decode()
    assert done["Referrer-Policy"] == "no-referrer"
    assert "no-store" in done["Cache-Control"]
    assert not PersonSettings.objects.get(user=bob).wants_digest
    entry = AuditEntry.objects.get(action="person.settings-changed")
    assert (entry.actor, entry.subject) == ("bob", "bob")
    assert run(MONDAY + 7 * DAY) == {}
    assert DigestSent.objects.get(week="2026-W48").problem == "They chose to get none."


@pytest.mark.parametrize(
    "change", [lambda token: token[:-1], lambda token: "x" + token, lambda token: "1", str.swapcase]
)
def test_believes_no_link_that_it_did_not_make(change: Any) -> None:
    bob = reader("bob", Role.LEAD)
    token = change(subscribing.unsubscribe_url(bob).rpartition("/")[2])
    for answer in (Client().get(f"/digest/unsubscribe/{token}"), Client().post(f"/digest/unsubscribe/{token}")):
        assert answer.status_code == 404
        assert "not one of ours" in answer.content.decode()
    assert not PersonSettings.objects.filter(wants_digest=False).exists()


def test_a_link_stops_nobody_elses_and_outlives_a_changed_key(settings: Any) -> None:
    bob, erin = reader("bob", Role.LEAD), reader("erin", Role.ON_CALL)
    address = "/digest/unsubscribe/" + subscribing.unsubscribe_url(bob).rpartition("/")[2]
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another key, since the former one was seen somewhere"
    assert Client().post(address).status_code == 200
    assert list(PersonSettings.objects.filter(wants_digest=False).values_list("user", flat=True)) == [bob.pk]
    assert subscribing.subscribe(erin, True, actor=erin, because="") is False
    bob.delete()
    assert Client().post(address).status_code == 404


# -- To whom, and when ------------------------------------------------------------------------------------------------


def test_comes_when_it_is_eight_where_the_reader_is(box: Mailbox) -> None:
    for name, zone in (
        ("bob", "Pacific/Auckland"),
        ("carol", "Europe/Berlin"),
        ("dave", ""),
        ("erin", "America/New_York"),
    ):
        reader(name, Role.LEAD, zone=zone)
    at = dt.datetime(2026, 11, 22, 18, tzinfo=dt.UTC)
    run(at)  # the week before
    came: list[tuple[str, str]] = []
    box.mails.clear()
    while at < MONDAY + 6 * HOUR:
        run(at)
        came += [(f"{at:%d %H:%M}", mail["To"].partition("@")[0]) for mail in box.mails[len(came) :]]
        at += HOUR
    assert came == [("22 19:00", "bob"), ("23 07:00", "carol"), ("23 08:00", "dave"), ("23 13:00", "erin")]


@pytest.mark.parametrize(
    ("weekday", "hour", "at"), [("friday", 17, "2026-11-27 17:00"), ("sunday", 0, "2026-11-29 00:00")]
)
def test_comes_on_the_day_of_the_setting(box: Mailbox, settings: Any, weekday: str, hour: int, at: str) -> None:
    settings.DIGEST_WEEKDAY, settings.DIGEST_HOUR = weekday, hour
    reader("bob", Role.LEAD)
    moment = dt.datetime.fromisoformat(at).replace(tzinfo=dt.UTC)
    run(moment - MINUTE)
    run(moment)
    assert [re.findall(r"2026-W\d\d", mail["Subject"])[0] for mail in box.mails] == ["2026-W46", "2026-W47"]


def test_goes_to_readers_alone_and_says_why_the_others_get_none(box: Mailbox) -> None:
    reader("bob", Role.LEAD)
    reader("alice", Role.VIEWER, email="")
    reader("carol", Role.ARCHITECTURE)
    PersonSettings.objects.create(user=User.objects.get(username="carol"), wants_digest=False)
    reader("nobody")
    reader("ci", Role.VIEWER)
    PersonSettings.objects.create(user=User.objects.get(username="ci"), is_service_account=True)
    reader("gone", Role.LEAD, is_active=False)
    reader("new", Role.LEAD, date_joined=MONDAY - MINUTE)  # after eight
    assert run(MONDAY) == {"sent": 1}
    assert dict(DigestSent.objects.values_list("reader__username", "problem")) == {
        "bob": "",
        "alice": "The account has no email address.",
        "carol": "They chose to get none.",
        "nobody": "They have no role and no right to view anything.",
        "new": "The account was made after it was due.",
    }
    assert run(MONDAY + 7 * DAY) == {"sent": 2}
    assert [mail["To"].partition("@")[0] for mail in box.mails] == ["bob", "bob", "new"]


def test_sends_the_last_week_alone_after_a_month_away(box: Mailbox) -> None:
    reader("bob", Role.LEAD)
    run(MONDAY)
    assert run(MONDAY + 30 * DAY) == {"sent": 1}
    assert list(DigestSent.objects.values_list("week", flat=True)) == ["2026-W51", "2026-W47"]


def test_who_wants_it_again_in_the_middle_of_a_week_gets_the_next(box: Mailbox) -> None:
    bob = reader("bob", Role.LEAD)
    subscribing.subscribe(bob, False, actor=bob, because="")
    run(MONDAY)
    subscribing.subscribe(bob, True, actor=bob, because="")
    assert run(MONDAY + DAY) == {}
    assert run(MONDAY + 7 * DAY) == {"sent": 1}


def test_nothing_is_sent_or_missed_without_a_mail_server(settings: Any) -> None:
    settings.EMAIL_HOST = ""
    reader("bob", Role.LEAD)
    assert run(MONDAY) == {}
    assert not DigestSent.objects.exists()
    with pytest.raises(CommandError, match="set EMAIL_URL"):
        call_command("digest")
    with mail_server(settings) as box:
        run(MONDAY + DAY)
        assert len(box.mails) == 1


def test_forgets_after_thirteen_months(box: Mailbox) -> None:
    reader("bob", Role.LEAD)
    run(MONDAY)
    run(MONDAY + 400 * DAY)
    assert [row.week for row in DigestSent.objects.all()] == ["2027-W51"]


# -- Once -------------------------------------------------------------------------------------------------------------


def test_is_sent_once_however_often_it_is_asked_for(box: Mailbox) -> None:
    reader("bob", Role.LEAD)
    assert [run(MONDAY + minutes * MINUTE) for minutes in (0, 0, 5, 100, 5000)] == [{"sent": 1}, {}, {}, {}, {}]
    assert len(box.mails) == 1


@pytest.mark.django_db(transaction=True)
def test_is_sent_once_when_workers_run_at_the_same_time(box: Mailbox, settings: Any) -> None:
    names = [f"reader{number}" for number in range(12)]
    for name in names:
        reader(name, Role.VIEWER)
    begin = threading.Barrier(4)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            begin.wait(10)
            sending.run(MONDAY)
        except BaseException as error:  # noqa: BLE001 (told below, in the test's own thread)
            failed.append(error)
        finally:
            connection.close()

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert failed == []
    assert sorted(box.recipients) == sorted(f"{name}@example.org" for name in names)
    assert set(DigestSent.objects.values_list("state", "tries")) == {("sent", 1)}
    assert AuditEntry.objects.filter(action="digest.sent").count() == 12


@pytest.mark.django_db(transaction=True)
def test_workers_share_what_waits_and_wait_for_nobody(box: Mailbox) -> None:
    for number in range(12):
        reader(f"reader{number}", Role.VIEWER)
    sending.plan(MONDAY)
    others: list[int] = []

    def claim_too() -> None:
        try:
            others.extend(row.pk for row in sending.claim(MONDAY))
        finally:
            connection.close()

    worker = threading.Thread(target=claim_too, daemon=True)
    with transaction.atomic():  # the first worker is in the middle of its claim
        mine = [row.pk for row in sending.claim(MONDAY, limit=5)]
        worker.start()
        worker.join(10)
        was_quick = not worker.is_alive()
    worker.join(10)
    assert was_quick
    assert len(others) == 7
    assert not set(mine) & set(others)


def test_a_worker_that_dies_after_the_servers_yes_costs_the_same_mail_again(
    box: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader("bob", Role.LEAD)

    class Killed(BaseException):
        pass

    def die(*given: Any) -> None:
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(sending, "record", die)
        with pytest.raises(Killed):
            sending.run(MONDAY)
    assert run(MONDAY + 14 * MINUTE) == {}, "the dead worker's lease still holds"
    assert run(MONDAY + 15 * MINUTE) == {"sent": 1}
    first, second = box.mails
    assert (first["Message-ID"], first["Date"]) == (second["Message-ID"], second["Date"])
    assert DigestSent.objects.get().tries == 2


def test_message_ids_are_of_one_week_and_reader_and_installation(box: Mailbox, settings: Any) -> None:
    reader("bob", Role.LEAD)
    reader("carol", Role.LEAD)
    run(MONDAY)
    run(MONDAY + 7 * DAY)
    DigestSent.objects.all().delete()
    settings.PUBLIC_URL = "https://elsewhere.example.org"
    run(MONDAY)
    ids = [mail["Message-ID"] for mail in box.mails]
    assert len(set(ids)) == len(ids) == 6
    assert all(re.fullmatch(r"<[0-9a-f]{32}@example\.org>", one) for one in ids)


def test_records_nothing_for_a_worker_that_was_away_too_long(box: Mailbox) -> None:
    reader("bob", Role.LEAD)
    sending.plan(MONDAY)
    (slow,) = sending.claim(MONDAY)
    (quick,) = sending.claim(MONDAY + sending.LEASE)
    sending.record(slow, sending.Result(DEAD, "no such user"), MONDAY)
    assert states() == {"bob": WAITING}
    sending.record(quick, sending.Result(SENT, "accepted"), MONDAY)
    assert states() == {"bob": SENT}


def test_takes_a_lease_from_a_clock_that_was_set_back(box: Mailbox) -> None:
    reader("bob", Role.LEAD)
    sending.plan(MONDAY)
    sending.claim(MONDAY + 300 * DAY)
    DigestSent.objects.update(next_at=MONDAY)
    assert run(MONDAY) == {"sent": 1}


# -- When it goes wrong -----------------------------------------------------------------------------------------------


def test_tries_again_after_a_while_when_the_server_says_later(box: Mailbox) -> None:
    reader("bob", Role.LEAD)
    box.on_recipient = "451 Greylisted, come back"
    assert run(MONDAY) == {"waiting": 1}
    row = DigestSent.objects.get()
    assert row.next_at == MONDAY + MINUTE
    assert "451: Greylisted" in row.problem
    assert run(MONDAY + MINUTE / 2) == {}
    assert run(MONDAY + MINUTE) == {"waiting": 1}
    assert run(MONDAY + 5 * MINUTE) == {}
    box.on_recipient = "250 OK"
    assert run(MONDAY + 6 * MINUTE) == {"sent": 1}
    row.refresh_from_db()
    assert (row.tries, row.problem) == (3, "")
    assert box.mails[0]["Date"].datetime == MONDAY


def test_gives_up_after_its_attempts(box: Mailbox) -> None:
    reader("bob", Role.LEAD)
    box.on_data = "452 Disk full"
    at = MONDAY
    for pause in sending.PAUSES:
        assert run(at) == {"waiting": 1}
        at += pause
    assert run(at) == {"dead": 1}
    assert at - MONDAY < 2 * DAY
    assert DigestSent.objects.get().problem.startswith("Given up after 8 attempts. The mail server answered 452")
    assert run(at + DAY) == {}


def test_one_bad_address_keeps_nobody_from_theirs(box: Mailbox) -> None:
    for name, email in (("bad", "not an address"), ("unknown", "unknown@example.org"), ("zoe", "zoe@example.org")):
        reader(name, Role.VIEWER, email=email)
    accept = box.handle_RCPT

    async def refuse(server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address.startswith("unknown"):
            return "550 No such user"
        return await accept(server, session, envelope, address, options)

    box.handle_RCPT = refuse  # type: ignore[method-assign]
    assert run(MONDAY) == {"sent": 1, "waiting": 1, "dead": 1}
    assert box.recipients == ["zoe@example.org"]
    assert states() == {"bad": WAITING, "unknown": DEAD, "zoe": SENT}


@pytest.mark.django_db(transaction=True)
def test_a_bug_for_one_reader_keeps_nobody_from_theirs(
    box: Mailbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader("bob", Role.LEAD)
    reader("zoe", Role.LEAD)

    def hasty(who: sending.Reader, facts: sending.Facts) -> sending.Digest:
        if who.user.username == "bob":
            raise ZeroDivisionError("a section divided by what was not there")
        return compose_for(who, facts)

    compose_for = sending.compose_for
    monkeypatch.setattr(sending, "compose_for", hasty)
    assert run(MONDAY) == {"sent": 1, "waiting": 1}
    assert states() == {"bob": WAITING, "zoe": SENT}
    assert "could not be composed (ZeroDivisionError)" in DigestSent.objects.get(reader__username="bob").problem
    assert "2026-W47 could not be composed for bob" in caplog.text


def test_waits_for_a_hanging_server_only_so_long(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "TIMEOUT_SECONDS", 0.1)
    reader("bob", Role.LEAD)
    reader("zoe", Role.LEAD)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.EMAIL_HOST, settings.EMAIL_PORT = silent.getsockname()[:2]
        assert run(MONDAY) == {"waiting": 2}
    assert re.search(r"timed out|longer than 0\.1 s", DigestSent.objects.all()[0].problem)


def test_says_that_nobody_listens(settings: Any) -> None:
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", free_port()
    reader("bob", Role.LEAD)
    assert run(MONDAY) == {"waiting": 1}
    assert "refused" in DigestSent.objects.get().problem


def test_who_left_while_it_waited_gets_none(box: Mailbox) -> None:
    bob = reader("bob", Role.LEAD)
    box.on_data = "451 Later"
    run(MONDAY)
    box.on_data = "250 OK"
    User.objects.filter(pk=bob.pk).update(is_active=False)
    assert run(MONDAY + MINUTE) == {"skipped": 1}
    assert DigestSent.objects.get().problem == "The account is not active."


def test_one_that_waits_is_overtaken_by_the_next_weeks(box: Mailbox) -> None:
    reader("bob", Role.LEAD)
    sending.plan(MONDAY)
    assert run(MONDAY + 7 * DAY) == {"sent": 1}
    assert dict(DigestSent.objects.values_list("week", "state")) == {"2026-W47": SKIPPED, "2026-W48": SENT}
    assert DigestSent.objects.get(week="2026-W47").problem == "The next week's came first."


# -- By hand ----------------------------------------------------------------------------------------------------------


def test_a_copy_is_another_mail_and_takes_nothing_from_the_weekly_one(box: Mailbox) -> None:
    bob = reader("bob", Role.LEAD)
    for _ in range(2):
        assert sending.send_copy(bob, WEEK, at=WEDNESDAY, actor=bob) == "accepted by 127.0.0.1"
    assert run(MONDAY) == {"sent": 1}
    assert len({mail["Message-ID"] for mail in box.mails}) == 3
    assert AuditEntry.objects.filter(action="digest.copy-sent", actor="bob").count() == 2


def test_an_operator_prints_and_sends(box: Mailbox, capsys: pytest.CaptureFixture[str]) -> None:
    busy_week()
    reader("carol", Role.ARCHITECTURE)
    call_command("digest", to="carol", week="2026-W47", print="text")
    assert NASTY in capsys.readouterr().out
    call_command("digest", to="carol", week="2026-W47", print="html")
    assert "<!DOCTYPE html>" in capsys.readouterr().out
    assert box.mails == []
    call_command("digest", to="carol", week="2026-W47")
    assert "accepted by" in capsys.readouterr().out
    assert "2026-W47" in box.mails[0]["Subject"]
    call_command("digest")
    assert "1 sent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"print": "text"}, "Name the reader with --to"),
        ({"to": "nobody"}, "There is no user 'nobody'"),
        ({"to": "bob", "week": "last"}, "is no week"),
        ({"to": "bob"}, "has no email address"),
    ],
)
def test_tells_an_operator_what_is_missing(box: Mailbox, given: dict[str, str], says: str) -> None:
    reader("bob", Role.LEAD, email="")
    with pytest.raises(CommandError, match=says):
        call_command("digest", **given)


def test_the_schedule_sends_what_is_due(box: Mailbox) -> None:
    from improvements.tasks import send_digests

    reader("bob", Role.LEAD)
    send_digests()
    assert len(box.mails) == 1


def test_two_rows_for_one_week_and_reader_are_impossible() -> None:
    bob = reader("bob", Role.LEAD)
    DigestSent.objects.create(week="2026-W47", reader=bob)
    with pytest.raises(Exception, match="one_digest_per_week_and_reader"), transaction.atomic():
        DigestSent.objects.create(week="2026-W47", reader=bob)
