"""What happens every interval, in order: collect, score, alert, look after the own programs, tell people, forget."""

from __future__ import annotations

import logging
import time
from datetime import datetime

from monitoring import alerting, collecting, heartbeats, notifying, profiling, scoring, storing
from monitoring.collecting import Collected
from monitoring.scraping import MetricSource

log = logging.getLogger(__name__)


def run(at: datetime, *, source: MetricSource | None = None) -> Collected | None:
    """Do the round of `at`; None when another worker has it."""
    began = time.monotonic()
    collected = collecting.collect(at, source=source)
    if collected is None:
        return None
    profiling.fold_all(at)
    scoring.score_all(at)
    for alert in alerting.evaluate(at) + heartbeats.watch(at):
        log.warning("Alert %s: %s", alert, alert.message)
    notifying.decide(at)
    storing.forget_old(at)
    alerting.forget_old(at)
    log.info(
        "Collected %d samples from %d of %d targets in %.2f s",
        collected.samples,
        collected.targets - len(collected.failed),
        collected.targets,
        time.monotonic() - began,
    )
    return collected
