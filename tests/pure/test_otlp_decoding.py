# ruff: noqa: E501 (tables of cases)
"""What is read from OTLP, and what is not."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from monitoring.otlp import decoding, folding
from monitoring.otlp.decoding import JSON, PROTOBUF, BadExport, TooLarge
from monitoring.otlp.folding import Kind, Role, What

SERVER, CLIENT, PRODUCER, CONSUMER, INTERNAL = 2, 3, 4, 5, 1
TRACE, OWN, PARENT = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174", "aaa19b7ec3c1b173"


def attribute(key: str, value: Any) -> dict[str, Any]:
    return {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}


def span(kind: int = SERVER, name: str = "GET", parent: str = PARENT, **attributes: Any) -> dict[str, Any]:
    return {
        "traceId": TRACE,
        "spanId": OWN,
        "parentSpanId": parent,
        "name": name,
        "kind": kind,
        "startTimeUnixNano": "1544712660000000000",
        "endTimeUnixNano": "1544712661500000000",
        "attributes": [attribute(key.replace("__", "."), value) for key, value in attributes.items()],
        "status": {},
        "aFieldOfTheFuture": [1, {"x": 2}],
    }


def export(*spans: dict[str, Any], service: str = "realm") -> dict[str, Any]:
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": [attribute("service.name", service), attribute("service.version", "1.2")]},
                "scopeSpans": [{"scope": {"name": "x"}, "spans": list(spans)}],
            }
        ]
    }


def read(*spans: dict[str, Any]) -> list[folding.Span]:
    (batch,) = decoding.traces(json.dumps(export(*spans)).encode(), content_type=JSON)
    return batch.spans


def what(one: dict[str, Any]) -> What:
    (found,) = read(one)
    return found.what


def as_protobuf(content: dict[str, Any]) -> bytes:
    """The same export written with protobuf's own classes."""
    message = ExportTraceServiceRequest()
    for resource in content["resourceSpans"]:
        resource_spans = message.resource_spans.add()
        for pair in resource["resource"]["attributes"]:
            resource_spans.resource.attributes.add(key=pair["key"]).value.string_value = pair["value"]["stringValue"]
        scope = resource_spans.scope_spans.add()
        for one in resource["scopeSpans"][0]["spans"]:
            wire = scope.spans.add(
                trace_id=bytes.fromhex(one["traceId"]),
                span_id=bytes.fromhex(one["spanId"]),
                parent_span_id=bytes.fromhex(one["parentSpanId"]),
                name=one["name"],
                kind=one["kind"],
                start_time_unix_nano=int(one["startTimeUnixNano"]),
                end_time_unix_nano=int(one["endTimeUnixNano"]),
            )
            for pair in one["attributes"]:
                value = wire.attributes.add(key=pair["key"]).value
                if "intValue" in pair["value"]:
                    value.int_value = int(pair["value"]["intValue"])
                else:
                    value.string_value = pair["value"]["stringValue"]
    return message.SerializeToString()


MANY = export(
    span(http__route="/players/{id}", http__request__method="GET", http__response__status_code=503),
    span(CLIENT, db__system="postgresql", db__statement="SELECT 1 FROM t WHERE a = 'b'"),
)


def test_protobuf_and_json_are_read_alike() -> None:
    from_json = decoding.traces(json.dumps(MANY).encode(), content_type=JSON)
    assert decoding.traces(as_protobuf(MANY), content_type=PROTOBUF) == from_json
    (batch,) = from_json
    assert (batch.service, batch.version, batch.rejected) == ("realm", "1.2", 0)
    entry, query = batch.spans
    assert (entry.trace.hex(), entry.id.hex(), entry.parent.hex()) == (TRACE, OWN, PARENT)
    assert (entry.seconds, entry.failed) == (1.5, True)
    assert entry.what == What(Role.ENTRY, Kind.HTTP, "/players/{id}", "GET")
    assert query.what == What(Role.CALL, Kind.DB, "postgresql", "", "SELECT ? FROM t WHERE a = ?")


CONVENTIONS = [
    # (old, new) → the same
    (
        span(http__method="post", http__route="/a", http__status_code=500),
        span(http__request__method="POST", http__route="/a", http__response__status_code=500),
        What(Role.ENTRY, Kind.HTTP, "/a", "POST"),
    ),
    (
        span(http__method="GET", http__target="/players/17?name=alice"),
        span(http__request__method="GET", url__path="/players/17"),
        What(Role.ENTRY, Kind.HTTP, "/players/{id}", "GET"),
    ),
    (
        span(http__method="BREW", http__route="/a"),
        span(http__request__method="_OTHER", http__route="/a"),
        What(Role.ENTRY, Kind.HTTP, "/a", "other"),
    ),
    (
        span(CLIENT, db__system="mysql", db__statement="SELECT 'x'", net__peer__name="db.internal"),
        span(CLIENT, db__system__name="mysql", db__query__text="SELECT 'x'", server__address="db.internal"),
        What(Role.CALL, Kind.DB, "mysql.db.internal", "", "SELECT ?"),
    ),
    (
        span(CLIENT, db__system="redis", db__statement="SET user:alice secret"),
        span(CLIENT, db__system__name="redis", db__operation__name="SET"),
        What(Role.CALL, Kind.CACHE, "redis", "", "SET"),
    ),
    (
        span(CLIENT, db__system="mongodb", db__operation="find", db__mongodb__collection="players"),
        span(CLIENT, db__system__name="mongodb", db__operation__name="find", db__collection__name="players"),
        What(Role.CALL, Kind.DB, "mongodb", "", "FIND players"),
    ),
    (
        span(CLIENT, http__method="GET", http__url="https://u:p@api.example.org/users/alice?k=1"),
        span(CLIENT, http__request__method="GET", url__full="https://api.example.org/x", server__address="api.example.org"),
        What(Role.CALL, Kind.HTTP, "api.example.org"),
    ),
    (
        span(CLIENT, http__method="GET", peer__service="billing", net__peer__name="10.1.2.3"),
        span(CLIENT, http__request__method="GET", service__peer__name="billing", server__address="10.1.2.3"),
        What(Role.CALL, Kind.HTTP, "billing"),
    ),
    (
        span(CLIENT, rpc__system="grpc", rpc__service="shop.Cart", rpc__method="Get"),
        span(CLIENT, rpc__system__name="grpc", rpc__service="shop.Cart", rpc__method="Get"),
        What(Role.CALL, Kind.RPC, "shop.Cart"),
    ),
    (
        span(SERVER, rpc__system="grpc", rpc__service="shop.Cart", rpc__method="Get"),
        span(SERVER, rpc__system__name="grpc", rpc__method="shop.Cart/Get"),
        What(Role.ENTRY, Kind.RPC, "shop.Cart/Get", "RPC"),
    ),
    (
        span(CONSUMER, messaging__system="kafka", messaging__destination="orders"),
        span(CONSUMER, messaging__system="kafka", messaging__destination__name="orders"),
        What(Role.ENTRY, Kind.MESSAGING, "kafka:orders", "CONSUME"),
    ),
    (
        span(PRODUCER, messaging__system="kafka", messaging__destination="reply-4711"),
        span(PRODUCER, messaging__system="kafka", messaging__destination__name="reply-4711"),
        What(Role.CALL, Kind.MESSAGING, "kafka:reply-{id}"),
    ),
    (
        span(INTERNAL, "render alice's page", code__function="render", code__filepath="/srv/app/x.py", code__lineno=7),
        span(INTERNAL, "x", code__function__name="render", code__file__path="/srv/app/x.py", code__line__number=7),
        What(Role.INNER, Kind.CODE, "render", "", "", "/srv/app/x.py:7 render"),
    ),
    (span(INTERNAL, "for alice"), span(INTERNAL, "for bob"), What(Role.INNER, Kind.CODE, "code")),
    (
        span(INTERNAL, "nightly", parent=""),
        span(INTERNAL, "x", parent="", code__function__name="nightly"),
        What(Role.ENTRY, Kind.JOB, "nightly", "JOB", "", ""),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), CONVENTIONS)
def test_both_generations_of_the_conventions_say_the_same(
    old: dict[str, Any], new: dict[str, Any], expected: What
) -> None:
    assert what(old) == expected
    assert what(new)[:5] == expected[:5]


def test_nothing_but_the_allowlist_goes_on() -> None:
    secret = "alice@example.org"
    personal = {
        "enduser.id": secret, "http.user_agent": secret, "client.address": secret, "http.request.header.cookie": secret,
        "url.query": secret, "net.peer.ip": secret, "db.user": secret, "db.query.parameter.0": secret, "user.email": secret,
        "http.url": f"http://x/u/{secret}?q={secret}", "url.full": f"http://{secret}/{secret}", "http.target": f"/{secret}",
        "db.statement": f"SELECT '{secret}'", "net.peer.name": secret, "peer.service": secret, "code.function": secret,
        "code.filepath": secret + " ", "messaging.destination.name": secret, "db.operation": secret, "db.sql.table": secret,
        "rpc.service": secret, "rpc.method": secret,
    }  # fmt: skip
    for kind in (SERVER, CLIENT, PRODUCER, CONSUMER, INTERNAL):
        for system in (
            {},
            {"db.system": "postgresql"},
            {"db.system": "redis"},
            {"rpc.system": "grpc"},
            {"messaging.system": "k"},
        ):
            for parent in ("", PARENT):
                one = span(kind, secret, parent)
                one["attributes"] = [attribute(key, value) for key, value in {**personal, **system}.items()]
                one["events"] = [{"name": secret, "attributes": [attribute("exception.message", secret)]}]
                one["status"] = {"code": 2, "message": secret}
                assert "alice" not in repr(read(one)), (kind, system)
                assert "example.org" not in repr(read(one)), (kind, system)


@pytest.mark.parametrize(
    "broken",
    [
        {"traceId": "00" * 16},
        {"traceId": "ab"},
        {"traceId": ""},
        {"spanId": "00" * 8},
        {"spanId": "ab" * 16},
        {"parentSpanId": "ab"},
        {"startTimeUnixNano": "0"},
        {"endTimeUnixNano": "1"},
        {"endTimeUnixNano": str(2**63)},
    ],
)
def test_a_span_without_ids_or_times_is_rejected_and_the_others_stay(broken: dict[str, Any]) -> None:
    (batch,) = decoding.traces(json.dumps(export({**span(), **broken}, span())).encode(), content_type=JSON)
    assert (len(batch.spans), batch.rejected) == (1, 1)


def test_a_parent_of_zeros_is_none() -> None:
    assert read({**span(), "parentSpanId": "00" * 8})[0].parent == b""


def test_more_spans_than_are_taken_at_once_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MOST_SPANS", 3)
    (batch,) = decoding.traces(json.dumps(export(*[span()] * 5)).encode(), content_type=JSON)
    assert (len(batch.spans), batch.rejected) == (3, 2)


def test_attributes_beyond_the_most_are_not_looked_at() -> None:
    one = span(http__route="/a")
    one["attributes"] = [attribute(f"x{n}", "y") for n in range(decoding.MOST_ATTRIBUTES)] + one["attributes"]
    assert what(one).name == "(no route)"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"\xff\xff\xff", PROTOBUF),
        (b"{", JSON),
        (b"[]", JSON),
        (b"\xff", JSON),
        (b'{"resourceSpans": 7}', JSON),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}', JSON),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "many"}]}]}]}', JSON),
        (b"[" * 100_000, JSON),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, JSON),
        (b'{"resourceSpans": [{"resource": {"attributes": [{"key": "service.name", "value": 7}]}}]}', JSON),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"name": {"a": 1}}]}]}]}', JSON),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"kind": true}]}]}]}', JSON),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [[]]}]}]}', JSON),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"endTimeUnixNano": "' + b"9" * 5_000 + b'"}]}]}]}', JSON),
    ],
)  # fmt: skip
def test_rubbish_is_refused_by_name(body: bytes, content_type: str) -> None:
    with pytest.raises(BadExport, match="The body is") as refused:
        decoding.traces(body, content_type=content_type)
    assert "many" not in str(refused.value)  # a message that quotes what it read could quote somebody's data


def test_a_deep_protobuf_is_refused() -> None:
    message = b""
    for _ in range(200):  # AnyValue.array_value.values, nested
        inner = b"\x0a" + _varint(len(message)) + message
        message = b"\x2a" + _varint(len(inner)) + inner
    pair = b"\x0a\x01k\x12" + _varint(len(message)) + message
    for tag in (b"\x0a", b"\x0a", b"\x0a"):
        pair = tag + _varint(len(pair)) + pair
    with pytest.raises(BadExport):
        decoding.traces(pair, content_type=PROTOBUF)


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def test_gzip_is_read_up_to_a_limit() -> None:
    assert decoding.gunzip(gzip.compress(b"x" * 1000)) == b"x" * 1000
    assert decoding.gunzip(gzip.compress(b"a") + gzip.compress(b"b")) == b"ab"
    assert decoding.gunzip(gzip.compress(b"x" * 1000), limit=1000) == b"x" * 1000
    with pytest.raises(TooLarge, match="999 bytes"):
        decoding.gunzip(gzip.compress(b"x" * 1000), limit=999)
    with pytest.raises(TooLarge):
        decoding.gunzip(gzip.compress(b"x" * 600) * 2, limit=1000)
    for broken in (b"no gzip", gzip.compress(b"abc")[:-3], gzip.compress(b"abc") + b"more"):
        with pytest.raises(BadExport, match="gzip"):
            decoding.gunzip(broken)
