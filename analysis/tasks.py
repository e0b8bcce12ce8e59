"""What the workers do for analysis. A task is an address: it fetches by id and calls one function."""

from __future__ import annotations

from celery import shared_task

from analysis import detecting
from monitoring.models import Service
from monitoring.workspace import exclusive


@shared_task(name="analysis.tasks.analyse", ignore_result=True)
def analyse() -> None:
    """Look at each service that is watched. RuneRogue itself is measured; its code is not probed while it runs."""
    for pk in Service.objects.active().filter(is_self=False).values_list("pk", flat=True):
        analyse_service.delay(pk)


# No time limit here: under a pool of threads Celery enforces none. The sandbox limits the tests, git limits itself.
@shared_task(name="analysis.tasks.analyse_service", ignore_result=True)
def analyse_service(pk: int) -> None:
    # A long look must not be overtaken by the next one: both would work in one worktree.
    with exclusive(f"analysis:{pk}", wait=False) as mine:
        if mine:
            detecting.analyse(Service.objects.get(pk=pk))
