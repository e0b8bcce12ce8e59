"""Handing a mail to the server that EMAIL_URL names: one connection a mail, bounded in time however slowly it drips."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import smtplib
import socket
import ssl
import threading
from collections.abc import Iterator
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import parseaddr

from django.conf import settings


class NotSent(Exception):
    """It was not delivered, and may be when tried later. The message is for people and holds no secrets."""

    def __init__(self, why: str, *, after_seconds: float | None = None) -> None:
        super().__init__(why)
        self.after_seconds = after_seconds  # the other side asked for this much patience


class Undeliverable(Exception):
    """It was refused for good, or can't be sent at all until a person changes something."""


AUTHENTICATION = (530, 534, 535, 538)  # our own credentials, which an operator puts right; the message is fine


def obstacle(address: str) -> str:
    """Why nothing can be mailed to `address` as things are; empty when it can. Asks nobody outside."""
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


def post(mail: EmailMessage, *, address: str, timeout_seconds: float = 20.0) -> str:
    """Deliver `mail` to `address` and say what the server answered. Raises NotSent or Undeliverable."""
    try:
        with _connected(timeout_seconds) as server:
            if settings.EMAIL_HOST_USER:
                server.login(settings.EMAIL_HOST_USER, settings.EMAIL_HOST_PASSWORD)
            server.send_message(mail, from_addr=parseaddr(settings.DEFAULT_FROM_EMAIL)[1], to_addrs=[address])
    except smtplib.SMTPRecipientsRefused as error:
        code, text = next(iter(error.recipients.values()))
        raise failure(code, text) from error
    except smtplib.SMTPResponseException as error:
        raise failure(error.smtp_code, error.smtp_error) from error
    except ssl.SSLCertVerificationError as error:
        raise NotSent(
            f"The mail server's certificate is not to be trusted: {error.verify_message.rstrip('.')}. "
            "Use the host name that it was made for in EMAIL_URL; EMAIL_CA_FILE names a CA of your own."
        ) from error
    except (smtplib.SMTPException, OSError, ValueError) as error:
        # A socket that was shut down by the time limit raises whatever the line in progress raises.
        raise NotSent(f"The mail server could not be talked to: {_words(error)}.") from error
    return f"accepted by {settings.EMAIL_HOST}"


def message_id(key: str) -> str:
    """The Message-ID of what has this idempotency key, so that a mail program can drop a double."""
    return f"<{hashlib.sha256(key.encode()).hexdigest()[:32]}@{_domain()}>"


@functools.cache
def _certificates(file: str) -> ssl.SSLContext:
    """Whom to trust: the CAs in `file`, or the system's. Host names are checked."""
    return ssl.create_default_context(cafile=file or None)


def _domain() -> str:
    """That of the sender."""
    return parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2] or "localhost"


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


def failure(code: int, text: bytes | str) -> NotSent | Undeliverable:
    said = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    told = f"The mail server answered {code}: {' '.join(said.split())[:300]}"
    if 500 <= code < 600 and code not in AUTHENTICATION:
        return Undeliverable(told)
    return NotSent(told)


def _words(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")
