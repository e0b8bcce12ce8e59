"""What the workers do for improvements. A task is an address: it fetches by id and calls one function."""

from __future__ import annotations

import logging

from celery import shared_task
from django.utils.timezone import now

from improvements import releasing, suggesting, ticking, traffic
from improvements.digest import sending
from improvements.governance import counting, reviewing
from improvements.models import State

log = logging.getLogger(__name__)


# What only proves something (minutes of tests and benchmarks) waits in the queue of the analysis; what touches live
# traffic has workers of its own, so that a rollback never stands behind a test suite.
PROVING = frozenset({State.SUGGESTED, State.AUTHORING, State.TESTING, State.SCANNING, State.STAGING})


@shared_task(name="improvements.tasks.tick", ignore_result=True)
def tick() -> None:
    """Every few seconds: what could take a step. Nothing else is here that could keep a rollback waiting."""
    for pk, state in ticking.due():
        advance.apply_async((pk,), queue="analysis" if state in PROVING else "rollout")


@shared_task(name="improvements.tasks.advance", ignore_result=True)
def advance(pk: int) -> None:
    """Let one improvement take steps until it waits."""
    ticking.advance(pk)


@shared_task(name="improvements.tasks.suggest", ignore_result=True)
def suggest() -> None:
    """Every few seconds: what is new, and what starts by itself."""
    suggesting.suggest()
    suggesting.start_by_itself()


@shared_task(name="improvements.tasks.tidy", ignore_result=True)
def tidy() -> None:
    """Now and then: what the proxy lost, releases nobody needs, suggestions nobody wants, old traffic."""
    traffic.prune()
    suggesting.expire_old()
    for complaint in releasing.reconcile():
        log.error("the proxy does not agree: %s", complaint)
    for stopped in releasing.sweep():
        log.info("stopped %s, which nothing needs any more", stopped)
    releasing.clear_folders()


@shared_task(name="improvements.tasks.review", ignore_result=True)
def review() -> None:
    """Now and then: rollouts whose traffic is counted, reviews that are due, and those that nobody signed off."""
    at = now()
    counting.count_traffic(at)
    for made in reviewing.make_due(at):
        log.info("made: %s", made)
    reviewing.escalate_overdue(at)


@shared_task(name="improvements.tasks.send_digests", ignore_result=True)
def send_digests() -> None:
    """Every few minutes: the weekly digest to whom it is due. Several at once share the readers."""
    sending.run(now())
