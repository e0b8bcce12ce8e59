"""Periodic work, done once however often it is asked for."""

from __future__ import annotations

import math
from datetime import datetime

from django.db.models import Max

from monitoring.models import Round


def claim(job: str, *, at: datetime, interval_seconds: float) -> bool:
    """Take the piece of periodic work that is due at `at`; False when somebody has it.

    Periods are half an interval long and a round starts at the earliest half an interval after the last one: with whole
    periods, a beat that jitters around their edge would lose every second round.
    """
    period = math.floor(at.timestamp() / (interval_seconds / 2))
    rounds = Round.objects.filter(job=job)
    # Rows of the far past are of no use; rows of the future are from a clock that was set back and would stop all work.
    rounds.exclude(period__range=(period - 20, period + 1)).delete()
    last = rounds.aggregate(last=Max("started_at"))["last"]
    if last is not None and abs((at - last).total_seconds()) < interval_seconds / 2:
        return False
    _, claimed = Round.objects.get_or_create(job=job, period=period, defaults={"started_at": at})
    return claimed
