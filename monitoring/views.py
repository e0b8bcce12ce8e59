"""Health, alerts and metrics over HTTP. Errors are application/problem+json."""

from __future__ import annotations

import functools
import ipaddress
import json
import math
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.utils.timezone import now
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.generators import SchemaGenerator

from approvals import rest, tokens
from approvals.describing import described
from approvals.models import Scope
from monitoring import blindspots, exporting, reporting, shapes
from monitoring.models import Service

View = Callable[..., HttpResponseBase]
FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP")
LONGEST_HOURS = 24 * 30


def problem(status: int, title: str, detail: str, **more: Any) -> JsonResponse:
    """An error as RFC 9457 has it."""
    return JsonResponse(rest.problem(status, title, detail, **more), status=status, content_type=rest.PROBLEM)


def reads_only(view: View) -> View:
    """GET and HEAD; nothing is kept by caches on the way."""

    @wraps(view)
    def inner(request: HttpRequest) -> HttpResponseBase:
        if request.method not in ("GET", "HEAD"):
            refused = problem(405, "Method not allowed", "This address answers GET and HEAD.")
            refused["Allow"] = "GET, HEAD"
            return refused
        return view(request)

    # Nothing is written here, so a POST gets its plain refusal and not a page about cookies.
    return csrf_exempt(never_cache(inner))


def is_near(request: HttpRequest) -> bool:
    """Whether the request comes straight from a network in MONITORING_ALLOWED_NETWORKS.

    Only the connection's own address counts. A request that a proxy passed on comes from somewhere else, whatever its
    headers claim, so it never counts as near.
    """
    if any(name in request.META for name in FORWARDED):
        return False
    try:
        address = ipaddress.ip_address(request.META.get("REMOTE_ADDR", ""))
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in network for network in settings.MONITORING_ALLOWED_NETWORKS)


def for_watchers(view: View) -> View:
    """For people who are signed in, tokens with the scope `read`, and the networks that may watch."""

    @wraps(view)
    def inner(request: HttpRequest) -> HttpResponseBase:
        # The network first: it needs no database, which may be what is broken.
        if is_near(request) or request.user.is_authenticated or tokens.bearer(request, Scope.READ):
            return view(request)
        return problem(
            403,
            "Not allowed",
            "Sign in, send a token with the scope read, or ask from a network that MONITORING_ALLOWED_NETWORKS names.",
        )

    return reads_only(inner)


def asked_service(request: HttpRequest) -> Service | JsonResponse:
    """The service of `?service=`, RuneRogue itself without one, or the problem to answer with."""
    name = request.GET.get("service", "")
    watched = Service.objects.active()
    found = watched.filter(name=name).first() if name else watched.filter(is_self=True).first()
    if found is not None:
        return found
    known = list(watched.values_list("name", flat=True)[:100])
    detail = f"No service named {name[:100]!r} is watched." if name else "RuneRogue is not registered as a service yet."
    return problem(404, "Unknown service", detail, known=known)


@described("This process answers", shapes.Live, is_open=True)
@reads_only
def live(request: HttpRequest) -> HttpResponse:
    """This process answers. Nothing else is asked, so that a broken database never gets the web processes killed."""
    return JsonResponse({"status": "live"})


@described("The database and the queue answer too", shapes.Ready, problems=[503], is_open=True)
@reads_only
def ready(request: HttpRequest) -> HttpResponse:
    """The database and the queue answer too; 503 with the reasons where one does not."""
    checked = reporting.readiness()
    broken = [check for check in checked if not check.ok]
    if broken:
        reasons = {check.name: check.reason for check in broken}
        return problem(503, "Not ready", "; ".join(reasons.values()) + ".", reasons=reasons)
    return JsonResponse({"status": "ready", "checks": {check.name: check.milliseconds for check in checked}})


@described(
    "Health, dependencies and targets of a service", shapes.Detailed, parameters=[shapes.SERVICE], problems=[403, 404]
)
@for_watchers
def detailed(request: HttpRequest) -> HttpResponse:
    service = asked_service(request)
    if isinstance(service, JsonResponse):
        return service
    return JsonResponse({**reporting.detailed(service), "monitoring_coverage": blindspots.told(service, now())})


@described("The health score of a service", shapes.Score, parameters=[shapes.SERVICE], problems=[403, 404])
@for_watchers
def score(request: HttpRequest) -> HttpResponse:
    service = asked_service(request)
    return service if isinstance(service, JsonResponse) else JsonResponse(reporting.score(service))


@described(
    "How the health score went",
    shapes.Trends,
    parameters=[shapes.SERVICE, shapes.HOURS],
    problems=[400, 403, 404],
)
@for_watchers
def trends(request: HttpRequest) -> HttpResponse:
    """`?hours=` (24): a number above 0, at most 30 days."""
    given = request.GET.get("hours", "24")
    try:
        hours = float(given)
    except ValueError:
        hours = math.nan
    if not 0 < hours <= LONGEST_HOURS:
        return problem(400, "Wrong hours", f"hours={given[:50]!r} is not a number above 0 and up to {LONGEST_HOURS}.")
    service = asked_service(request)
    if isinstance(service, JsonResponse):
        return service
    return JsonResponse(reporting.trends(service, hours=hours, until=now()))


@described("The alerts that fire", shapes.Alerts, parameters=[shapes.SERVICE_OR_ALL], problems=[403, 404])
@for_watchers
def alerts(request: HttpRequest) -> HttpResponse:
    """`?service=*` is all of them."""
    if request.GET.get("service") == "*":
        return JsonResponse(reporting.alerts(None))
    service = asked_service(request)
    return service if isinstance(service, JsonResponse) else JsonResponse(reporting.alerts(service))


@described("RuneRogue's own metrics, as Prometheus text", None, problems=[403])
@for_watchers
def metrics(request: HttpRequest) -> HttpResponse:
    return HttpResponse(exporting.exposition(), content_type=exporting.CONTENT_TYPE)


@functools.cache
def _document() -> bytes:
    # Half a second of reading code; it is the same for everybody until the process ends.
    return json.dumps(SchemaGenerator().get_schema(request=None, public=True)).encode()  # type: ignore[no-untyped-call]


@for_watchers
def openapi(request: HttpRequest) -> HttpResponse:
    """The OpenAPI 3.1 document of all of this."""
    return HttpResponse(_document(), content_type="application/vnd.oai.openapi+json")
