"""The error budget of a service: what its objective leaves to fail in its period, and how much of that is gone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from django.conf import settings

from approvals.freezing import Hold
from approvals.holding import Finding
from monitoring.models import Service

if TYPE_CHECKING:
    from monitoring.burnrate import Spent
    from monitoring.reading import SeriesArrays

WHOLE = {"endpoint": "*", "method": "*"}
LEAST_REQUESTS = 100  # fewer say nothing about a budget
LEAST_BAD = 10  # as for the alert that the budget is spent fast: a failure at night is no incident
COARSE_SECONDS = 3600  # periods longer than samples are kept are read from rollups


def spent(service: Service, at: datetime) -> Spent | None:
    """What the service spent of its error budget in the period that ends `at`; None when too little is known.

    Requests fail against `availability` of the manifest's `[slo]`, over its `period_days`.
    """
    from monitoring import burnrate, reading  # NumPy, which not every program needs
    from monitoring.following import aligned
    from monitoring.sealing import KEEP_SAMPLES_DAYS

    slo = service.parsed.slo
    step = None if slo.period_days <= KEEP_SAMPLES_DAYS else COARSE_SECONDS
    since = at - timedelta(days=slo.period_days)

    def whole(signal: str) -> SeriesArrays | None:
        found = reading.arrays(service, signal, since=since, until=at, labels=WHOLE, step_seconds=step)
        return next((one for one in found if one.labels == WHOLE), None)

    ratio, rate = whole("error_ratio"), whole("requests_per_second")
    if ratio is None or rate is None:
        return None
    requests = (step or settings.METRICS_COLLECTION_INTERVAL) * aligned(ratio.at, rate.at, rate.value)
    found = burnrate.spent(
        ratio.at, ratio.value, requests,
        now=at.timestamp(), objective=slo.availability, period_seconds=slo.period_days * 86_400.0, least_bad=LEAST_BAD,
    )  # fmt: skip
    return found if found and found.requests >= LEAST_REQUESTS else None


def left(service: Service, at: datetime) -> float | None:
    """The share of the error budget that is left, 0 or less exactly when it is gone; None when too little is known.

    What is known is the same that `holds` goes by: as few failures as leave a budget untouched say nothing here either.
    """
    found = spent(service, at)
    if found is None or (found.share >= 1 and found.back_at is None):
        return None
    return 1.0 - found.share


def holds(scope: str, at: datetime) -> Finding:
    """Whether the error budget of the service `scope` holds rollouts. What is not known is said, and holds nothing."""
    service = Service.objects.active().filter(name=scope).first()
    if service is None:
        return Finding()
    slo = service.parsed.slo
    promised = f"{slo.availability * 100:.6g}% over {slo.period_days} days"
    found = spent(service, at)
    if found is None:
        return Finding(note=f"The error budget of {scope} ({promised}) is not known: too few requests were measured.")
    if found.back_at is None:
        return Finding()
    why = (
        f"The error budget of {scope} is gone: {found.bad:,.0f} of {found.requests:,.0f} requests failed, "
        f"{found.share:.1f} times what {promised} allows. Only reliability fixes and rollbacks roll out. "
        "It is back when enough of these failures are older than that, if nothing more fails."
    )
    return Finding(Hold(why, datetime.fromtimestamp(found.back_at, UTC)))
