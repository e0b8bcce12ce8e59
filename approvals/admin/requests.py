"""Requests to decide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.humanize.templatetags.humanize import naturaltime
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.timezone import now

from approvals import pages, requests, second_factor, sessions
from approvals.admin.parts import STYLES, signed_in
from approvals.models import ApprovalRequest
from approvals.policy import PENDING, RequestState, Tier
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
    list_display = ["title", "service", "tier", "state_shown", "proposer", "age", "deadline"]
    list_filter = [AwaitingFilter, "state", "tier"]
    list_select_related = ["proposed_by"]
    list_per_page = 50
    search_fields = ["title", "fingerprint"]
    show_full_result_count = False
    change_list_template = "admin/approvals/requests.html"

    class Media:
        css = STYLES

    @admin.display(description="asked", ordering="created_at")
    def age(self, row: ApprovalRequest) -> str:
        return naturaltime(row.created_at)

    @admin.display(description="service", ordering="scope")
    def service(self, row: ApprovalRequest) -> str:
        return row.scope or "the whole installation"

    @admin.display(description="state", ordering="state")
    def state_shown(self, row: ApprovalRequest) -> str:
        return pages.STATES[pages.state_of(row, now())]

    @admin.display(description="proposed by", ordering="proposed_by__username")
    def proposer(self, row: ApprovalRequest) -> str:
        return row.proposed_by.username if row.proposed_by else "RuneRogue"

    @admin.display(description="deadline", ordering="expires_at")
    def deadline(self, row: ApprovalRequest) -> str:
        if pages.state_of(row, now()) not in PENDING:
            return "—"
        return f"{naturaltime(row.expires_at)} ({row.expires_at:%Y-%m-%d %H:%M} UTC)"

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """What awaits a signature begins with what expires first; everything else with the newest."""
        return ("expires_at", "pk") if request.GET.get("awaiting") == "me" else ("-created_at", "-pk")

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApprovalRequest]:
        return super().get_queryset(request).defer("facts")  # a diff per line of the list is not wanted

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        context = {
            "awaiting": len(awaiting_me(request)),
            "showing_mine": request.GET.get("awaiting") == "me",
            **(extra_context or {}),
        }
        return super().changelist_view(request, context)

    def get_urls(self) -> list[URLPattern]:
        critical = self.admin_site.admin_view(self.critical_view)
        return [path("critical/", critical, name="approvals_approvalrequest_critical"), *super().get_urls()]

    def critical_view(self, request: HttpRequest) -> HttpResponse:
        """Every critical request that waits, each with a form of its own. There is no way to sign several at once."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            row = self.get_object(request, request.POST.get("request", ""))
            if row is None or row.tier != Tier.CRITICAL:
                messages.error(request, "Nothing was decided: this is none of the critical requests.")
                return HttpResponseRedirect(request.path)
            if answer := decide(request, row, form=f"#request-{row.pk}"):
                return answer
        at = now()
        page = pages.critical_page(
            signed_in(request),
            at,
            how=second_factor.how(request, at),
            typed=lambda pk: sessions.typed(request, form=f"#request-{pk}"),
        )
        return self.shown(
            request, "admin/approvals/critical.html", title="Critical changes that wait for signatures", critical=page
        )

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
        if request.method == "POST":
            if answer := decide(request, row, form="#decide"):
                return answer
            row.refresh_from_db()
        at = now()
        typed = sessions.typed(request, form="#decide")
        page = pages.decision_page(row, signed_in(request), at, how=second_factor.how(request, at), typed=typed)
        return self.shown(request, "admin/approvals/decision.html", title=row.title, page=page, **(extra_context or {}))

    def shown(self, request: HttpRequest, template: str, **context: Any) -> HttpResponse:
        return TemplateResponse(
            request, template, {**self.admin_site.each_context(request), "opts": self.opts, **context}
        )


DECIDE = {
    "approve": requests.approve,
    "reject": requests.reject,
    "ask-for-changes": requests.ask_for_changes,
    "revoke": requests.revoke,
    "comment": requests.comment,
}


def decide(request: HttpRequest, row: ApprovalRequest, *, form: str) -> HttpResponse | None:
    """Where to go now that it is decided; None when it was not, and then what was typed is kept. Told either way."""
    chosen, reason = request.POST.get("decision", ""), request.POST.get("reason", "")
    act = DECIDE.get(chosen)
    if act is None:
        messages.error(request, "Nothing was decided: choose one of the buttons.")
        return None
    more = {"on_behalf_of": whose_right(request)} if chosen == "approve" else {}
    try:
        after = act(
            row,
            person=signed_in(request),
            how=second_factor.how(request, now()),
            reason=reason,
            seen=request.POST.get("fingerprint") if chosen != "comment" else None,
            **more,
        )
    except requests.SecondFactorWanted as wanted:
        # Led to the code and back; nothing typed is lost.
        sessions.keep_typed(request, reason, form=form)
        messages.warning(request, wanted.why)
        return HttpResponseRedirect(second_factor.step_up_url(request, f"{request.path}{form}"))
    except requests.Refused as refused:
        sessions.keep_typed(request, reason, form=form)
        messages.error(request, f"Not recorded. {refused.why}")
        return None
    sessions.forget_typed(request, form=form)
    told = "Your decision is recorded" if chosen != "comment" else "Your comment is recorded"
    messages.success(request, f"{told}. The request is {pages.STATES[RequestState(after.state)]}.")
    return HttpResponseRedirect(f"{request.path}{form if form != '#decide' else ''}")


def whose_right(request: HttpRequest) -> int | None:
    """The id of the person whose right is to be used; None lets the policy choose, one's own right first."""
    given = request.POST.get("as", "")
    return int(given) if given.isdecimal() and len(given) < 19 else None
