"""The policy: what is in force and was, proposing another, and who must sign what."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.dateparse import parse_datetime
from django.utils.functional import cached_property
from django.utils.timezone import is_naive, make_aware, now

from approvals import diff, forecasting, policies, rulebook, scopes, subjects, terms
from approvals.admin.parts import STYLES, signed_in
from approvals.models import ApprovalRequest, PolicyVersion
from approvals.policy import Category, Subject, Tier, in_words
from approvals.readonly import ReadOnly
from approvals.rulebook import Document, Mistake, PolicyError

if TYPE_CHECKING:  # Django's classes take no type parameter at run time
    PolicyModelAdmin = admin.ModelAdmin[PolicyVersion]
else:
    PolicyModelAdmin = admin.ModelAdmin

MOST_CHARACTERS_OF_A_NAME = 100


@admin.register(PolicyVersion)
class PolicyVersionAdmin(ReadOnly, PolicyModelAdmin):
    actions = None
    nothing = "Nobody has changed the policy: the one that is shipped is in force."
    list_display = ["__str__", "in_force_since", "proposed_by", "proposed_at", "because"]
    list_select_related = ["proposed_by"]
    search_fields = ["because", "proposed_by__username"]
    show_full_result_count = False
    change_list_template = "admin/approvals/policyversion/list.html"

    class Media:
        css = STYLES

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("who-must-sign/", view(self.who_must_sign), name="approvals_who_must_sign"),
            path("propose/", view(self.propose), name="approvals_policy_propose"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        held = terms.in_force()
        context = {
            "held": held,
            "table": table_of(held.document),
            "may_propose": policies.may_propose(signed_in(request)),
            "gaps": forecasting.gaps(now()),
        }
        return super().changelist_view(request, {**context, **(extra_context or {})})

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """One version: what it changes, what became of it, and the whole of it."""
        version = self.get_object(request, object_id)
        if version is None:
            messages.warning(request, f"There is no policy {object_id}.")
            return HttpResponseRedirect(reverse("admin:approvals_policyversion_changelist"))
        if not self.has_view_permission(request, version):
            raise PermissionDenied
        before, document = policies.predecessor_of(version), Document.model_validate(version.document)
        held, asked = terms.in_force(), ApprovalRequest.objects.about(policies.KIND, version.number)
        row = asked.order_by("-pk").first()
        again = policies.may_propose_again(version, row, held) and policies.may_propose(signed_in(request))
        context = {
            "version": version,
            "state": policies.state_of(version, held),
            "request_row": row,
            "may_propose_again": again,
            "text": document.as_text(),
            **compared(before, document),
        }
        return self.page(request, "page", str(version), context)

    def propose(self, request: HttpRequest) -> HttpResponse:
        """Edit the policy in force, or take the version ?again=, look at what that changes, and ask for it."""
        person = signed_in(request)
        if not policies.may_propose(person):
            raise PermissionDenied
        held = terms.in_force()
        again = self.get_object(request, request.GET.get("again", ""))
        text, because = held.document.as_text(), ""
        context: dict[str, Any] = {"held": held, "again": again}
        if request.method == "POST":
            text, because = request.POST.get("document", ""), request.POST.get("because", "")
        elif again:
            text, because = Document.model_validate(again.document).as_text(), again.because
        if request.method == "POST" or again:
            try:
                document = rulebook.parse(text)
                if "propose" in request.POST:
                    version = policies.propose(document, actor=person, because=because)
                    messages.success(request, f"{version} is proposed. It comes into force when it is signed.")
                    return HttpResponseRedirect(policies.page_of(version.number))
                context |= compared(held.document, document)
                context["is_same"] = document.digest == held.document.digest
            except PolicyError as error:
                context["mistakes"] = error.mistakes
            except policies.NotProposed as error:
                context["mistakes"] = (Mistake("proposal", str(error).rstrip("."), "see above"),)
        return self.page(request, "propose", "Propose a policy", {**context, "text": text, "because": because})

    def who_must_sign(self, request: HttpRequest) -> HttpResponse:
        """For a subject (?subject=improvement:7), or for whatever tier, categories, service and time is asked."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        question = Question(request)
        at = question.at
        context = {
            "question": question,
            "answer": forecasting.who_must_sign(question.forecast, at) if at else None,
            "tiers": list(Tier),
            "categories": list(Category),
            "services": scopes.names(),
            "held": terms.in_force(),
        }
        return self.page(request, "who", "Who must sign this, and why?", context)

    def page(self, request: HttpRequest, name: str, title: str, context: dict[str, Any]) -> HttpResponse:
        whole = {**self.admin_site.each_context(request), "opts": self.opts, "title": title, **context}
        return TemplateResponse(request, f"admin/approvals/policyversion/{name}.html", whole)


class Question:
    """What the page of who must sign was asked; whatever makes no sense is left out."""

    def __init__(self, request: HttpRequest) -> None:
        self.given = request.GET
        kind, _, number = self.given.get("subject", "").partition(":")
        self.subject, self.known = None, None
        if number.isdecimal() and len(number) < 10:
            self.subject = subjects.describe(kind, int(number))
            self.known = subjects.forecast(kind, int(number))

    @cached_property
    def forecast(self) -> subjects.Forecast:
        """What the subject says of itself, and beside that what was chosen."""
        if self.known and "tier" not in self.given:
            return self.known
        chosen = frozenset(one for one in Category if one in self.given.getlist("category"))
        tier = next((one for one in Tier if one == self.given.get("tier")), Tier.MEDIUM)
        service = self.given.get("service", "")[:MOST_CHARACTERS_OF_A_NAME]
        concern = Subject(chosen, service, is_reliability_fix="reliability_fix" in self.given)
        return subjects.Forecast(tier, concern, all_pass="inconclusive" not in self.given)

    @cached_property
    def at(self) -> dt.datetime | None:
        """The time asked about, UTC; None when what was written is no time."""
        if not self.given.get("at"):
            return now()
        try:
            at = parse_datetime(self.given["at"])
        except ValueError:
            return None
        return make_aware(at, dt.UTC) if at and is_naive(at) else at


def table_of(document: Document) -> list[dict[str, Any]]:
    """The rows of a document as the page prints them."""
    return [
        {
            "tier": tier,
            "machine": ", ".join(row.machine),
            "people": in_words(row.people),
            "if_asked": in_words(row.if_asked),
            "if_inconclusive": in_words(row.if_inconclusive),
            "hours": f"{row.remind_after_hours:g} / {row.escalate_after_hours:g} / {row.expire_after_hours:g}",
            "escalate_to": row.escalate_to.title,
        }
        for tier in Tier
        for row in [document.tiers[tier]]
    ]


def compared(before: Document, after: Document) -> dict[str, Any]:
    """What the pages show of a change: field by field, and line by line."""
    text = rulebook.unified(before.as_text().splitlines(), after.as_text().splitlines())
    return {"differences": rulebook.differences(before, after), "diff": diff.lines(text)}
