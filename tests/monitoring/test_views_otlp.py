"""OTLP over HTTP: the protocol with Django's client, and the whole way with OpenTelemetry's own exporter."""

from __future__ import annotations

import gzip
import json
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanKind
from pytest_django.live_server_helper import LiveServer

from approvals import bodies
from monitoring import profiling
from monitoring.models import Service
from monitoring.otlp import decoding
from monitoring.otlp.decoding import JSON, PROTOBUF
from tests.monitoring.factories import ServiceFactory, TargetFactory
from tests.pure.test_otlp_decoding import as_protobuf, export, span

pytestmark = pytest.mark.django_db
SPANS = export(span(parent="", http__route="/a"), service="realm")


@pytest.fixture
def realm() -> Service:
    return ServiceFactory(name="realm")


@pytest.fixture(autouse=True)
def _empty_valkey(settings: Any) -> None:
    client = profiling._valkey(settings.REDIS_URL)
    for key in client.scan_iter("runerogue:otlp:*"):
        client.delete(key)


def post(client: Client, body: bytes, content_type: str = PROTOBUF, **headers: str) -> Any:
    named = {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    # An empty body loses its content type and length in Django's client.
    return client.post("/v1/traces", body, content_type=content_type, headers=named, CONTENT_TYPE=content_type)


def folded() -> int:
    return profiling.fold_all(now() + timedelta(seconds=30))


# --- What is taken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("content_type", [PROTOBUF, JSON, f"{JSON}; charset=utf-8"])
def test_takes_both_forms_with_and_without_gzip(
    client: Client, realm: Service, content_type: str, packed: bool
) -> None:
    body = as_protobuf(SPANS) if content_type == PROTOBUF else json.dumps(SPANS).encode()
    answer = (
        post(client, gzip.compress(body), content_type, Content_Encoding="gzip")
        if packed
        else post(client, body, content_type)
    )
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, content_type.partition(";")[0])
    assert answer.content == (b"" if content_type == PROTOBUF else b"{}")
    assert folded() == 1


def test_an_empty_export_is_fine(client: Client, realm: Service) -> None:
    assert post(client, b"").status_code == 200
    assert post(client, b"{}", JSON).json() == {}


def test_spans_of_nobody_are_refused_in_part(client: Client, realm: Service) -> None:
    both = {"resourceSpans": [*SPANS["resourceSpans"], *export(span(), span(), service="stranger")["resourceSpans"]]}
    answer = post(client, as_protobuf(both))
    told = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert (answer.status_code, told.rejected_spans) == (200, 2)
    assert "No watched service is called 'stranger'" in told.error_message
    assert "runerogue.toml" in told.error_message
    in_json = post(client, json.dumps(export(span(), service="")).encode(), JSON).json()["partialSuccess"]
    assert in_json["rejectedSpans"] == "1"
    assert "empty service.name" in in_json["errorMessage"]
    assert folded() == 1


def test_a_release_that_is_tried_in_private_is_not_counted(client: Client, realm: Service) -> None:
    private = TargetFactory(service=realm, release="1.2", serving=False)
    assert post(client, as_protobuf(SPANS)).status_code == 200  # its service.version is 1.2
    assert folded() == 0
    private.serving = True
    private.save()
    post(client, as_protobuf(SPANS))
    assert folded() == 1


def test_an_export_costs_few_queries(client: Client, realm: Service) -> None:
    with CaptureQueriesContext(connection) as queries:
        post(client, as_protobuf(export(*[span()] * 50)))
    assert len(queries) <= 2


# --- What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
def test_errors_are_statuses_in_the_form_of_the_request(client: Client, realm: Service, content_type: str) -> None:
    answer = post(client, b"\xff\xff\xff", content_type)
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, content_type)
    if content_type == PROTOBUF:
        told = Status.FromString(answer.content)
        assert (told.code, told.message[:12]) == (3, "The body is ")
    else:
        assert (answer.json()["code"], answer.json()["message"][:12]) == (3, "The body is ")
    assert "Retry-After" not in answer.headers


REFUSED = {
    "a text": ({"content_type": "text/plain"}, b"", 415),
    "a form": ({"content_type": "application/x-www-form-urlencoded"}, b"a=b", 415),
    "another encoding": ({"Content_Encoding": "br"}, b"", 415),
    "no gzip": ({"Content_Encoding": "gzip"}, b"not gzip", 400),
    "a gzip bomb": ({"Content_Encoding": "gzip"}, gzip.compress(bytes(decoding.LARGEST_BYTES + 1)), 413),
    "too much": ({}, bytes(decoding.LARGEST_COMPRESSED_BYTES + 1), 413),
    "no length": ({"Content_Length": ""}, b"x", 411),
    "nothing wrong": ({"Content_Encoding": "identity"}, b"", 200),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_otlp_is_refused(client: Client, realm: Service, case: str) -> None:
    headers, body, status = REFUSED[case]
    assert post(client, body, **headers).status_code == status


def test_long_messages_are_still_statuses(client: Client, realm: Service) -> None:
    from monitoring.views_otlp import _status

    for length in (0, 1, 127, 128, 999, 5000):
        told = Status.FromString(_status(14, "x" * length, PROTOBUF))
        assert (told.code, told.message) == (14, "x" * min(length, 1000))


def test_only_near_networks_may_send(client: Client, realm: Service, settings: Any) -> None:
    body = as_protobuf(SPANS)
    far = client.post("/v1/traces", body, content_type=PROTOBUF, REMOTE_ADDR="203.0.113.9")
    assert (far.status_code, Status.FromString(far.content).code) == (403, 7)
    settings.MONITORING_ALLOWED_NETWORKS = (ip_network("203.0.113.0/24"),)
    assert client.post("/v1/traces", body, content_type=PROTOBUF, REMOTE_ADDR="203.0.113.9").status_code == 200
    passed_on = {"X-Forwarded-For": "203.0.113.9"}
    refused = client.post("/v1/traces", body, content_type=PROTOBUF, REMOTE_ADDR="203.0.113.9", headers=passed_on)
    assert refused.status_code == 403


def test_needs_no_form_token_and_takes_post_alone(realm: Service) -> None:
    strict = Client(enforce_csrf_checks=True)
    assert post(strict, as_protobuf(SPANS)).status_code == 200
    assert (strict.get("/v1/traces").status_code, strict.get("/v1/traces").headers["Allow"]) == (405, "POST")


def test_when_it_is_full_the_sender_comes_again(
    client: Client, realm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "LARGEST_WAITING_BYTES", 10)
    answer = post(client, as_protobuf(SPANS))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert Status.FromString(answer.content).code == 14
    monkeypatch.undo()
    assert post(client, as_protobuf(SPANS)).status_code == 200  # the refused one is not known as sent
    assert folded() == 1


def test_when_the_queue_is_away_the_sender_comes_again(client: Client, realm: Service, settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    assert post(client, as_protobuf(SPANS)).status_code == 503


def test_a_retried_export_counts_once(client: Client, realm: Service) -> None:
    for _ in range(3):
        assert post(client, as_protobuf(SPANS)).status_code == 200
    assert folded() == 1


# --- The whole way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [Compression.Gzip, Compression.NoCompression])
@pytest.mark.django_db(transaction=True)
def test_opentelemetrys_own_exporter_is_understood(live_server: LiveServer, compression: Compression) -> None:
    realm = ServiceFactory(name="realm")
    exporter = OTLPSpanExporter(endpoint=f"{live_server.url}/v1/traces", compression=compression, timeout=20)
    provider = TracerProvider(resource=Resource.create({"service.name": "realm"}))
    results = []
    send = exporter.export
    exporter.export = lambda spans: results.append(send(spans)) or results[-1]  # type: ignore[method-assign,assignment]
    # One export for every span, as it ends: the children before their request.
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    secret = "alice@example.org"
    with tracer.start_as_current_span("GET /players/{id}", kind=SpanKind.SERVER) as request:
        request.set_attributes(
            {"http.request.method": "GET", "http.route": "/players/{id}", "url.path": f"/players/{secret}"}
        )
        for number in range(12):
            with tracer.start_as_current_span("SELECT", kind=SpanKind.CLIENT) as query:
                query.set_attributes(
                    {
                        "db.system.name": "postgresql",
                        "db.query.text": f"SELECT * FROM guild WHERE id = {number} -- {secret}",
                    }
                )
        with tracer.start_as_current_span("POST", kind=SpanKind.CLIENT) as call:
            call.set_attributes(
                {"http.request.method": "POST", "server.address": "billing.internal", "url.full": secret}
            )
            call.record_exception(ValueError(secret))
    provider.shutdown()
    assert results == [SpanExportResult.SUCCESS] * 14
    assert folded() == 14
    (found,) = profiling.profile(realm, now() - timedelta(hours=1), now() + timedelta(hours=1))
    assert (found.endpoint, found.method, found.queries_per_request) == ("/players/{id}", "GET", 12.0)
    assert [(one.text, one.most) for one in found.statements] == [("SELECT * FROM guild WHERE id = ?", 12)]
    assert {one.name for one in found.dependencies} == {"postgresql", "billing.internal"}
    assert "alice" not in repr(found)


def test_what_json_can_say_and_a_database_cannot_keep(client: Client, realm: Service) -> None:
    rubbish = "\ud800\x00 x" * 100
    query = span(3, rubbish, db__system="postgresql", db__statement=f"SELECT a{rubbish} FROM t", code__filepath=rubbish)
    entry = span(2, rubbish, parent="", http__route=rubbish) | {"spanId": "aaa19b7ec3c1b173"}
    queue = span(5, rubbish, parent="", messaging__system="k" * 400, messaging__destination="d" * 400)
    queue |= {"spanId": "bbb19b7ec3c1b173"}
    assert post(client, json.dumps(export(query, entry, queue)).encode(), JSON).json() == {}
    assert folded() == 3
    assert len(profiling.profile(realm, now() - timedelta(hours=1), now() + timedelta(hours=1))) == 2


def test_a_hostile_export_is_answered(client: Client, realm: Service) -> None:
    """Every field filled with rubbish of the right type: an answer, and never a stack trace."""
    message = ExportTraceServiceRequest()
    resource = message.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "realm"
    scope = resource.scope_spans.add()
    for kind in range(-3, 9):
        one = scope.spans.add(
            trace_id=b"x" * 16, span_id=bytes([1, *([kind % 256] * 7)]), name="\x00\ud7ff" * 300, kind=kind
        )
        one.start_time_unix_nano, one.end_time_unix_nano = 1, 2
        for name in decoding.WANTED:
            one.attributes.add(key=name).value.string_value = "\x00'\"{}" * 100
    assert post(client, message.SerializeToString()).status_code == 200
    assert folded() > 0


class Trickle:
    """A body that its server gave up."""

    def read(self, size: int = -1) -> bytes:
        raise bodies.TooSlow(bodies.LATE)

    readline = read


@pytest.mark.parametrize("address", ["/v1/traces", "/v1/metrics", "/api/v1/feedback", "/api/v1/ci/gate"])
def test_a_body_that_trickles_is_given_up(client: Client, erin: User, address: str) -> None:
    client.force_login(erin)
    slow = {"wsgi.input": Trickle()}
    answer = client.post(address, b"{}", content_type=JSON, headers={"origin": "http://testserver"}, **slow)
    assert answer.status_code == 408
    told = answer.json()
    assert bodies.LATE in (told.get("message"), told.get("detail"))
