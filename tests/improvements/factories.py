"""Rows of improvements for tests: one call each, with everything they need."""

from __future__ import annotations

from typing import Any

import factory

from analysis.models import Finding
from improvements.models import Improvement, Release, State
from monitoring.models import Service

MANIFEST: dict[str, Any] = {
    "service": {"name": "shop"},
    "run": {"command": "python app.py {port}", "health": "/up"},
    "test": {"command": "pytest -q --junitxml={report}"},
}


class ServiceFactory(factory.django.DjangoModelFactory[Service]):
    class Meta:
        model = Service

    name = factory.Sequence(lambda n: f"shop-{n}")
    repository = "/nowhere"
    manifest = factory.LazyFunction(lambda: MANIFEST)


class FindingFactory(factory.django.DjangoModelFactory[Finding]):
    class Meta:
        model = Finding

    service = factory.SubFactory(ServiceFactory)
    kind = Finding.Kind.N_PLUS_ONE
    key = factory.Sequence(lambda n: f"n-plus-one:list-{n}")
    title = "N+1 queries on player-list: game.Player.guild"
    endpoint = "player-list"
    location = "game/serializers.py:12"
    confidence = 0.9
    impact = factory.LazyFunction(lambda: {"waiting_seconds_per_hour": 400.0, "traffic_share": 0.4})
    evidence = factory.LazyFunction(lambda: {"found": [{}]})


class ImprovementFactory(factory.django.DjangoModelFactory[Improvement]):
    class Meta:
        model = Improvement

    service = factory.SelfAttribute("finding.service")
    finding = factory.SubFactory(FindingFactory)
    author = "n-plus-one"
    title = "Fix the player list"
    estimated_tier = "medium"


class ReleaseFactory(factory.django.DjangoModelFactory[Release]):
    class Meta:
        model = Release

    service = factory.SubFactory(ServiceFactory)
    commit = factory.Sequence(lambda n: f"{n:040x}")


def in_state(state: State, **fields: Any) -> Improvement:
    """An improvement that stands in `state`, put there past the law: only tests may."""
    improvement = ImprovementFactory(**fields)
    Improvement.objects.filter(pk=improvement.pk).update(state=state)
    improvement.refresh_from_db()
    return improvement
