"""The digest to its readers: once a week each, however many workers do it at once.

Who gets one is written down first, one row for a week and reader: that is a constraint. A row is claimed by a lease in
one transaction, the mail is sent outside of any, and the result is recorded in another if the lease is still ours. A
worker that dies between the server's yes and the record costs the same mail once more, under the same Message-ID and
date (docs/decisions/009-a-digest-is-sent-at-least-once.md).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import EmailMessage

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import Q

from approvals import audit, posting
from improvements.digest import rendering, subscribing
from improvements.digest.composing import compose, due, last_week, reader_of, zone_of
from improvements.digest.parts import Digest, Facts, Reader
from improvements.digest.weeks import Week, count, parse
from improvements.models import DigestSent, DigestState

log = logging.getLogger(__name__)

AT_ONCE = 20  # mails sent side by side: one that the server does not answer keeps no other waiting
MOST_A_RUN = 200
# Longer than a run can take: ten times AT_ONCE mails of at most 20 s each, and composing them.
LEASE = timedelta(minutes=15)
# After each attempt that failed; a day and three quarters in all, and then it is given up.
PAUSES = tuple(timedelta(minutes=minutes) for minutes in (1, 5, 15, 60, 240, 720, 1440))
TIMEOUT_SECONDS = 20.0
KEEP = timedelta(days=396)  # thirteen months, as notices are kept
TOO_LATE = "The next week's came first."
JOINED_LATER = "The account was made after it was due."


@dataclass(frozen=True)
class Result:
    """What came of one attempt: the next state, and the words of the server or of what went wrong."""

    state: DigestState
    words: str = ""


def obstacle() -> str:
    """Why no digest is sent at all as things are; empty when they are."""
    if not settings.EMAIL_HOST:
        return "No digest is sent: set EMAIL_URL, such as smtp+tls://user:password@mail.example.org:587."
    return ""


def run(at: datetime) -> dict[DigestState, int]:
    """Write down who gets which digest by `at`, and send what waits. How many attempts ended in which state.

    Without a mail server nothing is written down either, so that nobody misses anything once there is one.
    """
    ended = dict.fromkeys(DigestState, 0)
    if obstacle():
        return ended
    plan(at)
    facts: dict[tuple[Week, str], Facts] = {}
    for _ in range(MOST_A_RUN // AT_ONCE):
        claimed = claim(at)
        if not claimed:
            break
        for state in send(claimed, at, facts):
            ended[state] += 1
    return ended


def plan(at: datetime) -> int:
    """A row for each active person and the newest week that is due for them; how many are new.

    Who is not meant to get it has a row that says so: whoever joins, or wants it again, in the middle of a week begins
    with the next one. Weeks that were missed are not made up for.
    """
    DigestSent.objects.filter(created_at__lt=at - KEEP).delete()
    people = User.objects.filter(is_active=True).exclude(person_settings__is_service_account=True)
    told = set(DigestSent.objects.filter(created_at__gte=at - timedelta(days=30)).values_list("week", "reader_id"))
    rows = []
    for user in people.select_related("person_settings").order_by("pk"):
        zone = zone_of(user)
        week = last_week(zone, at)
        if (str(week), user.pk) in told:
            continue
        why = reader_of(user).obstacle or (JOINED_LATER if user.date_joined > due(week, zone) else "")
        state = DigestState.SKIPPED if why else DigestState.WAITING
        rows.append(DigestSent(week=str(week), reader=user, state=state, problem=why, created_at=at, next_at=at))
    made = DigestSent.objects.bulk_create(rows, ignore_conflicts=True)
    DigestSent.objects.overtaken().update(state=DigestState.SKIPPED, problem=TOO_LATE)
    return len(made)


def claim(at: datetime, limit: int = AT_ONCE) -> list[DigestSent]:
    """Digests that wait, ours until the lease ends."""
    free = Q(leased_until=None) | Q(leased_until__lte=at)
    free |= Q(leased_until__gt=at + LEASE)  # from a clock that was set back since
    with transaction.atomic():
        rows = list(
            DigestSent.objects.waiting()
            .filter(free, next_at__lte=at)
            .select_for_update(skip_locked=True, of=("self",))
            .select_related("reader")
            .order_by("next_at", "pk")[:limit]
        )
        for row in rows:
            row.lease, row.leased_until, row.tries = uuid.uuid4(), at + LEASE, row.tries + 1
        DigestSent.objects.bulk_update(rows, ["lease", "leased_until", "tries"])
    return rows


def send(rows: Sequence[DigestSent], at: datetime, facts: dict[tuple[Week, str], Facts]) -> Iterator[DigestState]:
    """Compose and send what was claimed, side by side, and record it. Yields how each attempt ended.

    `facts` holds what was asked of the database for the readers before.
    """
    with ThreadPoolExecutor(max_workers=len(rows), thread_name_prefix="digest") as pool:
        attempts = {}
        for row in rows:
            prepared = prepare(row, at, facts)
            if isinstance(prepared, Result):
                yield record(row, prepared, at)
            else:
                row.subject = str(prepared["Subject"])
                # Nothing of the database is touched in these threads.
                attempts[pool.submit(attempt, prepared, row.reader.email)] = row
        for done in as_completed(attempts):
            yield record(attempts[done], done.result(), at)


def prepare(row: DigestSent, at: datetime, facts: dict[tuple[Week, str], Facts]) -> EmailMessage | Result:
    """The mail for the reader as they are now, or why there is none."""
    try:
        reader = reader_of(row.reader)
        if reader.obstacle:
            return Result(DigestState.SKIPPED, reader.obstacle)
        if hindrance := posting.obstacle(reader.user.email):
            return Result(DigestState.WAITING, hindrance)
        week = parse(row.week)
        told = facts.setdefault((week, str(reader.zone)), Facts.of(week, reader.zone, at))
        return mail_to(reader, compose_for(reader, told), key=row.week, at=row.created_at)
    except Exception as error:  # the boundary: a bug in one section or for one reader keeps nobody else from theirs
        if connection.in_atomic_block:
            raise
        log.exception("The digest of %s could not be composed for %s", row.week, row.reader)
        return Result(DigestState.WAITING, f"It could not be composed ({type(error).__name__}); the log says where.")


def compose_for(reader: Reader, facts: Facts) -> Digest:
    """As it is sent: with the link that stops it."""
    return compose(reader, facts, unsubscribe_url=subscribing.unsubscribe_url(reader.user))


def mail_to(reader: Reader, digest: Digest, *, key: str, at: datetime) -> EmailMessage:
    """`key` makes the Message-ID, with the reader and this installation: the same key is the same mail."""
    message_id = posting.message_id(f"digest {settings.PUBLIC_URL} {reader.user.pk} {key}")
    return rendering.as_mail(digest, to=reader.user.email, message_id=message_id, at=at)


def attempt(mail: EmailMessage, address: str) -> Result:
    try:
        return Result(DigestState.SENT, posting.post(mail, address=address, timeout_seconds=TIMEOUT_SECONDS))
    except posting.Undeliverable as error:
        return Result(DigestState.DEAD, str(error))
    except posting.NotSent as error:
        return Result(DigestState.WAITING, str(error))


def record(row: DigestSent, result: Result, at: datetime) -> DigestState:
    """Write down what came of it, if the lease is still ours. Returns the state it is in by now."""
    state, words = result.state, audit.plain(result.words)
    if state is DigestState.WAITING and row.tries > len(PAUSES):
        state, words = DigestState.DEAD, f"Given up after {count(row.tries, 'attempt')}. {words}"
    changes: dict[str, object] = {"state": state, "lease": None, "leased_until": None, "problem": words[:500]}
    if state is DigestState.SENT:
        changes |= {"sent_at": at, "problem": "", "subject": row.subject[:200]}
    elif state is DigestState.WAITING:
        changes["next_at"] = at + PAUSES[row.tries - 1]
    elif state is DigestState.DEAD:
        log.error("The digest of %s did not reach %s: %s", row.week, row.reader, words)
    with transaction.atomic():
        won = DigestSent.objects.filter(pk=row.pk, lease=row.lease).update(**changes)
        if won and state is DigestState.SENT:
            audit.record("digest.sent", row.reader, because=words, data={"week": row.week})
    if not won:
        log.warning("The digest of %s for %s: another worker has it since", row.week, row.reader)
    return state


def send_copy(user: User, week: Week, *, at: datetime, actor: User | None) -> str:
    """Send `user` the digest of `week` at once, beside the weekly one, and say what the server answered.

    Raises `posting.NotSent` and `posting.Undeliverable`, and ValueError when it can't be tried.
    """
    reader = reader_of(user)
    if not user.email:
        raise ValueError(f"The account {user.username} has no email address.")
    if hindrance := posting.obstacle(user.email):
        raise ValueError(hindrance)
    digest = compose_for(reader, Facts.of(week, reader.zone, at))
    mail = mail_to(reader, digest, key=f"copy {uuid.uuid4()}", at=at)
    answer = posting.post(mail, address=user.email, timeout_seconds=TIMEOUT_SECONDS / 2)  # somebody waits for it
    with transaction.atomic():
        audit.record("digest.copy-sent", user, actor=actor, because=answer, data={"week": str(week)})
    return answer
