"""Addresses of the work of this app."""

from celery import shared_task
from django.contrib.auth.models import User
from django.utils.timezone import now

from monitoring import backfilling, baselining, blindspots, guarding, notifying, quality, rounds, sealing
from monitoring.models import Service


@shared_task(name="monitoring.tasks.collect")
def collect() -> None:
    """Do the collection round that is due. Doubled messages find it claimed."""
    rounds.run(now())


@shared_task(name="monitoring.tasks.measure_quality")
def measure_quality() -> None:
    """Now and then: tests, lint and security of each service whose time has come."""
    quality.measure_due(now())


@shared_task(name="monitoring.tasks.seal")
def seal() -> None:
    """Seal the days that are over and forget what is too old. It may take minutes, so no round waits for it."""
    sealing.run(now())


@shared_task(name="monitoring.tasks.notify")
def notify() -> None:
    """Decide who is told of what, and send what waits. Several at once share the messages."""
    notifying.tell(now())


@shared_task(name="monitoring.tasks.backfill")
def backfill() -> None:
    """Ask for a part of what nobody measured of services whose series are in a Prometheus. Doubled messages find it
    claimed.
    """
    done = backfilling.run(now())
    if done and done.finished:
        set_baselines.delay()


@shared_task(name="monitoring.tasks.set_baselines")
def set_baselines() -> None:
    """Set the baselines that are due by themselves."""
    baselining.refresh(now())


@shared_task(name="monitoring.tasks.map_routes")
def map_routes() -> None:
    """Read the routes of the services that have a new commit."""
    for service in Service.objects.active():
        blindspots.map_routes(service, at=now())


@shared_task(name="monitoring.tasks.verify_audit", ignore_result=True)
def verify_audit(asked_by: int | None = None) -> None:
    """Every night, or asked for by the person of that id: is the log what was written? If not, on-call is paged."""
    guarding.verify_log(now(), actor=User.objects.filter(pk=asked_by).first() if asked_by else None)


@shared_task(name="monitoring.tasks.watch_checkpoints", ignore_result=True)
def watch_checkpoints() -> None:
    """Now and then: does anything outside the database vouch for the newest audit entries?"""
    guarding.watch_checkpoints(now())
