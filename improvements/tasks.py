"""What the workers do for improvements. A task is an address: it fetches by id and calls one function."""

from __future__ import annotations

import logging

from celery import shared_task

from improvements import releasing, suggesting, ticking, traffic

log = logging.getLogger(__name__)


@shared_task(name="improvements.tasks.tick", ignore_result=True)
def tick() -> None:
    """Every few seconds: what is new, what starts by itself, and what could take a step."""
    suggesting.suggest()
    suggesting.start_by_itself()
    for pk in ticking.due():
        advance.delay(pk)


@shared_task(name="improvements.tasks.advance", ignore_result=True)
def advance(pk: int) -> None:
    """Let one improvement take steps until it waits. The next tick, or a signature, calls again."""
    ticking.advance(pk)


@shared_task(name="improvements.tasks.tidy", ignore_result=True)
def tidy() -> None:
    """Now and then: what the proxy lost, releases nobody needs, suggestions nobody wants, old traffic."""
    for complaint in releasing.reconcile():
        log.error("the proxy does not agree: %s", complaint)
    for stopped in releasing.sweep():
        log.info("stopped %s, which nothing needs any more", stopped)
    suggesting.expire_old()
    traffic.prune()
