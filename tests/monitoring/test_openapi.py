"""The OpenAPI document describes what is really answered: every route is asked, and its answer validated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import jsonschema
import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import get_resolver
from django.utils.timezone import now
from drf_spectacular.validation import validate_schema

from approvals import policy, requests, terms
from approvals.models import ApprovalRequest
from approvals.policy import Tier
from improvements.governance import weekly
from improvements.governance.facts import Window, as_json
from improvements.models import Review
from monitoring.models import Alert, AlertState, HealthScore, Service
from tests.monitoring.factories import ServiceFactory, TargetFactory, samples
from tests.people import FRESH

pytestmark = pytest.mark.django_db
DOCUMENT = "/api/v1/openapi.json"
COMPONENT = {
    "score": 41.26,
    "status": "unhealthy",
    "message": "5 % fail (−51 points).",
    "confidence": 1.0,
    "drivers": [{"what": "5 % fail", "points": 12.5}],
}
VALUES = {"{name}": "realm", "{id}": "1"}
# A row of its own for each write that changes one.
WHICH = {
    "/api/v1/approvals/{id}/sign": "11",
    "/api/v1/approvals/{id}/reject": "12",
    "/api/v1/approvals/{id}/changes": "13",
    "/api/v1/approvals/{id}/revoke": "14",
    "/api/v1/approvals/{id}/comments": "15",
}
PRINT = "f" * 64
# What a GET needs beside its path.
QUERIES: dict[str, list[dict[str, str]]] = {
    "/api/v1/services/{name}/samples": [{"signal": "up"}, {"signal": "nothing"}],
    "/monitoring/alerts": [{}, {"service": "*"}],
    "/api/v1/reviews": [{}, {"kind": "weekly", "standing": "overdue"}, {"standing": "signed"}],
    "/api/v1/scorecard": [{}, {"days": "90"}],
    "/api/v1/approvals": [{}, {"state": "open", "tier": "medium", "awaiting": "me", "service": "realm"}],
    "/api/v1/alerts": [{}, {"service": "realm", "state": "firing"}, {"page_size": "1"}],
}
# What a write is sent, beside its path.
BODIES: dict[str, dict[str, Any]] = {
    "/api/v1/vitals": {"endpoint": "items", "lcp_ms": 1200, "cls": 0.02},
    "/api/v1/feedback": {"rating": 4, "text": "Quick."},
    "/api/v1/reports": {"service": "realm", "commit": "c" * 40, "benchmark": {"ms": [1, 2]}},
    "/api/v1/ci/gate": {"service": "realm", "commit": "c" * 40, "benchmark": {"ms": [1, 2]}},
    "/performance/baseline": {"service": "realm", "reason": "All is well."},
    "/api/v1/approvals/{id}/sign": {"fingerprint": PRINT, "reason": "Sound."},
    "/api/v1/approvals/{id}/reject": {"fingerprint": PRINT, "reason": "Not now."},
    "/api/v1/approvals/{id}/changes": {"fingerprint": PRINT, "reason": "Name it better."},
    "/api/v1/approvals/{id}/revoke": {"reason": "Looked again."},
    "/api/v1/approvals/{id}/comments": {"text": "Looks small."},
}


@pytest.fixture
def world(db: None) -> Service:
    """Two services with everything that an answer may hold: firing alerts, scores, targets that work and fail."""
    own = ServiceFactory(name="runerogue", is_self=True)
    realm = ServiceFactory(name="realm")
    for service in (own, realm):
        TargetFactory(service=service, last_scraped_at=now())
        TargetFactory(service=service, url="http://b.test/", last_error="It answered with status 500.")
        samples(service, "up", [1.0, 0.5], until=now())
        samples(service, "latency_p95_ms", [20.0, 25.0] * 30, until=now(), endpoint="*", method="*")
        HealthScore.objects.create(
            service=service, at=now(), score=41.26, status="unhealthy", confidence=0.9, components={"system": COMPONENT}
        )
        for state in AlertState:
            Alert.objects.create(
                service=service, name=state, severity="critical", labels_key=state, labels={"endpoint": "players"},
                state=state, message="It burns.", fired_at=now(), value=0.5,
            )  # fmt: skip
    Review.objects.create(
        pk=1, kind="weekly", period="2026-W09", title="Weekly", since=now(), until=now(), role="lead", made_at=now(),
        due_on="2026-03-05", escalates_after="2026-03-05",
        facts=as_json(weekly.compose(Window(now() - timedelta(days=7), now(), now()))),
    )  # fmt: skip
    requirement = policy.required(Tier.MEDIUM, all_pass=False, terms=terms.in_force())
    for number in (1, *map(int, WHICH.values())):
        ApprovalRequest.objects.create(
            pk=number, subject_kind="thing", subject_id=number, title=f"Change {number}", scope="realm", tier="medium",
            requirement=requirement.as_json(), fingerprint=PRINT, policy_version=requirement.policy_version,
            facts={"what": "One query"}, created_at=now(), expires_at=now() + timedelta(days=1),
        )  # fmt: skip
    return realm


@pytest.fixture
def document(client: Client) -> dict[str, Any]:
    return client.get(DOCUMENT).json()


def validated(document: Mapping[str, Any], operation: Mapping[str, Any], answer: Any) -> None:
    """The answer has the status, content type and shape that the operation documents."""
    responses = operation["responses"]
    told = responses.get(str(answer.status_code)) or responses["default"]
    if answer.status_code == 204:
        assert not answer.content
        return
    kind = answer.headers["Content-Type"].partition(";")[0]
    assert kind in told["content"], f"{kind} is not documented for {answer.status_code}"
    if "json" in kind:
        schema = {**told["content"][kind]["schema"], "components": document["components"]}
        jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(answer.json())


def test_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    validate_schema(document)
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_each_read_answers_as_documented(client: Client, world: Service, carol: User, document: dict[str, Any]) -> None:
    client.force_login(carol)
    for path, methods in document["paths"].items():
        if "get" not in methods:
            continue
        address = re.sub(r"\{\w+\}", lambda found: VALUES[found[0]], path)
        for query in QUERIES.get(path, [{}]):
            answer = client.get(address, query)
            assert answer.status_code == 200, f"{address} {query}: {answer.content[:300]!r}"
            validated(document, methods["get"], answer)


def test_each_write_answers_as_documented(client: Client, world: Service, bob: User, document: dict[str, Any]) -> None:
    client.force_login(bob)
    revocable = ApprovalRequest.objects.get(pk=WHICH["/api/v1/approvals/{id}/revoke"])
    requests.approve(revocable, person=bob, how=FRESH)
    writes = {path: methods["post"] for path, methods in document["paths"].items() if "post" in methods}
    assert writes.keys() == BODIES.keys(), "every write has an example here"
    for path, operation in writes.items():
        for body in (BODIES[path], {"rating": "wrong", "cls": "wrong", "text": ""}):
            address = path.replace("{id}", WHICH.get(path, "1"))
            answer = client.post(
                address, body, content_type="application/json", headers={"Origin": "http://testserver"}
            )
            assert (answer.status_code < 300) == (body is BODIES[path]), answer.content
            validated(document, operation, answer)


def test_the_validator_finds_a_difference(client: Client, world: Service, document: dict[str, Any]) -> None:
    answer = client.get("/health/score")
    del document["components"]["schemas"]["Score"]["properties"]["message"]
    with pytest.raises(jsonschema.ValidationError):
        validated(document, document["paths"]["/health/score"]["get"], answer)


def test_errors_are_as_documented(client: Client, world: Service, carol: User, document: dict[str, Any]) -> None:
    client.force_login(carol)
    for path, methods in document["paths"].items():
        operation = methods.get("get")
        if not operation:
            continue
        wrong = [("put", path.replace("{name}", "realm").replace("{id}", "1"), {})]
        if any(parameter["name"] == "service" for parameter in operation.get("parameters", [])):
            wrong.append(("get", path, {"service": "nobody"}))
        if "{name}" in path:
            wrong.append(("get", path.replace("{name}", "nobody"), {"signal": "up"}))
        for method, address, query in wrong:
            answer = getattr(client, method)(address, query)
            assert answer.status_code in (404, 405), (method, address)
            validated(document, operation, answer)


def test_every_route_of_machines_is_in_the_document(document: dict[str, Any]) -> None:
    def addresses(patterns: Any, prefix: str = "/") -> Any:
        for pattern in patterns:
            here = prefix + str(pattern.pattern)
            yield from addresses(pattern.url_patterns, here) if hasattr(pattern, "url_patterns") else [here]

    routes = {
        re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", address)
        for address in addresses(get_resolver().url_patterns)
        if address.startswith(("/api/v1/", "/health/", "/monitoring/", "/performance/", "/metrics"))
    }
    assert routes - {DOCUMENT} <= set(document["paths"])


def test_lists_come_in_pages_of_a_bounded_size(client: Client, world: Service, carol: User) -> None:
    client.force_login(carol)
    Alert.objects.bulk_create(
        Alert(service=world, name=f"a{n}", severity="warning", labels_key="{}", state="resolved", message="…")
        for n in range(300)
    )
    seen: list[int] = []
    address = "/api/v1/alerts?page_size=1000"
    while address:
        page = client.get(address).json()
        assert len(page["results"]) <= 200
        seen += [row["id"] for row in page["results"]]
        address = page["next"]
    assert seen == sorted(Alert.objects.values_list("pk", flat=True), reverse=True)


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"signal": "up", "since": "yesterday"},
        {"signal": "up", "since": "2026-01-01T00:00:00Z", "until": "2026-03-01T00:00:00Z"},
        {"signal": "up", "since": "2026-03-01T00:00:00Z", "until": "2026-03-01T00:00:00Z"},
    ],
)
def test_a_wrong_question_names_what_is_wrong(
    client: Client, world: Service, carol: User, query: dict[str, str]
) -> None:
    client.force_login(carol)
    answer = client.get("/api/v1/services/realm/samples", query)
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/problem+json")
    assert answer.json()["errors"][0]["pointer"] in ("/signal", "/since")


def test_secrets_of_services_are_nobodys_business(client: Client, world: Service, carol: User) -> None:
    Service.objects.filter(pk=world.pk).update(environment={"DATABASE_URL": "postgresql://u:hunter2@db/realm"})
    client.force_login(carol)
    for path in ("/api/v1/services", "/api/v1/services/realm", "/health/detailed?service=realm"):
        assert "hunter2" not in client.get(path).content.decode()
