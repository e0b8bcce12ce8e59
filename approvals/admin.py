"""The admin's pages of approvals: requests to decide, and the audit log to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.core.paginator import Page, Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.timezone import now

from approvals import outline, pages, requests
from approvals.models import ApprovalRequest, AuditEntry, AuditHead
from approvals.policy import Decision
from approvals.readonly import ReadOnly

if TYPE_CHECKING:  # Django's classes take no type parameter at run time
    RequestModelAdmin = admin.ModelAdmin[ApprovalRequest]
    EntryModelAdmin = admin.ModelAdmin[AuditEntry]
    EntryPaginator = Paginator[AuditEntry]
else:
    RequestModelAdmin = EntryModelAdmin = admin.ModelAdmin
    EntryPaginator = Paginator

STYLES = {"all": ["approvals.css"]}
COUNTED_AT_MOST = 10_000  # filtered log entries: nobody pages further, and counting a million takes a second


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
        request.awaiting_me = requests.awaiting(signed_in(request), now())  # type: ignore[attr-defined]
    found: list[int] = request.awaiting_me  # type: ignore[attr-defined]
    return found


def signed_in(request: HttpRequest) -> User:
    assert isinstance(request.user, User)
    return request.user


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
        reason = ""
        if request.method == "POST":
            reason = request.POST.get("reason", "")
            if self.decide(request, row):
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
                reason=request.POST.get("reason", ""),
                seen=request.POST.get("fingerprint", ""),
            )
        except requests.Refused as refused:
            messages.error(request, f"Not recorded. {refused.why}")
            return False
        messages.success(request, f"Your decision is recorded. The request is {after.state}.")
        return True


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
            return AuditHead.objects.values_list("sequence", flat=True).first() or 0
        return self.object_list.order_by()[:COUNTED_AT_MOST].count()

    def page(self, number: int | str) -> Page[AuditEntry]:
        number = self.validate_number(number)
        if not self.whole_log:
            return super().page(number)
        assert isinstance(self.object_list, QuerySet)
        newest = self.count - (number - 1) * self.per_page
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
    search_fields = ["subject", "because", "actor", "action"]
    search_help_text = "Looks in subject, reason, person and action."
    ordering = ["-sequence"]
    sortable_by = ()
    show_full_result_count = False
    paginator = LogPaginator
    fieldsets = [
        (None, {"fields": ["sequence", "at", "actor", "action", "about", "because"]}),
        ("What changed", {"fields": ["before", "after", "more"]}),
        ("Proof", {"fields": ["prev_hash", "hash", "recorded"]}),
    ]
    readonly_fields = ["about", "before", "after", "more", "recorded"]

    class Media:
        css = STYLES

    def get_queryset(self, request: HttpRequest) -> QuerySet[AuditEntry]:
        entries = super().get_queryset(request)
        listing = request.resolver_match is not None and str(request.resolver_match.url_name).endswith("_changelist")
        return entries.defer("payload") if listing else entries

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


def as_text(value: Any) -> SafeString | str:
    """A recorded value for people; a dash for nothing."""
    if value is None:
        return "—"
    rows = (
        (line.depth, f"{line.name}: " if line.name and line.text else line.name, line.text)
        for line in outline.lines(value)
    )
    return format_html_join("", '<div class="rr-line rr-depth-{}"><strong>{}</strong>{}</div>', rows)
