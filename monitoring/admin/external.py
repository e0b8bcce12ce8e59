"""Hosts outside: who asked for them, who approved them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest

from monitoring import addresses, hosts
from monitoring.admin.pages import NONE
from monitoring.models import ExternalService


class RequestForm(forms.ModelForm[ExternalService]):
    def clean_host(self) -> str:
        try:
            return addresses.normalised(self.cleaned_data["host"])
        except ValueError as error:
            raise ValidationError(str(error)) from error

    def _get_validation_exclusions(self) -> set[str]:
        # One that is asked for again is no mistake, see `hosts.request`: its uniqueness is not this form's business.
        return {*super()._get_validation_exclusions(), "allows_private"}  # type: ignore[misc]


class WithReason(ActionForm):
    because = forms.CharField(required=False, label="because", max_length=500)


@admin.register(ExternalService)
class ExternalServiceAdmin(admin.ModelAdmin[ExternalService]):
    nothing = "No host outside has been asked for. Add one, or `manage.py register … --metrics-url URL` asks for it."
    form = RequestForm
    action_form = WithReason
    actions = ["approve", "revoke"]
    list_display = ["__str__", "purpose", "state", "allows_private", "asked_by", "decided_by", "reason"]
    list_filter = ["allows_private"]
    search_fields = ["host", "purpose"]
    list_select_related = ["requested_by", "approved_by", "revoked_by"]
    show_full_result_count = False
    fields = ["host", "port", "purpose", "allows_private", "request_reason"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)  # to ask is nobody's privilege

    def has_change_permission(self, request: HttpRequest, obj: ExternalService | None = None) -> bool:
        return False  # what was approved stays what was approved

    def has_delete_permission(self, request: HttpRequest, obj: ExternalService | None = None) -> bool:
        return False  # it is revoked: its history stays

    def save_model(self, request: HttpRequest, obj: ExternalService, form: Any, change: bool) -> None:
        kept = hosts.request(
            str(obj),
            purpose=obj.purpose,
            actor=cast("User", request.user),
            because=obj.request_reason,
            allows_private=obj.allows_private,
        )
        obj.pk = kept.pk

    @admin.action(description="Approve (say why)")
    def approve(self, request: HttpRequest, chosen: QuerySet[ExternalService]) -> None:
        self._decide(request, chosen, hosts.approve, "may be reached now")

    @admin.action(description="Revoke (say why)")
    def revoke(self, request: HttpRequest, chosen: QuerySet[ExternalService]) -> None:
        self._decide(request, chosen, hosts.revoke, "is reached no longer")

    def _decide(
        self,
        request: HttpRequest,
        chosen: QuerySet[ExternalService],
        decide: Callable[..., ExternalService],
        done: str,
    ) -> None:
        for row in chosen:
            try:
                decide(row, actor=request.user, because=request.POST.get("because", ""))
            except (hosts.NotAllowed, ValueError) as error:
                self.message_user(request, str(error), messages.ERROR)
            else:
                self.message_user(request, f"{row} {done}.", messages.SUCCESS)

    @admin.display
    def state(self, row: ExternalService) -> str:
        return row.access.value

    @admin.display(description="asked for by")
    def asked_by(self, row: ExternalService) -> str:
        return str(row.requested_by or NONE)

    @admin.display(description="decided by")
    def decided_by(self, row: ExternalService) -> str:
        if row.approved_at is None and row.revoked_at is None:
            return NONE
        return str(row.revoked_by if row.revoked_at else row.approved_by or "the command line")

    @admin.display
    def reason(self, row: ExternalService) -> str:
        return row.revoke_reason or row.approve_reason or row.request_reason or NONE
