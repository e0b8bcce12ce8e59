"""Spans per second on one core: from the bytes that an exporter sends to what waits, and from there to profiles; and
points of metrics per second, from the bytes to what is kept of their process.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from monitoring import dialects
from monitoring.otlp import decoding, exposition, folding, streams
from monitoring.otlp.decoding import JSON, PROTOBUF
from tests.bench.rows import Row

REQUESTS = 1_000
SPANS_PER_REQUEST = 20
SPANS = REQUESTS * SPANS_PER_REQUEST
ROUNDS = 5


def exports() -> list[bytes]:
    """What a service with 20 endpoints sends: requests with 17 queries, a call elsewhere and a span of its own code.

    512 spans an export, children first, as OpenTelemetry's batch processor does it.
    """
    chance = random.Random(1)
    spans: list[dict[str, Any]] = []
    for request in range(REQUESTS):
        trace, root = chance.randbytes(16), chance.randbytes(8)
        start = 1_700_000_000_000_000_000 + request * 10_000_000
        for number in range(SPANS_PER_REQUEST - 1):
            kind, attributes = (
                3,
                {
                    "db.system": "postgresql",
                    "db.name": "shop",
                    "db.user": "shop",
                    "net.peer.name": "db.internal",
                    "db.statement": f'SELECT "id", "name" FROM "t{number % 5}" WHERE "id" = %s',
                },
            )
            if number == 17:
                attributes = {
                    "http.request.method": "GET",
                    "server.address": "billing.internal",
                    "url.full": f"http://b/{request}",
                }
            if number == 18:
                kind, attributes = 1, {"code.function.name": "render"}
            spans.append(
                {
                    "trace_id": trace,
                    "span_id": chance.randbytes(8),
                    "parent_span_id": root,
                    "name": "SELECT",
                    "kind": kind,
                    "start": start + number * 100_000,
                    "end": start + number * 100_000 + 90_000,
                    "attributes": attributes,
                }
            )
        spans.append(
            {
                "trace_id": trace,
                "span_id": root,
                "parent_span_id": b"",
                "name": f"GET /e{request % 20}/{{id}}",
                "kind": 2,
                "start": start,
                "end": start + 5_000_000,
                "attributes": {
                    "http.request.method": "GET",
                    "http.route": f"/e{request % 20}/{{id}}",
                    "url.path": f"/e/{request}",
                    "http.response.status_code": "200",
                    "user_agent.original": "curl",
                    "client.address": "10.0.0.1",
                },
            }
        )
    found = []
    for place in range(0, len(spans), 512):
        message = ExportTraceServiceRequest()
        resource = message.resource_spans.add()
        resource.resource.attributes.add(key="service.name").value.string_value = "shop"
        scope = resource.scope_spans.add()
        for one in spans[place : place + 512]:
            wire = scope.spans.add(
                trace_id=one["trace_id"],
                span_id=one["span_id"],
                parent_span_id=one["parent_span_id"],
                name=one["name"],
                kind=one["kind"],
                start_time_unix_nano=one["start"],
                end_time_unix_nano=one["end"],
            )
            for key, value in one["attributes"].items():
                wire.attributes.add(key=key).value.string_value = value
        found.append(message.SerializeToString())
    return found


def as_json(body: bytes) -> bytes:
    """The same export in OTLP/JSON, with identifiers in hexadecimal."""
    message = ExportTraceServiceRequest.FromString(body)
    content = json_format.MessageToDict(message)
    for wire, one in zip(
        message.resource_spans[0].scope_spans[0].spans,
        content["resourceSpans"][0]["scopeSpans"][0]["spans"],
        strict=True,
    ):
        one["traceId"], one["spanId"] = wire.trace_id.hex(), wire.span_id.hex()
        if wire.parent_span_id:
            one["parentSpanId"] = wire.parent_span_id.hex()
        one["kind"] = wire.kind
    return json.dumps(content).encode()


def best(work: Callable[[], object]) -> float:
    """The processor seconds of the quickest of several runs: others share this machine."""
    seconds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)


def metric_exports() -> list[bytes]:
    """What the same service sends of its metrics: 40 histograms (20 endpoints, two statuses), 17 numbers each, and as
    many of a library that nothing is made of; 20 exports in a row.
    """
    found = []
    for number in range(20):
        message = ExportMetricsServiceRequest()
        resource = message.resource_metrics.add()
        resource.resource.attributes.add(key="service.name").value.string_value = "shop"
        metrics = resource.scope_metrics.add().metrics
        for name in ("http.server.request.duration", "shop.basket.size"):
            metric = metrics.add(name=name, unit="s")
            metric.histogram.aggregation_temporality = 2
            for stream in range(40):
                point = metric.histogram.data_points.add(
                    start_time_unix_nano=1_700_000_000_000_000_000,
                    time_unix_nano=1_700_000_000_000_000_000 + number * 60_000_000_000,
                    count=15 * (number + 1),
                    sum=3.0 * number,
                    explicit_bounds=[0.005 * 2**place for place in range(14)],
                    bucket_counts=[number + 1] * 15,
                )
                for key, value in (
                    ("http.route", f"/e{stream % 20}/{{id}}"),
                    ("http.request.method", "GET"),
                    ("http.response.status_code", "200" if stream < 20 else "500"),
                    ("url.scheme", "http"),
                ):
                    point.attributes.add(key=key).value.string_value = value
        found.append(message.SerializeToString())
    return found


def bench_metrics() -> Iterator[Row]:
    bodies = metric_exports()
    keep = dialects.allowlist(None, b"salt")

    def receive() -> streams.State:
        kept = streams.pack(streams.State())
        for number, body in enumerate(bodies):
            state = streams.unpack(kept)
            (resource,) = exposition.resources(body, content_type=PROTOBUF)
            batch = exposition.points(resource, keep=keep)
            assert streams.add(state, batch.points, now=60.0 * number).counted == 40
            kept = streams.pack(state)
        return state

    assert len(receive().streams) == 40
    points = sum(resource.size for body in bodies for resource in exposition.resources(body, content_type=PROTOBUF))
    parsed = best(lambda: [ExportMetricsServiceRequest.FromString(body) for body in bodies])
    yield Row(
        "OTLP points of metrics read, added up and kept",
        points / best(receive),
        "points/s",
        target=5_000,
        better="higher",
        peer="protobuf's parser alone",
        peer_value=points / parsed,
    )


def bench() -> Iterator[Row]:
    yield from bench_spans()
    yield from bench_metrics()


def bench_spans() -> Iterator[Row]:
    bodies = exports()
    in_json = [as_json(body) for body in bodies]

    def receive(bodies: list[bytes], content_type: str) -> list[bytes]:
        return [
            folding.pack(
                [
                    folding.Arrived(0.0, span)
                    for batch in decoding.traces(body, content_type=content_type)
                    for span in batch.spans
                ]
            )
            for body in bodies
        ]

    chunks = receive(bodies, PROTOBUF)

    def fold() -> folding.Folded:
        arrived = [one for chunk in chunks for one in folding.unpack(chunk)]
        return folding.fold(arrived, now=100.0, settle_seconds=5.0, patience_seconds=100.0)

    folded = fold()
    assert (folded.requests, folded.spans, len(folded.by_endpoint)) == (REQUESTS, SPANS, 20)
    web, collector = best(lambda: receive(bodies, PROTOBUF)), best(fold)
    # The peer does what cannot be avoided: it reads the bytes into protobuf's own objects (in C) and does nothing more.
    parsed = best(lambda: [ExportTraceServiceRequest.FromString(body) for body in bodies])
    yield Row("OTLP spans read, stripped and packed", SPANS / web, "spans/s", target=20_000, better="higher")
    yield Row("  the same in JSON", SPANS / best(lambda: receive(in_json, JSON)), "spans/s", better="higher")
    yield Row("OTLP spans folded into profiles", SPANS / collector, "spans/s", target=50_000, better="higher")
    yield Row(
        "OTLP spans, all of it on one core",
        SPANS / (web + collector),
        "spans/s",
        target=15_000,
        better="higher",
        peer="protobuf's parser alone",
        peer_value=SPANS / parsed,
    )
    yield Row("  while it waits", sum(map(len, chunks)) / SPANS, "bytes/span", target=60)
