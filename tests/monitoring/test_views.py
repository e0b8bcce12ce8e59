"""The addresses that machines ask, over Django's own client."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import psycopg
import pytest
import redis
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now
from prometheus_client.parser import text_string_to_metric_families
from pytest_django.fixtures import Settings

from monitoring import reporting
from monitoring.models import Alert, AlertState, HealthScore, Service
from tests.monitoring.factories import ServiceFactory, TargetFactory

pytestmark = pytest.mark.django_db

WATCHED = ["/health/detailed", "/health/score", "/health/trends", "/monitoring/alerts", "/metrics"]
OPEN = ["/health/live", "/health/ready"]
COMPONENT = {"score": 91.26, "status": "healthy", "message": "All well.", "confidence": 1.0, "drivers": []}


@pytest.fixture
def own() -> Service:
    return ServiceFactory(name="runerogue", is_self=True)


@pytest.fixture
def scored(own: Service) -> Service:
    HealthScore.objects.create(
        service=own,
        at=now(),
        score=91.26,
        status="healthy",
        trend="stable",
        confidence=0.9,
        components={"system": COMPONENT},
    )
    return own


def firing(service: Service, severity: str = "critical", state: str = AlertState.FIRING) -> Alert:
    return Alert.objects.create(
        service=service,
        name=severity,
        severity=severity,
        labels_key="{}",
        state=state,
        message="It burns.",
        fired_at=now(),
    )


# --- Who may look ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WATCHED)
@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("203.0.113.9", {}, 403),
        ("203.0.113.9", {"X-Forwarded-For": "127.0.0.1"}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "203.0.113.9"}, 403),
        ("127.0.0.1", {"Forwarded": "for=127.0.0.1"}, 403),
        ("", {}, 403),
        ("garbage", {}, 403),
    ],
)
def test_only_near_networks_may_watch(
    client: Client, own: Service, path: str, address: str, headers: dict[str, str], status: int
) -> None:
    answer = client.get(path, REMOTE_ADDR=address, headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "MONITORING_ALLOWED_NETWORKS" in answer.json()["detail"]


@pytest.mark.parametrize("path", WATCHED)
def test_signed_in_people_may_watch_from_anywhere(client: Client, own: Service, mallory: User, path: str) -> None:
    client.force_login(mallory)
    assert client.get(path, REMOTE_ADDR="203.0.113.9").status_code == 200


def test_the_networks_are_settings(client: Client, own: Service, settings: Settings) -> None:
    settings.MONITORING_ALLOWED_NETWORKS = (ip_network("203.0.113.0/24"),)
    assert client.get("/health/score", REMOTE_ADDR="203.0.113.9").status_code == 200
    assert client.get("/health/score", REMOTE_ADDR="127.0.0.1").status_code == 403


@pytest.mark.parametrize("path", [*WATCHED, *OPEN])
def test_nothing_is_written_or_cached_here(client: Client, own: Service, path: str) -> None:
    refused = Client(enforce_csrf_checks=True).post(path)
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD")
    assert refused.json()["status"] == 405
    assert "no-store" in client.get(path).headers["Cache-Control"]
    assert client.head(path).status_code == 200


# --- Live and ready ----------------------------------------------------------------------------------------------


def test_live_asks_no_database(client: Client) -> None:
    with CaptureQueriesContext(connection) as queries:
        assert client.get("/health/live", REMOTE_ADDR="203.0.113.9").json() == {"status": "live"}
    assert len(queries) == 0


def test_ready_asks_the_real_engines(client: Client) -> None:
    answer = client.get("/health/ready", REMOTE_ADDR="203.0.113.9")
    assert (answer.status_code, set(answer.json()["checks"])) == (200, {"database", "queue"})


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ("database", psycopg.OperationalError("password=secret")),
        ("queue", redis.ConnectionError("secret")),
        ("queue", TimeoutError("secret")),
    ],
)
def test_not_ready_says_what_and_leaks_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch, broken: str, error: Exception
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(reporting.CHECKS, broken, fail)
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert set(answer.json()["reasons"]) == {broken}
    assert "secret" not in answer.content.decode()


def test_a_queue_that_is_not_there_is_found_quickly(client: Client, settings: Settings) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    assert client.get("/health/ready").status_code == 503


# --- Health ------------------------------------------------------------------------------------------------------


def test_score_has_the_promised_shape(client: Client, scored: Service) -> None:
    firing(scored)
    body = client.get("/health/score").json()
    assert (body["overall_score"], body["status"], body["trend"]) == (91.3, "healthy", "stable")
    assert body["components"]["system"] | {"score": 91.3} == body["components"]["system"]
    assert [alert["message"] for alert in body["alerts"]] == ["It burns."]
    assert body["last_updated"] == HealthScore.objects.get().at.isoformat()


def test_before_the_first_round_all_is_unknown(client: Client, own: Service) -> None:
    body = client.get("/health/score").json()
    assert (body["overall_score"], body["status"], body["components"]) == (None, "unknown", {})


def test_an_old_score_is_not_todays(client: Client, scored: Service) -> None:
    HealthScore.objects.update(at=now() - timedelta(hours=1))
    body = client.get("/health/score").json()
    assert (body["overall_score"], body["status"]) == (None, "unknown")
    assert "Nothing was collected since" in body["message"]


@pytest.mark.parametrize("path", [path for path in WATCHED if path != "/metrics"])
def test_an_unknown_service_is_a_problem_that_names_the_known(client: Client, own: Service, path: str) -> None:
    ServiceFactory(name="realm")
    ServiceFactory(name="gone", archived_at=now())
    assert client.get(path, {"service": "realm"}).status_code == 200
    answer = client.get(path, {"service": "raelm"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")
    assert answer.json()["known"] == ["realm", "runerogue"]


def test_without_any_service_it_says_so(client: Client) -> None:
    assert "not registered" in client.get("/health/score").json()["detail"]


def test_detailed_shows_checks_and_targets(client: Client, scored: Service) -> None:
    TargetFactory(service=scored, url="http://a.test/metrics", last_error="It answered with status 500.")
    body = client.get("/health/detailed").json()
    assert body["overall_score"] == 91.3
    assert body["checks"]["database"]["ok"] is True
    assert body["targets"][0]["error"] == "It answered with status 500."


def test_trends_thin_out_and_keep_the_newest(client: Client, own: Service) -> None:
    moment = now()
    HealthScore.objects.bulk_create(
        HealthScore(service=own, at=moment - timedelta(minutes=n), score=50 + n / 100, status="degraded")
        for n in range(1300)
    )
    body = client.get("/health/trends", {"hours": "24"}).json()
    assert 400 < len(body["points"]) <= 500
    assert body["points"][-1]["at"] == moment.isoformat()
    assert body["trend"] == "degrading"
    assert body["minimum"] == 50.0
    assert len(client.get("/health/trends", {"hours": "1"}).json()["points"]) <= 61


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "inf", "many", "999999"])
def test_wrong_hours_are_a_problem(client: Client, own: Service, hours: str) -> None:
    answer = client.get("/health/trends", {"hours": hours})
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/problem+json")


def test_alerts_are_counted(client: Client, own: Service) -> None:
    other = ServiceFactory(name="realm")
    firing(own, "warning")
    firing(own, "critical")
    firing(own, "other", state=AlertState.PENDING)
    firing(other, "critical")

    def counts(**query: str) -> tuple[int, int, int]:
        body = client.get("/monitoring/alerts", query).json()
        assert len(body["alerts"]) == body["total_count"]
        return body["total_count"], body["critical_count"], body["warning_count"]

    assert counts() == (2, 1, 1)
    assert counts(service="realm") == (1, 1, 0)
    assert counts(service="*") == (3, 2, 1)


# --- Metrics -----------------------------------------------------------------------------------------------------


def exposed(client: Client) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    found: dict[str, dict[Any, float]] = {}
    for family in text_string_to_metric_families(answer.content.decode()):
        for sample in family.samples:
            key = tuple(sorted(sample.labels.items()))
            assert key not in found.get(sample.name, {}), "no series twice"
            found.setdefault(sample.name, {})[key] = sample.value
    return found


def test_metrics_carry_the_state(client: Client, scored: Service) -> None:
    firing(scored)
    TargetFactory(service=scored, last_error="no", last_scraped_at=now())
    found = exposed(client)
    service = ("service", "runerogue")
    assert found["runerogue_health_score"] == {(service,): 91.26}
    assert found["runerogue_alerts_firing"] == {
        (service, ("severity", "critical")): 1.0,
        (service, ("severity", "warning")): 0.0,
    }
    assert found["runerogue_targets_failing"] == {(service,): 1.0}
    assert found["runerogue_database_up"] == {(): 1.0}
    assert found["runerogue_last_collection_timestamp_seconds"][()] == pytest.approx(now().timestamp(), abs=60)


def test_metrics_answer_without_a_database(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(timeout_seconds: int) -> None:
        raise psycopg.OperationalError("gone")

    monkeypatch.setattr("monitoring.exporting.check_database", fail)
    found = exposed(client)
    assert found["runerogue_database_up"] == {(): 0.0}
    assert "process_cpu_seconds_total" in found


def test_invented_methods_add_no_series(client: Client, settings: Settings, own: Service) -> None:
    settings.MIDDLEWARE = [
        entry.replace(
            "django_prometheus.middleware.PrometheusAfterMiddleware",
            "monitoring.instrumentation.BoundedPrometheusMiddleware",
        )
        for entry in settings.MIDDLEWARE
    ]
    for number in range(20):
        client.generic(f"HACK{number}", "/health/live")
    methods = {
        dict(labels)["method"]
        for name, series in exposed(client).items()
        for labels in series
        if "method" in dict(labels) and name.startswith("django_http")
    }
    assert "<invalid method>" in methods
    assert not [method for method in methods if method.startswith("HACK")]
