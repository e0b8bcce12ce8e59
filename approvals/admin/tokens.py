"""API tokens: made, seen and revoked by whose they are."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.timezone import now

from approvals import tokens
from approvals.admin.parts import signed_in
from approvals.models import ApiToken, Scope

if TYPE_CHECKING:  # Django's classes take no type parameter at run time
    TokenModelAdmin = admin.ModelAdmin[ApiToken]
    TokenModelForm = forms.ModelForm[ApiToken]
else:
    TokenModelAdmin = admin.ModelAdmin
    TokenModelForm = forms.ModelForm


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
