"""What people say about a service, without the people."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Count

from monitoring import privacy, storing
from monitoring.claiming import claim
from monitoring.derive import Reading
from monitoring.experience import route_of
from monitoring.models import Feedback, Service

LONGEST_TEXT = 2000
KEEP_DAYS = 365
# Seven digits and more with what people write between them are a telephone, an account or a card, and sometimes an
# order: what may be somebody's number goes.
_NUMBER = re.compile(r"\+?\(?\d(?:[ \t()./-]{0,3}\d){6,}")


def scrubbed(text: str) -> str:
    """`text` with signs in place of email addresses, IP addresses, tokens, and numbers that look like somebody's."""
    text = "".join(sign if sign.isprintable() or sign == "\n" else " " for sign in text)
    return _NUMBER.sub("{number}", privacy.scrub(text, own_addresses=False)).strip()[:LONGEST_TEXT]


def take(service: Service, *, rating: int | None, text: str, endpoint: str, path: str, at: datetime) -> Feedback:
    """Keep one remark: a rating of 1 to 5, a text, or both. Raises ValueError without either."""
    kept = scrubbed(text)
    if rating is None and not kept:
        raise ValueError("Feedback is a rating, a text, or both.")
    where = route_of(endpoint, path) if endpoint or path else ""
    return Feedback.objects.create(service=service, at=at, rating=rating, text=kept, endpoint=where)


def recent(service: Service, since: datetime) -> list[Feedback]:
    """What was said about `service` from `since` on, newest first: for the analysis to read."""
    return list(Feedback.objects.filter(service=service, at__gte=since).order_by("-at"))


def write_round(at: datetime) -> int:
    """`feedback_count` of the interval before `at` for every service that ever got feedback. Returns how many."""
    since = at - timedelta(seconds=float(settings.METRICS_COLLECTION_INTERVAL))
    heard = Service.objects.active().filter(pk__in=Feedback.objects.values("service").distinct())
    counts = dict(
        Feedback.objects.filter(at__gt=since, at__lte=at).order_by().values_list("service").annotate(Count("pk"))
    )
    rows = [(service, Reading("feedback_count", (), float(counts.get(service.pk, 0)))) for service in heard]
    if claim("forget feedback", at=at, interval_seconds=86_400):
        Feedback.objects.filter(at__lt=at - timedelta(days=KEEP_DAYS)).delete()
    return storing.store(rows, at=at) if rows else 0
