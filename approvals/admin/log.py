"""The audit log, to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import current_app
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.timezone import now

from approvals import audit, verifying
from approvals.admin import log_page
from approvals.admin.parts import STYLES, as_text, signed_in
from approvals.models import AuditEntry
from approvals.readonly import ReadOnly

if TYPE_CHECKING:  # Django's classes take no type parameter at run time
    EntryModelAdmin = admin.ModelAdmin[AuditEntry]
else:
    EntryModelAdmin = admin.ModelAdmin


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnly, EntryModelAdmin):
    actions = None
    fieldsets = [
        (None, {"fields": ["sequence", "at", "actor", "on_behalf_of", "action", "outcome", "about", "because"]}),
        ("Where from", {"fields": ["origin", "together"]}),
        ("What changed", {"fields": ["before", "after", "more"]}),
        ("Proof", {"fields": ["prev_hash", "hash", "recorded"]}),
    ]
    readonly_fields = ["together", "about", "before", "after", "more", "recorded"]

    class Media:
        css = STYLES

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """A page of its own: Django's list counts, numbers its pages and asks for each cell how to show it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        page = log_page.compose(request.GET)
        audit.record_read(request.user, query=request.GET.urlencode())
        context = {**self.admin_site.each_context(request), "opts": self.opts, "title": "Audit log", "page": page}
        return TemplateResponse(request, "admin/approvals/auditentry/list.html", context)

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

    @admin.display(description="subject")
    def about(self, entry: AuditEntry) -> SafeString | str:
        """Linked where the subject has a page. Whether the row is still there is not asked: entries outlive rows."""
        page = log_page.subject_page(entry.subject_kind, entry.subject_id)
        return format_html('<a href="{}">{}</a>', page, entry.subject or "—") if page else entry.subject or "—"

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
