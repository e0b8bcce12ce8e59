"""What happens every interval, in order: collect, fold, score, alert, tell people, forget.

One part that fails does not keep the others from theirs: a broken profile must not silence an alert.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime

from django.db import DatabaseError, connection

from monitoring import (
    alerting,
    blindspots,
    collecting,
    experience,
    feedback,
    heartbeats,
    notifying,
    presence,
    profiling,
    scoring,
    storing,
)
from monitoring.collecting import Collected
from monitoring.scraping import MetricSource

log = logging.getLogger(__name__)


def _alert(at: datetime) -> None:
    for alert in alerting.evaluate(at):
        log.warning("Alert %s: %s", alert, alert.message)


def _look_after_ourselves(at: datetime) -> None:
    for alert in heartbeats.watch(at):
        log.warning("Alert %s: %s", alert, alert.message)


PARTS: tuple[Callable[[datetime], object], ...] = (
    profiling.fold_all,
    experience.write_round,
    feedback.write_round,
    presence.write_round,
    blindspots.write_round,
    scoring.score_all,
    _alert,
    _look_after_ourselves,
    notifying.decide,
    storing.forget_old,
    alerting.forget_old,
    notifying.forget_old,
)


def run(at: datetime, *, source: MetricSource | None = None) -> Collected | None:
    """Do the round of `at`; None when another worker has it."""
    began = time.monotonic()
    try:
        collected = collecting.collect(at, source=source)
    except DatabaseError as error:
        # All of it or nothing is stored, and nothing that comes after could be either. The next round covers the gap.
        log.error("The round of %s was not stored and is a gap: %s", at, str(error).partition("\n")[0])
        raise
    if collected is None:
        return None
    for part in PARTS:
        try:
            part(at)
        except Exception:
            if connection.in_atomic_block:
                raise  # a caller's transaction: what follows could not be written anyway
            log.exception("A part of the round failed: %s.%s", part.__module__, part.__qualname__)
    log.info(
        "Collected %d samples from %d of %d targets in %.2f s",
        collected.samples,
        collected.targets - len(collected.failed),
        collected.targets,
        time.monotonic() - began,
    )
    return collected
