"""Addresses of the work of this app."""

from celery import shared_task
from django.utils.timezone import now

from monitoring import rounds


@shared_task(name="monitoring.tasks.collect")
def collect() -> None:
    """Do the collection round that is due. Doubled messages find it claimed."""
    rounds.run(now())
