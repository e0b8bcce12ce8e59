"""The addresses that machines ask, over Django's own client."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Any

import numpy as np
import psycopg
import pytest
import redis
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now
from prometheus_client.parser import text_string_to_metric_families
from pytest_django.fixtures import Settings

from approvals.models import AuditEntry
from monitoring import reporting
from monitoring.models import Alert, AlertState, Baseline, HealthScore, Service
from tests.monitoring.factories import ServiceFactory, TargetFactory, samples

pytestmark = pytest.mark.django_db

READ_ONLY = ["/health/detailed", "/health/score", "/health/trends", "/monitoring/alerts", "/metrics"]
WATCHED = [*READ_ONLY, "/performance/baseline"]
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


@pytest.mark.parametrize("path", [*READ_ONLY, *OPEN])
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
    assert (body["overall_score"], body["status"], body["trend"]) == (91.2, "healthy", "stable")
    assert body["components"]["system"] | {"score": 91.2} == body["components"]["system"]
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
    assert client.get(path, {"service": "gone"}).status_code == 404
    assert client.get(path, {"service": "a\0"}).status_code == 404


def test_without_any_service_it_says_so(client: Client) -> None:
    assert "not registered" in client.get("/health/score").json()["detail"]


def test_detailed_shows_checks_and_targets(client: Client, scored: Service) -> None:
    TargetFactory(service=scored, url="http://a.test/metrics", last_error="It answered with status 500.")
    body = client.get("/health/detailed").json()
    assert body["overall_score"] == 91.2
    assert body["checks"]["database"]["ok"] is True
    assert body["objectives"] == {
        "availability": 0.999,
        "latency_ms": 500.0,
        "latency_ratio": 0.95,
        "period_days": 28,
    }
    assert body["baseline"] is None
    assert body["targets"][0]["error"] == "It answered with status 500."


def history(service: Service, scores: Iterable[float | None], *, minutes: float = 1.0) -> datetime:
    """These scores, the last one now."""
    moment = now()
    scores = list(scores)
    HealthScore.objects.bulk_create(
        HealthScore(service=service, at=moment - timedelta(minutes=minutes * n), score=value, status="degraded")
        for n, value in enumerate(reversed(scores))
    )
    return moment


def test_trends_thin_out_and_keep_the_newest_and_the_worst(client: Client, own: Service) -> None:
    scores = [90.0 - n / 100 for n in range(1300)]
    scores[700] = 3.0
    moment = history(own, scores)
    body = client.get("/health/trends", {"hours": "24"}).json()
    assert 200 < len(body["points"]) <= 301
    assert body["points"][-1]["at"] == moment.isoformat()
    assert body["trend"] == "degrading"
    assert body["slope_per_hour"] == pytest.approx(-0.6, rel=0.05)
    assert body["low"] <= body["slope_per_hour"] <= body["high"] < 0
    assert body["minimum"] == min(point["minimum"] for point in body["points"]) == 3.0
    assert body["maximum"] == 90.0
    assert body["mean"] == pytest.approx(float(np.mean(scores)), abs=0.1)
    assert len(client.get("/health/trends", {"hours": "1"}).json()["points"]) <= 61


def test_trends_of_all_ranges_come_at_once(client: Client, own: Service) -> None:
    # Three weeks of falling, and a day of rising in the end.
    falling = np.linspace(95, 60, 21 * 24 * 4)
    history(own, [*falling, *np.linspace(60, 80, 24 * 4)], minutes=15)
    body = client.get("/health/trends", {"hours": "2"}).json()
    assert {name: found["trend"] for name, found in body["trends"].items()} == {
        "1h": "unknown",
        "24h": "improving",
        "7d": "degrading",
        "28d": "degrading",
    }
    assert body["trends"]["24h"]["slope_per_hour"] == pytest.approx(20 / 24, rel=0.1)
    assert body["trends"]["1h"]["low"] is None


def test_a_gap_is_a_gap_and_an_unknown_score_has_a_point(client: Client, own: Service) -> None:
    # Ten minutes apart: two minutes of a day may be one point.
    moment = history(own, [90.0, None], minutes=10)
    HealthScore.objects.create(service=own, at=moment - timedelta(hours=10), score=50.0, status="degraded")
    body = client.get("/health/trends").json()
    assert [(point["score"], point["status"]) for point in body["points"]] == [
        (50.0, "degraded"),
        (90.0, "healthy"),
        (None, "unknown"),
    ]


def test_the_score_costs_few_queries_however_long_the_history(client: Client, scored: Service) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as found:
            client.get("/health/score")
        return len(found)

    before = queries()
    history(scored, [90.0] * 500, minutes=0.5)
    assert queries() == before == 1


# --- Baseline ----------------------------------------------------------------------------------------------------


def measured(service: Service, *, median: float, count: int, until: datetime) -> None:
    """`count` latencies around `median`, the last one just before `until`."""
    dice = np.random.default_rng(1)
    for labels in ({"endpoint": "*", "method": "*"}, {"endpoint": "players", "method": "GET"}):
        samples(service, "latency_p95_ms", dice.lognormal(np.log(median), 0.1, count), until=until, **labels)


def post(client: Client, body: object = None, **headers: str) -> HttpResponse:
    body = {"reason": "After the move."} if body is None else body
    return client.post("/performance/baseline", body, content_type="application/json", headers=headers)


def test_without_a_baseline_it_says_so(client: Client, own: Service) -> None:
    body = client.get("/performance/baseline").json()
    assert (body["version"], body["signals"]) == (None, [])
    assert "no baseline yet" in body["message"]


def test_a_baseline_is_set_with_a_reason_and_told_with_what_is_now(client: Client, own: Service, bob: User) -> None:
    measured(own, median=50, count=40, until=now() - timedelta(hours=1))
    client.force_login(bob)
    answer = post(client)
    assert (answer.status_code, answer.json()["version"]) == (201, 1)
    entry = AuditEntry.objects.get(action="baseline.set")
    assert (entry.actor, entry.because) == ("bob", "After the move.")

    measured(own, median=150, count=40, until=now())
    body = client.get("/performance/baseline").json()
    assert (body["version"], body["made_by"], body["reason"]) == (1, "bob", "After the move.")
    (line,) = body["signals"]
    assert (line["signal"], line["labels"]["endpoint"]) == ("latency_p95_ms", "*")
    assert line["quantiles"]["p50"] == pytest.approx(50, rel=0.05)
    assert line["expected_now"]["by"] == "overall"
    assert (line["comparison"]["verdict"], line["comparison"]["direction"]) == ("worse", "higher")
    assert line["comparison"]["shift"] == pytest.approx(100, rel=0.1)
    assert "worse: latency p95 ms" in body["message"]
    assert len(client.get("/performance/baseline", {"routes": "all"}).json()["signals"]) == 2

    assert post(client, {"reason": "Again.", "hours": 1}).json()["version"] == 2
    body = client.get("/performance/baseline").json()
    assert [one["version"] for one in body["versions"]] == [2, 1]
    assert body["signals"][0]["comparison"]["verdict"] == "same"
    assert body["message"] == "The last 1 h are as in the baseline."


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ("[]", 400, "Send a JSON object"),
        ("{", 400, "Send a JSON object"),
        ({}, 400, "`reason` says why"),
        ({"reason": "  "}, 400, "`reason` says why"),
        ({"reason": "x" * 501}, 400, "`reason` says why"),
        ({"reason": "\0"}, 400, "`reason` says why"),
        ({"reason": 3}, 400, "`reason` says why"),
        ({"reason": "a", "hours": 0}, 400, "is not a number above 0"),
        ({"reason": "a", "hours": True}, 400, "is not a number above 0"),
        ({"reason": "a", "hours": 1e400}, 400, "is not a number above 0"),
        ({"reason": "a", "hours": 10**400}, 400, "is not a number above 0"),
        ({"reason": "a", "hours": 673}, 400, "up to 672"),
        ({"reason": "a", "hors": 1}, 400, "'hors' is not known"),
        ({"reason": "a", "service": "raelm"}, 404, "No service named"),
        ({"reason": "a", "service": ["realm"]}, 400, "name of a service"),
        ({"reason": "a"}, 409, "Wait for more rounds"),
    ],
)
def test_a_wrong_baseline_is_a_problem(
    client: Client, own: Service, bob: User, body: object, status: int, says: str
) -> None:
    client.force_login(bob)
    answer = post(client, body)
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    assert says in answer.json()["detail"]
    assert not Baseline.objects.exists()


def test_who_may_not_sets_no_baseline(client: Client, own: Service, alice: User, erin: User) -> None:
    measured(own, median=50, count=40, until=now())
    strangers = Client()
    assert "Sign in first" in post(strangers).json()["detail"]
    client.force_login(alice)
    refused = post(client)
    assert (refused.status_code, refused.headers["Content-Type"]) == (403, "application/problem+json")
    assert "monitoring.add_baseline" in refused.json()["detail"]
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(erin)
    assert "X-CSRFToken" in post(strict).json()["detail"]
    assert not Baseline.objects.exists()
    strict.cookies["csrftoken"] = "a" * 32
    assert post(strict, **{"X-CSRFToken": "a" * 32}).status_code == 201


def test_a_baseline_is_not_deleted_here(client: Client, own: Service) -> None:
    refused = client.delete("/performance/baseline")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "GET, HEAD, POST")


@pytest.mark.parametrize("hours", ["0", "25", "x"])
def test_wrong_hours_of_now_are_a_problem(client: Client, own: Service, hours: str) -> None:
    assert client.get("/performance/baseline", {"hours": hours}).status_code == 400


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
