"""Freeze windows: what is in force, what comes next, and the form with its preview."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from django.utils.timezone import now

from approvals import holding, recurrence, scopes
from approvals.admin.parts import STYLES, signed_in
from approvals.models import FreezeWindow

if TYPE_CHECKING:  # Django's classes take no type parameter at run time
    WindowModelAdmin = admin.ModelAdmin[FreezeWindow]
    WindowModelForm = forms.ModelForm[FreezeWindow]
else:
    WindowModelAdmin = admin.ModelAdmin
    WindowModelForm = forms.ModelForm

SHOWN_TIMES = 5


class WindowForm(WindowModelForm):
    """With the button "Preview" nothing is saved: the page comes back with the times that the entries mean."""

    scope = forms.ChoiceField(label="Service", required=False)

    class Meta:
        model = FreezeWindow
        fields = [
            "name", "kind", "scope", "reason", "timezone", "first_day", "begins", "duration_minutes", "recurrence",
            "enabled",
        ]  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = {*scopes.names(), self.instance.scope} - {""}
        scope = self.fields["scope"]
        assert isinstance(scope, forms.ChoiceField)
        scope.choices = [("", "every service"), *((name, name) for name in sorted(names))]

    def is_valid(self) -> bool:
        return super().is_valid() and "_preview" not in self.data


@admin.register(FreezeWindow)
class FreezeWindowAdmin(WindowModelAdmin):
    form = WindowForm
    nothing = "Rollouts may start at any time. Add a freeze, or a window outside of which nothing starts."
    list_display = ["name", "does", "for_service", "stands", "happens", "timezone", "reason"]
    list_filter = ["kind", "enabled", "scope"]
    search_fields = ["name", "reason"]
    show_full_result_count = False
    actions = None
    fields = [*WindowForm.Meta.fields, "stands", "next_times"]
    readonly_fields = ["stands", "next_times"]
    change_form_template = "admin/approvals/freezewindow/page.html"

    class Media:
        css = STYLES

    def has_delete_permission(self, request: HttpRequest, obj: FreezeWindow | None = None) -> bool:
        return False  # it is switched off: why something waited can be looked up

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return super().changeform_view(request, *args, **kwargs)
        except holding.Refused as refused:
            messages.error(request, f"Not saved. {refused}")
            return HttpResponseRedirect(request.path)

    def save_model(self, request: HttpRequest, obj: FreezeWindow, form: Any, change: bool) -> None:
        holding.save(obj, actor=signed_in(request))

    @admin.display(description="what it does", ordering="kind")
    def does(self, row: FreezeWindow) -> str:
        return row.get_kind_display()

    @admin.display(description="service", ordering="scope")
    def for_service(self, row: FreezeWindow) -> str:
        return row.scope or "every service"

    @admin.display(description="state")
    def stands(self, row: FreezeWindow) -> str:
        return holding.in_words(row, now()) if row.first_day and row.begins and row.duration_minutes else "not yet"

    @admin.display(ordering="first_day")
    def happens(self, row: FreezeWindow) -> str:
        day = f"from {row.first_day}" if row.recurrence else f"once, {row.first_day}"
        hours, minutes = divmod(row.duration_minutes, 60)
        lasts = " ".join(part for part in (f"{hours} h" if hours else "", f"{minutes} min" if minutes else "") if part)
        return f"{row.recurrence} {day} {row.begins:%H:%M} for {lasts}".strip()

    @admin.display(description="next times")
    def next_times(self, row: FreezeWindow) -> SafeString | str:
        """Of what stands in the form, saved or not."""
        if not row.first_day or not row.begins or not row.duration_minutes:
            return "Fill in day, time and duration, and press Preview."
        try:
            zone = recurrence.zone_of(row.timezone)
            times = recurrence.upcoming(row.window, now(), SHOWN_TIMES)
        except recurrence.BadWindow as error:
            return str(error)
        lines = [
            (
                f"{begin.astimezone(zone):%a %Y-%m-%d %H:%M} to {end.astimezone(zone):%a %Y-%m-%d %H:%M} "
                f"{row.timezone} ({begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC)",
            )
            for begin, end in times
        ]
        return format_html_join("", '<div class="rr-time">{}</div>', lines) if lines else "None: it is over."
