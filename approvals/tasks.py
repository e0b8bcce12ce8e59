"""Background work of approvals."""

from __future__ import annotations

from celery import shared_task
from django.utils.timezone import now

from approvals import requests
from approvals.models import StoredAnswer


@shared_task(name="approvals.tasks.expire")
def expire() -> int:
    """Expire the open requests whose time is up, and forget the answers of old writes. Repeats harmlessly."""
    StoredAnswer.objects.forget_old(now())
    return requests.expire_due(now())
