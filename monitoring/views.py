"""Health, alerts and metrics over HTTP. Errors are application/problem+json."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import json
import math
from collections.abc import Callable
from datetime import timedelta
from functools import partial, wraps
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.timezone import now
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.generators import SchemaGenerator

from approvals import rest, tokens
from approvals.describing import Parameter, described
from approvals.models import Scope
from monitoring import baselining, blindspots, exporting, heartbeats, reporting, shapes
from monitoring.models import Service

View = Callable[..., HttpResponseBase]
FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_X_REAL_IP")
LONGEST_HOURS = 24 * 30


def problem(status: int, title: str, detail: str, **more: Any) -> JsonResponse:
    """An error as RFC 9457 has it."""
    return JsonResponse(rest.problem(status, title, detail, **more), status=status, content_type=rest.PROBLEM)


def reads_only(view: View, *, writes: bool = False) -> View:
    """GET and HEAD, with `writes` POST too; nothing is kept by caches on the way."""
    methods = ("GET", "HEAD", "POST") if writes else ("GET", "HEAD")

    @wraps(view)
    def inner(request: HttpRequest) -> HttpResponseBase:
        if request.method not in methods:
            refused = problem(405, "Method not allowed", f"This address answers {' and '.join(methods)}.")
            refused["Allow"] = ", ".join(methods)
            return refused
        return view(request)

    # A POST gets its plain refusal and not a page about cookies; one that writes is checked by `may_write`.
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


def for_watchers(view: View, *, writes: bool = False) -> View:
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

    return reads_only(inner, writes=writes)


class _CsrfCheck(CsrfViewMiddleware):
    def _reject(self, request: HttpRequest, reason: str) -> Any:
        return reason  # Django's own answer is a page


def may_write(request: HttpRequest, permission: str) -> JsonResponse | None:
    """The problem to answer with unless a person with `permission` meant to send this, signed in or by a token.

    The network is not enough to write, and a session is not without its token: a page elsewhere could have sent it.
    """
    if token := tokens.bearer(request, Scope.OPERATE):
        request.user = token.person
    elif not request.user.is_authenticated:
        return problem(
            403,
            "Not allowed",
            "Sign in first, or send a token with the scope operate: what is written here is recorded with a name.",
        )
    else:
        check = _CsrfCheck(HttpResponse)
        check.process_request(request)
        reason = check.process_view(request, HttpResponse, (), {})
        if reason is not None:
            return problem(403, "Not allowed", f"{reason} Send the token of the cookie csrftoken as X-CSRFToken.")
    if not request.user.has_perm(permission):
        return problem(403, "Not allowed", f"{request.user} has no right to do this ({permission}).")
    return None


def asked_service(request: HttpRequest, name: str | None = None) -> Service | JsonResponse:
    """The service of that name or of `?service=`, RuneRogue itself without one, or the problem to answer with."""
    name = request.GET.get("service", "") if name is None else name
    watched = Service.objects.active().filter(name=name) if name else Service.objects.active().filter(is_self=True)
    return (None if "\0" in name else watched.first()) or unknown_service(name)


def unknown_service(name: str) -> JsonResponse:
    """The problem that no service of that name is watched."""
    known = list(Service.objects.active().values_list("name", flat=True)[:100])
    detail = f"No service named {name[:100]!r} is watched." if name else "RuneRogue is not registered as a service yet."
    return problem(404, "Unknown service", detail, known=known)


@described("This process answers", shapes.Live, is_open=True)
@reads_only
def live(request: HttpRequest) -> HttpResponse:
    """This process answers. Nothing else is asked, so that a broken database never gets the web processes killed."""
    return JsonResponse({"status": "live"})


@described("The database answers and can write, and the queue answers", shapes.Ready, problems=[503], is_open=True)
@reads_only
def ready(request: HttpRequest) -> HttpResponse:
    """The database answers and can write, and the queue answers; 503 with the reasons where one does not."""
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
    name = request.GET.get("service", "")
    found = None if "\0" in name else reporting.newest(name)
    return unknown_service(name) if found is None else JsonResponse(reporting.score(found))


def asked_hours(given: object, longest: float) -> float | JsonResponse:
    """A number above 0 and up to `longest`, or the problem to answer with."""
    try:
        hours = float(given) if isinstance(given, str | int | float) and not isinstance(given, bool) else math.nan
    except (ValueError, OverflowError):
        hours = math.nan
    if 0 < hours <= longest:
        return hours
    return problem(400, "Wrong hours", f"hours={str(given)[:50]!r} is not a number above 0 and up to {longest:g}.")


@described(
    "How the health score went",
    shapes.Trends,
    parameters=[shapes.SERVICE, shapes.HOURS],
    problems=[400, 403, 404],
)
@for_watchers
def trends(request: HttpRequest) -> HttpResponse:
    """`?hours=` (24): a number above 0, at most 30 days."""
    hours = asked_hours(request.GET.get("hours", "24"), LONGEST_HOURS)
    if isinstance(hours, JsonResponse):
        return hours
    service = asked_service(request)
    if isinstance(service, JsonResponse):
        return service
    return JsonResponse(reporting.trends(service, hours=hours, until=now()))


@described(
    "The baseline, and how now compares",
    shapes.BaselineTold,
    parameters=[shapes.SERVICE, shapes.HOURS, Parameter("routes", "`all`: single routes too.")],
    problems=[400, 403, 404],
)
@described(
    "Set the baseline anew",
    shapes.BaselineMade,
    method="POST",
    takes=shapes.BaselineAsked,
    problems=[400, 403, 404, 409],
    status=201,
)
@partial(for_watchers, writes=True)
def baseline(request: HttpRequest) -> HttpResponse:
    """GET: the current baseline and how `?hours=` (1, at most 24) compare; `?routes=all` with those of single routes.

    POST sets it anew: a JSON object with `reason`, and optionally `service` and `hours` (28 days, the most).
    """
    if request.method == "POST":
        return _set_baseline(request)
    hours = asked_hours(request.GET.get("hours", "1"), 24)
    if isinstance(hours, JsonResponse):
        return hours
    service = asked_service(request)
    if isinstance(service, JsonResponse):
        return service
    whole = request.GET.get("routes") != "all"
    return JsonResponse(reporting.baseline(service, at=now(), hours=hours, whole=whole))


def _set_baseline(request: HttpRequest) -> HttpResponse:
    refused = may_write(request, "monitoring.add_baseline")
    if refused:
        return refused
    try:
        asked = json.loads(request.body)
    except (ValueError, RecursionError, RequestDataTooBig):
        asked = None
    if not isinstance(asked, dict):
        return problem(400, "Wrong body", 'Send a JSON object such as {"service": "realm", "reason": "…"}.')
    unknown = sorted(asked.keys() - {"service", "reason", "hours"})
    if unknown:
        return problem(400, "Wrong body", f"{unknown[0][:50]!r} is not known; there are service, reason and hours.")
    reason, name = asked.get("reason"), asked.get("service", "")
    if not isinstance(reason, str) or not 1 <= len(reason.strip()) <= 500 or "\0" in reason:
        return problem(400, "Wrong reason", "`reason` says why, in 1 to 500 characters.")
    if not isinstance(name, str):
        return problem(400, "Wrong service", "`service` is the name of a service.")
    longest = baselining.LONGEST.total_seconds() / 3600.0
    hours = asked_hours(asked.get("hours", longest), longest)
    if isinstance(hours, JsonResponse):
        return hours
    service = asked_service(request, name)
    if isinstance(service, JsonResponse):
        return service
    moment = now()
    assert request.user.is_authenticated
    try:
        made = baselining.make(
            service, since=moment - timedelta(hours=hours), until=moment, reason=reason.strip(), actor=request.user
        )
    except baselining.TooLittleData as error:
        return problem(409, "Too little data", str(error))
    return JsonResponse({"service": service.name, **reporting.version_row(made)}, status=201)


@described("The alerts that fire", shapes.Alerts, parameters=[shapes.SERVICE_OR_ALL], problems=[403, 404])
@for_watchers
def alerts(request: HttpRequest) -> HttpResponse:
    """`?service=*` is all of them."""
    heartbeats.watch_if_due(now())
    if request.GET.get("service") == "*":
        return JsonResponse(reporting.alerts(None))
    service = asked_service(request)
    return service if isinstance(service, JsonResponse) else JsonResponse(reporting.alerts(service))


@described("RuneRogue's own metrics, as Prometheus text", None, problems=[403])
@for_watchers
def metrics(request: HttpRequest) -> HttpResponse:
    # Whoever scrapes this keeps watch over the collector: nobody else is left when all background programs are gone.
    with contextlib.suppress(DatabaseError):
        heartbeats.watch_if_due(now())
    return HttpResponse(exporting.exposition(), content_type=exporting.CONTENT_TYPE)


@functools.cache
def _document() -> bytes:
    # Half a second of reading code; it is the same for everybody until the process ends.
    return json.dumps(SchemaGenerator().get_schema(request=None, public=True)).encode()  # type: ignore[no-untyped-call]


@for_watchers
def openapi(request: HttpRequest) -> HttpResponse:
    """The OpenAPI 3.1 document of all of this."""
    return HttpResponse(_document(), content_type="application/vnd.oai.openapi+json")
