"""Alert rules and alerts."""

from __future__ import annotations

from collections.abc import Callable

from django.contrib import admin
from django.http import HttpRequest

from approvals.readonly import ReadOnly
from monitoring.admin.answering import Answered
from monitoring.admin.pages import NONE, Audited, labels_in_words
from monitoring.alerts import Kind, hours_in_words
from monitoring.models import Alert, AlertRule, AlertState


def _threshold(rule: AlertRule) -> str:
    return f"{rule.signal} {rule.comparison} {rule.threshold:g}" + (" × usual" if rule.is_relative else "")


CONDITIONS: dict[Kind, Callable[[AlertRule], str]] = {
    Kind.THRESHOLD: _threshold,
    Kind.BURN_RATE: lambda rule: f"{rule.signal} burns at {' or '.join(f'{row[0]:g}×' for row in rule.windows)}",
    Kind.DEVIATION: lambda rule: f"{rule.signal} is unusual for the hour",
    Kind.FORECAST: lambda rule: (
        f"{rule.signal} reaches {rule.threshold:g} within {hours_in_words(rule.horizon_seconds)}"
    ),
    Kind.MISSING: lambda rule: f"{rule.signal} was there and is silent",
    Kind.HEARTBEAT: lambda rule: f"no sign of life for {rule.threshold:g} s",
}


@admin.register(AlertRule)
class AlertRuleAdmin(Audited, admin.ModelAdmin[AlertRule]):
    list_display = ["name", "summary", "for_service", "kind", "condition", "for_intervals", "severity", "enabled"]
    list_filter = ["enabled", "severity", "kind"]
    fieldsets = [
        (None, {"fields": ["service", "name", "summary", "severity", "enabled"]}),
        ("What it is about", {"fields": ["kind", "signal", "labels", "also", "minimum_requests"]}),
        ("When it begins", {"fields": ["comparison", "threshold", "is_relative", "for_intervals"]}),
        ("When it ends", {"fields": ["clear_threshold", "clear_intervals"]}),
        ("For some kinds only", {"fields": ["strictness", "windows", "minimum_bad", "horizon_seconds"]}),
    ]
    list_select_related = ["service"]
    show_full_result_count = False

    def has_delete_permission(self, request: HttpRequest, obj: AlertRule | None = None) -> bool:
        return False  # a rule is switched off: the alerts it opened stay explained

    @admin.display(description="service", ordering="service")
    def for_service(self, rule: AlertRule) -> str:
        return str(rule.service) if rule.service else "every service"

    @admin.display
    def condition(self, rule: AlertRule) -> str:
        return CONDITIONS[Kind(rule.kind)](rule)


@admin.register(Alert)
class AlertAdmin(ReadOnly, Answered):
    nothing = "No alert. One opens as soon as a rule holds, and fires when it goes on."
    list_display = ["name", "message", "service", "severity", "state", "handled", "opened_at", "resolved_at"]
    fields = [
        "name", "message", "service", "rule", "about", "severity", "state", "state_since", "opened_at", "fired_at",
        "resolved_at", "intervals", "is_flapping", "seen_at",
    ]  # fmt: skip
    readonly_fields = ["about"]
    list_filter = ["state", "severity", "service", "was_false"]
    list_select_related = ["service", "owner"]
    date_hierarchy = "opened_at"
    show_full_result_count = False

    @admin.display(description="who has it", ordering="acknowledged_at")
    def handled(self, alert: Alert) -> str:
        if alert.state == AlertState.RESOLVED:
            return NONE
        return str(alert.owner or ("kept quiet" if alert.suppressed_by else NONE))

    @admin.display(description="labels")
    def about(self, alert: Alert) -> str:
        return labels_in_words(alert.labels)
