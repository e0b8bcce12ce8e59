"""OTLP over HTTP: `/v1/traces` and `/v1/metrics`. Answers and errors as the OTLP specification has them.

An error is a google.rpc.Status in the content type of the request. 400 says that sending it again is useless, 429 and
503 (with Retry-After) that it is not. What is taken in part is a success with `partial_success`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, UnreadablePostError
from django.utils.timezone import now
from django.views.decorators.csrf import csrf_exempt
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from prometheus_client import Counter

from approvals import bodies, limits, tokens
from approvals.models import Scope
from monitoring import privacy, profiling, pushing
from monitoring.models import Service
from monitoring.otlp import decoding, exposition
from monitoring.views import is_near

RETRY_SECONDS = 5
SPANS = Counter("runerogue_otlp_spans", "Spans that were sent to RuneRogue, by what became of them.", ["outcome"])
POINTS = Counter("runerogue_otlp_points", "Points of metrics that were sent, by what became of them.", ["outcome"])

# google.rpc.Code
INVALID_ARGUMENT, DEADLINE_EXCEEDED, PERMISSION_DENIED, RESOURCE_EXHAUSTED = 3, 4, 7, 8
UNIMPLEMENTED, UNAVAILABLE, UNAUTHENTICATED = 12, 14, 16


class Refused(Exception):
    """The answer to a request that is not taken: an HTTP status, a google.rpc.Code, a sentence, and headers."""

    def __init__(self, status: int, code: int, message: str, **headers: str) -> None:
        self.status, self.code, self.message = status, code, message
        self.headers = {name.replace("_", "-"): text for name, text in headers.items()}
        super().__init__(message)


def answered(handle: Callable[[bytes, str], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Check who sends, how often and in what form, and give `handle` the plain body with its content type."""

    def view(request: HttpRequest) -> HttpResponse:
        content_type = request.content_type if request.content_type == decoding.PROTOBUF else decoding.JSON
        try:
            if request.method != "POST":
                raise Refused(405, UNIMPLEMENTED, "This address takes POST.", Allow="POST")
            _demand_room(_sender(request))
            return handle(_body(request), content_type)
        except DatabaseError:
            refused = Refused(503, UNAVAILABLE, "The database does not answer.", Retry_After=str(RETRY_SECONDS))
        except Refused as error:
            refused = error
        status = _status(refused.code, refused.message, content_type)
        return HttpResponse(status, status=refused.status, content_type=content_type, headers=refused.headers)

    return csrf_exempt(view)


def _sender(request: HttpRequest) -> str:
    """One name per sender, for limits: of a token, or a hash of the near address that lives as long as they do."""
    if is_near(request):
        return "near:" + privacy.pseudonym(request.META["REMOTE_ADDR"], key=settings.SECRET_KEY)
    text = tokens.sent_with(request)
    if text is None:
        raise Refused(
            403,
            PERMISSION_DENIED,
            "MONITORING_ALLOWED_NETWORKS does not name your network. Send a token with the scope report.",
        )
    token = tokens.find(text)
    if token is None:
        raise Refused(
            401,
            UNAUTHENTICATED,
            "This token is unknown, expired or revoked.",
            WWW_Authenticate='Bearer realm="RuneRogue"',
        )
    if not (token.allows(Scope.REPORT) and tokens.may_hold(token.person, Scope.REPORT)):
        raise Refused(403, PERMISSION_DENIED, "This token, or its person, has no scope report.")
    return f"token:{token.pk}"


def _demand_room(who: str) -> None:
    """Count one export of a sender or a service. Raises Refused when it had enough of them in this minute."""
    most = settings.OTLP_EXPORTS_PER_MINUTE
    if wait := limits.seconds_to_wait(f"otlp:{who}", per_minute=most):
        message = f"More than {most:,} exports in a minute. Export larger batches less often."
        raise Refused(429, RESOURCE_EXHAUSTED, message, Retry_After=str(wait))


def _body(request: HttpRequest) -> bytes:
    if request.content_type not in (decoding.PROTOBUF, decoding.JSON):
        raise Refused(415, INVALID_ARGUMENT, f"Send {decoding.PROTOBUF} or {decoding.JSON}.")
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("gzip", "identity", ""):
        raise Refused(415, INVALID_ARGUMENT, "Send it as it is, or with Content-Encoding: gzip.")
    length = request.headers.get("Content-Length", "")
    if not length.isdecimal():
        raise Refused(411, INVALID_ARGUMENT, "Send a Content-Length.")
    limit = decoding.LARGEST_COMPRESSED_BYTES
    if int(length) > limit:
        raise Refused(413, INVALID_ARGUMENT, f"The body is larger than {limit:,} bytes. Export smaller batches.")
    try:
        # Not request.body: its limit is made for forms.
        body = request.read(int(length))
    except UnreadablePostError as error:
        if bodies.was_late(error):
            raise Refused(408, DEADLINE_EXCEEDED, bodies.LATE) from error
        raise Refused(400, INVALID_ARGUMENT, "The body ends before its Content-Length.") from error
    if len(body) != int(length):
        raise Refused(400, INVALID_ARGUMENT, "The body ends before its Content-Length.")
    try:
        return decoding.gunzip(body) if encoding == "gzip" else body
    except decoding.BadExport as error:
        raise _bad(error) from error


def _bad(error: decoding.BadExport) -> Refused:
    if isinstance(error, decoding.TooLarge):
        return Refused(413, INVALID_ARGUMENT, f"{error} Export smaller batches.")
    return Refused(400, INVALID_ARGUMENT, str(error))


def _status(code: int, message: str, content_type: str) -> bytes:
    """A google.rpc.Status. Its two fields are written by hand: the library that has it is not one of ours."""
    if content_type == decoding.JSON:
        return json.dumps({"code": code, "message": message}).encode()
    text = message.encode()[:1000]
    size = bytes([len(text)]) if len(text) < 128 else bytes([len(text) & 127 | 128, len(text) >> 7])
    return bytes([0x08, code, 0x12]) + size + text


class _Services:
    """The services of one export by the names in it; each counts as having sent one."""

    def __init__(self) -> None:
        self._known: dict[str, Service | None] = {}

    def called(self, name: str) -> Service | None:
        if name not in self._known:
            found = self._known[name] = profiling.service_of(name)
            if found is not None:
                _demand_room(f"service:{found.pk}")
        return self._known[name]


def _nobody(name: str) -> str:
    called = f"is called {name[:100]!r}" if name else "has an empty service.name"
    return f"No watched service {called}. Set service.name, or `[otlp] names` in its runerogue.toml."


@answered
def traces(body: bytes, content_type: str) -> HttpResponse:
    try:
        batches = decoding.traces(body, content_type=content_type)
    except decoding.BadExport as error:
        raise _bad(error) from error
    at = now()
    rejected, reasons = 0, []
    services = _Services()
    try:
        for number, batch in enumerate(batches):
            rejected += batch.rejected
            if batch.rejected:
                reasons.append("Spans without valid ids and times, or more than are taken at once, were left out.")
            service = services.called(batch.service)
            if service is None:
                rejected += len(batch.spans)
                reasons.append(_nobody(batch.service))
            elif profiling.is_private(service, batch.version):
                SPANS.labels("private").inc(len(batch.spans))
            elif batch.spans:
                # One export may hold several resources of one service: each is known again by itself.
                kept = profiling.receive(service, batch.spans, at=at, export=number.to_bytes(4, "big") + body)
                SPANS.labels("accepted" if kept else "repeated").inc(len(batch.spans))
    except profiling.Overloaded as error:
        SPANS.labels("deferred").inc(sum(len(batch.spans) for batch in batches))
        raise Refused(503, UNAVAILABLE, str(error), Retry_After=str(RETRY_SECONDS)) from error
    SPANS.labels("rejected").inc(rejected)
    return _taken(ExportTraceServiceResponse(), "Spans", rejected, reasons, content_type)


@answered
def metrics(body: bytes, content_type: str) -> HttpResponse:
    try:
        resources = exposition.resources(body, content_type=content_type)
    except decoding.BadExport as error:
        raise _bad(error) from error
    at = now()
    rejected, reasons = 0, []
    services = _Services()
    room = exposition.MOST_POINTS
    for resource in resources:
        service = services.called(resource.service)
        if service is None:
            rejected += resource.size
            reasons.append(_nobody(resource.service))
            continue
        received = pushing.receive(service, resource, at=at, room=room)
        room -= received.accepted + received.repeated
        rejected += received.refused
        reasons += received.reasons
        for outcome in ("accepted", "repeated", "unused", "aside"):
            POINTS.labels(outcome).inc(getattr(received, outcome))
    POINTS.labels("rejected").inc(rejected)
    return _taken(ExportMetricsServiceResponse(), "DataPoints", rejected, reasons, content_type)


def _taken(response: Any, what: str, rejected: int, reasons: list[str], content_type: str) -> HttpResponse:
    """A success; with nothing rejected a message in it is a warning."""
    message = " ".join(dict.fromkeys(reasons))[:1000]
    if content_type == decoding.JSON:
        # 64-bit integers are text in protobuf's JSON.
        partial = {"partialSuccess": {f"rejected{what}": str(rejected), "errorMessage": message}}
        return HttpResponse(json.dumps(partial if message else {}), content_type=content_type)
    if message:
        name = {"Spans": "rejected_spans", "DataPoints": "rejected_data_points"}[what]
        setattr(response.partial_success, name, rejected)
        response.partial_success.error_message = message
    return HttpResponse(response.SerializeToString(), content_type=content_type)
