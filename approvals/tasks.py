"""Background work of approvals."""

from __future__ import annotations

from celery import shared_task
from django.contrib.sessions.models import Session
from django.utils.timezone import now

from approvals import breaking_glass, checkpoints, lockouts, policies, reminding, telling
from approvals.models import StoredAnswer


@shared_task(name="approvals.tasks.expire")
def expire() -> int:
    """Remind of requests that wait, escalate and expire them, put signed policies in force, void overtaken proposals,
    close emergency doors that lapsed; forget old letters and answers. Repeats harmlessly.
    """
    StoredAnswer.objects.forget_old(now())
    telling.forget_old(now())
    policies.put_signed_in_force()
    policies.void_overtaken()
    breaking_glass.lapse_due(now())
    return reminding.run(now())


@shared_task(name="approvals.tasks.send_letters")
def send_letters() -> None:
    """Send the mails to people that wait. Several at once share them."""
    telling.send_due(now())


@shared_task(name="approvals.tasks.tidy_sign_ins")
def tidy_sign_ins() -> int:
    """Tell the audit log of failed sign-ins, and forget old counters and sessions. Repeats harmlessly."""
    told = lockouts.tell(now())
    lockouts.forget_old(now())
    Session.objects.filter(expire_date__lt=now()).delete()
    return told


@shared_task(name="approvals.tasks.checkpoint", ignore_result=True)
def checkpoint() -> None:
    """Sign the head of the audit log when that is due. A folder that can't be written fails loudly, every time."""
    checkpoints.write_if_due(now())
