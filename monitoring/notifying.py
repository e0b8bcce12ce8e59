"""Telling people: what is due is decided in one transaction, sent outside of any, and recorded in another.

The outbox (`Notice`) is the truth. Deciding twice makes nothing twice: that is a constraint. Sending is claimed by a
lease; a worker that dies between sending and recording costs a second delivery under the same idempotency key.
"""

from __future__ import annotations

import logging
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import Count, Exists, Min, OuterRef, Q, QuerySet
from django.utils.timezone import now

from approvals import audit, recurrence
from approvals.concealing import Unreadable
from monitoring import composing, routing
from monitoring.alerting import serving_releases
from monitoring.claiming import claim
from monitoring.models import (
    Alert,
    AlertState,
    Contact,
    EscalationStep,
    MaintenanceWindow,
    Mention,
    Notice,
    Page,
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
KEEP = timedelta(days=396)  # thirteen months, as alerts that fired are kept


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
        return [*(_put(group, alerts, at) for group in groups), *_decide_pages(at)]


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
    try:
        secret = contact.secret
    except Unreadable as error:
        return Result(Outbox.DEAD, str(error))
    if obstacle := notifier.obstacle(contact.address, secret):
        return Result(Outbox.DEAD, obstacle)
    try:
        return Result(Outbox.SENT, notifier.send(message, address=contact.address, secret=secret))
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
) -> Page:
    """Have those on call for `service` told as of an alert, from the next `decide` on. Once for each key.

    It repeats and goes to the next contact until somebody takes it or `call_off` of the same `key`. `url` is a path of
    RuneRogue's own. Writes a row only, in the caller's transaction if there is one, and is silenced by nothing.
    """
    words = {"severity": severity, "title": title[:200], "body": body, "url": url, "opened_at": at or now()}
    found, is_new = Page.objects.get_or_create(service=service, key=key[:100], defaults=words)
    if is_new and not _steps({service.pk})[service.pk]:
        log.critical("Nobody is on call for %s: %s. %s", service, title, body)
    return found


def _decide_pages(at: datetime) -> list[Notice]:
    """The same for pages, by the same steps; whoever was told hears that it is over."""
    told = Notice.objects.filter(page=OuterRef("pk"))
    ended = Page.objects.filter(ended_at__gte=at - FORGET_RESOLVED).filter(
        Exists(told.filter(kind=Kind.PAGE)), ~Exists(told.filter(kind=Kind.RESOLVED))
    )
    wanted = Page.objects.filter(Q(ended_at=None) | Q(pk__in=ended.values("pk"))).select_related("service")
    pages = list(wanted.select_for_update(of=("self",)).order_by("pk"))  # nobody takes one while it is told
    steps = _steps({page.service_id for page in pages}) if pages else {}
    before: dict[int, list[Told]] = defaultdict(list)
    times: Counter[tuple[int, int, str]] = Counter()
    rows = Notice.objects.filter(page__in=pages).order_by("created_at", "pk")
    for about, contact, kind, when, state in rows.values_list("page", "contact", "kind", "created_at", "state"):
        times[about, contact, kind] += 1
        like = Kind.RESOLVED if kind == Kind.RESOLVED else Kind.FIRING
        before[about].append(Told(contact, like, times[about, contact, kind], when, Outbox(state)))
    found = []
    for page in pages:
        raised = Raised(
            id=page.pk,
            service_id=page.service_id,
            name=page.key,
            severity=page.severity,
            is_firing=page.ended_at is None,
            is_acknowledged=page.taken_at is not None,
            audible_since=page.opened_at,
        )
        dues = routing.due(raised, steps[page.service_id], before[page.pk], at=at)
        found += [_put_page(page, due, at) for due in dues]
    return found


def _put_page(page: Page, due: routing.Due, at: datetime) -> Notice:
    kind = Kind.RESOLVED if due.kind is Kind.RESOLVED else Kind.PAGE
    message = composing.page_message(page, kind, contact_id=due.contact_id, number=due.number, at=at)
    return Notice.objects.create(
        key=message.key,
        kind=kind,
        contact_id=due.contact_id,
        service_id=page.service_id,
        page=page,
        severity=message.severity,
        title=message.subject,
        message=message.as_json(),
        next_at=at,
        created_at=at,
    )


def call_off(service: Service, *, key: str, because: str, at: datetime | None = None) -> bool:
    """The page `key` is over: nobody else is told of it, and whoever was told hears why. Whether it was open."""
    with transaction.atomic():
        ended = Page.objects.open().filter(service=service, key=key[:100])
        found = list(ended.select_for_update())
        ended.update(ended_at=at or now(), because=because[:500])
        _spare(found, because)
    return bool(found)


def _spare(pages: Sequence[Page], because: str) -> None:
    waiting = Notice.objects.waiting().filter(page__in=pages, kind=Kind.PAGE)
    waiting.update(state=Outbox.CALLED_OFF, last_error=because[:500])


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


def take_page(page: Page, *, actor: User, comment: str, at: datetime) -> None:
    """A person takes what a page is about: it goes to nobody else and is not repeated. ValueError says why not."""
    comment = comment.strip()
    if not comment:
        raise ValueError("Write a comment: whoever looks next reads it.")
    with transaction.atomic():
        mine = {"taken_by": actor, "taken_at": at, "because": comment[:500]}
        if not Page.objects.open().filter(pk=page.pk, taken_at=None).update(**mine):
            raise ValueError("Somebody has it already, or it is over.")
        _spare([page], f"{actor} has it: {comment}")
        audit.record("page.taken", page, actor=actor, because=comment, data={"key": page.key})


def told_in_order(alert: Alert) -> Sequence[Notice]:
    """Who was told of `alert`, newest first."""
    return list(alert.notices.select_related("contact").order_by("-created_at", "-pk"))


@dataclass(frozen=True)
class Counts:
    """The outbox in numbers: `waiting`, `failed` (and tried again) and `dead` (given up in the last day)."""

    by_state: Mapping[str, int]
    oldest_seconds: float

    def __str__(self) -> str:
        waiting, failed, dead = (self.by_state[state] for state in ("waiting", "failed", "dead"))
        return f"{waiting} wait, {failed} failed and are tried again, {dead} were given up in the last day."


def outbox(at: datetime) -> Counts:
    """How the outbox stands at `at`. From indexes of what waits and what was given up, however much was told."""
    waits = (
        Notice.objects.waiting()
        .order_by()
        .aggregate(
            waiting=Count("pk", filter=Q(last_error="")),
            failed=Count("pk", filter=~Q(last_error="")),
            oldest=Min("created_at"),
        )
    )
    dead = Notice.objects.dead().filter(created_at__gte=at - timedelta(days=1)).count()
    oldest = (at - waits["oldest"]).total_seconds() if waits["oldest"] else 0.0
    return Counts({"waiting": waits["waiting"], "failed": waits["failed"], "dead": dead}, max(0.0, oldest))


# -- Forgetting -------------------------------------------------------------------------------------------------------


def forget_old(at: datetime) -> int:
    """Delete what was told so long ago that nobody asks for it, at most once an hour. Returns how many notices.

    What still waits stays, and so does what was told of an alert or a page that is not over: it says what comes next.
    """
    if not claim("forget notices", at=at, interval_seconds=3600):
        return 0
    old = Notice.objects.filter(created_at__lt=at - KEEP).exclude(state=Outbox.WAITING)
    firing = Mention.objects.filter(notice=OuterRef("pk"), alert__state=AlertState.FIRING)
    doomed = old.filter(Q(page=None) | Q(page__ended_at__lt=at - KEEP)).exclude(Exists(firing))
    count = doomed.count()
    doomed.delete()
    Page.objects.filter(ended_at__lt=at - KEEP).exclude(Exists(Notice.objects.filter(page=OuterRef("pk")))).delete()
    return count
