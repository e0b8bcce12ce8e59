"""Addresses of the work of this app."""

from celery import shared_task
from django.utils.timezone import now

from monitoring import baselining, rounds


@shared_task(name="monitoring.tasks.collect")
def collect() -> None:
    """Do the collection round that is due. Doubled messages find it claimed."""
    rounds.run(now())


@shared_task(name="monitoring.tasks.set_baselines")
def set_baselines() -> None:
    """Set the baselines that are due by themselves."""
    baselining.refresh(now())
