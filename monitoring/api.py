"""The REST API of monitoring: services, signals, alerts; web vitals and feedback from the pages of services."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import redis
from django.conf import settings
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.utils.cache import patch_vary_headers
from django.utils.timezone import now
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import exceptions, serializers
from rest_framework.authentication import BaseAuthentication
from rest_framework.parsers import JSONParser
from rest_framework.request import Request
from rest_framework.response import Response

from approvals import limits, tokens
from approvals.models import ApiToken, Scope
from approvals.rest import ApiListView, ApiView, TokenAuthentication, TooLarge, caller_of
from monitoring import experience, feedback, reading
from monitoring.models import Alert, AlertState, Feedback, HealthScore, Service
from monitoring.vitals import VITALS

if TYPE_CHECKING:
    ServiceRows = serializers.ModelSerializer[Service]
    AlertRows = serializers.ModelSerializer[Alert]
    FeedbackRows = serializers.ModelSerializer[Feedback]
    Fields = serializers.Serializer[Any]
else:
    ServiceRows = AlertRows = FeedbackRows = serializers.ModelSerializer
    Fields = serializers.Serializer

MOST_SAMPLES = 100_000
LONGEST_RANGE = timedelta(days=28)
IN_SERVICE = OpenApiParameter("service", str, description="Only of the service of this name.")


def watched(name: str) -> Service:
    """The watched service of that name. Raises Http404."""
    service = Service.objects.active().filter(name=name).first()
    if service is None:
        raise Http404(f"No service named {name[:100]!r} is watched.")
    return service


def scored_services() -> QuerySet[Service]:
    newest = HealthScore.objects.filter(service=OuterRef("pk")).order_by("-at")
    # Not `environment`: it holds passwords.
    return (
        Service.objects.active()
        .defer("environment")
        .annotate(
            health_score=Subquery(newest.values("score")[:1]),
            health_status=Subquery(newest.values("status")[:1]),
            health_at=Subquery(newest.values("at")[:1]),
        )
    )


class ServiceRow(ServiceRows):
    health_score = serializers.FloatField(allow_null=True, read_only=True)
    health_status = serializers.CharField(allow_null=True, read_only=True)
    health_at = serializers.DateTimeField(allow_null=True, read_only=True)

    class Meta:
        model = Service
        fields = ["id", "name", "repository", "branch", "is_self", "health_score", "health_status", "health_at"]
        read_only_fields = fields


class Services(ApiListView):
    """The watched services with their newest health score."""

    serializer_class = ServiceRow

    def get_queryset(self) -> QuerySet[Service]:
        return scored_services()


class OneService(ApiView):
    @extend_schema(responses=ServiceRow, operation_id="service_retrieve")
    def get(self, request: Request, name: str) -> Response:
        """One watched service."""
        service = scored_services().filter(name=name).first()
        if service is None:
            raise Http404(f"No service named {name[:100]!r} is watched.")
        return Response(ServiceRow(service).data)


class AlertRow(AlertRows):
    service = serializers.CharField(source="service.name", read_only=True)

    class Meta:
        model = Alert
        fields = [
            "id", "service", "name", "severity", "state", "labels", "value", "message", "opened_at", "fired_at",
            "resolved_at",
        ]  # fmt: skip
        read_only_fields = fields
        extra_kwargs = {"labels": {"help_text": "Which series of the service."}}


@extend_schema(
    parameters=[
        IN_SERVICE,
        OpenApiParameter("state", str, enum=[str(state) for state in AlertState]),
    ]
)
class Alerts(ApiListView):
    """Alerts, resolved ones too, newest first."""

    serializer_class = AlertRow

    def get_queryset(self) -> QuerySet[Alert]:
        found = Alert.objects.filter(service__archived_at=None).select_related("service")
        if name := self.request.query_params.get("service"):
            found = found.filter(service=watched(name))
        if state := self.request.query_params.get("state"):
            if state not in set(AlertState):
                raise serializers.ValidationError({"state": [f"One of: {', '.join(AlertState)}."]})
            found = found.filter(state=state)
        return found


class SamplesAsked(Fields):
    signal = serializers.CharField(max_length=60)
    since = serializers.DateTimeField(required=False)
    until = serializers.DateTimeField(required=False)


class SeriesRow(Fields):
    labels = serializers.DictField(child=serializers.CharField())
    at = serializers.ListField(child=serializers.FloatField(), help_text="Unix seconds, rising.")
    value = serializers.ListField(child=serializers.FloatField(), help_text="In the unit of the signal.")


class SamplesTold(Fields):
    service = serializers.CharField()
    signal = serializers.CharField()
    series = SeriesRow(many=True)


class Samples(ApiView):
    @extend_schema(parameters=[SamplesAsked], responses=SamplesTold)
    def get(self, request: Request, name: str) -> Response:
        """All series of one signal, by default of the last hour, at most 28 days and 100,000 samples."""
        asked = SamplesAsked(data=request.query_params)
        asked.is_valid(raise_exception=True)
        until = asked.validated_data.get("until", now())
        since = asked.validated_data.get("since", until - timedelta(hours=1))
        if not timedelta(0) < until - since <= LONGEST_RANGE:
            raise serializers.ValidationError({"since": ["It lies before `until`, by 28 days at most."]})
        found = reading.arrays(watched(name), asked.validated_data["signal"], since=since, until=until)
        if sum(series.at.size for series in found) > MOST_SAMPLES:
            raise serializers.ValidationError(
                {"since": [f"These are more than {MOST_SAMPLES:,} samples: ask for less."]}
            )
        rows = [{"labels": s.labels, "at": s.at.tolist(), "value": s.value.tolist()} for s in found]
        return Response({"service": name, "signal": asked.validated_data["signal"], "series": rows})


# --- From the pages of a service -----------------------------------------------------------------------------------


class PlainJson(JSONParser):
    """JSON that says it is text: what `navigator.sendBeacon` sends without asking the other origin first."""

    media_type = "text/plain"


class NotYours(exceptions.PermissionDenied):
    default_detail = (
        "Pages of this origin do not report about this service: name the origin under [experience] in its "
        "runerogue.toml, or send a token with the scope report."
    )


class TooManyPages(exceptions.Throttled):
    default_detail = "This service has had enough of these in this minute."


class FromPages(ApiView):
    """For browsers of people whom nobody knows: no cookies are read, no addresses kept, bodies are tiny.

    The origin must be one that the service's manifest names; a program sends a token with the scope `report` instead.
    """

    largest_bytes: ClassVar[int]
    parser_classes = (JSONParser, PlainJson)
    throttle_classes = ()  # per service, in `about`: all visitors together are one caller

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        origin = request.headers.get("Origin", "")
        if request.method == "OPTIONS":
            answer: HttpResponseBase = HttpResponse(status=204)
            answer["Access-Control-Allow-Methods"] = "POST"
            answer["Access-Control-Allow-Headers"] = "content-type, idempotency-key"
            answer["Access-Control-Max-Age"] = "600"
            is_named = origin in experience.all_origins()
        else:
            self.is_named = False
            answer = super().dispatch(request, *args, **kwargs)
            is_named = self.is_named
        if is_named:
            answer["Access-Control-Allow-Origin"] = origin
        patch_vary_headers(answer, ["Origin"])
        return answer

    def get_authenticators(self) -> list[BaseAuthentication]:
        asked = getattr(self, "request", None)
        return [TokenAuthentication()] if asked is None or asked.method == "POST" else super().get_authenticators()

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        # Counted as it came: a length that was announced may be a lie.
        if request.method == "POST" and len(request.body) > self.largest_bytes:
            raise TooLarge

    def whose_key(self, request: Request) -> str:
        return f"{caller_of(request)} {request.headers.get('Origin', '')}"[:80]

    def about(self, request: Request, name: str, *, what: str, per_minute: int) -> Service:
        """The service that this page or token reports about; it has room for one more in this minute."""
        watched_services = Service.objects.active().defer("environment")
        service = watched_services.filter(**({"name": name} if name else {"is_self": True})).first()
        if service is None:
            raise Http404(f"No service named {name[:40]!r} is watched.")
        if isinstance(request.auth, ApiToken):
            if not (request.auth.allows(Scope.REPORT) and tokens.may_hold(request.auth.person, Scope.REPORT)):
                raise exceptions.PermissionDenied("This token has no scope report.")
        else:
            origin, own = request.headers.get("Origin", ""), f"{request.scheme}://{request.get_host()}"
            if not origin or not experience.may_report(service, origin, own_origin=own):
                raise NotYours
            self.is_named = True
        if wait := limits.seconds_to_wait(f"{what}:{service.pk}", per_minute=per_minute):
            raise TooManyPages(wait)
        return service


class Place(Fields):
    """Where on the service: its own name for the route, or a path, which is kept as a template only."""

    service = serializers.CharField(
        max_length=40, default="", allow_blank=True, help_text="RuneRogue itself without it."
    )
    endpoint = serializers.CharField(max_length=200, default="", allow_blank=True)
    path = serializers.CharField(max_length=2000, default="", allow_blank=True)


class VitalsTold(Place):
    lcp_ms = serializers.FloatField(min_value=0, max_value=VITALS["lcp_ms"].largest, required=False)
    inp_ms = serializers.FloatField(min_value=0, max_value=VITALS["inp_ms"].largest, required=False)
    cls = serializers.FloatField(min_value=0, max_value=VITALS["cls"].largest, required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if not set(VITALS) & set(attrs):
            raise serializers.ValidationError(f"At least one of {', '.join(VITALS)} is told.")
        return attrs


class Vitals(FromPages):
    scopes = {"POST": None}
    largest_bytes = 3000

    @extend_schema(request=VitalsTold, responses={204: None})
    def post(self, request: Request) -> Response:
        """Web vitals of one visit to a page: counted at once, never kept."""
        told = VitalsTold(data=request.data)
        told.is_valid(raise_exception=True)
        data = told.validated_data
        service = self.about(request, data["service"], what="vitals", per_minute=settings.VITALS_PER_MINUTE)
        measured = {name: data[name] for name in VITALS if name in data}
        try:
            endpoint = experience.route_of(data["endpoint"], data["path"])
            experience.record(service, measured, endpoint=endpoint, at=now())
        except redis.RedisError as error:
            raise Unavailable from error
        return Response(status=204)


class Unavailable(exceptions.APIException):
    status_code = 503
    default_detail = "The counters can't be reached at the moment."


class FeedbackTold(Place):
    rating = serializers.IntegerField(min_value=1, max_value=5, required=False, allow_null=True)
    text = serializers.CharField(max_length=feedback.LONGEST_TEXT, default="", allow_blank=True)


class Received(Fields):
    status = serializers.ChoiceField(choices=["received"])


class FeedbackRow(FeedbackRows):
    service = serializers.CharField(source="service.name", read_only=True)

    class Meta:
        model = Feedback
        fields = ["id", "service", "at", "rating", "text", "endpoint"]
        read_only_fields = fields


class FeedbackOfPeople(FromPages, ApiListView):
    """What people say about a service."""

    scopes = {"GET": Scope.READ, "POST": None}
    largest_bytes = 20_000
    serializer_class = FeedbackRow

    def get_queryset(self) -> QuerySet[Feedback]:
        found = Feedback.objects.filter(service__archived_at=None).select_related("service")
        name = self.request.query_params.get("service")
        return found.filter(service=watched(name)) if name else found

    @extend_schema(parameters=[IN_SERVICE])
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """What people said, newest first."""
        return super().get(request, *args, **kwargs)

    @extend_schema(request=FeedbackTold, responses={201: Received})
    def post(self, request: Request) -> Response:
        """A rating from 1 to 5, a text, or both. What looks like somebody's address or number is taken out."""
        told = FeedbackTold(data=request.data)
        told.is_valid(raise_exception=True)
        data = told.validated_data
        service = self.about(request, data["service"], what="feedback", per_minute=settings.FEEDBACK_PER_MINUTE)
        try:
            feedback.take(
                service,
                rating=data.get("rating"),
                text=data["text"],
                endpoint=data["endpoint"],
                path=data["path"],
                at=now(),
            )
        except ValueError as error:
            raise serializers.ValidationError(str(error)) from error
        return Response({"status": "received"}, status=201)
