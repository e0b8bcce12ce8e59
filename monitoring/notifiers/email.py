"""Notices by email, over SMTP: plain text and HTML."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime

from django.conf import settings
from django.template.loader import render_to_string

from approvals import posting
from monitoring.notifiers.seam import Message


class EmailNotifier:
    """Sends through the server that EMAIL_URL names; one connection per message."""

    name = "email"

    def __init__(self, *, timeout_seconds: float = 20.0) -> None:
        self.timeout_seconds = timeout_seconds

    def obstacle(self, address: str, secret: str) -> str:
        return posting.obstacle(address)

    def send(self, message: Message, *, address: str, secret: str) -> str:
        return posting.post(composed(message, address), address=address, timeout_seconds=self.timeout_seconds)


def composed(message: Message, address: str) -> EmailMessage:
    """The mail. Its Message-ID comes from the notice's key, so that a double can be dropped."""
    mail = EmailMessage()
    mail["Subject"] = " ".join(message.subject.split())[:200]
    mail["From"] = settings.DEFAULT_FROM_EMAIL
    mail["To"] = Address(addr_spec=address)
    mail["Date"] = format_datetime(datetime.fromisoformat(message.at))
    mail["Message-ID"] = posting.message_id(message.key)
    if message.thread:
        mail["References"] = posting.message_id(message.thread)
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


def clock(moment: str) -> str:
    """A time for people; empty for none."""
    return f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if moment else ""
