"""What happens every interval, in order: collect, score, alert, forget."""

from __future__ import annotations

import logging
import time
from datetime import datetime

from monitoring import alerting, blindspots, collecting, experience, feedback, presence, scoring, storing
from monitoring.collecting import Collected
from monitoring.scraping import MetricSource

log = logging.getLogger(__name__)


def run(at: datetime, *, source: MetricSource | None = None) -> Collected | None:
    """Do the round of `at`; None when another worker has it."""
    began = time.monotonic()
    collected = collecting.collect(at, source=source)
    if collected is None:
        return None
    experience.write_round(at)
    feedback.write_round(at)
    presence.write_round(at)
    blindspots.write_round(at)
    scoring.score_all(at)
    for alert in alerting.evaluate(at):
        log.warning("Alert %s: %s", alert, alert.message)
    storing.forget_old(at)
    log.info(
        "Collected %d samples from %d of %d targets in %.2f s",
        collected.samples,
        collected.targets - len(collected.failed),
        collected.targets,
        time.monotonic() - began,
    )
    return collected
