"""What `/metrics` tells about improvements and rollouts."""

from __future__ import annotations

from collections.abc import Iterator

from django.db.models import Count
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from improvements.models import Improvement, Release, Rollout, State


def rollouts() -> Iterator[Metric]:
    """The share of traffic of each release that has some or takes part in a live rollout, and what is under way.

    At most a handful of releases per service, so the labels stay few however many there have been.
    """
    weight = GaugeMetricFamily(
        "runerogue_rollout_weight_ratio",
        "Wanted share of a service's traffic, 0 to 1.",
        labels=["service", "release", "role"],
    )
    live = GaugeMetricFamily("runerogue_rollouts_live", "Rollouts that are under way.", labels=["service"])
    role_of: dict[int, str] = {}
    for rollout in Rollout.objects.filter(state=Rollout.State.LIVE).select_related("service").order_by("pk"):
        live.add_metric([rollout.service.name], 1)
        role_of |= {rollout.current_id: "current", rollout.candidate_id: "candidate"}
    shown = Release.objects.filter(share__gt=0) | Release.objects.filter(pk__in=role_of)
    for release in shown.filter(service__archived_at=None).select_related("service").order_by("pk"):
        weight.add_metric(
            [release.service.name, release.short, role_of.get(release.pk, "current")], release.share / 100
        )
    yield from (weight, live)

    states = GaugeMetricFamily("runerogue_improvements", "Improvements in each state.", labels=["state"])
    counts = dict(Improvement.objects.order_by().values_list("state").annotate(Count("pk")))
    for state in State:
        states.add_metric([str(state.value)], counts.get(state.value, 0))
    yield states
