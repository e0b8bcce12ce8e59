"""Reports of builds and the gate over the REST API."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django.utils.timezone import now
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.parsers import JSONParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from approvals.models import Scope
from approvals.rest import ApiView, TooLarge, caller_of
from monitoring import gate, gating, quality, reports
from monitoring.api import watched

if TYPE_CHECKING:
    Fields = serializers.Serializer[Any]
    AnyField = serializers.Field[Any, Any, Any, Any]
else:
    Fields = serializers.Serializer
    AnyField = serializers.Field

MOST_BYTES = 2 * reports.LARGEST_BYTES


@extend_schema_field({"oneOf": [{"type": "string"}, {"type": "object"}, {"type": "array", "items": {}}]})
class Report(AnyField):
    """A file of a form; or, in JSON, the text of a report or the JSON that it is."""

    def to_internal_value(self, data: Any) -> bytes:
        if hasattr(data, "read"):
            return bytes(data.read())
        return data.encode() if isinstance(data, str) else json.dumps(data).encode()

    def to_representation(self, value: Any) -> Any:  # pragma: no cover (nothing is answered with one)
        return value


class BuildReports(Fields):
    service = serializers.CharField(max_length=40)
    commit = serializers.RegexField(quality.COMMIT, help_text="7 to 40 small hexadecimal digits.")
    branch = serializers.CharField(
        max_length=200, required=False, allow_blank=True, default="", help_text="When it is not the service's own."
    )
    junit = Report(required=False, help_text="JUnit XML")
    coverage = Report(required=False, help_text="Cobertura XML")
    sarif = Report(required=False, help_text="SARIF 2.1.0")
    ruff = Report(required=False, help_text="ruff check --output-format json")
    benchmark = Report(required=False, help_text="name → a number, or a list of the same measurement repeated")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """A report under a name that nobody reads would be a build that nobody judged."""
        unknown = sorted(set(self.initial_data) - set(self.fields))
        if unknown:
            known = ", ".join(self.fields)
            raise serializers.ValidationError(dict.fromkeys(unknown, f"There is no such field. Known: {known}."))
        return attrs


class GateAsked(BuildReports):
    tolerance = serializers.FloatField(
        min_value=0, max_value=1, default=gate.TOLERANCE, help_text="0.05 lets five percent pass."
    )


class ReportKept(Fields):
    kind = serializers.CharField()
    signals = serializers.DictField(child=serializers.FloatField())


class ReportsKept(Fields):
    service = serializers.CharField()
    commit = serializers.CharField()
    kept = ReportKept(many=True, help_text="Those that are new; the same report again changes nothing.")


class ComparedRow(Fields):
    what = serializers.CharField()
    verdict = serializers.ChoiceField([gate.PASS, gate.FAIL, gate.INCONCLUSIVE])
    reason = serializers.CharField()
    was = serializers.FloatField(required=False)
    became = serializers.FloatField(required=False)
    change = serializers.FloatField(required=False, help_text="Relative, for the worse: 0.1 is ten percent worse.")
    low = serializers.FloatField(required=False, help_text="Of the change: the 95 % interval.")
    high = serializers.FloatField(required=False)
    p = serializers.FloatField(required=False)


class GateAnswer(Fields):
    verdict = serializers.ChoiceField([gate.PASS, gate.FAIL, gate.INCONCLUSIVE])
    reason = serializers.CharField()
    compared = ComparedRow(many=True)
    markdown = serializers.CharField(help_text="A summary for the pull request.")


class _Builds(ApiView):
    scopes = {"POST": Scope.REPORT}
    parser_classes = (MultiPartParser, JSONParser)

    def asked(self, request: Request, shape: type[Fields]) -> dict[str, Any]:
        if int(request.META.get("CONTENT_LENGTH") or 0) > MOST_BYTES:
            raise TooLarge(f"All reports together may have {MOST_BYTES:,} bytes.")
        given = shape(data=request.data)
        given.is_valid(raise_exception=True)
        return dict(given.validated_data)


def bodies_of(asked: dict[str, Any]) -> list[tuple[str | None, bytes]]:
    return [(kind, asked[kind]) for kind in reports.READERS if kind in asked]


class BuildReport(_Builds):
    @extend_schema(
        request={"multipart/form-data": BuildReports, "application/json": BuildReports}, responses=ReportsKept
    )
    def post(self, request: Request) -> Response:
        """Keep reports of a commit: files of a form, or their text in JSON."""
        asked = self.asked(request, BuildReports)
        bodies = bodies_of(asked)
        if not bodies:
            raise serializers.ValidationError({"junit": [f"Send at least one of {', '.join(reports.READERS)}."]})
        try:
            rows = quality.keep_all(
                watched(asked["service"]),
                asked["commit"],
                bodies,
                at=now(),
                source=caller_of(request),
                branch=asked["branch"],
            )
        except (quality.WrongReport, reports.ReportError) as error:
            raise serializers.ValidationError([str(error)]) from error
        kept = [{"kind": row.kind, "signals": row.signals} for row in rows]
        return Response({"service": asked["service"], "commit": asked["commit"], "kept": kept})


class BuildGate(_Builds):
    @extend_schema(request={"multipart/form-data": GateAsked, "application/json": GateAsked}, responses=GateAnswer)
    def post(self, request: Request) -> Response:
        """Keep a commit's reports and compare all it has with the branch: pass, fail or inconclusive, with numbers."""
        asked = self.asked(request, GateAsked)
        service = watched(asked["service"])
        try:
            found = gating.decide(
                service,
                asked["commit"],
                bodies_of(asked),
                at=now(),
                source=caller_of(request),
                branch=asked["branch"],
                tolerance=asked["tolerance"],
            )
        except (quality.WrongReport, reports.ReportError) as error:
            raise serializers.ValidationError([str(error)]) from error
        text = gate.markdown(found, title=f"{service} {asked['commit'][:12]}")
        return Response({**gating.as_json(found), "markdown": text})
