"""Addresses of the work of this app."""

from celery import shared_task
from django.utils.timezone import now

from monitoring import notifying, rounds


@shared_task(name="monitoring.tasks.collect")
def collect() -> None:
    """Do the collection round that is due. Doubled messages find it claimed."""
    rounds.run(now())


@shared_task(name="monitoring.tasks.notify")
def notify() -> None:
    """Decide who is told of what, and send what waits. Several at once share the messages."""
    notifying.tell(now())
