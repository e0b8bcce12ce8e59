"""What the workers do for analysis. A task is an address: it fetches by id and calls one function."""

from __future__ import annotations

from celery import shared_task
from django.core.cache import cache

from analysis import detecting
from monitoring.models import Service


@shared_task(name="analysis.tasks.analyse", ignore_result=True)
def analyse() -> None:
    """Look at each service that is watched. RuneRogue itself is measured; its code is not probed while it runs."""
    for pk in Service.objects.active().filter(is_self=False).values_list("pk", flat=True):
        analyse_service.delay(pk)


@shared_task(name="analysis.tasks.analyse_service", ignore_result=True, soft_time_limit=1200)
def analyse_service(pk: int) -> None:
    # A long look must not be overtaken by the next one on the same worktree. The lock runs out if the worker dies.
    key = f"analysis:{pk}"
    if not cache.add(key, "1", timeout=900):
        return
    try:
        detecting.analyse(Service.objects.get(pk=pk))
    finally:
        cache.delete(key)
