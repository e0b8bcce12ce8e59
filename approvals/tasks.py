"""Background work of approvals."""

from __future__ import annotations

from celery import shared_task
from django.utils.timezone import now

from approvals import requests, telling
from approvals.models import StoredAnswer


@shared_task(name="approvals.tasks.expire")
def expire() -> int:
    """Expire the open requests whose time is up, and forget old letters and answers of writes. Repeats harmlessly."""
    StoredAnswer.objects.forget_old(now())
    telling.forget_old(now())
    return requests.expire_due(now())


@shared_task(name="approvals.tasks.send_letters")
def send_letters() -> None:
    """Send the mails to people that wait. Several at once share them."""
    telling.send_due(now())
