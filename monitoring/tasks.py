"""Addresses of the work of this app."""

from celery import shared_task
from django.utils.timezone import now

from monitoring import blindspots, rounds
from monitoring.models import Service


@shared_task(name="monitoring.tasks.collect")
def collect() -> None:
    """Do the collection round that is due. Doubled messages find it claimed."""
    rounds.run(now())


@shared_task(name="monitoring.tasks.map_routes")
def map_routes() -> None:
    """Read the routes of the services that have a new commit."""
    for service in Service.objects.active():
        blindspots.map_routes(service, at=now())
