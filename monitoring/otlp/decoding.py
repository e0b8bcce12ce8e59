"""OTLP messages, read into spans that hold nothing but names, times and fingerprints.

Of every attribute only those in `WANTED` are looked at, and of these only what `naming` and `fingerprints` make of them
goes on: paths become templates, statements lose their literals here, before anything is kept anywhere.

Both generations of the semantic conventions are understood (`http.method` and `http.request.method`, …). JSON follows
the OTLP specification: lowerCamelCase, identifiers in hexadecimal, 64-bit integers as text, unknown fields ignored.
"""

from __future__ import annotations

import binascii
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status as WireStatus

from monitoring.otlp import fingerprints, naming
from monitoring.otlp.folding import Kind, Role, Span, What

PROTOBUF, JSON = "application/x-protobuf", "application/json"

LARGEST_COMPRESSED_BYTES = 8 * 1024 * 1024
LARGEST_BYTES = 32 * 1024 * 1024
MOST_SPANS = 50_000  # in one export; the rest is refused
MOST_ATTRIBUTES = 128  # of one span; OpenTelemetry's own default
LONGEST_VALUE = 500
LONGEST_SPAN_NS = 24 * 3600 * 10**9


class BadExport(ValueError):
    """The body is not what its headers say; sending it again won't help. The message says why."""


class TooLarge(BadExport):
    """More bytes than are taken at once."""


@dataclass(frozen=True)
class Batch:
    """The spans of one resource. `version` is its service.version; `rejected` spans had no usable ids or times."""

    service: str
    version: str
    spans: list[Span]
    rejected: int = 0


def gunzip(body: bytes, *, limit: int = LARGEST_BYTES) -> bytes:
    """The decompressed body, never more than `limit` bytes in memory. Raises TooLarge and BadExport."""
    parts: list[bytes] = []
    room = limit
    while body:  # a gzip file may have several members
        inflate = zlib.decompressobj(wbits=31)
        try:
            part = inflate.decompress(body, room + 1)
        except zlib.error as error:
            raise BadExport(f"The body is not gzip: {error}") from error
        room -= len(part)
        if room < 0:
            raise TooLarge(f"The body is larger than {limit:,} bytes when decompressed.")
        if not inflate.eof:
            raise BadExport("The gzip body ends too early.")
        parts.append(part)
        body = inflate.unused_data
    return b"".join(parts)


def traces(body: bytes, *, content_type: str) -> list[Batch]:
    """The spans in an ExportTraceServiceRequest, one batch per resource. Raises BadExport."""
    batches = []
    left = MOST_SPANS
    reader = _SpanReader()
    for attributes, raws in _protobuf(body) if content_type == PROTOBUF else _json(body):
        spans: list[Span] = []
        rejected = 0
        for raw in raws:
            span = reader.read(raw) if left > 0 else None
            if span is None:
                rejected += 1
            else:
                spans.append(span)
                left -= 1
        name, version = (str(attributes.get(key, "")) for key in ("service.name", "service.version"))
        batches.append(Batch(name, version, spans, rejected))
    return batches


Values = dict[str, str | int]


class _Raw(NamedTuple):
    """A span as it was written, with the attributes that are wanted."""

    trace: bytes
    id: bytes
    parent: bytes
    kind: int
    name: str
    start_ns: int
    end_ns: int
    has_error: bool
    values: Values


def _protobuf(body: bytes) -> Iterator[tuple[Values, Iterator[_Raw]]]:
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError as error:
        raise BadExport("The body is not the protobuf message that this address takes.") from error
    for resource in request.resource_spans:
        wires = (wire for scope in resource.scope_spans for wire in scope.spans)
        yield (
            _values(resource.resource.attributes, RESOURCE),
            (
                _Raw(
                    wire.trace_id,
                    wire.span_id,
                    wire.parent_span_id,
                    wire.kind,
                    wire.name,
                    wire.start_time_unix_nano,
                    wire.end_time_unix_nano,
                    wire.status.code == WireStatus.STATUS_CODE_ERROR,
                    _values(wire.attributes, WANTED),
                )
                for wire in wires
            ),
        )


def _values(attributes: Any, wanted: frozenset[str]) -> Values:
    found: Values = {}
    for pair in attributes[:MOST_ATTRIBUTES]:
        key = pair.key
        if key in wanted:
            value = pair.value
            found[key] = _cut(key, value.string_value) or value.int_value or ""
    return found


def _cut(key: str, text: str) -> str:
    return text[:LONGEST_VALUE] if len(text) > LONGEST_VALUE and key not in STATEMENTS else text


# JSON is read by hand: protobuf's own reader takes ten times as long, most of it for what is not looked at.


def _json(body: bytes) -> Iterator[tuple[Values, Iterator[_Raw]]]:
    try:
        content = json.loads(body)
        resources = _objects(content, "resourceSpans")
        found = [
            (
                _json_values(_object(resource, "resource"), RESOURCE),
                [_json_raw(one) for scope in _objects(resource, "scopeSpans") for one in _objects(scope, "spans")],
            )
            for resource in resources
        ]
    except (
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # a JSONDecodeError is a ValueError
        # What a parser says may quote what it could not read.
        raise BadExport(f"The body is not the OTLP/JSON that this address takes ({type(error).__name__}).") from error
    for values, raws in found:
        yield values, iter(raws)


def _objects(parent: Any, name: str) -> list[Any]:
    if not isinstance(parent, dict):
        raise TypeError(name)
    found = parent.get(name) or []
    if not isinstance(found, list):
        raise TypeError(name)
    return found


def _object(parent: Any, name: str) -> dict[str, Any]:
    if not isinstance(parent, dict):
        raise TypeError(name)
    found = parent.get(name) or {}
    if not isinstance(found, dict):
        raise TypeError(name)
    return found


def _json_raw(one: Any) -> _Raw:
    status = _object(one, "status")
    name = one.get("name") or ""
    if not isinstance(name, str):
        raise TypeError("name")
    return _Raw(
        binascii.unhexlify(one.get("traceId") or ""),
        binascii.unhexlify(one.get("spanId") or ""),
        binascii.unhexlify(one.get("parentSpanId") or ""),
        _whole(one.get("kind")),
        name,
        _whole(one.get("startTimeUnixNano")),
        _whole(one.get("endTimeUnixNano")),
        status.get("code") in (WireStatus.STATUS_CODE_ERROR, "STATUS_CODE_ERROR"),
        _json_values(one, WANTED),
    )


def _json_values(parent: dict[str, Any], wanted: frozenset[str]) -> Values:
    found: Values = {}
    for pair in _objects(parent, "attributes")[:MOST_ATTRIBUTES]:
        key = pair.get("key") if isinstance(pair, dict) else None
        if isinstance(key, str) and key in wanted:
            value = _object(pair, "value")
            text = value.get("stringValue")
            found[key] = _cut(key, text) if isinstance(text, str) and text else _whole(value.get("intValue")) or ""
    return found


def _whole(number: Any) -> int:
    """A 64-bit integer: text in OTLP/JSON, a number in what some senders make of it; 0 where there is none."""
    if number is None:
        return 0
    if isinstance(number, str) and len(number) <= 20:
        return int(number)
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    raise TypeError("number")


# --- Spans -------------------------------------------------------------------------------------------------------

RESOURCE = frozenset({"service.name", "service.version"})
# The whole of what is looked at. Left of the colon: how the code below asks for it; the newest name comes first.
NAMES: dict[str, tuple[str, ...]] = {
    "route": ("http.route",),
    "http_method": ("http.request.method", "http.method"),
    "status": ("http.response.status_code", "http.status_code"),
    "path": ("url.path", "http.target", "http.url"),
    "url": ("url.full", "http.url"),
    "db": ("db.system.name", "db.system"),
    "statement": ("db.query.text", "db.statement"),
    "operation": ("db.operation.name", "db.operation"),
    "collection": ("db.collection.name", "db.sql.table", "db.mongodb.collection", "db.cassandra.table"),
    "server": ("server.address", "net.peer.name"),
    "peer": ("peer.service", "service.peer.name"),
    "rpc": ("rpc.system.name", "rpc.system"),
    "rpc_service": ("rpc.service",),
    "rpc_method": ("rpc.method",),
    "messaging": ("messaging.system",),
    "destination": ("messaging.destination.template", "messaging.destination.name", "messaging.destination"),
    "function": ("code.function.name", "code.function"),
    "namespace": ("code.namespace",),
    "file": ("code.file.path", "code.filepath"),
    "line": ("code.line.number", "code.lineno"),
}
WANTED = frozenset(name for names in NAMES.values() for name in names)
STATEMENTS = frozenset(NAMES["statement"])
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_FILE = re.compile(r"[\w./@+-]{1,200}")
_OPERATION = re.compile(r"[A-Za-z][A-Za-z_]{0,29}")


class _SpanReader:
    """Reads the spans of one export, and works out each distinct set of attributes once."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[What, bool]] = {}

    def read(self, raw: _Raw) -> Span | None:
        """None when the span can't be placed: no valid ids, or times that no request has."""
        trace, span_id, parent, kind, name, start, end, has_error, values = raw
        if len(trace) != 16 or len(span_id) != 8 or not any(trace) or not any(span_id):
            return None
        if len(parent) not in (0, 8) or not 0 < start <= end < 2**63 or end - start > LONGEST_SPAN_NS:
            return None
        if not any(parent):
            parent = b""
        key = (kind, not parent, name, tuple(values.items()))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _what(kind, not parent, name, values)
        what, failed = known
        return Span(trace, span_id, parent, what, start, end, failed or has_error)


def _what(kind: int, is_root: bool, span_name: str, values: Mapping[str, str | int]) -> tuple[What, bool]:
    def get(asked: str) -> str:
        return next((str(values[name]) for name in NAMES[asked] if values.get(name)), "")

    status = int(get("status")) if get("status").isdecimal() else 0
    place = _place(get("file"), get("line"), get("namespace"), get("function"))
    if kind == WireSpan.SPAN_KIND_SERVER:
        if get("http_method") or get("route") or not get("rpc"):
            method = get("http_method").upper()
            label = naming.endpoint(http_route=get("route"), span_name=span_name, path=get("path"), status=status)
            return What(
                Role.ENTRY, Kind.HTTP, label, method if method in METHODS else "other", "", place
            ), status >= 500
        return What(Role.ENTRY, Kind.RPC, _rpc(get), "RPC", "", place), False
    if kind == WireSpan.SPAN_KIND_CONSUMER:
        return What(Role.ENTRY, Kind.MESSAGING, _queue(get), "CONSUME", "", place), False
    if get("db"):
        return _database(get, place), False
    if kind == WireSpan.SPAN_KIND_PRODUCER or (kind == WireSpan.SPAN_KIND_CLIENT and get("messaging")):
        return What(Role.CALL, Kind.MESSAGING, _peer(get) or _queue(get), "", "", place), False
    if kind == WireSpan.SPAN_KIND_CLIENT:
        if get("rpc"):
            called = _peer(get) or naming.name(get("rpc_service") or naming.host(get("server")))
            return What(Role.CALL, Kind.RPC, called, "", "", place), False
        called = _peer(get) or naming.host(get("server")) or naming.host(get("url"))
        return What(Role.CALL, Kind.HTTP, called or naming.UNNAMED, "", "", place), status >= 500
    if is_root:
        # A job: what a scheduler or a command started. Its name is free text, so its function names it.
        return What(Role.ENTRY, Kind.JOB, naming.name(get("function") or span_name), "JOB", "", place), False
    return What(
        Role.INNER, Kind.CODE, naming.name(get("function")) if get("function") else "code", "", "", place
    ), False


def _database(get: Any, place: str) -> What:
    system = get("db").lower()
    kind = Kind.CACHE if system in fingerprints.CACHES else Kind.DB
    address = naming.host(get("server"))
    has_name = address not in ("", "localhost", "(address)")
    label = _peer(get) or naming.name(f"{system}.{address}" if has_name else system)
    statement = fingerprints.fingerprint(get("statement"), system=system) if get("statement") else ""
    if not statement:
        operation = get("operation") or (get("statement").split(maxsplit=1) or [""])[0]
        words = [operation.upper()] if _OPERATION.fullmatch(operation) else []
        if words and get("collection"):
            words.append(naming.name(get("collection")))
        statement = " ".join(words)
    return What(Role.CALL, kind, label, "", statement, place)


def _peer(get: Any) -> str:
    return naming.name(get("peer")) if get("peer") else ""


def _rpc(get: Any) -> str:
    # The newer convention has service and method in one attribute.
    service, method = get("rpc_service"), get("rpc_method")
    return naming.name(f"{service}/{method}" if service and method else service or method)


def _queue(get: Any) -> str:
    parts = [naming.name(part) for part in (get("messaging"), get("destination")) if part]
    return ":".join(part for part in parts if part != naming.UNNAMED)[: naming.LONGEST_LABEL] or naming.UNNAMED


def _place(file: str, line: str, namespace: str, function: str) -> str:
    """`file:line function` of the code that made the call, as far as it is told. Files are code, not data."""
    where = f"{file}:{line}" if line.isdecimal() else file
    called = ".".join(part for part in (namespace, function) if part)
    parts = [where if _FILE.fullmatch(file) else "", naming.name(called) if called else ""]
    return " ".join(part for part in parts if part and part != naming.UNNAMED)
