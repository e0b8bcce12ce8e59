"""Background work of approvals."""

from __future__ import annotations

from celery import shared_task
from django.utils.timezone import now

from approvals import requests


@shared_task(name="approvals.tasks.expire")
def expire() -> int:
    """Expire the open requests whose time is up. Repeats harmlessly."""
    return requests.expire_due(now())
