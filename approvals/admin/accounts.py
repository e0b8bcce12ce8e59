"""Accounts: Django's own page of users, and what an administrator does for who is locked out or lost a device."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.contrib.auth.models import User
from django.db.models import Exists, OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.timezone import now

from approvals import lockouts, second_factor, sessions
from approvals.admin.parts import signed_in
from approvals.admin.people import AuditedUserAdmin
from approvals.models import Authenticator

FOR_SUPERUSERS = ("sign_out_everywhere", "unlock", "reset_second_factor")


class WithReason(ActionForm):
    because = forms.CharField(required=False, label="because", max_length=500)


@admin.register(User)
class PersonAdmin(AuditedUserAdmin):
    nothing = "Nobody."
    action_form = WithReason
    actions = list(FOR_SUPERUSERS)
    list_display = [
        "username",
        "is_active",
        "is_staff",
        "is_superuser",
        "last_login",
        "has_second_factor",
        "waits_until",
    ]
    show_full_result_count = False

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        found: dict[str, Any] = super().get_actions(request)
        if not signed_in(request).is_superuser:
            found = {name: action for name, action in found.items() if name not in FOR_SUPERUSERS}
        return found

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        confirmed = Authenticator.objects.filter(user=OuterRef("pk"), confirmed=True)
        locking = lockouts.locking(now()).filter(person=OuterRef("pk")).order_by("-last_at")
        found: QuerySet[User] = super().get_queryset(request)
        return found.annotate(has_device=Exists(confirmed), locked_at=Subquery(locking.values("last_at")[:1]))

    @admin.display(boolean=True, description="second factor", ordering="has_device")
    def has_second_factor(self, person: User) -> bool:
        return bool(person.has_device)  # type: ignore[attr-defined]  # annotated above

    @admin.display(description="sign-in locked until")
    def waits_until(self, person: User) -> dt.datetime | str:
        locked_at: dt.datetime | None = person.locked_at  # type: ignore[attr-defined]
        return locked_at + lockouts.lock_time() if locked_at else "—"

    @admin.action(description="Sign out everywhere (say why)")
    def sign_out_everywhere(self, request: HttpRequest, chosen: QuerySet[User]) -> None:
        for person in chosen:
            ended = sessions.sign_out_everywhere(person, actor=signed_in(request), because=reason(request))
            messages.success(request, f"{person} is signed out everywhere ({ended} sessions).")

    @admin.action(description="Unlock the sign-in (say why)")
    def unlock(self, request: HttpRequest, chosen: QuerySet[User]) -> None:
        for person in chosen:
            lockouts.unlock(person, actor=signed_in(request), because=reason(request))
            messages.success(request, f"{person} may try to sign in again at once.")

    @admin.action(description="Reset the second factor (say why)")
    def reset_second_factor(self, request: HttpRequest, chosen: QuerySet[User]) -> HttpResponse | None:
        at = now()
        by = second_factor.how(request, at)
        if not by.is_fresh:
            messages.warning(request, "Confirm with a code of your own first, then choose the person again.")
            return HttpResponseRedirect(second_factor.step_up_url(request))
        for person in chosen:
            try:
                second_factor.reset(person, actor=signed_in(request), by=by, because=reason(request), at=at)
            except second_factor.NotAllowed as refused:
                messages.error(request, f"{person}: {refused}")
            else:
                messages.success(request, f"{person} has no second factor any more, and was told.")
        return None


def reason(request: HttpRequest) -> str:
    return request.POST.get("because", "").strip()
