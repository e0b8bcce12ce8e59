"""Requests to decide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.timezone import now

from approvals import pages, requests, second_factor, sessions
from approvals.admin.parts import STYLES, signed_in
from approvals.models import ApprovalRequest
from approvals.policy import Decision
from approvals.readonly import ReadOnly

if TYPE_CHECKING:  # Django's classes take no type parameter at run time
    RequestModelAdmin = admin.ModelAdmin[ApprovalRequest]
else:
    RequestModelAdmin = admin.ModelAdmin


class AwaitingFilter(admin.SimpleListFilter):
    title = "signature"
    parameter_name = "awaiting"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("me", "awaiting me")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[ApprovalRequest]) -> QuerySet[ApprovalRequest]:
        if self.value() == "me":
            return queryset.filter(pk__in=awaiting_me(request))
        return queryset


def awaiting_me(request: HttpRequest) -> list[int]:
    """What the signed-in person may sign now; asked of the database once per page."""
    if not hasattr(request, "awaiting_me"):
        request.awaiting_me = [one.id for one in requests.awaiting(signed_in(request), now())]  # type: ignore[attr-defined]
    found: list[int] = request.awaiting_me  # type: ignore[attr-defined]
    return found


@admin.register(ApprovalRequest)
class ApprovalRequestAdmin(ReadOnly, RequestModelAdmin):
    actions = None
    nothing = "Nothing here. A request appears when an improvement needs people to sign."
    list_display = ["title", "tier", "state", "proposed_by", "created_at", "expires_at"]
    list_filter = [AwaitingFilter, "state", "tier"]
    list_select_related = ["proposed_by"]
    list_per_page = 50
    search_fields = ["title", "fingerprint"]
    show_full_result_count = False
    change_list_template = "admin/approvals/requests.html"

    class Media:
        css = STYLES

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApprovalRequest]:
        return super().get_queryset(request).defer("facts")  # a diff per line of the list is not wanted

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        context = {
            "awaiting": len(awaiting_me(request)),
            "showing_mine": request.GET.get("awaiting") == "me",
            **(extra_context or {}),
        }
        return super().changelist_view(request, context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The decision page. POST decides: one call into the domain, whose rules answer in their own words."""
        row = self.get_object(request, object_id)
        if row is None:
            messages.warning(request, f"There is no approval request {object_id}.")
            return HttpResponseRedirect(reverse("admin:approvals_approvalrequest_changelist"))
        if not self.has_view_permission(request, row):
            raise PermissionDenied
        reason = sessions.typed(request)
        if request.method == "POST":
            reason = request.POST.get("reason", "")
            try:
                decided = self.decide(request, row)
            except requests.SecondFactorWanted as wanted:
                # Led to the code and back; nothing typed is lost.
                sessions.keep_typed(request, reason)
                messages.warning(request, wanted.why)
                return HttpResponseRedirect(second_factor.step_up_url(request, f"{request.path}#decide"))
            if decided:
                sessions.forget_typed(request)
                return HttpResponseRedirect(reverse("admin:approvals_approvalrequest_change", args=[row.pk]))
            row.refresh_from_db()
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": row.title,
            "page": pages.decision_page(row, signed_in(request), now()),
            "reason": reason,
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/approvals/decision.html", context)

    def decide(self, request: HttpRequest, row: ApprovalRequest) -> bool:
        """Whether it was decided; the person is told either way."""
        choices = {Decision.APPROVE.value: requests.approve, Decision.REJECT.value: requests.reject}
        choice = choices.get(request.POST.get("decision", ""))
        if choice is None:
            messages.error(request, "Nothing was decided: choose Approve or Reject.")
            return False
        try:
            after = choice(
                row,
                person=signed_in(request),
                how=second_factor.how(request, now()),
                reason=request.POST.get("reason", ""),
                seen=request.POST.get("fingerprint", ""),
            )
        except requests.SecondFactorWanted:
            raise
        except requests.Refused as refused:
            messages.error(request, f"Not recorded. {refused.why}")
            return False
        messages.success(request, f"Your decision is recorded. The request is {after.state}.")
        return True
