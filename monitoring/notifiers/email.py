"""Notices by email, over SMTP: plain text and HTML, bounded in time however slowly the server drips."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import smtplib
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr

from django.conf import settings
from django.template.loader import render_to_string

from monitoring.notifiers.seam import Message, NotSent, Undeliverable


@functools.cache
def _certificates(file: str) -> ssl.SSLContext:
    """Whom to trust: the CAs in `file`, or the system's. Host names are checked."""
    return ssl.create_default_context(cafile=file or None)


AUTHENTICATION = (530, 534, 535, 538)  # our own credentials, which an operator puts right; the message is fine


class EmailNotifier:
    """Sends through the server that EMAIL_URL names; one connection per message."""

    name = "email"

    def __init__(self, *, timeout_seconds: float = 20.0) -> None:
        self.timeout_seconds = timeout_seconds

    def obstacle(self, address: str, secret: str) -> str:
        if not settings.EMAIL_HOST:
            return "Email is not configured: set EMAIL_URL, such as smtp+tls://user:password@mail.example.org:587."
        try:
            Address(addr_spec=address)
        except (ValueError, IndexError):
            return f"{address!r} is not an email address."
        try:
            _certificates(settings.EMAIL_CA_FILE)
        except OSError as error:
            return f"EMAIL_CA_FILE={settings.EMAIL_CA_FILE} can't be used: {_words(error)}."
        return ""

    def send(self, message: Message, *, address: str, secret: str) -> str:
        mail = composed(message, address)
        try:
            with _connected(self.timeout_seconds) as server:
                if settings.EMAIL_HOST_USER:
                    server.login(settings.EMAIL_HOST_USER, settings.EMAIL_HOST_PASSWORD)
                server.send_message(mail, from_addr=parseaddr(settings.DEFAULT_FROM_EMAIL)[1], to_addrs=[address])
        except smtplib.SMTPRecipientsRefused as error:
            code, text = next(iter(error.recipients.values()))
            raise _failure(code, text) from error
        except smtplib.SMTPResponseException as error:
            raise _failure(error.smtp_code, error.smtp_error) from error
        except ssl.SSLCertVerificationError as error:
            raise NotSent(
                f"The mail server's certificate is not to be trusted: {error.verify_message.rstrip('.')}. "
                "Use the host name that it was made for in EMAIL_URL; EMAIL_CA_FILE names a CA of your own."
            ) from error
        except (smtplib.SMTPException, OSError, ValueError) as error:
            # A socket that was shut down by the time limit raises whatever the line in progress raises.
            raise NotSent(f"The mail server could not be talked to: {_words(error)}.") from error
        return f"accepted by {settings.EMAIL_HOST}"


@contextlib.contextmanager
def _connected(timeout_seconds: float) -> Iterator[smtplib.SMTP]:
    """A session with the mail server. smtplib's timeout is per read; a timer ends the whole."""
    # Greeted with the sender's domain: asking for this machine's name could wait for a name server.
    me = _domain()
    server = (
        smtplib.SMTP_SSL(local_hostname=me, timeout=timeout_seconds, context=_certificates(settings.EMAIL_CA_FILE))
        if settings.EMAIL_USE_SSL
        else smtplib.SMTP(local_hostname=me, timeout=timeout_seconds)
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        sock = getattr(server, "sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                # Through the plain socket: the TLS one may be waiting in a read.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(timeout_seconds, end)
    timer.daemon = True
    timer.start()
    try:
        # The constructor would set it and connect at once, and the timer could not reach that connection. Certificates
        # are checked against it.
        server._host = settings.EMAIL_HOST  # type: ignore[attr-defined]
        code, text = server.connect(settings.EMAIL_HOST, settings.EMAIL_PORT)
        if code != 220:
            raise smtplib.SMTPConnectError(code, text)
        if settings.EMAIL_USE_TLS:
            server.starttls(context=_certificates(settings.EMAIL_CA_FILE))
        yield server
        with contextlib.suppress(smtplib.SMTPException, OSError):
            server.quit()  # the message is accepted: how the goodbye goes is of no interest
    except (smtplib.SMTPException, OSError, ValueError) as error:
        if late.is_set():
            raise NotSent(f"The mail server took longer than {timeout_seconds:g} s.") from error
        raise
    finally:
        timer.cancel()
        server.close()


def _failure(code: int, text: bytes | str) -> NotSent | Undeliverable:
    said = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    told = f"The mail server answered {code}: {' '.join(said.split())[:300]}"
    if 500 <= code < 600 and code not in AUTHENTICATION:
        return Undeliverable(told)
    return NotSent(told)


def _words(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")


def composed(message: Message, address: str) -> EmailMessage:
    """The mail. Its Message-ID comes from the notice's key, so that a double can be dropped."""
    domain = _domain()
    mail = EmailMessage()
    mail["Subject"] = " ".join(message.subject.split())[:200]
    mail["From"] = settings.DEFAULT_FROM_EMAIL
    mail["To"] = Address(addr_spec=address)
    mail["Date"] = format_datetime(datetime.fromisoformat(message.at))
    mail["Message-ID"] = f"<{_digest(message.key)}@{domain}>"
    if message.thread:
        mail["References"] = f"<{_digest(message.thread)}@{domain}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Auto-Response-Suppress"] = "All"
    context = {
        "message": message,
        "status": message.kind if message.kind in ("resolved", "test") else message.severity,
        "lines": [(line, clock(line.starts_at), clock(line.ends_at)) for line in message.lines],
    }
    # What a template left empty (an absent label) leaves blank lines.
    mail.set_content(re.sub(r"\n{3,}", "\n\n", render_to_string("email/notice.txt", context)).strip() + "\n")
    mail.add_alternative(render_to_string("email/notice.html", context), subtype="html")
    return mail


def _domain() -> str:
    """That of the sender."""
    return parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2] or "localhost"


def clock(moment: str) -> str:
    """A time for people; empty for none."""
    return f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if moment else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
