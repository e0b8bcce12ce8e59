"""Telling people by mail: written down in the transaction of what it tells, sent by a task outside of any.

The outbox (`Letter`) is the truth. Telling twice tells nobody twice: that is a constraint. Sending is claimed by a
lease; a worker that dies between sending and recording costs a second delivery under the same Message-ID.
"""

from __future__ import annotations

import datetime as dt
import logging
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.template.loader import render_to_string

from approvals import audit, posting
from approvals.models.letter import Delivery, Letter

log = logging.getLogger(__name__)

LEASE = dt.timedelta(seconds=90)  # longer than a mail server may take
AT_ONCE = 20  # mails sent side by side
FIRST_RETRY = dt.timedelta(seconds=30)
LONGEST_RETRY = dt.timedelta(hours=1)
MOST_ATTEMPTS = 14  # about nine hours
KEEP = dt.timedelta(days=396)  # thirteen months, as monitoring keeps its notices


def tell(people: Iterable[User], *, about: str, subject: str, lines: Sequence[str], url: str, key: str) -> int:
    """Have each of `people` told by mail, and return how many are told by this call.

    Who is not active, is a program's account or has no address is left out. `key` names the occasion: the same person
    is told of it once however often this is called. `url` is a page of RuneRogue's own: it opens something to read and
    decides nothing. Rows are written in the caller's transaction, so what did not happen is not told.
    """
    told = (
        User.objects.filter(pk__in=[person.pk for person in people], is_active=True)
        .exclude(email="")
        .exclude(person_settings__is_service_account=True)
        .exclude(letters__in=Letter.objects.filter(key=key))
        .order_by("pk")
    )
    letters = [
        Letter(
            key=key,
            person=person,
            about=audit.plain(about)[:100],
            subject=" ".join(audit.plain(subject).split())[:200],
            lines=[audit.plain(line) for line in lines],
            url=url,
        )
        for person in told
    ]
    # Somebody else may be telling the same at this moment.
    Letter.objects.bulk_create(letters, ignore_conflicts=True)
    return len(letters)


@dataclass(frozen=True)
class Result:
    """What came of one attempt."""

    state: Delivery
    words: str = ""


def send_due(at: dt.datetime, *, limit: int = AT_ONCE) -> int:
    """Send what waits, at most `limit` mails side by side. Returns how many a server took.

    Any number of workers may do this at once: each letter is claimed by one of them. Without EMAIL_URL letters wait.
    """
    if not settings.EMAIL_HOST:
        return 0
    claimed = _claim(at, limit)
    if not claimed:
        return 0
    sent = 0
    with ThreadPoolExecutor(max_workers=len(claimed), thread_name_prefix="letter") as pool:
        # Nothing of the database is touched in these threads.
        attempts = {pool.submit(_attempt, letter): letter for letter in claimed}
        for attempt in as_completed(attempts):
            sent += _record(attempts[attempt], attempt.result(), at)
    return sent


def forget_old(at: dt.datetime) -> int:
    """Drop the letters nobody asks about any more; how many that were."""
    return Letter.objects.filter(created_at__lt=at - KEEP).exclude(state=Delivery.WAITING).delete()[0]


def _claim(at: dt.datetime, limit: int) -> list[Letter]:
    with transaction.atomic():
        letters = list(
            Letter.objects.waiting(at)
            .select_for_update(skip_locked=True, of=("self",))
            .select_related("person")
            .order_by("next_at", "pk")[:limit]
        )
        for letter in letters:
            letter.lease, letter.leased_until, letter.attempts = uuid.uuid4(), at + LEASE, letter.attempts + 1
        Letter.objects.bulk_update(letters, ["lease", "leased_until", "attempts"])
    return letters


def _attempt(letter: Letter) -> Result:
    person = letter.person
    if not person.is_active:
        return Result(Delivery.DEAD, f"The account of {person.username} is not active any more.")
    if obstacle := posting.obstacle(person.email):
        return Result(Delivery.DEAD, obstacle)
    try:
        posting.post(composed(letter), address=person.email)
        return Result(Delivery.SENT)
    except posting.Undeliverable as error:
        return Result(Delivery.DEAD, str(error))
    except posting.NotSent as error:
        return Result(Delivery.WAITING, str(error))


def _record(letter: Letter, result: Result, at: dt.datetime) -> bool:
    """Write down what came of it, if the lease is still ours. Whether it was delivered."""
    words = audit.plain(result.words)
    changes: dict[str, object] = {"lease": None, "leased_until": None, "last_error": words[:500]}
    if result.state is Delivery.SENT:
        changes |= {"state": Delivery.SENT, "sent_at": at}
    elif result.state is Delivery.DEAD or letter.attempts >= MOST_ATTEMPTS:
        changes |= {"state": Delivery.DEAD}
        log.error("Letter %s to %s was not delivered: %s", letter.pk, letter.person, words)
    else:
        changes |= {"next_at": at + min(FIRST_RETRY * 2 ** (letter.attempts - 1), LONGEST_RETRY)}
    won = Letter.objects.filter(pk=letter.pk, lease=letter.lease).update(**changes)
    return bool(won) and result.state is Delivery.SENT


def composed(letter: Letter) -> EmailMessage:
    """The mail: plain text and HTML. Its Message-ID comes from occasion and person, so that a double can be dropped."""
    context = {"letter": letter, "url": settings.PUBLIC_URL.rstrip("/") + letter.url if letter.url else ""}
    mail = EmailMessage()
    mail["Subject"] = letter.subject
    mail["From"] = settings.DEFAULT_FROM_EMAIL
    mail["To"] = Address(addr_spec=letter.person.email)
    mail["Date"] = format_datetime(letter.created_at)
    mail["Message-ID"] = posting.message_id(f"letter {letter.key} {letter.person_id}")
    mail["References"] = posting.message_id(f"about {letter.about}")
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Auto-Response-Suppress"] = "All"
    mail.set_content(render_to_string("email/letter.txt", context).strip() + "\n")
    mail.add_alternative(render_to_string("email/letter.html", context), subtype="html")
    return mail
