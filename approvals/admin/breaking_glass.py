"""Break-glass: opening, confirming and closing it, and what became of each use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.timezone import now

from approvals import breaking_glass, holding, second_factor, sessions
from approvals.admin.parts import STYLES, signed_in
from approvals.models import ApprovalRequest, BreakGlass
from approvals.models.break_glass import CONFIRM_WITHIN, IN_FORCE_FOR, UNSETTLED
from approvals.pages import STATES
from approvals.policy import RequestState
from approvals.readonly import ReadOnly

if TYPE_CHECKING:  # Django's classes take no type parameter at run time
    GlassModelAdmin = admin.ModelAdmin[BreakGlass]
else:
    GlassModelAdmin = admin.ModelAdmin

TYPED = frozenset({"because", "notes"})  # the texts of the page of one use


class ReviewFilter(admin.SimpleListFilter):
    title = "review"
    parameter_name = "review"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("due", "open, or not reviewed yet")]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return queryset.filter(UNSETTLED) if self.value() == "due" else queryset


@admin.register(BreakGlass)
class BreakGlassAdmin(ReadOnly, GlassModelAdmin):
    actions = None
    nothing = "Never used. It is opened on the page of an approval request, by two people, in an emergency."
    list_display = ["what", "state", "opened_by", "confirmed_by", "opened_at", "ticket", "reviewed"]
    list_filter = [ReviewFilter, "state"]
    list_select_related = ["request", "opened_by", "confirmed_by", "reviewed_by"]
    search_fields = ["ticket", "reason"]
    show_full_result_count = False

    class Media:
        css = STYLES

    @admin.display(description="rollout of", ordering="request__title")
    def what(self, glass: BreakGlass) -> str:
        return f"{glass.request.title} ({glass.request.scope})" if glass.request.scope else glass.request.title

    @admin.display(description="review", ordering="reviewed_at")
    def reviewed(self, glass: BreakGlass) -> str:
        if glass.reviewed_at:
            return f"by {glass.reviewed_by}, {glass.reviewed_at:%Y-%m-%d}"
        if glass.review_due_at is None:
            return "none needed: nobody confirmed it"
        return f"{'OVERDUE' if glass.review_due_at < now() else 'due'} since {glass.confirmed_at:%Y-%m-%d}"

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("open/<int:request_pk>/", view(self.open_page), name="approvals_breakglass_open"),
            path("<int:pk>/confirm/", view(self.confirm), name="approvals_breakglass_confirm"),
            path("<int:pk>/revoke/", view(self.revoke), name="approvals_breakglass_revoke"),
            path("<int:pk>/review/", view(self.review), name="approvals_breakglass_review"),
            *super().get_urls(),
        ]

    def open_page(self, request: HttpRequest, request_pk: int) -> HttpResponse:
        """What it means, and the form of the first person. POST opens it."""
        row = ApprovalRequest.objects.filter(pk=request_pk).first()
        if row is None:
            messages.warning(request, f"There is no approval request {request_pk}.")
            return HttpResponseRedirect(reverse("admin:approvals_approvalrequest_changelist"))
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST" and (answer := self._open(request, row)):
            return answer
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Break-glass",
            "subtitle": row.title,
            "asked": row,
            "refused": breaking_glass.may_open(row, signed_in(request), at=now()),
            "hold": holding.look_at(row, now()).hold,
            "live": BreakGlass.objects.live().filter(request=row).first(),
            "minutes": CONFIRM_WITHIN.seconds // 60,
            "hours": IN_FORCE_FOR.seconds // 3600,
            "reason": sessions.typed(request, form="#reason"),
            "ticket": sessions.typed(request, form="#ticket"),
            "asks_for_code": not second_factor.how(request, now()).is_fresh,
            "state_in_words": STATES[RequestState(row.state)],
        }
        return TemplateResponse(request, "admin/approvals/breakglass/open.html", context)

    def _open(self, request: HttpRequest, row: ApprovalRequest) -> HttpResponse | None:
        """Where to go now that it is open, or for the code first; None when it was refused. Nothing typed is lost."""
        given = {name: request.POST.get(name, "") for name in ("reason", "ticket")}
        for name, text in given.items():
            sessions.keep_typed(request, text, form=f"#{name}")
        try:
            glass = breaking_glass.open_glass(
                row, person=signed_in(request), how=second_factor.how(request, now()), at=now(),
                seen=request.POST.get("fingerprint", ""), **given,
            )  # fmt: skip
        except breaking_glass.SecondFactorWanted as wanted:
            messages.warning(request, str(wanted))
            return HttpResponseRedirect(second_factor.step_up_url(request, f"{request.path}#open"))
        except breaking_glass.Refused as refused:
            messages.error(request, f"Not opened. {refused}")
            return None
        for name in given:
            sessions.forget_typed(request, form=f"#{name}")
        messages.warning(request, "Opened, and everybody is told. Nothing passes until a second person confirms.")
        return HttpResponseRedirect(reverse("admin:approvals_breakglass_change", args=[glass.pk]))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        glass = self.get_object(request, object_id)
        if glass is None:
            messages.warning(request, f"There is no use of break-glass {object_id}.")
            return HttpResponseRedirect(reverse("admin:approvals_breakglass_changelist"))
        if not self.has_view_permission(request, glass):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Break-glass",
            "subtitle": glass.request.title,
            "glass": glass,
            "over": breaking_glass.has_lapsed(glass, now()),
            "offers": breaking_glass.offers(glass, signed_in(request), at=now()),
            "asks_for_code": not second_factor.how(request, now()).is_fresh,
            "state_in_words": STATES[RequestState(glass.request.state)],
            **{name: sessions.typed(request, form=f"#{name}") for name in TYPED},
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/approvals/breakglass/page.html", context)

    def confirm(self, request: HttpRequest, pk: int) -> HttpResponse:
        def act(glass: BreakGlass) -> str:
            how = second_factor.how(request, now())
            breaking_glass.confirm(glass, person=signed_in(request), how=how, at=now())
            return "Confirmed, and everybody is told. The rollout may start now."

        return self._act(request, pk, act)

    def revoke(self, request: HttpRequest, pk: int) -> HttpResponse:
        def act(glass: BreakGlass) -> str:
            because = request.POST.get("because", "")
            breaking_glass.revoke(glass, person=signed_in(request), because=because, at=now())
            return "Revoked. The policy decides again."

        return self._act(request, pk, act)

    def review(self, request: HttpRequest, pk: int) -> HttpResponse:
        def act(glass: BreakGlass) -> str:
            notes = request.POST.get("notes", "")
            breaking_glass.review(glass, person=signed_in(request), notes=notes, at=now())
            return "Reviewed."

        return self._act(request, pk, act)

    def _act(self, request: HttpRequest, pk: int, act: Callable[[BreakGlass], str]) -> HttpResponse:
        back = HttpResponseRedirect(reverse("admin:approvals_breakglass_change", args=[pk]))
        glass = BreakGlass.objects.filter(pk=pk).first()
        if request.method != "POST" or glass is None:
            return back
        if not self.has_view_permission(request, glass):
            raise PermissionDenied
        for name in TYPED & set(request.POST):
            sessions.keep_typed(request, request.POST[name], form=f"#{name}", page=back.url)
        try:
            messages.success(request, act(glass))
            for name in TYPED:
                sessions.forget_typed(request, form=f"#{name}", page=back.url)
        except breaking_glass.SecondFactorWanted as wanted:
            messages.warning(request, str(wanted))
            return HttpResponseRedirect(second_factor.step_up_url(request, f"{back.url}#confirm"))
        except breaking_glass.Refused as refused:
            messages.error(request, f"Not done. {refused}")
        return back
