"""Metrics that services send: over HTTP into rounds on a real database, OpenTelemetry's own SDK among the senders."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.utils.timezone import now
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation
from opentelemetry.sdk.resources import Resource
from pytest_django.live_server_helper import LiveServer

from approvals import tokens
from approvals.limits import valkey
from approvals.models import Scope
from monitoring import pushing, reading, rounds, views_otlp
from monitoring.alerting import ensure_rules
from monitoring.models import Alert, HealthScore, PushedProcess, Sample, Service, Target
from monitoring.otlp import exposition, streams
from monitoring.otlp.decoding import JSON, PROTOBUF
from monitoring.scraping import MemorySource
from tests.monitoring.factories import INTERVAL, MANIFEST, T0, ServiceFactory, TargetFactory, repository
from tests.monitoring.factories import exposition as shown
from tests.pure.test_otlp_metrics import CUMULATIVE, DELTA, as_protobuf, export, observed, requests

pytestmark = pytest.mark.django_db
NOTHING = MemorySource()


@pytest.fixture
def realm() -> Service:
    return ServiceFactory(name="realm")


@pytest.fixture(autouse=True)
def _no_uses(settings: Any) -> None:
    for key in valkey().scan_iter("runerogue:uses:otlp:*"):
        valkey().delete(key)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[datetime]]:
    """When exports arrive; the first entry is the time."""
    moment = [T0]
    monkeypatch.setattr(views_otlp, "now", lambda: moment[0])
    return moment


def post(client: Client, body: bytes, content_type: str = PROTOBUF, **more: Any) -> Any:
    return client.post("/v1/metrics", body, content_type=content_type, CONTENT_TYPE=content_type, **more)


class Sender:
    """A process of a service that sends to `client` what it counted, at the times of `clock`."""

    def __init__(self, client: Client, clock: list[datetime], name: str = "one", **resource: Any) -> None:
        self.client, self.clock, self.resource = client, clock, {"service__instance__id": name, **resource}

    def send(self, count: int, *, failed: int = 0, at: datetime, temporality: int = CUMULATIVE, start: int = 1) -> str:
        """Send `count` requests so far; the message of the answer."""
        self.clock[0] = at
        seconds = int(at.timestamp())
        points = [observed([count, 0, 0, 0], at=seconds, start=start, http__response__status_code=200)]
        if failed:
            points.append(observed([failed, 0, 0, 0], at=seconds, start=start, http__response__status_code=500))
        memory = {"name": "process.memory.usage", "unit": "By", "gauge": {"dataPoints": []}}
        memory["gauge"]["dataPoints"] = [{"timeUnixNano": str(seconds * 10**9), "asDouble": 5e7}]  # type: ignore[index]
        answer = post(
            self.client, as_protobuf(export(requests(*points, temporality=temporality), memory, **self.resource))
        )
        assert answer.status_code == 200
        return ExportMetricsServiceResponse.FromString(answer.content).partial_success.error_message


def latest(service: Service, signal: str, **labels: str) -> float | None:
    return reading.latest(service, signal, **labels)


def in_round(service: Service, signal: str, at: datetime) -> list[float]:
    return list(
        Sample.objects.filter(series__service=service, series__signal=signal, at=at).values_list("value", flat=True)
    )


# --- In rounds ---------------------------------------------------------------------------------------------------


def test_a_service_without_an_address_is_measured(client: Client, clock: list[datetime], realm: Service) -> None:
    sender = Sender(client, clock)
    assert sender.send(100, at=T0) == ""
    rounds.run(T0, source=NOTHING)
    sender.send(160, failed=20, at=T0 + INTERVAL)
    done = rounds.run(T0 + INTERVAL, source=NOTHING)
    assert done is not None
    assert (done.targets, done.failed) == (1, {})
    assert latest(realm, "requests_per_second", endpoint="/a", method="GET") == pytest.approx(80 / 60)
    assert latest(realm, "error_ratio", endpoint="*") == pytest.approx(0.25)
    assert latest(realm, "memory_bytes") == 5e7
    assert latest(realm, "up") == 1.0
    score = HealthScore.objects.filter(service=realm).latest("at")
    assert score.score is not None
    (target,) = client.get("/health/detailed?service=realm").json()["targets"]
    assert (target["url"], target["error"]) == ("otlp:", None)


@pytest.mark.parametrize("temporality", [CUMULATIVE, DELTA])
def test_a_retried_export_counts_once(client: Client, clock: list[datetime], realm: Service, temporality: int) -> None:
    sender = Sender(client, clock)
    for number in range(2):
        at = T0 + number * INTERVAL
        start = 1 if temporality == CUMULATIVE else int((at - INTERVAL).timestamp())
        for _ in range(3):
            assert sender.send(60 * (number + 1), at=at, temporality=temporality, start=start) == ""
        rounds.run(at, source=NOTHING)
    expected = 1.0 if temporality == CUMULATIVE else 2.0
    assert latest(realm, "requests_per_second", endpoint="*") == pytest.approx(expected)


def test_two_exports_in_one_interval_and_none_in_the_next(
    client: Client, clock: list[datetime], realm: Service
) -> None:
    sender = Sender(client, clock)
    sender.send(0, at=T0)
    rounds.run(T0, source=NOTHING)
    sender.send(30, at=T0 + INTERVAL / 2)
    sender.send(90, at=T0 + INTERVAL)
    rounds.run(T0 + INTERVAL, source=NOTHING)
    assert in_round(realm, "requests_per_second", T0 + INTERVAL) == [1.5, 1.5]
    rounds.run(T0 + 2 * INTERVAL, source=NOTHING)  # the next is late: what the last one told holds on, and is counted …
    assert in_round(realm, "requests_per_second", T0 + 2 * INTERVAL) == [1.5, 1.5]
    rounds.run(T0 + 4 * INTERVAL, source=NOTHING)  # … but not for long
    assert in_round(realm, "requests_per_second", T0 + 4 * INTERVAL) == []
    sender.send(390, at=T0 + 5 * INTERVAL)
    rounds.run(T0 + 5 * INTERVAL, source=NOTHING)
    assert in_round(realm, "requests_per_second", T0 + 5 * INTERVAL) == [1.25, 1.25]


def test_who_sends_every_five_minutes_may_be_a_little_late(
    client: Client, clock: list[datetime], realm: Service
) -> None:
    sender, later = Sender(client, clock), T0 + timedelta(seconds=302)
    sender.send(100, at=T0)
    rounds.run(T0, source=NOTHING)
    sender.send(402, at=later)
    rounds.run(later, source=NOTHING)
    assert in_round(realm, "requests_per_second", later) == [1.0, 1.0], "of the route and of all"


def test_a_restart_loses_nothing(client: Client, clock: list[datetime], realm: Service) -> None:
    sender = Sender(client, clock)
    sender.send(100, at=T0)
    rounds.run(T0, source=NOTHING)
    began = int(T0.timestamp()) + 5
    sender.send(150, at=T0 + INTERVAL, start=began)
    rounds.run(T0 + INTERVAL, source=NOTHING)
    assert latest(realm, "requests_per_second", endpoint="*") == pytest.approx(150 / 60)


def test_several_processes_are_one_service(client: Client, clock: list[datetime], realm: Service) -> None:
    senders = [Sender(client, clock, name) for name in ("one", "two")]
    for number in range(2):
        for sender in senders:
            sender.send(60 * number, at=T0 + number * INTERVAL)
        rounds.run(T0 + number * INTERVAL, source=NOTHING)
    assert latest(realm, "requests_per_second", endpoint="*") == pytest.approx(2.0)
    assert latest(realm, "memory_bytes") == 1e8
    assert Target.objects.get().processes.count() == 2


def test_silence_is_down_and_an_alert(client: Client, clock: list[datetime], realm: Service) -> None:
    ensure_rules()
    sender = Sender(client, clock)
    for number in range(2):
        sender.send(60 * number, at=T0 + number * INTERVAL)
        rounds.run(T0 + number * INTERVAL, source=NOTHING)
    for number in range(2, 8):
        rounds.run(T0 + number * INTERVAL, source=NOTHING)
    assert [in_round(realm, "up", T0 + n * INTERVAL) for n in (3, 4, 5, 7)] == [[1.0], [1.0], [0.0], [0.0]]
    target = Target.objects.get()
    assert target.last_error == f"It sent nothing since {T0 + INTERVAL:%Y-%m-%d %H:%M:%S} UTC."
    assert Alert.objects.firing().filter(service=realm, name="not-measured").exists()
    sender.send(600, at=T0 + 8 * INTERVAL)
    rounds.run(T0 + 8 * INTERVAL, source=NOTHING)
    target.refresh_from_db()
    assert (in_round(realm, "up", T0 + 8 * INTERVAL), target.last_error) == ([1.0], "")


def test_a_process_that_another_follows_is_forgotten(
    client: Client, clock: list[datetime], realm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "FORGOTTEN_SECONDS", 60.0)
    old, new = Sender(client, clock, "old"), Sender(client, clock, "new")
    old.send(10, at=T0)
    for number in range(1, 6):
        new.send(10 * number, at=T0 + number * INTERVAL)
        rounds.run(T0 + number * INTERVAL, source=NOTHING)
        assert in_round(realm, "up", T0 + number * INTERVAL) == [1.0]
    assert PushedProcess.objects.count() == 1


def test_a_process_that_comes_back_while_a_round_forgets_it_is_kept(
    client: Client, clock: list[datetime], realm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "FORGOTTEN_SECONDS", 60.0)
    old, new = Sender(client, clock, "old"), Sender(client, clock, "new")
    old.send(10, at=T0)
    later = T0 + 10 * INTERVAL
    new.send(10, at=later)
    (read,) = pushing.read(Target.objects.all(), at=later).values()
    old.send(20, at=later)
    pushing.remember([read], at=later)
    assert PushedProcess.objects.count() == 2


def test_what_several_processes_send_as_one_is_not_believed(
    client: Client, clock: list[datetime], realm: Service
) -> None:
    senders = [Sender(client, clock) for _ in range(2)]
    told = ""
    for number in range(4):
        for start, sender in enumerate(senders, start=1):
            told += sender.send(50 * start, at=T0 + number * INTERVAL + timedelta(seconds=start), start=start)
    assert "service.instance.id" in told
    rounds.run(T0 + 4 * INTERVAL, source=NOTHING)
    assert in_round(realm, "up", T0 + 4 * INTERVAL) == [0.0]
    assert "service.instance.id" in Target.objects.get().last_error


def test_a_service_that_is_scraped_is_not_counted_twice(client: Client, clock: list[datetime], realm: Service) -> None:
    sender = Sender(client, clock)
    sender.send(5, at=T0)
    target = TargetFactory(service=realm)
    assert "is scraped" in sender.send(600, at=T0 + timedelta(seconds=1))
    for number in range(2):
        source = MemorySource({target.url: shown(requests=60 * number)})
        rounds.run(T0 + number * INTERVAL, source=source)
    assert in_round(realm, "up", T0 + INTERVAL) == [1.0]
    assert latest(realm, "requests_per_second", endpoint="*") == pytest.approx(1.0)
    assert list(Target.objects.active()) == [target]


def test_releases_that_runerogue_runs_are_told_apart(client: Client, clock: list[datetime], realm: Service) -> None:
    for name, serving in (("aaaaaaaaaaaa", True), ("bbbbbbbbbbbb", False)):
        TargetFactory(service=realm, release=name, url="otlp:", serving=serving)
    live, tried = (Sender(client, clock, v, service__version=v * 20) for v in "ab")
    for number in range(2):
        live.send(60 * number, at=T0 + number * INTERVAL)
        tried.send(600 * number, failed=600 * number, at=T0 + number * INTERVAL)
        rounds.run(T0 + number * INTERVAL, source=NOTHING)
    assert latest(realm, "error_ratio", endpoint="*", release="bbbbbbbbbbbb") == 0.5
    assert latest(realm, "error_ratio", endpoint="*", release="aaaaaaaaaaaa") == 0.0
    assert in_round(realm, "requests_per_second", T0 + INTERVAL).count(1.0) == 3, "whole, release, and its route"
    assert "No release of realm" in Sender(client, clock, "x", service__version="other").send(1, at=T0)


def test_a_round_that_was_overtaken_stores_no_number_twice(
    client: Client, clock: list[datetime], realm: Service
) -> None:
    Sender(client, clock).send(1, at=T0)
    target = Target.objects.get()
    (mine,) = pushing.read([target], at=T0).values()
    (other,) = pushing.read([target], at=T0).values()
    assert pushing.remember([other], at=T0) == set()
    assert pushing.remember([mine], at=T0) == {target.pk}


def test_what_another_version_kept_is_begun_anew(client: Client, clock: list[datetime], realm: Service) -> None:
    sender = Sender(client, clock)
    sender.send(100, at=T0)
    PushedProcess.objects.update(state=b"old", newest=b"old", before=b"old")
    assert sender.send(160, at=T0 + INTERVAL) == ""
    assert rounds.run(T0 + INTERVAL, source=NOTHING)
    assert latest(realm, "up") == 1.0


# --- Bounds ------------------------------------------------------------------------------------------------------


def test_so_many_processes_and_series_and_points(
    client: Client, clock: list[datetime], realm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "MOST_PROCESSES", 2)
    told = [Sender(client, clock, name).send(1, at=T0) for name in "abc"]
    assert told[:2] == ["", ""]
    assert "More than 2 processes of realm" in told[2]
    assert Sender(client, clock, "c").send(1, at=T0 + 20 * INTERVAL) == "", "those that went have made room"
    monkeypatch.setattr(streams, "MOST_NUMBERS", 8)
    assert "series of one process" in Sender(client, clock, "c").send(2, failed=1, at=T0 + 21 * INTERVAL)
    monkeypatch.setattr(exposition, "MOST_POINTS", 1)
    assert "More than 50,000 points" in Sender(client, clock, "c").send(2, at=T0 + 22 * INTERVAL)


def test_who_sends_is_kept_as_a_hash_alone(client: Client, clock: list[datetime], realm: Service) -> None:
    Sender(client, clock, "janes-laptop").send(1, at=T0)
    row = PushedProcess.objects.get()
    assert len(row.process) == 16
    assert b"jane" not in bytes(row.state) + streams.zlib.decompress(bytes(row.state)) + row.process.encode()


def test_strangers_are_refused_in_part(client: Client, clock: list[datetime], realm: Service) -> None:
    content = export(requests(observed([1, 0, 0, 0], at=9)), service__name="stranger")
    told = post(client, json.dumps(content).encode(), JSON).json()["partialSuccess"]
    assert told["rejectedDataPoints"] == "1"
    assert "No watched service is called 'stranger'" in told["errorMessage"]
    assert not Target.objects.exists()


@pytest.mark.parametrize("address", ["/v1/metrics", "/v1/traces"])
def test_one_sender_may_send_so_often(client: Client, settings: Any, address: str) -> None:
    settings.OTLP_EXPORTS_PER_MINUTE = 2
    answers = [client.post(address, b"{}", content_type=JSON) for _ in range(3)]
    # The minute may end in between; then it takes one more.
    answers += [client.post(address, b"{}", content_type=JSON) for _ in range(2)]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {answer.status_code for answer in refused} == {429}
    assert 1 <= int(refused[0].headers["Retry-After"]) <= 60
    assert refused[0].json()["code"] == 8


# --- From outside, with a token ----------------------------------------------------------------------------------

FAR = {"REMOTE_ADDR": "203.0.113.9"}


def sent_with(client: Client, text: str, address: str = "/v1/metrics") -> Any:
    return client.post(address, b"{}", content_type=JSON, headers={"authorization": f"Bearer {text}"}, **FAR)


@pytest.mark.parametrize("address", ["/v1/metrics", "/v1/traces"])
def test_a_token_with_the_scope_report_may_send_from_anywhere(client: Client, bob: User, address: str) -> None:
    def issue(scope: Scope) -> str:
        return tokens.issue(bob, name="x", scopes=[scope], expires_at=now() + timedelta(days=1), actor=None)[1]

    assert sent_with(client, issue(Scope.REPORT), address).status_code == 200
    wrong = sent_with(client, issue(Scope.READ), address)
    assert (wrong.status_code, wrong.json()["code"]) == (403, 7)
    unknown = sent_with(client, "rr_nonsense", address)
    assert (unknown.status_code, unknown.json()["code"], unknown.headers["WWW-Authenticate"][:6]) == (401, 16, "Bearer")
    nobody = client.post(address, b"{}", content_type=JSON, **FAR)
    assert (nobody.status_code, "scope report" in nobody.json()["message"]) == (403, True)


# --- The whole way -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temporality", [AggregationTemporality.CUMULATIVE, AggregationTemporality.DELTA])
@pytest.mark.parametrize("aggregation", ["explicit", "exponential"])
@pytest.mark.django_db(transaction=True)
def test_opentelemetrys_own_sdk_is_understood(
    live_server: LiveServer, temporality: AggregationTemporality, aggregation: str
) -> None:
    realm = ServiceFactory(name="realm")
    preferred = {Histogram: temporality}
    folded = {Histogram: ExponentialBucketHistogramAggregation()} if aggregation == "exponential" else {}
    reader = InMemoryMetricReader(preferred, folded)  # type: ignore[arg-type]
    exporter = OTLPMetricExporter(endpoint=f"{live_server.url}/v1/metrics", timeout=20)
    provider = MeterProvider([reader], Resource.create({"service.name": "realm"}))
    meter = provider.get_meter("test")
    bounds = [0.005, 0.1, 0.25, 0.5, 1.0]
    duration, calls = (
        meter.create_histogram(f"http.{side}.request.duration", "s", explicit_bucket_boundaries_advisory=bounds)
        for side in ("server", "client")
    )
    busy = meter.create_up_down_counter("http.server.active_requests", unit="{request}")
    busy.add(3)
    moment = now()
    for number in range(3):
        for _ in range(30):
            duration.record(0.04, {"http.route": "/a", "http.request.method": "GET", "http.response.status_code": 200})
            duration.record(0.3, {"http.route": "/a", "http.request.method": "GET", "http.response.status_code": 500})
            calls.record(0.2, {"server.address": "billing.internal", "http.request.method": "GET"})
        data = reader.get_metrics_data()
        assert data is not None
        assert exporter.export(data).name == "SUCCESS"
        row = PushedProcess.objects.get()
        state = streams.unpack(bytes(row.state))
        # A minute between two exports, without waiting for it.
        state.at_ns = int((moment.timestamp() + 60 * number) * 1e9)
        PushedProcess.objects.update(state=streams.pack(state))
        rounds.run(moment + number * INTERVAL, source=NOTHING)
    assert latest(realm, "requests_per_second", endpoint="/a", method="GET") == pytest.approx(1.0)
    assert latest(realm, "error_ratio", endpoint="*") == pytest.approx(0.5)
    p95 = latest(realm, "latency_p95_ms", endpoint="*")
    assert p95 is not None
    assert 250 <= p95 <= 500, "its bucket"
    assert latest(realm, "latency_mean_ms", endpoint="*") == pytest.approx(170.0)
    assert latest(realm, "dependency_calls_per_second", dependency="billing.internal") == pytest.approx(0.5)
    assert latest(realm, "requests_in_flight") == 3.0
    provider.shutdown()


def test_both_forms_with_and_without_gzip(client: Client, clock: list[datetime], realm: Service) -> None:
    content = export(requests(observed([1, 0, 0, 0], at=9)))
    for body, form in ((as_protobuf(content), PROTOBUF), (json.dumps(content).encode(), JSON)):
        for packed in (body, gzip.compress(body)):
            headers = {} if packed is body else {"content-encoding": "gzip"}
            answer = post(client, packed, form, headers=headers)
            assert (answer.status_code, answer.headers["Content-Type"]) == (200, form)
            assert answer.content == (b"" if form == PROTOBUF else b"{}")
    refused = post(client, b"\xff\xff", PROTOBUF)
    assert refused.status_code == 400


def test_registering_says_how_to_send(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = repository(tmp_path / "r", MANIFEST + "[metrics]\npush = true\n")
    call_command("register", str(folder))
    told = capsys.readouterr().out
    assert "OTEL_EXPORTER_OTLP_ENDPOINT=http" in told
    assert "OTEL_SERVICE_NAME=realm" in told
    target = Target.objects.get()
    assert (target.is_pushed, target.active) == (True, True)
    rounds.run(T0, source=NOTHING)
    assert in_round(target.service, "up", T0) == [], "nothing came yet, and nothing is missed"
