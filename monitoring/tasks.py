"""Addresses of the work of this app."""

from celery import shared_task
from django.utils.timezone import now

from monitoring import quality, rounds


@shared_task(name="monitoring.tasks.collect")
def collect() -> None:
    """Do the collection round that is due. Doubled messages find it claimed."""
    rounds.run(now())


@shared_task(name="monitoring.tasks.measure_quality")
def measure_quality() -> None:
    """Now and then: tests, lint and security of each service whose time has come."""
    quality.measure_due(now())
