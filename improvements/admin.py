"""Improvements in the admin: what is under way, every step with its evidence, and the diff."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from approvals import requests
from approvals.models import ApprovalRequest
from approvals.readonly import ReadOnly
from improvements import editing, stopping, suggesting
from improvements.digest import admin as digest_admin  # noqa: F401  (its pages)
from improvements.governance.admin import ReviewAdmin
from improvements.models import IllegalMove, Improvement, LostRace, Release, Rollout, State
from improvements.showing import page_of

__all__ = ["ImprovementAdmin", "ReleaseAdmin", "ReviewAdmin", "RolloutAdmin"]


class MachineWritten(ReadOnly, admin.ModelAdmin[Any]):
    """Rows that the machine writes: people look at them, and act through the buttons of a page."""

    show_full_result_count = False
    actions = None


@admin.register(Improvement)
class ImprovementAdmin(MachineWritten):
    nothing = "No improvement yet. They are suggested when a finding is open that an author can act on."
    list_display = ["title", "service", "state", "tier_shown", "benefit_shown", "state_since"]
    list_filter = ["state", "service", "author", "tier"]
    list_select_related = ["service"]
    search_fields = ["title", "why", "head_commit"]
    change_form_template = "admin/improvements/improvement/page.html"

    @admin.display(description="risk", ordering="risk")
    def tier_shown(self, improvement: Improvement) -> str:
        if improvement.risk is None:
            return f"about {improvement.estimated_tier}"
        return f"{improvement.tier} ({improvement.risk:.2f})"

    @admin.display(description="waiting saved, estimated", ordering="benefit")
    def benefit_shown(self, improvement: Improvement) -> str:
        return f"{improvement.benefit:,.0f} s an hour"

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("<int:pk>/begin/", view(self.begin), name="improvements_improvement_begin"),
            path("<int:pk>/stop/", view(self.stop), name="improvements_improvement_stop"),
            path("<int:pk>/edit/", view(self.edit), name="improvements_improvement_edit"),
            path("<int:pk>/retry/", view(self.retry), name="improvements_improvement_retry"),
            *super().get_urls(),
        ]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        improvement = self.get_object(request, object_id)
        context = dict(extra_context or {})
        if improvement is not None:
            asked = (
                ApprovalRequest.objects.filter(subject_kind="improvement", subject_id=improvement.pk)
                .order_by("-pk")
                .first()
            )
            context |= {
                "title": improvement.title,
                "subtitle": None,
                "page": page_of(improvement),
                "approval_request": asked,
                "may_operate": request.user.has_perm("improvements.change_improvement"),
            }
        return super().change_view(request, object_id, form_url, context)

    def begin(self, request: HttpRequest, pk: int) -> HttpResponse:
        def act(improvement: Improvement, actor: User, because: str) -> str:
            return "Started." if suggesting.begin(improvement, actor=actor) else "It was started already."

        return self._act(request, pk, act)

    def stop(self, request: HttpRequest, pk: int) -> HttpResponse:
        def act(improvement: Improvement, actor: User, because: str) -> str:
            if not because:
                raise ValueError("Write a reason: the record and the next attempt need it.")
            target = stopping.stop(improvement, actor=actor, because=because)
            return f"Stopped: it is now {target.label}."

        return self._act(request, pk, act)

    def retry(self, request: HttpRequest, pk: int) -> HttpResponse:
        def act(improvement: Improvement, actor: User, because: str) -> str:
            if not because:
                raise ValueError("Write what you removed that held the rollback up: the record needs it.")
            stopping.retry_rollback(improvement, actor=actor, because=because)
            return "The rollback is tried again."

        return self._act(request, pk, act)

    def edit(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Give a patch of one's own in place of the author's; what was typed stays when it can't be taken."""
        back = HttpResponseRedirect(reverse("admin:improvements_improvement_change", args=[pk]))
        improvement, actor = Improvement.objects.filter(pk=pk).select_related("service").first(), request.user
        if improvement is None or not isinstance(actor, User) or not actor.has_perm("improvements.change_improvement"):
            messages.error(request, "There is no such improvement, or you may look at improvements and not edit them.")
            return back
        patch, because = improvement.diff, ""
        if request.method == "POST":
            # A form sends lines as browsers do; a patch has its own.
            patch = request.POST.get("diff", "").replace("\r\n", "\n")
            because = request.POST.get("because", "")
            try:
                editing.edit(improvement, diff=patch, actor=actor, because=because)
            except (editing.CannotEdit, LostRace) as refused:
                messages.error(request, f"Not taken. {refused}")
            else:
                messages.success(request, "Your patch is taken. It is tested, scanned and staged, and asked for anew.")
                return back
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": f"Edit the patch: {improvement.title}",
            "improvement": improvement,
            "may_edit": improvement.state == State.AWAITING_APPROVAL,
            "asks": requests.asked_changes("improvement", pk),
            "diff": patch,
            "because": because,
        }
        return TemplateResponse(request, "admin/improvements/improvement/edit.html", context)

    def _act(self, request: HttpRequest, pk: int, act: Callable[[Improvement, User, str], str]) -> HttpResponse:
        back = HttpResponseRedirect(reverse("admin:improvements_improvement_change", args=[pk]))
        actor = request.user
        if request.method != "POST":
            return back
        if not isinstance(actor, User) or not actor.has_perm("improvements.change_improvement"):
            messages.error(request, "You may look at improvements, but not start or stop them.")
            return back
        try:
            told = act(Improvement.objects.get(pk=pk), actor, request.POST.get("because", "").strip())
        except (IllegalMove, LostRace, ValueError) as refused:
            messages.error(request, str(refused))
        except Improvement.DoesNotExist:
            messages.error(request, f"There is no improvement {pk}.")
        else:
            messages.success(request, told)
        return back


@admin.register(Release)
class ReleaseAdmin(MachineWritten):
    nothing = "No release yet. `manage.py deploy NAME` runs a registered service behind the proxy."
    list_display = ["__str__", "state", "share_shown", "server", "port", "started_at"]
    list_filter = ["service", "state"]
    list_select_related = ["service"]
    fields = ["service", "commit", "state", "share_shown", "server", "port", "folder", "started_at", "created_at"]
    readonly_fields = ["share_shown"]

    @admin.display(description="share of the traffic", ordering="share")
    def share_shown(self, release: Release) -> str:
        return f"{release.share} %"


@admin.register(Rollout)
class RolloutAdmin(MachineWritten):
    nothing = "No rollout yet. One begins when an improvement is approved."
    list_display = ["improvement", "service", "state", "last_verdict", "started_at", "ended_at"]
    list_filter = ["service", "state"]
    list_select_related = ["service", "improvement"]
    fields = [
        "service", "improvement", "current", "candidate", "state", "started_at", "full_since",
        "traffic_back_at", "ended_at", "verdicts_shown",
    ]  # fmt: skip
    readonly_fields = ["verdicts_shown"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Rollout]:
        return super().get_queryset(request).select_related("current__service", "candidate__service")

    @admin.display(description="last verdict")
    def last_verdict(self, rollout: Rollout) -> str:
        if not rollout.verdicts:
            return "none yet"
        last = rollout.verdicts[-1]
        return f"{last['verdict']} at {last['share']} %"

    @admin.display(description="verdicts")
    def verdicts_shown(self, rollout: Rollout) -> SafeString:
        if not rollout.verdicts:
            return format_html("none yet")
        return format_html_join(
            "",
            "<p><strong>{} %: {}</strong> {}</p>",
            ((v["share"], v["verdict"], v["reason"]) for v in rollout.verdicts),
        )
