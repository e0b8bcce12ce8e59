"""The REST API of governance: reviews with their facts, and the scorecard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.models import QuerySet
from django.http import Http404
from django.utils.timezone import now
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from approvals.policy import Role
from approvals.rest import ApiListView, ApiView
from improvements.cadence import Kind, local_day
from improvements.governance import pages, reviewing
from improvements.governance.scorecard import Trend, Unit
from improvements.models import Review

if TYPE_CHECKING:
    ReviewRows = serializers.ModelSerializer[Review]
    Fields = serializers.Serializer[Any]
else:
    ReviewRows = serializers.ModelSerializer
    Fields = serializers.Serializer

STANDINGS = ("open", "overdue", "signed")


class ReviewRow(ReviewRows):
    """`given_to` is the role it was made for, `asked` all that may sign it off now."""

    kind = serializers.ChoiceField(choices=[kind.value for kind in Kind], read_only=True)
    given_to = serializers.ChoiceField(source="role", choices=[role.value for role in Role], read_only=True)
    asked = serializers.SerializerMethodField()
    overdue = serializers.SerializerMethodField()
    signed_by = serializers.CharField(source="signed_by.username", default=None, allow_null=True, read_only=True)

    class Meta:
        model = Review
        fields = [
            "id", "kind", "period", "title", "since", "until", "given_to", "asked", "made_at", "due_on", "overdue",
            "signed_by", "signed_at", "notes", "facts_sha256",
        ]  # fmt: skip
        read_only_fields = fields

    def get_asked(self, review: Review) -> list[str]:
        return [role.value for role in review.responsible]

    def get_overdue(self, review: Review) -> bool:
        return review.is_overdue(local_day(now(), reviewing.zone()))


class FactRow(Fields):
    name = serializers.CharField()
    value = serializers.JSONField(help_text="A number or a text; null without enough data.")
    unit = serializers.CharField()
    link = serializers.CharField(help_text="The page of the rows that were counted.")
    note = serializers.CharField()


class SectionRow(Fields):
    title = serializers.CharField()
    facts = FactRow(many=True)


class ReviewWithFacts(ReviewRow):
    facts = SectionRow(many=True, read_only=True)

    class Meta(ReviewRow.Meta):
        fields = [*ReviewRow.Meta.fields, "facts"]
        read_only_fields = fields


@extend_schema(
    parameters=[
        OpenApiParameter("kind", str, enum=[kind.value for kind in Kind]),
        OpenApiParameter("standing", str, enum=list(STANDINGS)),
    ]
)
class Reviews(ApiListView):
    """Reviews without their facts, newest first. They are signed off on their pages."""

    serializer_class = ReviewRow

    def get_queryset(self) -> QuerySet[Review]:
        found = Review.objects.select_related("signed_by").defer("facts")
        kind, standing = (self.request.query_params.get(name) for name in ("kind", "standing"))
        if kind and kind not in set(Kind):
            raise serializers.ValidationError({"kind": [f"One of: {', '.join(Kind)}."]})
        if standing and standing not in STANDINGS:
            raise serializers.ValidationError({"standing": [f"One of: {', '.join(STANDINGS)}."]})
        if kind:
            found = found.filter(kind=kind)
        match standing:
            case "open":
                return found.open()
            case "overdue":
                return found.overdue(local_day(now(), reviewing.zone()))
            case "signed":
                return found.exclude(signed_at=None)
        return found


class OneReview(ApiView):
    @extend_schema(responses=ReviewWithFacts, operation_id="review_retrieve")
    def get(self, request: Request, id: int) -> Response:  # noqa: A002 (so it is called in the document)
        """One review with the facts that it rests on."""
        review = Review.objects.select_related("signed_by").filter(pk=id).first()
        if review is None:
            raise Http404(f"There is no review {id}.")
        return Response(ReviewWithFacts(review).data)


class ValueRow(Fields):
    value = serializers.FloatField(allow_null=True, help_text="Null without enough data; `note` says why.")
    low = serializers.FloatField(allow_null=True, help_text="Of the 95 % interval.")
    high = serializers.FloatField(allow_null=True)
    hits = serializers.IntegerField(allow_null=True, help_text="The numerator of a share.")
    cases = serializers.IntegerField(help_text="The denominator of a share, or how many times were measured.")
    note = serializers.CharField()


class MetricRow(Fields):
    name = serializers.CharField()
    title = serializers.CharField(source="definition.title")
    unit = serializers.ChoiceField(source="definition.unit", choices=[unit.value for unit in Unit])
    more_is_better = serializers.BooleanField(source="definition.more_is_better")
    definition = serializers.CharField(source="definition.says")
    now = ValueRow()
    before = ValueRow(help_text="In the window of the same length just before.")
    trend = serializers.ChoiceField(choices=[trend.value for trend in Trend])
    link = serializers.CharField(help_text="The page of the rows that were counted.")


class ScorecardTold(Fields):
    since = serializers.DateTimeField()
    until = serializers.DateTimeField()
    metrics = MetricRow(many=True)


class ScorecardAsked(Fields):
    days = serializers.ChoiceField(choices=list(pages.WINDOWS), default=pages.WINDOWS[0])


class Scorecard(ApiView):
    @extend_schema(parameters=[ScorecardAsked], responses=ScorecardTold)
    def get(self, request: Request) -> Response:
        """The success metrics of the last 30 or 90 days, each with its interval and its trend."""
        asked = ScorecardAsked(data=request.query_params)
        asked.is_valid(raise_exception=True)
        page = pages.scorecard_page(int(asked.validated_data["days"]), now())
        told = {"since": page.since, "until": page.until, "metrics": [line.metric for line in page.lines]}
        return Response(ScorecardTold(told).data)
