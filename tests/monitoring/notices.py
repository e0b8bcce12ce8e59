"""Rows for the tests of notices, and real receivers: an SMTP server and an HTTP server on loopback."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller

from monitoring.models import Alert, AlertState, Contact, EscalationStep, Service
from tests.monitoring.factories import T0, ServiceFactory

SECRET = "a secret of the receiver"


def contact(name: str = "on-call", medium: str = "memory", **fields: Any) -> Contact:
    return Contact.objects.create(name=name, medium=medium, address=f"{name}@example.org", **fields)


def step(contact: Contact, after: int = 0, *, service: Service | None = None, repeat: int = 0, **fields: Any) -> None:
    EscalationStep.objects.create(
        contact=contact, service=service, after_minutes=after, repeat_minutes=repeat, **fields
    )


def firing(service: Service | None = None, name: str = "error-ratio", *, at: datetime = T0, **fields: Any) -> Alert:
    given: dict[str, Any] = {
        "severity": "critical",
        "labels": {"endpoint": "/players"},
        "message": "Too many requests fail: share of failed requests is 40.0%, the limit is above 5.0%.",
        "opened_at": at,
        "fired_at": at,
        "state": AlertState.FIRING,
    } | fields
    return Alert.objects.create(
        service=service or ServiceFactory(), name=name, labels_key=str(sorted(given["labels"].items())), **given
    )


def resolve(alert: Alert, at: datetime) -> None:
    Alert.objects.filter(pk=alert.pk).update(state=AlertState.RESOLVED, resolved_at=at)


@dataclass
class Mailbox:
    """What the SMTP server took, and what it answers: to RCPT, and after the message."""

    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    on_recipient: str = "250 OK"
    on_data: str = "250 Message accepted"

    async def handle_RCPT(self, server, session, envelope, address, options) -> str:
        if self.on_recipient.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.on_recipient

    async def handle_DATA(self, server, session, envelope) -> str:
        if self.on_data.startswith("250"):
            parsed = message_from_bytes(envelope.content, policy=policy.default)
            assert isinstance(parsed, EmailMessage)
            self.mails.append(parsed)
            self.recipients += envelope.rcpt_tos
        return self.on_data


@contextlib.contextmanager
def mail_server(settings: Any, **options: Any) -> Iterator[Mailbox]:
    """A real SMTP server on loopback, to which the settings point. `options` are those of aiosmtpd's Controller."""
    box = Mailbox()
    controller = Controller(box, hostname="127.0.0.1", port=free_port(), **options)
    controller.start()
    settings.EMAIL_HOST, settings.EMAIL_PORT = controller.hostname, controller.port
    settings.DEFAULT_FROM_EMAIL = "RuneRogue <runerogue@example.org>"
    try:
        yield box
    finally:
        controller.stop()


@dataclass(frozen=True)
class Certified:
    """A CA's certificate, and a server's context with a certificate of that CA for one host name."""

    ca: Path
    server: ssl.SSLContext


def certified(folder: Path, host: str) -> Certified:
    """Made by openssl as an operator makes them."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)

    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Our own CA")
    openssl(
        "req", "-x509", *curve, "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "host.key", "-out", "host.pem",
        "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}",
        "-addext", "basicConstraints=critical,CA:FALSE",
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "host.pem", folder / "host.key")
    return Certified(folder / "ca.pem", context)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def dripping(settings: Any) -> Iterator[None]:
    """A mail server that says a greeting without end, a byte at a time: no single read ever waits long."""
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"220-")
                while not stop.wait(0.02):
                    connection.sendall(b"x")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    settings.EMAIL_HOST, settings.EMAIL_PORT = listener.getsockname()[:2]
    try:
        yield
    finally:
        stop.set()
        listener.close()
        thread.join(timeout=5)


@dataclass
class Receiver:
    """What an HTTP receiver got, and what it answers."""

    url: str = ""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"ok"


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    """A real HTTP server on loopback."""
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            kept.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(kept.status)
            for name, value in kept.headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(kept.body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    kept.url = f"http://127.0.0.1:{server.server_port}/hook"
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
