"""Reviews in the admin, the scorecard, and the paths of escalation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import now

from approvals.admin.parts import STYLES, signed_in
from approvals.readonly import ReadOnly
from improvements.cadence import local_day
from improvements.governance import drilling, emergencies, escalation, pages, reviewing
from improvements.models import Review, RollbackDrill

if TYPE_CHECKING:  # Django's classes take no type parameter at run time
    ReviewModelAdmin = admin.ModelAdmin[Review]
    DrillModelAdmin = admin.ModelAdmin[RollbackDrill]
else:
    ReviewModelAdmin = DrillModelAdmin = admin.ModelAdmin


class StandingFilter(admin.SimpleListFilter):
    title = "standing"
    parameter_name = "standing"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("me", "awaiting me"), ("open", "open"), ("overdue", "overdue"), ("signed", "signed off")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Review]) -> QuerySet[Review]:
        match self.value():
            case "me":
                return queryset.filter(pk__in=[review.pk for review in awaiting_me(request)])
            case "open":
                return queryset.filter(signed_at=None)
            case "overdue":
                return queryset.filter(signed_at=None, due_on__lt=local_day(now(), reviewing.zone()))
            case "signed":
                return queryset.exclude(signed_at=None)
        return queryset


def awaiting_me(request: HttpRequest) -> list[Review]:
    """What the signed-in person may sign off now; asked of the database once per page."""
    if not hasattr(request, "reviews_awaiting_me"):
        request.reviews_awaiting_me = reviewing.awaiting(signed_in(request))  # type: ignore[attr-defined]
    found: list[Review] = request.reviews_awaiting_me  # type: ignore[attr-defined]
    return found


@admin.register(Review)
class ReviewAdmin(ReadOnly, ReviewModelAdmin):
    actions = None
    nothing = "No review yet. One is made when a week, a month, a quarter or a year ends, and after an emergency."
    list_display = ["title", "standing", "asked", "due_on", "signed_by", "signed_at"]
    list_filter = [StandingFilter, "kind", "role"]
    list_select_related = ["signed_by"]
    list_per_page = 50
    search_fields = ["title", "notes"]
    show_full_result_count = False
    change_list_template = "admin/improvements/review/list.html"

    class Media:
        css = STYLES

    def get_queryset(self, request: HttpRequest) -> QuerySet[Review]:
        return super().get_queryset(request).defer("facts")

    @admin.display(description="standing", ordering="due_on")
    def standing(self, review: Review) -> SafeString:
        found = pages.status(review, local_day(now(), reviewing.zone()))
        return format_html('<strong class="rr-badge rr-{}">{}</strong>', found.css, found.words)

    @admin.display(description="who is asked", ordering="role")
    def asked(self, review: Review) -> str:
        return review.responsible[-1].title

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("scorecard/", view(self.scorecard), name="improvements_review_scorecard"),
            path("escalation/", view(self.escalation), name="improvements_review_escalation"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        context = {"awaiting": len(awaiting_me(request)), "shown": request.GET.get("standing", "")}
        return super().changelist_view(request, {**context, **(extra_context or {})})

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The review's page. POST signs it off: one call into the domain, whose rules answer in their own words."""
        review = self.get_object(request, object_id)
        if review is None:
            messages.warning(request, f"There is no review {object_id}.")
            return HttpResponseRedirect(reverse("admin:improvements_review_changelist"))
        if not self.has_view_permission(request, review):
            raise PermissionDenied
        notes = request.POST.get("notes", "")
        if request.method == "POST":
            try:
                emergencies.sign_off(review, person=signed_in(request), notes=notes, at=now())
            except reviewing.Refused as refused:
                messages.error(request, f"Not signed off. {refused}")
                review.refresh_from_db()
            else:
                messages.success(request, "Signed off. Your notes are kept with the facts.")
                return HttpResponseRedirect(review.get_absolute_url())
        page = pages.review_page(review, signed_in(request), now())
        return self._page(request, "page", review.title, page=page, notes=notes)

    def scorecard(self, request: HttpRequest) -> HttpResponse:
        asked = request.GET.get("days", "")
        days = int(asked) if asked in map(str, pages.WINDOWS) else pages.WINDOWS[0]
        return self._page(request, "scorecard", "Scorecard", page=pages.scorecard_page(days, now()))

    def escalation(self, request: HttpRequest) -> HttpResponse:
        context = {"paths": escalation.paths(), "groups": escalation.groups_page()}
        return self._page(request, "escalation", "Who is asked", **context)

    def _page(self, request: HttpRequest, template: str, title: str, **context: Any) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        common = {**self.admin_site.each_context(request), "opts": self.opts, "title": title, "subtitle": None}
        return TemplateResponse(request, f"admin/improvements/review/{template}.html", {**common, **context})


@admin.register(RollbackDrill)
class RollbackDrillAdmin(ReadOnly, DrillModelAdmin):
    """Told once and then looked at: the form adds, and nothing changes or deletes."""

    actions = None
    nothing = "No drill was told. A rollback that did not run for long is not known to work: try one, and add it here."
    list_display = ["service", "drilled_at", "worked", "seconds", "recorded_by", "recorded_as"]
    list_filter = ["service", "worked"]
    list_select_related = ["service", "recorded_by"]
    search_fields = ["tried", "notes"]
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest, *args: Any) -> bool:
        return request.user.has_perm("improvements.add_rollbackdrill")

    def get_exclude(self, request: HttpRequest, obj: RollbackDrill | None = None) -> list[str]:
        return [] if obj else ["recorded_by", "recorded_as", "recorded_at"]

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return super().changeform_view(request, *args, **kwargs)
        except drilling.Refused as refused:
            messages.error(request, f"Not recorded. {refused}")
            return HttpResponseRedirect(request.path)

    def save_model(self, request: HttpRequest, obj: RollbackDrill, form: Any, change: bool) -> None:
        drilling.tell(obj, person=signed_in(request), at=now())
