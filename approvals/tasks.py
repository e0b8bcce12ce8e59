"""Background work of approvals."""

from __future__ import annotations

from celery import shared_task
from django.utils.timezone import now

from approvals import policies, reminding, telling
from approvals.models import StoredAnswer


@shared_task(name="approvals.tasks.expire")
def expire() -> int:
    """Remind of requests that wait, escalate and expire them, put signed policies in force; forget old letters and
    answers. Repeats harmlessly.
    """
    StoredAnswer.objects.forget_old(now())
    telling.forget_old(now())
    policies.put_signed_in_force()
    return reminding.run(now())


@shared_task(name="approvals.tasks.send_letters")
def send_letters() -> None:
    """Send the mails to people that wait. Several at once share them."""
    telling.send_due(now())
