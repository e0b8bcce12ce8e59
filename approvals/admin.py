"""The admin's pages of approvals: requests to decide, and the audit log to read."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from django import forms
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

from approvals import outline, pages, requests, tokens
from approvals.models import ApiToken, ApprovalRequest, AuditEntry, AuditHead, Scope
from approvals.policy import Decision
from approvals.readonly import ReadOnly

if TYPE_CHECKING:  # Django's classes take no type parameter at run time
    RequestModelAdmin = admin.ModelAdmin[ApprovalRequest]
    EntryModelAdmin = admin.ModelAdmin[AuditEntry]
    EntryPaginator = Paginator[AuditEntry]
    TokenModelAdmin = admin.ModelAdmin[ApiToken]
    TokenModelForm = forms.ModelForm[ApiToken]
else:
    RequestModelAdmin = EntryModelAdmin = TokenModelAdmin = admin.ModelAdmin
    TokenModelForm = forms.ModelForm
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


TOKEN_FACTS = ["name", "person", "begins_with", "may", "created_at", "expires_at", "last_used_on", "revoked_at"]


class TokenForm(TokenModelForm):
    scopes = forms.MultipleChoiceField(
        choices=[(scope.value, f"{scope}: {scope.meaning}") for scope in Scope],
        widget=forms.CheckboxSelectMultiple,
        initial=[Scope.READ.value],
        help_text="A token never does more than you may do yourself at the time of its use.",
    )
    days = forms.IntegerField(
        label="Valid for", min_value=1, max_value=tokens.LONGEST.days, initial=90, help_text="Days; a year at most."
    )

    class Meta:
        model = ApiToken
        fields = ["name", "scopes"]

    person: User  # set by the admin: a token is its maker's

    def clean_scopes(self) -> list[str]:
        chosen: list[str] = self.cleaned_data["scopes"]
        beyond = [name for name in chosen if not tokens.may_hold(self.person, Scope(name))]
        if beyond:
            raise forms.ValidationError(f"You have no role for: {', '.join(beyond)}.")
        return chosen


@admin.register(ApiToken)
class ApiTokenAdmin(TokenModelAdmin):
    """Everybody of the staff makes tokens of their own, sees and revokes them; superusers see and revoke all."""

    nothing = "No token. With one, a program reads and acts through the API as you."
    form = TokenForm
    list_display = ["name", "person", "begins_with", "may", "created_at", "expires_at", "last_used_on", "usable"]
    list_select_related = ["person"]
    list_filter = ["person"]
    search_fields = ["name", "prefix"]
    show_full_result_count = False
    actions = ["revoke"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiToken]:
        found = super().get_queryset(request)
        person = signed_in(request)
        return found if person.is_superuser else found.filter(person=person)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return True

    def has_view_permission(self, request: HttpRequest, obj: ApiToken | None = None) -> bool:
        return True  # of their own: see get_queryset

    def has_add_permission(self, request: HttpRequest) -> bool:
        return True

    def has_change_permission(self, request: HttpRequest, obj: ApiToken | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ApiToken | None = None) -> bool:
        return False  # it is revoked: what it did stays explained

    def get_fields(self, request: HttpRequest, obj: ApiToken | None = None) -> list[Any]:
        return TOKEN_FACTS if obj else ["name", "scopes", "days"]

    def get_readonly_fields(self, request: HttpRequest, obj: ApiToken | None = None) -> list[Any]:
        return TOKEN_FACTS if obj else []

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        made = super().get_form(request, obj, change=change, **kwargs)
        made.person = signed_in(request)  # type: ignore[attr-defined]  # it is a TokenForm
        return made

    def save_model(self, request: HttpRequest, obj: ApiToken, form: Any, change: bool) -> None:
        person = signed_in(request)
        token, text = tokens.issue(
            person,
            name=form.cleaned_data["name"],
            scopes=[Scope(name) for name in form.cleaned_data["scopes"]],
            # A second less: the form's largest number of days must not be refused for the time it took.
            expires_at=now() + dt.timedelta(days=form.cleaned_data["days"], seconds=-1),
            actor=person,
        )
        obj.pk, obj.prefix = token.pk, token.prefix
        request.token_text = text  # type: ignore[attr-defined]

    def response_add(self, request: HttpRequest, obj: ApiToken, post_url_continue: str | None = None) -> HttpResponse:
        """The only page that shows the token. Not a message: those travel in a cookie."""
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": "Copy the token now",
            "text": request.token_text,  # type: ignore[attr-defined]
            "original": obj,
        }
        return TemplateResponse(
            request, "admin/approvals/apitoken/made.html", context, headers={"Cache-Control": "no-store"}
        )

    @admin.action(description="Revoke the selected tokens")
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiToken]) -> None:
        ended = sum(tokens.revoke(token, actor=signed_in(request)) for token in queryset)
        messages.success(request, f"{ended} token{'' if ended == 1 else 's'} revoked. They open nothing any more.")

    @admin.display(ordering="prefix")
    def begins_with(self, token: ApiToken) -> str:
        return f"{token.prefix}…"

    @admin.display(description="scopes")
    def may(self, token: ApiToken) -> str:
        return ", ".join(token.scopes)

    @admin.display(boolean=True)
    def usable(self, token: ApiToken) -> bool:
        return token.revoked_at is None and token.expires_at > now() and token.person.is_active


def as_text(value: Any) -> SafeString | str:
    """A recorded value for people; a dash for nothing."""
    if value is None:
        return "—"
    rows = (
        (line.depth, f"{line.name}: " if line.name and line.text else line.name, line.text)
        for line in outline.lines(value)
    )
    return format_html_join("", '<div class="rr-line rr-depth-{}"><strong>{}</strong>{}</div>', rows)
