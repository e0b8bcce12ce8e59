"""The REST API of approvals: requests to read and to decide.

What may be done is decided by the domain alone; here its refusals become 403 (this person may not) or 409 (nobody may
now), each with the rule that refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib.auth.models import User
from django.db.models import Prefetch, QuerySet
from django.http import Http404
from django.utils.timezone import now
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import exceptions, serializers
from rest_framework.request import Request
from rest_framework.response import Response

from approvals import pages, requests, scopes, second_factor
from approvals.models import ApiToken, ApprovalRequest, Scope, Signature
from approvals.policy import Channel, Decision, How, RequestState, Tier
from approvals.rest import ApiListView, ApiView

if TYPE_CHECKING:
    RequestRows = serializers.ModelSerializer[ApprovalRequest]
    SignatureRows = serializers.ModelSerializer[Signature]
    Fields = serializers.Serializer[Any]
else:
    RequestRows = SignatureRows = serializers.ModelSerializer
    Fields = serializers.Serializer

LONGEST_TEXT = 4000


class MayNot(exceptions.PermissionDenied):
    """The rule forbids it to this person, or to this way of deciding."""

    more: Mapping[str, str] = {}


class NotNow(exceptions.APIException):
    """The rule forbids it to everybody, as the request stands."""

    status_code = 409
    default_code = "conflict"
    more: Mapping[str, str] = {}


def refusal(refused: requests.Refused) -> exceptions.APIException:
    """A refusal of the domain in the form of the API, with the rule's name and its own sentence."""
    error = NotNow(refused.why) if refused.is_conflict else MayNot(refused.why)
    error.more = {"rule": refused.rule}
    return error


class SignatureRow(SignatureRows):
    person = serializers.CharField(source="person.username", read_only=True)
    on_behalf_of = serializers.CharField(source="on_behalf_of.username", read_only=True, allow_null=True, default=None)

    class Meta:
        model = Signature
        fields = [
            "person", "role", "on_behalf_of", "decision", "reason", "channel", "second_factor", "fingerprint", "at",
            "voided_at", "voided_because",
        ]  # fmt: skip
        read_only_fields = fields


class RequirementTold(Fields):
    tier = serializers.ChoiceField([str(tier) for tier in Tier])
    signatures = serializers.ListField(
        child=serializers.ListField(child=serializers.CharField()),
        help_text="A signature each, of a different person who has one of these roles.",
    )
    reason = serializers.CharField()
    policy_version = serializers.CharField()


class RequestRow(RequestRows):
    service = serializers.CharField(source="scope", read_only=True)
    proposed_by = serializers.CharField(source="proposed_by.username", read_only=True, allow_null=True, default=None)
    requirement = RequirementTold(read_only=True)
    signatures = SignatureRow(many=True, read_only=True)

    class Meta:
        model = ApprovalRequest
        fields = [
            "id", "title", "service", "tier", "categories", "state", "because", "requirement", "fingerprint",
            "policy_version", "proposed_by", "created_at", "expires_at", "decided_at", "url", "signatures",
        ]  # fmt: skip
        read_only_fields = fields


class RequestTold(RequestRow):
    """One request with what signers see and what the caller may do."""

    ended = serializers.CharField(
        allow_blank=True, help_text="What there is to do for whoever still wants it, when it ended without an approval."
    )
    held = serializers.CharField(allow_blank=True, help_text="What would keep it from starting if it were approved.")
    missing = serializers.ListField(child=serializers.CharField(), help_text="The signatures that are still missing.")
    may = serializers.DictField(
        child=serializers.CharField(allow_blank=True),
        help_text="Decision → empty when the caller may take it now, otherwise the rule that forbids it.",
    )

    class Meta(RequestRow.Meta):
        fields = [*RequestRow.Meta.fields, "facts", "ended", "held", "missing", "may"]
        read_only_fields = fields


def listed() -> QuerySet[ApprovalRequest]:
    signatures = Signature.objects.select_related("person", "on_behalf_of")
    return (
        ApprovalRequest.objects.defer("facts")
        .select_related("proposed_by")
        .prefetch_related(Prefetch("signatures", signatures))
    )


def told(row: ApprovalRequest, viewer: User) -> dict[str, Any]:
    """The answer about one request, as `viewer` may see and decide it."""
    row = listed().defer(None).get(pk=row.pk)
    page = pages.decision_page(row, viewer, now())
    row.missing = [need.of for need in page.needs]  # type: ignore[attr-defined]
    row.may = {one.name: str(getattr(page.may, one.name)) for one in dataclasses.fields(page.may)}  # type: ignore[attr-defined]
    row.held, row.ended = page.held, page.ended  # type: ignore[attr-defined]
    return dict(RequestTold(row).data)


@extend_schema(
    parameters=[
        OpenApiParameter("state", str, enum=[str(state) for state in RequestState]),
        OpenApiParameter("tier", str, enum=[str(tier) for tier in Tier]),
        OpenApiParameter("service", str, description="Only about the service of this name."),
        OpenApiParameter("awaiting", str, enum=["me"], description="Only those that the caller may sign now."),
    ]
)
class Approvals(ApiListView):
    """Approval requests, decided ones too, newest first."""

    serializer_class = RequestRow

    def get_queryset(self) -> QuerySet[ApprovalRequest]:
        asked, found = self.request.query_params, listed()
        for name, known in (("state", set(RequestState)), ("tier", set(Tier)), ("awaiting", {"me"})):
            value = asked.get(name)
            if value and value not in known:
                raise serializers.ValidationError({name: [f"One of: {', '.join(sorted(known))}."]})
        if asked.get("state"):
            found = found.filter(state=asked["state"])
        if asked.get("tier"):
            found = found.filter(tier=asked["tier"])
        if service := asked.get("service"):
            if service not in scopes.names():
                raise Http404(f"No service named {service[:100]!r} is watched.")
            found = found.filter(scope=service)
        if asked.get("awaiting"):
            assert isinstance(self.request.user, User)
            found = found.filter(pk__in=[one.id for one in requests.awaiting(self.request.user, now())])
        return found


def one(pk: int) -> ApprovalRequest:
    """The request of that number. Raises Http404."""
    row = ApprovalRequest.objects.filter(pk=pk).first()
    if row is None:
        raise Http404(f"There is no approval request {pk}.")
    return row


class OneApproval(ApiView):
    @extend_schema(responses=RequestTold, operation_id="approval_retrieve")
    def get(self, request: Request, id: int) -> Response:  # noqa: A002 (the name in the address)
        """One request: what changes, why, the proof, who signed, who must, and what the caller may do."""
        assert isinstance(request.user, User)
        return Response(told(one(id), request.user))


class Said(Fields):
    reason = serializers.CharField(max_length=LONGEST_TEXT, required=False, allow_blank=True, default="")
    fingerprint = serializers.RegexField(
        r"^[0-9a-f]{64}$", help_text="Of what the caller looked at: the decision holds for exactly this."
    )
    code = serializers.RegexField(
        r"^[0-9A-Za-z-]{6,20}$",
        required=False,
        write_only=True,
        help_text="A one-time code: from high risk on a token alone does not approve.",
    )


class Noted(Fields):
    text = serializers.CharField(max_length=LONGEST_TEXT)


class Why(Fields):
    reason = serializers.CharField(max_length=LONGEST_TEXT)


class _Deciding(ApiView):
    """One decision of one person about one request; `Idempotency-Key` makes a repetition harmless."""

    scopes: ClassVar = {"POST": Scope.APPROVE}
    shape: ClassVar[type[Fields]] = Said
    how = How(Channel.TOKEN)

    def prepare(self, request: Request) -> None:
        # A code that was used, and a guess that was wrong, must stay counted when the decision itself is refused.
        if request.method in self.scopes:  # nobody was asked who they are for a method that is not there
            self.how = how_of(request)

    def said(self, request: Request) -> dict[str, Any]:
        given = self.shape(data=request.data)
        given.is_valid(raise_exception=True)
        return dict(given.validated_data)


def how_of(request: Request) -> How:
    """Through what the caller decides: a page's session with its second factor, or a token with or without a code."""
    code = request.data.get("code") if hasattr(request.data, "get") else None
    assert isinstance(request.user, User)
    if isinstance(request.auth, ApiToken):
        return second_factor.how_by_token(request, str(code or ""), now())
    return second_factor.how(request._request, now())


class Sign(_Deciding):
    @extend_schema(request=Said, responses=RequestTold, operation_id="approval_sign")
    def post(self, request: Request, id: int) -> Response:  # noqa: A002
        """Approve. High and critical risk need a reason and a second factor."""
        return decide(self, request, id, Decision.APPROVE)


class Reject(_Deciding):
    @extend_schema(request=Said, responses=RequestTold, operation_id="approval_reject")
    def post(self, request: Request, id: int) -> Response:  # noqa: A002
        """Say no, which ends the request. A reason is needed."""
        return decide(self, request, id, Decision.REJECT)


class AskForChanges(_Deciding):
    @extend_schema(request=Said, responses=RequestTold, operation_id="approval_ask_for_changes")
    def post(self, request: Request, id: int) -> Response:  # noqa: A002
        """Ask for changes: nothing is approved until what is asked about has changed."""
        return decide(self, request, id, Decision.ASK_FOR_CHANGES)


DECIDE = {
    Decision.APPROVE: requests.approve,
    Decision.REJECT: requests.reject,
    Decision.ASK_FOR_CHANGES: requests.ask_for_changes,
}


def decide(view: _Deciding, request: Request, pk: int, decision: Decision) -> Response:
    """One call into the domain; its rules answer in their own words."""
    assert isinstance(request.user, User)
    said, row = view.said(request), one(pk)
    try:
        row = DECIDE[decision](row, person=request.user, how=view.how, reason=said["reason"], seen=said["fingerprint"])
    except requests.Refused as refused:
        raise refusal(refused) from refused
    return Response(told(row, request.user))


class Revoke(_Deciding):
    shape = Why

    @extend_schema(request=Why, responses=RequestTold, operation_id="approval_revoke")
    def post(self, request: Request, id: int) -> Response:  # noqa: A002
        """Take the caller's own signature back, until the rollout has started."""
        assert isinstance(request.user, User)
        said = self.said(request)
        try:
            row = requests.revoke(one(id), person=request.user, how=self.how, reason=said["reason"])
        except requests.Refused as refused:
            raise refusal(refused) from refused
        return Response(told(row, request.user))


class SayComment(_Deciding):
    shape = Noted

    @extend_schema(request=Noted, responses=RequestTold, operation_id="approval_comment")
    def post(self, request: Request, id: int) -> Response:  # noqa: A002
        """Say something about it without deciding."""
        assert isinstance(request.user, User)
        said = self.said(request)
        row = one(id)
        try:
            requests.comment(row, person=request.user, how=self.how, reason=said["text"])
        except requests.Refused as refused:
            raise refusal(refused) from refused
        return Response(told(row, request.user))
