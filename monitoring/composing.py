"""What a notice says: from rows to a message, settled once when it is decided on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from django.conf import settings
from django.urls import reverse

from monitoring.models import Alert, Contact, Page
from monitoring.notifiers import Line, Message
from monitoring.routing import Group, Kind

LONGEST_SUBJECT = 160


def alert_message(group: Group, alerts: Sequence[Alert], *, at: datetime) -> Message:
    """The message about `alerts`, those of the group, the worst first."""
    numbers = {due.alert_id: due.number for due in group.dues}
    severity = min((alert.severity for alert in alerts), default="warning")  # "critical" sorts before "warning"
    services = sorted({alert.service.name for alert in alerts})
    where = services[0] if len(services) == 1 else f"{len(services)} services"
    if len(alerts) == 1:
        what = alerts[0].message.split(": ")[0] if group.kind is Kind.RESOLVED else alerts[0].message
    else:
        names = list(dict.fromkeys(alert.name for alert in alerts))
        what = f"{len(alerts)} alerts: {', '.join(names)}"
    status = severity
    if group.kind is Kind.RESOLVED:
        status = "resolved"
    elif min(numbers.values()) > 1:
        status = f"{severity}, still"
    page = (
        reverse("admin:monitoring_alert_change", args=[alerts[0].pk])
        if len(alerts) == 1
        else reverse("admin:monitoring_alert_changelist") + "?state__exact=firing"
    )
    return Message(
        key=group.key,
        kind=group.kind.value,
        severity=severity,
        service=", ".join(services)[:200],
        subject=one_line(f"[{status}] {where}: {what}"),
        url=address(page),
        at=moment(at),
        # The first alert of a contact's group ties the news of it together in a mailbox.
        thread=f"alert-{alerts[0].pk}-{group.contact_id}",
        lines=tuple(_line(alert, numbers[alert.pk]) for alert in alerts),
    )


def page_message(page: Page, kind: Kind, *, contact_id: int, number: int, at: datetime) -> Message:
    """A message about a page: that it is there (`Kind.PAGE`, for the `number`th time), or that it is over."""
    status = "resolved" if kind is Kind.RESOLVED else page.severity if number == 1 else f"{page.severity}, still"
    return Message(
        key=f"{kind}-page-{page.pk}-{contact_id}-{number}",
        kind=kind.value,
        severity=page.severity,
        service=page.service.name,
        subject=one_line(f"[{status}] {page.service.name}: {page.title}"),
        url=address(page.url or reverse("admin:index")),
        at=moment(at),
        body=page.because if kind is Kind.RESOLVED else page.body,
        thread=f"page-{page.pk}-{contact_id}",
    )


def trial_message(contact: Contact, *, key: str, at: datetime) -> Message:
    """What somebody who set up a contact wants to see arrive."""
    return Message(
        key=key,
        kind=Kind.TEST.value,
        severity="warning",
        service="RuneRogue",
        subject=one_line(f"[test] RuneRogue can reach {contact.name}"),
        url=address(reverse("admin:monitoring_contact_change", args=[contact.pk])),
        at=moment(at),
        body="This is a test. Nothing is wrong, and nothing has to be done.",
    )


def _line(alert: Alert, number: int) -> Line:
    return Line(
        id=alert.pk,
        name=alert.name,
        service=alert.service.name,
        severity=alert.severity,
        text=alert.message,
        starts_at=moment(alert.since),
        ends_at=moment(alert.resolved_at) if alert.resolved_at else "",
        url=address(reverse("admin:monitoring_alert_change", args=[alert.pk])),
        labels={str(name): str(value) for name, value in sorted(alert.labels.items())},
        number=number,
    )


def one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_SUBJECT else text[: LONGEST_SUBJECT - 1] + "…"


def moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds")


def address(path: str) -> str:
    """Where people open a page of RuneRogue. Opening it shows; nothing is done by following a link."""
    return settings.PUBLIC_URL.rstrip("/") + path
