"""Services, their signals and alerts over the REST API."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db.models import OuterRef, QuerySet, Subquery
from django.http import Http404
from django.utils.timezone import now
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from approvals.rest import ApiListView, ApiView
from monitoring import reading
from monitoring.models import Alert, AlertState, HealthScore, Service

if TYPE_CHECKING:
    ServiceRows = serializers.ModelSerializer[Service]
    AlertRows = serializers.ModelSerializer[Alert]
    Fields = serializers.Serializer[Any]
else:
    ServiceRows = AlertRows = serializers.ModelSerializer
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
