"""OTLP messages, read into spans that hold nothing but names, times and fingerprints.

Of every attribute only those in `WANTED` are looked at, and of these only what `naming` and `fingerprints` make of them
goes on: paths become templates, statements lose their literals here, before anything is kept anywhere.

Both generations of the semantic conventions are understood (`http.method` and `http.request.method`, …). JSON follows
the OTLP specification: lowerCamelCase, identifiers in hexadecimal, 64-bit integers as text, unknown fields ignored.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
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

M = TypeVar("M", bound=Message)


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
    request = _message(ExportTraceServiceRequest(), body, content_type)
    batches = []
    left = MOST_SPANS
    reader = _SpanReader()
    for resource_spans in request.resource_spans:
        about = _values(resource_spans.resource.attributes, RESOURCE)
        spans: list[Span] = []
        rejected = 0
        for scope_spans in resource_spans.scope_spans:
            for wire in scope_spans.spans:
                span = reader.read(wire) if left > 0 else None
                if span is None:
                    rejected += 1
                else:
                    spans.append(span)
                    left -= 1
        batches.append(
            Batch(str(about.get("service.name", "")), str(about.get("service.version", "")), spans, rejected)
        )
    return batches


def _message(empty: M, body: bytes, content_type: str) -> M:
    try:
        if content_type == PROTOBUF:
            empty.ParseFromString(body)
        else:
            content = json.loads(body)
            if not isinstance(content, dict):
                raise BadExport("The body is JSON, but not an object.")
            json_format.ParseDict(_with_base64(content), empty, ignore_unknown_fields=True)
    except DecodeError as error:
        raise BadExport("The body is not the protobuf message that this address takes.") from error
    except (json_format.ParseError, UnicodeDecodeError, json.JSONDecodeError, binascii.Error, RecursionError) as error:
        # What a parser says may quote what it could not read.
        raise BadExport(f"The body is not the OTLP/JSON that this address takes ({type(error).__name__}).") from error
    return empty


def _with_base64(content: Any, depth: int = 0) -> Any:
    """OTLP/JSON writes identifiers in hexadecimal where protobuf's JSON has base64: the one thing to translate."""
    if depth > 100:
        raise RecursionError
    if isinstance(content, list):
        return [_with_base64(item, depth + 1) for item in content]
    if not isinstance(content, dict):
        return content
    return {
        key: base64.b64encode(binascii.unhexlify(value)).decode()
        if key in ("traceId", "spanId", "parentSpanId") and isinstance(value, str) and value.isascii()
        else _with_base64(value, depth + 1)
        for key, value in content.items()
    }


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


def _values(attributes: Any, wanted: frozenset[str]) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for pair in attributes[:MOST_ATTRIBUTES]:
        key = pair.key
        if key in wanted:
            value = pair.value
            text = value.string_value
            if not text:
                found[key] = value.int_value or ""
            elif len(text) > LONGEST_VALUE and key not in STATEMENTS:
                found[key] = text[:LONGEST_VALUE]
            else:
                found[key] = text
    return found


class _SpanReader:
    """Reads the spans of one export, and works out each distinct set of attributes once."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[What, bool]] = {}

    def read(self, wire: WireSpan) -> Span | None:
        """None when the span can't be placed: no valid ids, or times that no request has."""
        trace, span_id, parent = wire.trace_id, wire.span_id, wire.parent_span_id
        start, end = wire.start_time_unix_nano, wire.end_time_unix_nano
        if len(trace) != 16 or len(span_id) != 8 or not any(trace) or not any(span_id):
            return None
        if len(parent) not in (0, 8) or not 0 < start <= end or end - start > LONGEST_SPAN_NS:
            return None
        if not any(parent):
            parent = b""
        values = _values(wire.attributes, WANTED)
        key = (wire.kind, not parent, wire.name, tuple(values.items()))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _what(wire.kind, not parent, wire.name, values)
        what, failed = known
        return Span(
            trace, span_id, parent, what, start, end, failed or wire.status.code == WireStatus.STATUS_CODE_ERROR
        )


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
    return ":".join(part for part in parts if part != naming.UNNAMED) or naming.UNNAMED


def _place(file: str, line: str, namespace: str, function: str) -> str:
    """`file:line function` of the code that made the call, as far as it is told. Files are code, not data."""
    where = f"{file}:{line}" if line.isdecimal() else file
    called = ".".join(part for part in (namespace, function) if part)
    parts = [where if _FILE.fullmatch(file) else "", naming.name(called) if called else ""]
    return " ".join(part for part in parts if part and part != naming.UNNAMED)
