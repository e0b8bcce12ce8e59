"""The audit log, to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import current_app
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, URLPattern, path, reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import now

from approvals import audit, verifying
from approvals.admin.parts import STYLES, as_text, signed_in
from approvals.models import AuditEntry, AuditHead, AuditTombstone
from approvals.models.audit import AuditEntryQuerySet
from approvals.readonly import ReadOnly

if TYPE_CHECKING:  # Django's classes take no type parameter at run time
    EntryModelAdmin = admin.ModelAdmin[AuditEntry]
    EntryPaginator = Paginator[AuditEntry]
else:
    EntryModelAdmin = admin.ModelAdmin
    EntryPaginator = Paginator


COUNTED_AT_MOST = 10_000  # filtered log entries: nobody pages further, and counting a million takes a second


class LogPaginator(EntryPaginator):
    """Pages of the log by sequence instead of OFFSET: the numbers have no gaps, so the last page costs as the first."""

    @cached_property
    def whole_log(self) -> bool:
        assert isinstance(self.object_list, QuerySet)
        return not self.object_list.query.where

    @cached_property
    def count(self) -> int:
        assert isinstance(self.object_list, QuerySet)
        if self.whole_log:
            return self.newest - (AuditTombstone.objects.values_list("through", flat=True).first() or 0)
        return self.object_list.order_by()[:COUNTED_AT_MOST].count()

    @cached_property
    def newest(self) -> int:
        return AuditHead.objects.values_list("sequence", flat=True).first() or 0

    def page(self, number: int | str) -> Page[AuditEntry]:
        number = self.validate_number(number)
        if not self.whole_log:
            return super().page(number)
        assert isinstance(self.object_list, QuerySet)
        newest = self.newest - (number - 1) * self.per_page
        entries = self.object_list.filter(sequence__lte=newest, sequence__gt=newest - self.per_page)
        return Page(entries, number, self)


class ValueFilter(admin.SimpleListFilter):
    """The values that one indexed column of the log has, found by skipping through the index."""

    parameter_name: str

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, value) for value in AuditEntry.objects.values_of(self.parameter_name) if value]

    def queryset(self, request: HttpRequest, queryset: QuerySet[AuditEntry]) -> QuerySet[AuditEntry]:
        return queryset.filter(**{self.parameter_name: self.value()}) if self.value() else queryset


class ActionFilter(ValueFilter):
    title = "action"
    parameter_name = "action"


class ActorFilter(ValueFilter):
    title = "who"
    parameter_name = "actor"


class SubjectFilter(ValueFilter):
    title = "kind of subject"
    parameter_name = "subject_kind"


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnly, EntryModelAdmin):
    actions = None
    nothing = "Nothing recorded."
    list_display = ["sequence", "at", "actor", "action", "about", "reason"]
    list_filter = [ActionFilter, ActorFilter, SubjectFilter]
    list_per_page = 100
    search_fields = ["subject", "because", "actor", "action"]  # as the index has them: see AuditEntryQuerySet.saying
    search_help_text = "Words of subject, reason, person and action, or how they begin."
    ordering = ["-sequence"]
    sortable_by = ()
    show_full_result_count = False
    paginator = LogPaginator
    change_list_template = "admin/approvals/auditentry/list.html"
    fieldsets = [
        (None, {"fields": ["sequence", "at", "actor", "on_behalf_of", "action", "outcome", "about", "because"]}),
        ("Where from", {"fields": ["origin", "together"]}),
        ("What changed", {"fields": ["before", "after", "more"]}),
        ("Proof", {"fields": ["prev_hash", "hash", "recorded"]}),
    ]
    readonly_fields = ["together", "about", "before", "after", "more", "recorded"]

    class Media:
        css = STYLES

    def get_queryset(self, request: HttpRequest) -> QuerySet[AuditEntry]:
        entries = super().get_queryset(request)
        listing = request.resolver_match is not None and str(request.resolver_match.url_name).endswith("_changelist")
        return entries.defer("payload") if listing else entries

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        answer = super().changelist_view(request, extra_context)
        if answer.status_code == 200:
            audit.record_read(request.user, query=request.GET.urlencode())
        return answer

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        answer = super().change_view(request, object_id, form_url, extra_context)
        if answer.status_code == 200 and (entry := self.get_object(request, object_id)):
            audit.record_read(request.user, entry=entry)
        return answer

    def get_urls(self) -> list[URLPattern]:
        verifying_view = self.admin_site.admin_view(self.verifying_view)
        return [path("verify/", verifying_view, name="approvals_auditentry_verify"), *super().get_urls()]

    def verifying_view(self, request: HttpRequest) -> HttpResponse:
        """How the log stands: the last verification, what vouches for it, and a button that asks for another."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method == "POST":
            # By name: the task is of a higher app, which tells on-call when the log is not good.
            current_app.send_task("monitoring.tasks.verify_audit", kwargs={"asked_by": signed_in(request).pk})
            messages.success(
                request, "A worker verifies the whole log now. This page shows the result when it is there."
            )
            return HttpResponseRedirect(request.path)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Is the audit log what was written?",
            "standing": verifying.standing(now()),
        }
        return TemplateResponse(request, "admin/approvals/auditentry/verify.html", context)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[AuditEntry], search_term: str
    ) -> tuple[QuerySet[AuditEntry], bool]:
        assert isinstance(queryset, AuditEntryQuerySet)
        return queryset.saying(search_term), False

    @admin.display(description="subject")
    def about(self, entry: AuditEntry) -> SafeString | str:
        """Linked where the subject has a page. Whether the row is still there is not asked: entries outlive rows."""
        try:
            page = reverse(f"admin:{entry.subject_kind.replace('.', '_')}_change", args=[entry.subject_id])
        except NoReverseMatch:
            return entry.subject or "—"
        return format_html('<a href="{}">{}</a>', page, entry.subject)

    @admin.display(description="reason")
    def reason(self, entry: AuditEntry) -> str:
        return entry.because if len(entry.because) <= 120 else entry.because[:119] + "…"

    @admin.display(description="correlation")
    def together(self, entry: AuditEntry) -> SafeString | str:
        """Everything that the same request, task or step did."""
        if not entry.correlation:
            return "—"
        page = reverse("admin:approvals_auditentry_changelist", query={"correlation": entry.correlation})
        return format_html('<a href="{}">{}</a>', page, entry.correlation)

    @admin.display(description="was")
    def before(self, entry: AuditEntry) -> SafeString | str:
        return as_text(entry.was)

    @admin.display(description="became")
    def after(self, entry: AuditEntry) -> SafeString | str:
        return as_text(entry.became)

    @admin.display(description="data")
    def more(self, entry: AuditEntry) -> SafeString | str:
        return as_text(entry.data or None)

    @admin.display(description="payload as hashed")
    def recorded(self, entry: AuditEntry) -> SafeString:
        return format_html('<pre class="record">{}</pre>', entry.payload)
