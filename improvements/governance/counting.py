"""What rollouts did to users' requests, counted before the proxy's rows of those days are deleted."""

from __future__ import annotations

import datetime as dt

from improvements import traffic
from improvements.models import Rollout, RolloutTraffic

# The proxy's log is read every few moments; whatever ended by now is written after this long.
SETTLED = dt.timedelta(minutes=2)


def count_traffic(at: dt.datetime) -> int:
    """Count the requests of every rollout that ended and was not counted yet. Returns how many. Repeats harmlessly."""
    waiting = Rollout.objects.filter(traffic=None, ended_at__lte=at - SETTLED).select_related("service")
    rows = []
    for rollout in waiting.order_by("pk"):
        assert rollout.ended_at is not None
        seen = traffic.totals(rollout.service, since=rollout.started_at, until=rollout.ended_at)
        rows.append(
            RolloutTraffic(
                rollout=rollout,
                requests=seen.requests,
                failed=seen.failed,
                is_complete=rollout.started_at >= at - traffic.KEPT,
                counted_at=at,
            )
        )
    # Another worker may count the same at this moment, and finds the same.
    RolloutTraffic.objects.bulk_create(rows, ignore_conflicts=True)
    return len(rows)
