"""The frame of the REST API, for the `api.py` of every app: who asks, how often, how errors look, what is done once.

A view names its scopes (`scopes = {"GET": Scope.READ, "POST": Scope.OPERATE}`) and does its work; all else is here.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar

from django.conf import settings
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.core.exceptions import ValidationError as ModelError
from django.db import InterfaceError, OperationalError, connection, transaction
from django.http import Http404, HttpRequest, HttpResponseBase, JsonResponse, UnreadablePostError
from django.utils.cache import patch_cache_control
from django.views.decorators.csrf import csrf_exempt
from rest_framework import exceptions, generics
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.pagination import CursorPagination
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView, set_rollback

from approvals import bodies, limits, tokens
from approvals.models import ApiToken, Scope, StoredAnswer

log = logging.getLogger(__name__)

PROBLEM = "application/problem+json"
WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
LONGEST_KEY = 200
WAIT_FOR_TWIN = "5s"  # how long a repeated write waits for the first one that is still under way


# --- Errors ------------------------------------------------------------------------------------------------------


class TooLarge(exceptions.APIException):
    status_code = 413
    default_detail = "The body is larger than this address takes."
    default_code = "too_large"


class TooSlow(exceptions.APIException):
    status_code = 408
    default_detail = bodies.LATE
    default_code = "too_slow"


class KeyReused(exceptions.APIException):
    status_code = 422
    default_detail = "This Idempotency-Key was used for another request. Choose a new key for a new request."
    default_code = "key_reused"


class StillWorking(exceptions.APIException):
    status_code = 409
    default_detail = "The first request with this Idempotency-Key is still being worked on. Ask again in a moment."
    default_code = "still_working"


def problem(status: int, title: str, detail: str, **more: Any) -> dict[str, Any]:
    """The body of an error as RFC 9457 has it."""
    return {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}


def explain(error: Exception, context: Mapping[str, Any]) -> Response:
    """Every error of the API as application/problem+json; what nobody expected is logged and says nothing more."""
    match error:
        case Http404():
            error = exceptions.NotFound(str(error) or None)
        case PermissionDenied():
            error = exceptions.PermissionDenied(str(error) or None)
        case RequestDataTooBig():
            error = TooLarge()
        case UnreadablePostError() if bodies.was_late(error):
            error = TooSlow()
        case exceptions.NotAuthenticated():
            error.detail = exceptions.ErrorDetail("Send a token (Authorization: Bearer rr_…), or sign in.")
        case ModelError():
            error = exceptions.ValidationError(error.messages)
        case exceptions.APIException():
            pass
        case _:
            log.error("An API request failed.", exc_info=error)
            error = exceptions.APIException("Something went wrong here. The log of the web process has the details.")
    headers = {}
    if getattr(error, "auth_header", None):
        headers["WWW-Authenticate"] = error.auth_header  # type: ignore[attr-defined]
    if wait := getattr(error, "wait", None):
        headers["Retry-After"] = str(int(wait))
    more: dict[str, Any] = dict(getattr(error, "more", {}))
    if isinstance(error, exceptions.ValidationError):
        mistakes = list(_mistakes(error.detail))
        detail = "; ".join(f"{m['pointer'] or 'the body'}: {m['detail']}" for m in mistakes[:5])
        more["errors"] = mistakes
    else:
        detail = str(error.detail)
    set_rollback()
    code = error.status_code
    return Response(
        problem(code, TITLES.get(code, "Error"), detail, **more), status=code, headers=headers, content_type=PROBLEM
    )


TITLES = {
    400: "Wrong request",
    401: "Not signed in",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    408: "Too slow",
    409: "In conflict",
    413: "Too large",
    415: "Wrong kind of body",
    422: "Not possible",
    429: "Too many requests",
    500: "Internal error",
    503: "Not available",
}


def _mistakes(detail: Any, pointer: str = "") -> Any:
    """Each mistake with a JSON pointer (RFC 6901) to where it is."""
    if isinstance(detail, Mapping):
        for name, inner in detail.items():
            here = str(name).replace("~", "~0").replace("/", "~1")
            yield from _mistakes(inner, pointer if name == "non_field_errors" else f"{pointer}/{here}")
    elif isinstance(detail, list):
        for number, inner in enumerate(detail):
            deeper = isinstance(inner, Mapping | list)
            yield from _mistakes(inner, f"{pointer}/{number}" if deeper else pointer)
    else:
        yield {"pointer": pointer, "detail": str(detail)}


@csrf_exempt  # a POST gets the same answer, and not a page about cookies
def unknown_address(request: HttpRequest) -> JsonResponse:
    """What is under /api/v1/ and no route takes."""
    detail = f"There is no {request.path[:200]}. /api/v1/openapi.json lists what there is."
    return JsonResponse(problem(404, "Not found", detail), status=404, content_type=PROBLEM)


# --- Who asks ----------------------------------------------------------------------------------------------------


class TokenAuthentication(BaseAuthentication):
    """`Authorization: Bearer rr_…`. The user is the token's person, `request.auth` the token."""

    def authenticate(self, request: Request) -> tuple[User, ApiToken] | None:
        text = tokens.sent_with(request._request)
        if text is None:
            return None
        token = tokens.find(text)
        if token is None:
            raise exceptions.AuthenticationFailed("This token is unknown, expired or revoked.")
        return token.person, token

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="RuneRogue"'


class HasScope(BasePermission):
    """What the view asks for this method, held by the token and by its person; people who sign in need no token."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        if not isinstance(view, Framed):
            raise TypeError(f"{type(view).__name__} is not a view of approvals.rest.")
        method = "GET" if request.method in ("HEAD", "OPTIONS") else str(request.method)
        if method not in view.scopes:
            return True  # no such method here; the answer says so
        scope = view.scopes[method]
        if scope is None:
            return True
        if not isinstance(request.user, User) or (not request.user.is_staff and request.auth is None):
            return False
        if isinstance(request.auth, ApiToken) and not request.auth.allows(scope):
            self.message = f"This token has no scope {scope!s}; it has {', '.join(request.auth.scopes)}."
            return False
        self.message = f"{request.user} has no role that may {scope.meaning}."
        return tokens.may_hold(request.user, scope)


def caller_of(request: Request) -> str:
    """One name per token or person, for limits and keys. Without either it is "anybody": addresses are not kept."""
    if isinstance(request.auth, ApiToken):
        return f"token:{request.auth.pk}"
    return f"person:{request.user.pk}" if request.user and request.user.is_authenticated else "anybody"


class PerCaller(BaseThrottle):
    """API_REQUESTS_PER_MINUTE for each token and each person, and for all the others together."""

    def allow_request(self, request: Request, view: APIView) -> bool:
        self.left = limits.seconds_to_wait(caller_of(request), per_minute=settings.API_REQUESTS_PER_MINUTE)
        return not self.left

    def wait(self) -> float:
        return float(self.left)


# --- Pages -------------------------------------------------------------------------------------------------------


class Pages(CursorPagination):
    """Newest first by primary key, 50 rows a page, 200 at most (`?page_size=`).

    A cursor and not a page number: rows that arrive meanwhile move nothing, and nothing has to be counted.
    """

    ordering = "-pk"
    page_size = 50
    max_page_size = 200
    page_size_query_param = "page_size"

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        # The inherited one says "nullable", which OpenAPI 3.1 does not know.
        link = {"type": ["string", "null"], "format": "uri"}
        return {
            "type": "object",
            "required": ["next", "previous", "results"],
            "properties": {"next": link, "previous": link, "results": schema},
        }


# --- Views -------------------------------------------------------------------------------------------------------

Handler = Callable[..., Response]
if TYPE_CHECKING:
    _View = APIView
else:
    _View = object


@contextmanager
def alone(key: str) -> Iterator[None]:
    """Let nobody else do what has this key as long as the block runs. Raises StillWorking when somebody takes long.

    A lock of the session, because the block has more than one transaction. A process that dies lets go of it.
    """
    name = [f"Idempotency-Key {key}"]
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = '{WAIT_FOR_TWIN}'")
            cursor.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", name)
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", None) == "55P03":  # lock_not_available
            raise StillWorking from error
        raise
    try:
        yield
    finally:
        # A connection that died has let go already.
        with suppress(OperationalError, InterfaceError), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", name)


class Framed(_View):
    """Mixed in before a view of REST framework."""

    # Method → what it needs. None is open to everybody. HEAD and OPTIONS are as GET.
    scopes: ClassVar[Mapping[str, Scope | None]] = {"GET": Scope.READ}
    authentication_classes = (TokenAuthentication, SessionAuthentication)
    permission_classes = (HasScope,)
    throttle_classes: Any = (PerCaller,)

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        # As APIView.dispatch, except that the handler of a write is called through `once`.
        self.args, self.kwargs = args, kwargs
        asked = self.request = self.initialize_request(request, *args, **kwargs)
        self.headers = self.default_response_headers
        try:
            self.initial(asked, *args, **kwargs)
            name = str(asked.method).lower()
            handler = getattr(self, name, None) if name in self.http_method_names else None
            answer = self.once(asked, handler or self.http_method_not_allowed, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 (every error has its form here, the unexpected ones too)
            answer = self.handle_exception(error)
        self.response = self.finalize_response(asked, answer, *args, **kwargs)
        patch_cache_control(self.response, no_store=True)
        return self.response

    def handle_exception(self, exc: Exception) -> Response:
        try:
            return super().handle_exception(exc)
        except Exception as error:  # noqa: BLE001
            return explain(error, self.get_exception_handler_context())

    def whose_key(self, request: Request) -> str:
        """Whose Idempotency-Key it is: two callers may choose the same one."""
        return caller_of(request)

    def prepare(self, request: Request) -> None:
        """What has to stay whatever the handler makes of it; in no transaction, and not for a write done before."""

    def once(self, request: Request, handler: Handler, *args: Any, **kwargs: Any) -> Response:
        """A write with an Idempotency-Key is done once; the same request again is answered as the first was.

        Of two at the same time the second waits for the first. The work and its answer are one transaction: what failed
        leaves no key behind and may be tried again.
        """
        key = request.headers.get("Idempotency-Key", "")
        if request.method not in WRITES or not key:
            self.prepare(request)
            return handler(request, *args, **kwargs)
        if len(key) > LONGEST_KEY or not key.isprintable():
            raise exceptions.ValidationError(
                {"Idempotency-Key": [f"It has at most {LONGEST_KEY} printable characters."]}
            )
        digest = hashlib.sha256(
            b"\0".join([str(request.method).encode(), request.get_full_path().encode(), request.body])
        ).hexdigest()
        caller = self.whose_key(request)
        with alone(f"{caller} {key}"):
            if stored := StoredAnswer.objects.filter(caller=caller, key=key).first():
                return self._again(stored, digest)
            self.prepare(request)
            with transaction.atomic():
                answer = handler(request, *args, **kwargs)
                if answer.status_code >= 400:
                    transaction.set_rollback(True)
                else:
                    StoredAnswer.objects.create(
                        caller=caller, key=key, request_digest=digest, status=answer.status_code, body=answer.data
                    )
            return answer

    def _again(self, stored: StoredAnswer, digest: str) -> Response:
        if stored.request_digest != digest:
            raise KeyReused
        return Response(stored.body, status=stored.status, headers={"Idempotent-Replayed": "true"})


class ApiView(Framed, APIView):
    """One address."""


class ApiListView(Framed, generics.ListAPIView):  # type: ignore[type-arg]
    """A list in pages: `queryset` or `get_queryset`, and `serializer_class`."""

    pagination_class = Pages
