"""Telling people: what is due is decided in one transaction, sent outside of any, and recorded in another.

The outbox (`Notice`) is the truth. Deciding twice makes nothing twice: that is a constraint. Sending is claimed by a
lease; a worker that dies between sending and recording costs a second delivery under the same idempotency key.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils.timezone import now

from approvals import audit
from monitoring import composing, recurrence, routing
from monitoring.alerting import serving_releases
from monitoring.models import (
    Alert,
    AlertState,
    Contact,
    EscalationStep,
    MaintenanceWindow,
    Mention,
    Notice,
    Service,
    Silence,
)
from monitoring.notifiers import NOTIFIERS, Message, Notifier, NotSent, Undeliverable
from monitoring.routing import Kind, Outbox, Quiet, Raised, Step, Told

log = logging.getLogger(__name__)

DECIDING = 0x52524E  # the advisory lock of whoever decides; any number of our own
LEASE = timedelta(seconds=90)  # longer than any medium may take
AT_ONCE = 20  # messages sent side by side, so that one slow receiver keeps nobody waiting
# An alert whose end nobody could be told of is not looked at for ever.
FORGET_RESOLVED = timedelta(days=7)


def tell(at: datetime) -> None:
    """Decide who is told of what, and send what waits. For whoever comes by: any number may do it at once."""
    decide(at)
    send_due(at)


def decide(at: datetime) -> list[Notice]:
    """Note what keeps which alert quiet, and put into the outbox what is due. Returns the new notices."""
    with transaction.atomic():
        _decide_alone()
        alerts = {alert.pk: alert for alert in _of_interest(at)}
        raised = {pk: _raised(alert) for pk, alert in alerts.items()}
        serving: dict[int, set[str]] = defaultdict(set)
        for service, release in serving_releases():
            serving[service].add(release)
        quiet = routing.suppressed(list(raised.values()), quiets(at), serving=serving)
        for pk, alert in alerts.items():
            raised[pk] = _note(alert, quiet.get(pk, ""), at)
        told = _told(alerts)
        steps = _steps({alert.service_id for alert in alerts.values()})
        dues = [
            due for pk, one in raised.items() for due in routing.due(one, steps[alerts[pk].service_id], told[pk], at=at)
        ]
        groups = routing.grouped(dues, {pk: alert.service_id for pk, alert in alerts.items()})
        return [_put(group, alerts, at) for group in groups]


def _decide_alone() -> None:
    """Until the transaction ends nobody else decides: two at once would each group the same news in their own way."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [DECIDING])


def _of_interest(at: datetime) -> QuerySet[Alert]:
    """What fires, and what ended and was told of, but not its end."""
    mentioned = Mention.objects.filter(alert=OuterRef("pk"))
    ended = Alert.objects.filter(state=AlertState.RESOLVED, resolved_at__gte=at - FORGET_RESOLVED).filter(
        Exists(mentioned.filter(kind=Kind.FIRING)), ~Exists(mentioned.filter(kind=Kind.RESOLVED))
    )
    wanted = Q(state=AlertState.FIRING) | Q(pk__in=ended.values("pk"))
    return Alert.objects.filter(wanted).select_related("service", "rule").order_by("severity", "pk")


def _raised(alert: Alert) -> Raised:
    return Raised(
        id=alert.pk,
        service_id=alert.service_id,
        name=alert.name,
        severity=alert.severity,
        signal=alert.rule.signal if alert.rule else "",
        labels=alert.labels,
        is_firing=alert.state == AlertState.FIRING,
        is_own=alert.service.is_self,
        is_acknowledged=alert.acknowledged_at is not None,
        audible_since=alert.audible_since,
    )


def _note(alert: Alert, words: str, at: datetime) -> Raised:
    """Write down what keeps the alert quiet; escalation counts from when nothing does."""
    firing = alert.state == AlertState.FIRING
    since = (alert.audible_since or at) if firing and not words else None
    if firing and (since, words) != (alert.audible_since, alert.suppressed_by):
        alert.audible_since, alert.suppressed_by = since, words[:700]
        Alert.objects.filter(pk=alert.pk).update(audible_since=since, suppressed_by=alert.suppressed_by)
    return _raised(alert)


def quiets(at: datetime) -> list[Quiet]:
    """The silences and maintenance windows that are open at `at`."""
    found = [
        Quiet(
            f"Silenced by {silence.author} until {in_words(silence.ends_at)}: {silence.reason}",
            silence.service_id,
            silence.rule,
            silence.labels,
        )
        for silence in Silence.objects.open(at).select_related("author").order_by("pk")
    ]
    for row in MaintenanceWindow.objects.filter(enabled=True):
        try:
            until = recurrence.open_until(row.window, at)
        except recurrence.BadWindow as error:
            # It was right when it was saved: the machine's time zone data changed. Alerts are told rather than lost.
            log.warning("The maintenance window %s keeps nothing quiet: %s", row, error)
            continue
        if until is not None:
            words = f"Maintenance window “{row.name}” until {in_words(until)}: {row.reason}"
            found.append(Quiet(words, row.service_id))
    return found


def in_words(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _told(alerts: Mapping[int, Alert]) -> dict[int, list[Told]]:
    found: dict[int, list[Told]] = defaultdict(list)
    rows = Mention.objects.filter(alert__in=alerts).values_list(
        "alert_id", "contact_id", "kind", "number", "notice__created_at", "notice__state"
    )
    for alert, contact, kind, number, at, state in rows:
        found[alert].append(Told(contact, Kind(kind), number, at, Outbox(state)))
    return found


def _steps(services: set[int]) -> dict[int, list[Step]]:
    """The steps of each of these services: its own, or else the general ones."""
    own: dict[int | None, list[Step]] = defaultdict(list)
    rows = EscalationStep.objects.filter(contact__enabled=True)
    for row in rows.filter(Q(service=None) | Q(service__in=services)):
        own[row.service_id].append(Step(row.contact_id, row.after_minutes, row.repeat_minutes, row.critical_only))
    return {service: own[service] or own[None] for service in services}


def _put(group: routing.Group, alerts: Mapping[int, Alert], at: datetime) -> Notice:
    mentioned = {due.alert_id for due in group.dues}
    about = [alert for pk, alert in alerts.items() if pk in mentioned]  # the worst first
    message = composing.alert_message(group, about, at=at)
    notice = Notice.objects.create(
        key=message.key,
        kind=group.kind,
        contact_id=group.contact_id,
        service_id=group.service_id,
        severity=message.severity,
        title=message.subject,
        message=message.as_json(),
        next_at=at,
        created_at=at,
    )
    Mention.objects.bulk_create(
        Mention(notice=notice, alert_id=due.alert_id, contact_id=due.contact_id, kind=due.kind, number=due.number)
        for due in group.dues
    )
    return notice


# -- Sending ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What came of one attempt."""

    state: Outbox
    words: str
    after_seconds: float | None = None


def send_due(at: datetime, *, notifiers: Mapping[str, Notifier] = NOTIFIERS, limit: int = AT_ONCE) -> int:
    """Send what the outbox holds for `at`, at most `limit` messages, side by side. Returns how many were delivered.

    Any number of workers may do this at once: each message is claimed by one of them.
    """
    claimed = _claim(at, limit)
    if not claimed:
        return 0
    sent = 0
    with ThreadPoolExecutor(max_workers=len(claimed), thread_name_prefix="notice") as pool:
        attempts = {
            # Nothing of the database is touched in these threads.
            pool.submit(_attempt, Message.from_json(notice.message), notice.contact, notifiers): notice
            for notice in claimed
        }
        for attempt in as_completed(attempts):
            sent += _record(attempts[attempt], attempt.result(), at)
    return sent


def _claim(at: datetime, limit: int) -> list[Notice]:
    """Waiting messages, ours until the lease ends. The news of an alert reaches a contact in its order."""
    free = Q(leased_until=None) | Q(leased_until__lte=at)
    free |= Q(leased_until__gt=at + LEASE)  # from a clock that was set back since
    earlier = Mention.objects.filter(
        contact=OuterRef("contact"),
        notice__state=Outbox.WAITING,
        notice__lt=OuterRef("pk"),
        alert__mentions__notice=OuterRef("pk"),
    )
    with transaction.atomic():
        rows = list(
            Notice.objects.waiting()
            .filter(free, next_at__lte=at)
            .exclude(Exists(earlier))
            .select_for_update(skip_locked=True, of=("self",))
            .select_related("contact")
            .order_by("severity", "next_at", "pk")[:limit]  # "critical" sorts before "warning"
        )
        for notice in rows:
            notice.lease, notice.leased_until, notice.attempts = uuid.uuid4(), at + LEASE, notice.attempts + 1
        Notice.objects.bulk_update(rows, ["lease", "leased_until", "attempts"])
    return rows


def _attempt(message: Message, contact: Contact, notifiers: Mapping[str, Notifier]) -> Result:
    notifier = notifiers.get(contact.medium)
    if notifier is None:
        return Result(Outbox.DEAD, f"There is no medium {contact.medium!r}: was its package removed?")
    if not contact.enabled:
        return Result(Outbox.DEAD, "The contact is switched off.")
    if obstacle := notifier.obstacle(contact.address, contact.secret):
        return Result(Outbox.DEAD, obstacle)
    try:
        return Result(Outbox.SENT, notifier.send(message, address=contact.address, secret=contact.secret))
    except Undeliverable as error:
        return Result(Outbox.DEAD, str(error))
    except NotSent as error:
        return Result(Outbox.WAITING, str(error), error.after_seconds)
    except Exception as error:  # the boundary: a bug in a medium, ours or a package's, must not lose the message
        log.exception("The medium %s raised", contact.medium)
        return Result(Outbox.WAITING, f"The medium failed ({type(error).__name__}); the log says where.")


def _record(notice: Notice, result: Result, at: datetime) -> bool:
    """Write down what came of it, if the lease is still ours. Whether it was delivered."""
    changes: dict[str, object] = {"lease": None, "leased_until": None}
    words = audit.plain(result.words)
    delay = routing.retry_after_seconds(notice.attempts)
    if result.state is Outbox.SENT:
        changes |= {"state": Outbox.SENT, "sent_at": at, "answer": words[:200], "last_error": ""}
    elif result.state is Outbox.DEAD or delay is None:
        if result.state is not Outbox.DEAD:
            words = f"Given up after {notice.attempts} attempts. {words}"
        changes |= {"state": Outbox.DEAD, "last_error": words[:500]}
        log.error("Notice %s to %s was not delivered: %s", notice.pk, notice.contact, words)
    else:
        seconds = max(delay, result.after_seconds or 0.0)
        changes |= {"next_at": at + timedelta(seconds=seconds), "last_error": words[:500]}
    ours = Notice.objects.filter(pk=notice.pk, lease=notice.lease)
    # What was called off while it was being sent was sent, if it was; another attempt there is not.
    won = (ours if result.state is Outbox.SENT else ours.filter(state=Outbox.WAITING)).update(**changes)
    if not won:
        log.warning("Notice %s: another worker has it since, or it was called off", notice.pk)
    return bool(won) and result.state is Outbox.SENT


# -- What is no rule's alert ------------------------------------------------------------------------------------------


def page(
    service: Service,
    *,
    key: str,
    title: str,
    body: str,
    severity: str = "critical",
    url: str = "",
    at: datetime | None = None,
) -> list[Notice]:
    """Tell those on call for `service`, each at their step, until `call_off` of the same `key`. Once for each key.

    `url` is a path of RuneRogue's own. Writes rows only, in the caller's transaction if there is one, and is silenced
    by nothing. Returns the new notices: none when there is nobody to tell, or the key is known.
    """
    at = at or now()
    found = []
    with transaction.atomic():
        for step in _steps({service.pk})[service.pk]:
            if step.critical_only and severity != "critical":
                continue
            digest = hashlib.sha256(f"{service.pk}/{key}/{step.contact_id}".encode()).hexdigest()[:24]
            message = composing.page_message(
                service, key=f"page-{digest}", title=title, body=body, severity=severity, url=url, at=at
            )
            notice, is_new = Notice.objects.get_or_create(
                key=message.key,
                defaults={
                    "kind": Kind.PAGE,
                    "contact_id": step.contact_id,
                    "service": service,
                    "severity": severity,
                    "title": message.subject,
                    "message": message.as_json(),
                    "page_key": key[:100],
                    "next_at": at + timedelta(minutes=step.after_minutes),
                    "created_at": at,
                },
            )
            found += [notice] if is_new else []
    if not found and not Notice.objects.filter(service=service, page_key=key[:100]).exists():
        log.critical("Nobody is on call for %s: %s. %s", service, title, body)
    return found


def call_off(service: Service, *, key: str, because: str) -> int:
    """Tell nobody else of the page `key`: somebody has it, or it is over. Returns how many were not told."""
    waiting = Notice.objects.waiting().filter(service=service, page_key=key[:100])
    return waiting.update(state=Outbox.CALLED_OFF, last_error=because[:500])


def send_test(contact: Contact, *, actor: User, at: datetime) -> Notice:
    """Put a test message to `contact` into the outbox."""
    with transaction.atomic():
        message = composing.trial_message(contact, key=f"test-{uuid.uuid4()}", at=at)
        notice = Notice.objects.create(
            key=message.key,
            kind=Kind.TEST,
            contact=contact,
            severity=message.severity,
            title=message.subject,
            message=message.as_json(),
            next_at=at,
            created_at=at,
        )
        audit.record("contact.tested", contact, actor=actor)
    return notice


def try_again(notice: Notice, *, actor: User, at: datetime) -> bool:
    """Give a dead message all its attempts back. False when it is not dead any more."""
    with transaction.atomic():
        won = (
            Notice.objects.dead()
            .filter(pk=notice.pk)
            .update(state=Outbox.WAITING, attempts=0, next_at=at, lease=None, leased_until=None)
        )
        if won:
            audit.record("notice.tried-again", notice, actor=actor, because=notice.last_error)
    return bool(won)


def take_page(notice: Notice, *, actor: User, comment: str) -> int:
    """A person takes what a page is about: nobody else is told. Returns how many were not."""
    if notice.service is None or not notice.page_key:
        raise ValueError("Only a page can be taken; an alert is acknowledged on its own page.")
    if not comment.strip():
        raise ValueError("Write a comment: whoever looks next reads it.")
    with transaction.atomic():
        spared = call_off(notice.service, key=notice.page_key, because=f"{actor} has it: {comment.strip()}")
        audit.record("page.taken", notice, actor=actor, because=comment.strip(), data={"key": notice.page_key})
    return spared


def told_in_order(alert: Alert) -> Sequence[Notice]:
    """Who was told of `alert`, newest first."""
    return list(alert.notices.select_related("contact").order_by("-created_at", "-pk"))
