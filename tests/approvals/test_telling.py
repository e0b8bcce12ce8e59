"""Letters to people, over a real SMTP server."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.utils.timezone import now

from approvals import tasks, telling
from approvals.models import Delivery, Letter, PersonSettings
from tests.monitoring.notices import Mailbox, free_port, mail_server
from tests.people import person

pytestmark = pytest.mark.django_db


@pytest.fixture
def mailbox(settings: Any) -> Iterator[Mailbox]:
    settings.PUBLIC_URL = "https://rr.example.org"
    with mail_server(settings) as box:
        yield box


@pytest.fixture
def ann(db: None) -> User:
    return person("ann", email="ann@example.org")


def tell(*people: User, key: str = "occasion 1", **more: Any) -> int:
    told: dict[str, Any] = {
        "about": "request 7",
        "subject": "Sign this:\nprefetch guilds",
        "lines": ["One query instead of <b>fifty</b>.", "It expires on Tuesday."],
        "url": "/admin/approvals/approvalrequest/7/change/",
    }
    return telling.tell(people, key=key, **(told | more))


def test_mails_what_to_read_as_text_and_html_with_a_link(mailbox: Mailbox, ann: User) -> None:
    assert tell(ann) == 1
    tasks.send_letters()
    (mail,) = mailbox.mails
    assert mailbox.recipients == ["ann@example.org"]
    assert (mail["Subject"], mail["To"]) == ("Sign this: prefetch guilds", "ann@example.org")
    assert mail["Auto-Submitted"] == "auto-generated"
    text, html = (mail.get_body((kind,)).get_content() for kind in ("plain", "html"))
    link = "https://rr.example.org/admin/approvals/approvalrequest/7/change/"
    assert "One query instead of <b>fifty</b>." in text
    assert f"Open it: {link}" in text.splitlines()
    assert "&lt;b&gt;fifty&lt;/b&gt;" in html
    assert html.count("href=") == 1
    assert f'href="{link}"' in html
    letter = Letter.objects.get()
    assert (letter.state, letter.attempts, letter.last_error) == ("sent", 1, "")
    assert telling.send_due(now()) == 0


def test_tells_nobody_twice_of_one_occasion(ann: User) -> None:
    bob = person("bob", email="bob@example.org")
    assert [tell(ann), tell(ann), tell(ann, bob), tell(ann, key="occasion 2")] == [1, 0, 1, 1]
    assert Letter.objects.count() == 3


LEFT_OUT: dict[str, Callable[[User], object]] = {
    "not active": lambda user: User.objects.filter(pk=user.pk).update(is_active=False),
    "without an address": lambda user: User.objects.filter(pk=user.pk).update(email=""),
    "a program": lambda user: PersonSettings.objects.create(user=user, is_service_account=True),
}


@pytest.mark.parametrize("who", LEFT_OUT)
def test_leaves_out_who_cannot_act_or_be_reached(ann: User, who: str) -> None:
    LEFT_OUT[who](ann)
    other = person("zoe", email="zoe@example.org")
    PersonSettings.objects.create(user=other)
    assert tell(ann, other) == 1
    assert Letter.objects.get().person == other


def test_tells_nothing_that_did_not_happen(ann: User) -> None:
    with transaction.atomic():
        tell(ann)
        transaction.set_rollback(True)
    assert not Letter.objects.exists()


def test_tries_again_later_when_the_server_is_away(settings: Any, ann: User) -> None:
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", free_port()
    tell(ann)
    at = now()
    assert telling.send_due(at) == 0
    letter = Letter.objects.get()
    assert (letter.state, letter.next_at, letter.lease) == ("waiting", at + telling.FIRST_RETRY, None)
    assert "could not be talked to" in letter.last_error
    with mail_server(settings) as box:
        assert telling.send_due(at) == 0
        assert telling.send_due(at + telling.FIRST_RETRY) == 1
    assert len(box.mails) == 1


@pytest.mark.parametrize(("answer", "state"), [("550 no such user", "dead"), ("451 come back later", "waiting")])
def test_gives_up_what_is_refused_for_good(mailbox: Mailbox, ann: User, answer: str, state: str) -> None:
    mailbox.on_recipient = answer
    tell(ann)
    telling.send_due(now())
    letter = Letter.objects.get()
    assert letter.state == state
    assert answer[4:] in letter.last_error


def test_gives_up_after_many_attempts(settings: Any, ann: User) -> None:
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", free_port()
    tell(ann)
    Letter.objects.update(attempts=telling.MOST_ATTEMPTS - 1)
    telling.send_due(now())
    assert Letter.objects.get().state == Delivery.DEAD


def test_sends_nothing_to_who_was_deactivated_meanwhile(mailbox: Mailbox, ann: User) -> None:
    tell(ann)
    User.objects.update(is_active=False)
    assert telling.send_due(now()) == 0
    assert (mailbox.mails, Letter.objects.get().state) == ([], "dead")


def test_keeps_letters_until_mail_is_set_up(settings: Any, ann: User) -> None:
    settings.EMAIL_HOST = ""
    tell(ann)
    assert telling.send_due(now()) == 0
    assert (Letter.objects.get().state, Letter.objects.get().attempts) == ("waiting", 0)
    with mail_server(settings):
        assert telling.send_due(now()) == 1


def test_forgets_after_thirteen_months_what_does_not_wait(ann: User) -> None:
    tell(ann)
    tell(ann, key="occasion 2")
    Letter.objects.update(created_at=now() - dt.timedelta(days=400))
    Letter.objects.filter(key="occasion 1").update(state=Delivery.DEAD)
    assert telling.forget_old(now()) == 1
    assert Letter.objects.get().key == "occasion 2"


@pytest.mark.django_db(transaction=True)
def test_sends_each_letter_once_when_many_workers_send(mailbox: Mailbox) -> None:
    people = [person(f"p{number}", email=f"p{number}@example.org") for number in range(12)]
    ready = threading.Barrier(4)

    def work() -> None:
        try:
            ready.wait()
            tell(*people)
            telling.send_due(now(), limit=5)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while telling.send_due(now()):
        pass
    assert sorted(mailbox.recipients) == sorted(one.email for one in people)
    assert not Letter.objects.exclude(state=Delivery.SENT).exists()
