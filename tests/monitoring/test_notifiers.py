"""Email over a real SMTP server, webhooks over a real HTTP server, and packages that bring media of their own."""

from __future__ import annotations

import dataclasses
import json
import re
import smtplib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from monitoring import plugins
from monitoring.notifiers import NOTIFIERS, Line, MemoryNotifier, Message, Notifier, NotSent, Undeliverable
from monitoring.notifiers.email import EmailNotifier
from monitoring.notifiers.webhook import AlertmanagerNotifier, WebhookNotifier, signature
from tests.monitoring.factories import approve_loopback
from tests.monitoring.notices import (
    SECRET,
    Certified,
    Mailbox,
    Receiver,
    certified,
    dripping,
    free_port,
    mail_server,
    receiver,
)

LINE = Line(
    id=7,
    name="error-ratio",
    service="realm",
    severity="critical",
    text="Too many requests fail: <b>40.0%</b>.",
    starts_at="2026-03-02T12:00:00+00:00",
    url="https://rr.example.org/admin/monitoring/alert/7/change/",
    labels={"endpoint": "/players"},
)
FIRING = Message(
    key="firing-1-abc",
    kind="firing",
    severity="critical",
    service="realm",
    subject="[critical] realm: Too many requests fail",
    url="https://rr.example.org/admin/",
    at="2026-03-02T12:00:05+00:00",
    thread="alert-7-1",
    lines=(LINE,),
)
ENDED = dataclasses.replace(
    FIRING,
    key="resolved-1-abc",
    kind="resolved",
    subject="[resolved] realm: Too many requests fail",
    lines=(dataclasses.replace(LINE, ends_at="2026-03-02T12:30:00+00:00"),),
)


@pytest.fixture
def box(settings: Any) -> Iterator[Mailbox]:
    with mail_server(settings) as kept:
        yield kept


@pytest.fixture
def hook(db: None) -> Iterator[Receiver]:
    approve_loopback()
    with receiver() as kept:
        yield kept


def mail(message: Message = FIRING, **given: Any) -> str:
    return EmailNotifier(**given).send(message, address="erin@example.org", secret="")


# -- Email ------------------------------------------------------------------------------------------------------------


def test_mails_text_and_html_with_a_link(box: Mailbox) -> None:
    assert mail() == "accepted by 127.0.0.1"
    (got,) = box.mails
    assert (got["Subject"], got["To"], box.recipients) == (FIRING.subject, "erin@example.org", ["erin@example.org"])
    assert got["Auto-Submitted"] == "auto-generated"
    text, html = (got.get_body((kind,)) for kind in ("plain", "html"))
    assert text is not None
    assert html is not None
    said = text.get_content()
    for part in (LINE.text, LINE.url, "critical, error-ratio, endpoint /players", "since 2026-03-02 12:00:00 UTC"):
        assert part in said
    assert "\n\n\n" not in said
    shown = html.get_content()
    assert "&lt;b&gt;40.0%&lt;/b&gt;" in shown
    assert "<b>40" not in shown
    assert f'href="{LINE.url}"' in shown
    assert "prefers-color-scheme: dark" in shown
    assert "<script" not in shown
    assert "http" not in re.sub(r'href="[^"]*"', "", shown), "nothing is loaded from elsewhere"


def test_mails_the_same_thing_under_the_same_id_and_ties_its_end_to_it(box: Mailbox) -> None:
    mail()
    mail()
    mail(ENDED)
    first, again, ended = box.mails
    assert first["Message-ID"] == again["Message-ID"] != ended["Message-ID"]
    assert first["Message-ID"].endswith("@example.org>")
    assert first["References"] == ended["References"]
    body = ended.get_body(("plain",))
    assert body is not None
    assert "from 2026-03-02 12:00:00 UTC to 2026-03-02 12:30:00 UTC" in body.get_content()


def test_a_line_break_in_a_subject_makes_no_header(box: Mailbox) -> None:
    mail(dataclasses.replace(FIRING, subject="[critical] realm\r\nBcc: mallory@example.org"))
    assert box.mails[0]["Subject"] == "[critical] realm Bcc: mallory@example.org"
    assert box.mails[0]["Bcc"] is None


@pytest.mark.parametrize("moment", ["on_recipient", "on_data"])
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("421 Going down", NotSent),
        ("450 Mailbox is busy", NotSent),
        ("451 Greylisted, come back", NotSent),
        ("550 No such user", Undeliverable),
        ("552 Too much", Undeliverable),
        ("530 Authentication required", NotSent),
    ],
)
def test_takes_4xx_for_later_and_5xx_for_never(box: Mailbox, moment: str, answer: str, error: type[Exception]) -> None:
    setattr(box, moment, answer)
    with pytest.raises(error, match="The mail server answered " + answer.replace(" ", ": ", 1)):
        mail()
    assert box.mails == []


def test_says_that_nobody_listens(settings: Any) -> None:
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", free_port()
    with pytest.raises(NotSent, match=r"could not be talked to: .*refused"):
        mail()


def test_waits_for_a_silent_server_only_so_long(settings: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.EMAIL_HOST, settings.EMAIL_PORT = silent.getsockname()[:2]
        with pytest.raises(NotSent, match=r"timed out|longer than 0\.1 s"):
            mail(timeout_seconds=0.1)


def test_waits_for_a_dripping_server_only_so_long(settings: Any) -> None:
    with dripping(settings), pytest.raises(NotSent, match=r"longer than 0\.2 s"):
        mail(timeout_seconds=0.2)


def test_does_not_speak_in_the_clear_where_tls_is_asked_for(box: Mailbox, settings: Any) -> None:
    settings.EMAIL_USE_TLS = True  # a server without STARTTLS
    with pytest.raises(NotSent, match="STARTTLS"):
        mail()
    assert box.mails == []


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    return certified(tmp_path_factory.mktemp("certificates"), "localhost")


@pytest.mark.parametrize("way", ["STARTTLS", "TLS"])
def test_encrypts_for_a_server_whose_certificate_is_right_and_for_no_other(
    settings: Any, certificates: Certified, way: str
) -> None:
    settings.EMAIL_USE_TLS, settings.EMAIL_USE_SSL = way == "STARTTLS", way == "TLS"
    context = certificates.server
    given = {"tls_context": context, "require_starttls": True} if way == "STARTTLS" else {"ssl_context": context}
    with mail_server(settings, **given) as box:
        settings.EMAIL_CA_FILE, settings.EMAIL_HOST = str(certificates.ca), "localhost"
        assert mail() == "accepted by localhost"
        settings.EMAIL_HOST = "127.0.0.1"
        with pytest.raises(NotSent, match=r"not to be trusted: IP address mismatch.*EMAIL_URL"):
            mail()
        settings.EMAIL_CA_FILE, settings.EMAIL_HOST = "", "localhost"
        with pytest.raises(NotSent, match=r"not to be trusted: unable to get local issuer.*EMAIL_CA_FILE"):
            mail()
        assert len(box.mails) == 1


@pytest.mark.parametrize("way", ["EMAIL_USE_TLS", "EMAIL_USE_SSL"])
def test_waits_for_a_handshake_only_so_long(settings: Any, way: str) -> None:
    setattr(settings, way, True)
    with dripping(settings), pytest.raises(NotSent, match=r"longer than 0\.2 s|could not be talked to"):
        mail(timeout_seconds=0.2)


def test_says_that_a_ca_file_is_none(settings: Any, tmp_path: Path) -> None:
    settings.EMAIL_HOST, settings.EMAIL_CA_FILE = "mail.example.org", str(tmp_path / "ca.pem")
    (tmp_path / "ca.pem").write_text("no certificate")
    assert "EMAIL_CA_FILE" in EmailNotifier().obstacle("erin@example.org", "")


@pytest.mark.parametrize(
    ("host", "address", "says"),
    [
        ("", "erin@example.org", "Email is not configured: set EMAIL_URL"),
        ("mail.example.org", "erin", "not an email address"),
        ("mail.example.org", "erin@example.org, mallory@example.org", "not an email address"),
        ("mail.example.org", "erin@example.org\nBcc: mallory@example.org", "not an email address"),
        ("mail.example.org", "erin@example.org", ""),
    ],
)
def test_says_why_no_email_can_be_sent(settings: Any, host: str, address: str, says: str) -> None:
    settings.EMAIL_HOST = host
    obstacle = EmailNotifier().obstacle(address, "")
    assert (says in obstacle) if says else obstacle == ""


# -- Webhooks ---------------------------------------------------------------------------------------------------------


def test_posts_signed_json(hook: Receiver) -> None:
    assert WebhookNotifier().send(FIRING, address=hook.url, secret=SECRET) == "answered 200"
    ((headers, body),) = hook.got
    assert Message.from_json(json.loads(body)) == FIRING
    assert headers["idempotency-key"] == FIRING.key
    stamp = headers["x-runerogue-timestamp"]
    assert headers["x-runerogue-signature"] == signature(SECRET, stamp, body)
    assert headers["x-runerogue-signature"] != signature(SECRET, stamp + "1", body), "the time is signed as well"


def test_is_verified_as_the_documentation_says(hook: Receiver) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/operations.md").read_text()
    (code,) = re.findall(r"```python\n(.*?def is_genuine.*?)```", page, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    WebhookNotifier().send(FIRING, address=hook.url, secret=SECRET)
    ((headers, body),) = hook.got
    given = (headers["x-runerogue-timestamp"], headers["x-runerogue-signature"])
    now = int(given[0])
    is_genuine = scope["is_genuine"]
    assert is_genuine(SECRET, *given, body, now=now)
    assert not is_genuine("another secret", *given, body, now=now)
    assert not is_genuine(SECRET, *given, body + b" ", now=now)
    assert not is_genuine(SECRET, str(now - 1), given[1], body, now=now)
    assert not is_genuine(SECRET, *given, body, now=now + 3600), "an old one that is played again"


@pytest.mark.parametrize(
    ("status", "headers", "error", "says"),
    [
        (302, {"Location": "http://127.0.0.1:1/"}, Undeliverable, "redirects are not followed"),
        (400, {}, Undeliverable, "400"),
        (404, {}, Undeliverable, "404"),
        (408, {}, NotSent, "408"),
        (429, {"Retry-After": "120"}, NotSent, "429"),
        (500, {}, NotSent, "500"),
        (503, {"Retry-After": "never"}, NotSent, "503"),
    ],
)
def test_judges_the_answer(
    hook: Receiver, status: int, headers: dict[str, str], error: type[Exception], says: str
) -> None:
    hook.status, hook.headers = status, headers
    with pytest.raises(error, match=says) as raised:
        WebhookNotifier().send(FIRING, address=hook.url, secret=SECRET)
    assert len(hook.got) == 1
    if isinstance(raised.value, NotSent):
        assert raised.value.after_seconds == (120 if status == 429 else None)


def test_reads_only_so_much_of_an_answer(hook: Receiver) -> None:
    hook.body = b"x" * 5_000_000
    assert WebhookNotifier().send(FIRING, address=hook.url, secret=SECRET) == "answered 200"


@pytest.mark.django_db
def test_waits_for_a_receiver_only_so_long() -> None:
    approve_loopback()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "http://{}:{}/".format(*silent.getsockname())
        with pytest.raises(NotSent, match=r"did not answer within 0\.1 s"):
            WebhookNotifier(timeout_seconds=0.1).send(FIRING, address=address, secret=SECRET)


def test_uses_no_proxy_and_names_no_token(hook: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert WebhookNotifier().send(FIRING, address=hook.url, secret=SECRET)
    with pytest.raises(NotSent) as raised:
        WebhookNotifier().send(FIRING, address=f"http://127.0.0.1:{free_port()}/token-hunter2", secret=SECRET)
    assert "hunter2" not in str(raised.value)


def test_speaks_as_alertmanager_does(hook: Receiver) -> None:
    """The fields and their types as Prometheus documents them for webhook receivers, version 4."""
    notifier = AlertmanagerNotifier()
    notifier.send(FIRING, address=hook.url, secret="")
    notifier.send(ENDED, address=hook.url, secret="")
    (headers, first), (_, last) = hook.got
    assert "x-runerogue-signature" not in headers
    firing, ended = json.loads(first), json.loads(last)
    (alert,) = firing.pop("alerts")
    labels = {"alertname": "error-ratio", "service": "realm", "severity": "critical", "endpoint": "/players"}
    assert firing == {
        "version": "4",
        "groupKey": "alert-7-1",
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "runerogue",
        "groupLabels": {"service": "realm"},
        "commonLabels": labels,
        "commonAnnotations": {},
        "externalURL": FIRING.url,
    }
    fingerprint = alert.pop("fingerprint")
    assert re.fullmatch(r"[0-9a-f]{16}", fingerprint)
    assert alert == {
        "status": "firing",
        "labels": labels,
        "annotations": {"summary": FIRING.subject, "description": LINE.text},
        "startsAt": "2026-03-02T12:00:00Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": LINE.url,
    }
    assert (ended["status"], ended["groupKey"]) == ("resolved", firing["groupKey"])
    assert ended["alerts"][0]["endsAt"] == "2026-03-02T12:30:00Z"
    assert ended["alerts"][0]["fingerprint"] == fingerprint


@pytest.mark.parametrize(
    ("notifier", "address", "secret", "says"),
    [
        (WebhookNotifier(), "https://hooks.example.org/x", SECRET, ""),
        (WebhookNotifier(), "https://hooks.example.org/x", "", "needs a secret of at least 16"),
        (WebhookNotifier(), "https://hooks.example.org/x", "short", "needs a secret of at least 16"),
        (WebhookNotifier(), "ftp://hooks.example.org/x", SECRET, "begins with https://"),
        (WebhookNotifier(), "https://", SECRET, "names a host"),
        (WebhookNotifier(), "https://[", SECRET, "names a host"),
        (WebhookNotifier(), "https://user:password@hooks.example.org/", SECRET, "must not hold"),
        (AlertmanagerNotifier(), "https://hooks.example.org/x", "", ""),
        (AlertmanagerNotifier(), "https://hooks.example.org/x", "short", "at least 16"),
    ],
)
def test_says_why_a_webhook_cannot_be_called(notifier: Notifier, address: str, secret: str, says: str) -> None:
    obstacle = notifier.obstacle(address, secret)
    assert (says in obstacle) if says else obstacle == ""


# -- The seam ---------------------------------------------------------------------------------------------------------


def test_every_medium_is_a_notifier() -> None:
    assert list(NOTIFIERS) == ["email", "webhook", "alertmanager"]
    assert all(isinstance(one, Notifier) for one in (*NOTIFIERS.values(), MemoryNotifier()))


def test_packages_bring_media_but_replace_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        def __init__(self, name: str) -> None:
            self.name = name

        def load(self) -> Any:
            return lambda: MemoryNotifier(name=self.name)

    monkeypatch.setattr(plugins, "entry_points", lambda group: [Entry("pigeon"), Entry("email")])
    found = plugins.Plugins(NOTIFIERS.group, Notifier, NOTIFIERS.own)
    assert isinstance(found["pigeon"], MemoryNotifier)
    assert isinstance(found["email"], EmailNotifier)
    assert set(found) == {*NOTIFIERS, "pigeon"}
    monkeypatch.setattr(Entry, "load", lambda self: lambda: object())
    with pytest.raises(TypeError, match=r"entry point pigeon .* not a Notifier"):
        plugins.Plugins(NOTIFIERS.group, Notifier, NOTIFIERS.own)["pigeon"]


def test_knows_the_errors_of_authentication() -> None:
    from approvals.posting import failure

    assert isinstance(failure(535, b"5.7.8 Bad credentials"), NotSent)
    assert isinstance(failure(*smtplib.SMTPSenderRefused(553, b"not you", "x").args[:2]), Undeliverable)
