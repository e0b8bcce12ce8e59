"""OTLP over HTTP: `/v1/traces`. Answers and errors as the OTLP specification has them.

An error is a google.rpc.Status in the content type of the request. 400 says that sending it again is useless, 503 (with
Retry-After) that it is not. What is taken in part is a success with `partial_success`.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.utils.timezone import now
from django.views.decorators.csrf import csrf_exempt
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from prometheus_client import Counter

from monitoring import profiling
from monitoring.otlp import decoding
from monitoring.views import is_near

RETRY_SECONDS = 5
SPANS = Counter("runerogue_otlp_spans", "Spans that were sent to RuneRogue, by what became of them.", ["outcome"])

# google.rpc.Code
INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, UNAVAILABLE = 3, 7, 8, 12, 14


class Refused(Exception):
    """The answer to a request that is not taken: an HTTP status, a google.rpc.Code and a sentence."""

    def __init__(self, status: int, code: int, message: str) -> None:
        self.status, self.code, self.message = status, code, message
        super().__init__(message)


def answered(handle: Callable[[bytes, str], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Check who sends and in what form, and give `handle` the plain body with its content type."""

    def view(request: HttpRequest) -> HttpResponse:
        content_type = request.content_type if request.content_type == decoding.PROTOBUF else decoding.JSON
        try:
            if request.method != "POST":
                raise Refused(405, UNIMPLEMENTED, "This address takes POST.")
            if not is_near(request):
                raise Refused(403, PERMISSION_DENIED, "MONITORING_ALLOWED_NETWORKS does not name your network.")
            return handle(_body(request), content_type)
        except Refused as refused:
            answer = HttpResponse(
                _status(refused.code, refused.message, content_type), status=refused.status, content_type=content_type
            )
            if refused.status == 405:
                answer["Allow"] = "POST"
            if refused.status == 503:
                answer["Retry-After"] = str(RETRY_SECONDS)
            return answer

    return csrf_exempt(view)


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
    # Not request.body: its limit is made for forms.
    body = request.read(int(length))
    if len(body) != int(length):
        raise Refused(400, INVALID_ARGUMENT, "The body ends before its Content-Length.")
    try:
        return decoding.gunzip(body) if encoding == "gzip" else body
    except decoding.TooLarge as error:
        raise Refused(413, INVALID_ARGUMENT, f"{error} Export smaller batches.") from error
    except decoding.BadExport as error:
        raise Refused(400, INVALID_ARGUMENT, str(error)) from error


def _status(code: int, message: str, content_type: str) -> bytes:
    """A google.rpc.Status. Its two fields are written by hand: the library that has it is not one of ours."""
    if content_type == decoding.JSON:
        return json.dumps({"code": code, "message": message}).encode()
    text = message.encode()[:1000]
    size = bytes([len(text)]) if len(text) < 128 else bytes([len(text) & 127 | 128, len(text) >> 7])
    return bytes([0x08, code, 0x12]) + size + text


@answered
def traces(body: bytes, content_type: str) -> HttpResponse:
    try:
        batches = decoding.traces(body, content_type=content_type)
    except decoding.BadExport as error:
        raise Refused(400, INVALID_ARGUMENT, str(error)) from error
    at = now()
    rejected, reasons = 0, []
    try:
        for number, batch in enumerate(batches):
            rejected += batch.rejected
            if batch.rejected:
                reasons.append("Spans without valid ids and times, or more than are taken at once, were left out.")
            service = profiling.service_of(batch.service)
            if service is None:
                rejected += len(batch.spans)
                called = f"is called {batch.service[:100]!r}" if batch.service else "has an empty service.name"
                reasons.append(
                    f"No watched service {called}. Set service.name, or `[otlp] names` in its runerogue.toml."
                )
            elif profiling.is_private(service, batch.version):
                SPANS.labels("private").inc(len(batch.spans))
            elif batch.spans:
                # One export may hold several resources of one service: each is known again by itself.
                kept = profiling.receive(service, batch.spans, at=at, export=number.to_bytes(4, "big") + body)
                SPANS.labels("accepted" if kept else "repeated").inc(len(batch.spans))
    except profiling.Overloaded as error:
        SPANS.labels("deferred").inc(sum(len(batch.spans) for batch in batches))
        raise Refused(503, UNAVAILABLE, str(error)) from error
    except DatabaseError as error:
        raise Refused(503, UNAVAILABLE, "The database does not answer.") from error
    SPANS.labels("rejected").inc(rejected)
    return _taken(rejected, " ".join(dict.fromkeys(reasons)), content_type)


def _taken(rejected: int, message: str, content_type: str) -> HttpResponse:
    if content_type == decoding.JSON:
        # 64-bit integers are text in protobuf's JSON.
        partial = {"partialSuccess": {"rejectedSpans": str(rejected), "errorMessage": message[:1000]}}
        return HttpResponse(json.dumps(partial if rejected else {}), content_type=content_type)
    response = ExportTraceServiceResponse()
    if rejected:
        response.partial_success.rejected_spans = rejected
        response.partial_success.error_message = message[:1000]
    return HttpResponse(response.SerializeToString(), content_type=content_type)
