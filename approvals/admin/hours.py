"""When people work, and what they were told by mail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest

from approvals import reminding
from approvals.admin.parts import signed_in
from approvals.models import Letter, WorkingHours
from approvals.readonly import ReadOnly

if TYPE_CHECKING:  # Django's classes take no type parameter at run time
    HoursModelAdmin = admin.ModelAdmin[WorkingHours]
    LetterModelAdmin = admin.ModelAdmin[Letter]
    HoursModelForm = forms.ModelForm[WorkingHours]
else:
    HoursModelAdmin = admin.ModelAdmin
    LetterModelAdmin = admin.ModelAdmin
    HoursModelForm = forms.ModelForm

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


class HoursForm(HoursModelForm):
    weekdays = forms.TypedMultipleChoiceField(
        coerce=int,
        choices=list(enumerate(DAYS)),
        widget=forms.CheckboxSelectMultiple,
        initial=[0, 1, 2, 3, 4],
        help_text="Days on which people work.",
    )


@admin.register(WorkingHours)
class WorkingHoursAdmin(HoursModelAdmin):
    form = HoursForm
    nothing = "No working hours of a service. The setting WORKING_HOURS holds for all of them."
    list_display = ["service", "days", "opens", "closes", "zone"]
    show_full_result_count = False
    actions = None

    @admin.display(description="service", ordering="scope")
    def service(self, row: WorkingHours) -> str:
        return row.scope or "every other service"

    @admin.display(description="days")
    def days(self, row: WorkingHours) -> str:
        return ", ".join(DAYS[day] for day in sorted(row.weekdays) if 0 <= day < len(DAYS))

    def save_model(self, request: HttpRequest, obj: WorkingHours, form: Any, change: bool) -> None:
        reminding.set_hours(obj, actor=signed_in(request))

    def delete_model(self, request: HttpRequest, obj: WorkingHours) -> None:
        reminding.drop_hours(obj, actor=signed_in(request))


@admin.register(Letter)
class LetterAdmin(ReadOnly, LetterModelAdmin):
    nothing = "Nobody was told of anything yet. People are told by mail when a request waits for them."
    list_display = ["subject", "person", "about", "state", "created_at", "sent_at", "last_error"]
    list_filter = ["state"]
    list_select_related = ["person"]
    list_per_page = 50
    search_fields = ["subject", "person__username", "about"]
    show_full_result_count = False
    actions = None
    fields = ["subject", "person", "about", "lines", "url", "state", "attempts", "next_at", "sent_at", "last_error"]
