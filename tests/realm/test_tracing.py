"""Realm's own spans, sent to a running RuneRogue, say where its time goes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import httpx
import pytest
from django.utils.timezone import now
from pytest_django.live_server_helper import LiveServer

from improvements.deployers import haproxy
from improvements.models import Release
from monitoring import manifest, profiling
from monitoring.models import SpanIntake
from tests.monitoring.factories import ServiceFactory
from tests.realm.conftest import SOURCE, Realm
from tests.realm.test_service import serving


@pytest.mark.django_db(transaction=True)
def test_its_n_plus_one_shows_without_reading_its_code(living_realm: Realm, live_server: LiveServer) -> None:
    parsed = manifest.parse((SOURCE / "runerogue.toml").read_text())
    service = ServiceFactory(name="realm-7", manifest=parsed.model_dump(mode="json"))
    traced = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": live_server.url,
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_SERVICE_NAME": "realm-7",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    # When it has ended, it has sent all it had.
    with serving(replace(living_realm, environment=living_realm.environment | traced)) as url:
        for path in (
            "/api/players?page=1",
            "/api/players?page=2",
            "/api/players/1",
            "/api/items/search?q=ember",
            "/up",
        ):
            assert httpx.get(url + path).status_code == 200
    profiling.fold_all(now() + timedelta(seconds=30))
    profiles = profiling.profile(service, now() - timedelta(hours=1), now() + timedelta(hours=1))
    assert {(one.endpoint, one.method): one.requests for one in profiles} == {
        ("player-list", "GET"): 2,
        ("player-detail", "GET"): 1,
        ("item-search", "GET"): 1,
    }
    slow = next(one for one in profiles if one.endpoint == "player-list")
    # Its 62, and Django's look whether the connection still lives.
    assert (slow.queries_per_request, slow.repeats_per_request) == (63.0, 30.0)
    assert 0 < slow.database_share < 1
    assert [one.name for one in slow.dependencies] == ["postgresql"]
    repeated = profiling.repeated_statements(service, now() - timedelta(hours=1), now() + timedelta(hours=1))
    assert {one.endpoint for one in repeated} == {"player-list"}
    assert all(one.statement.most == 30 and 'WHERE "game_' in one.statement.text for one in repeated)
    assert len(repeated) == 2
    assert "ember" not in repr(profiles)
    intake = SpanIntake.objects.get()
    assert (intake.requests, intake.without_request, intake.dropped) == (4, 0, 0)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x"}, "service.version=aaaaaaaaaaaa"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_RESOURCE_ATTRIBUTES": "team=a"},
            "team=a,service.version=aaaaaaaaaaaa",
        ),
    ],
)
def test_a_traced_release_names_its_commit(environment: dict[str, str], expected: object) -> None:
    told = haproxy._telling_its_release(environment, Release(commit="a" * 40))
    assert told == ({"OTEL_RESOURCE_ATTRIBUTES": expected} if expected else {})
