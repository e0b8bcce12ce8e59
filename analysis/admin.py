"""Findings in the admin: what, where, how sure, and the evidence."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from analysis.models import CodeProbe, Finding


class ReadOnly(admin.ModelAdmin[Any]):
    """What analysis wrote: people read it."""

    show_full_result_count = False
    actions = None

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def readable(value: Any) -> SafeString:
    return format_html("<pre>{}</pre>", json.dumps(value, indent=2, ensure_ascii=False))


@admin.register(Finding)
class FindingAdmin(ReadOnly):
    list_display = ["title", "service", "location", "waiting", "confidence", "last_seen_at", "is_open"]
    list_filter = ["service", "kind", ("closed_at", admin.EmptyFieldListFilter)]
    list_select_related = ["service"]
    search_fields = ["title", "endpoint", "location"]
    fields = [
        "title", "service", "kind", "endpoint", "location", "confidence", "impact_shown", "commit",
        "first_seen_at", "last_seen_at", "closed_at", "closed_because", "evidence_shown",
    ]  # fmt: skip
    readonly_fields = ["impact_shown", "evidence_shown"]

    @admin.display(description="users wait")
    def waiting(self, finding: Finding) -> str:
        seconds = finding.impact.get("waiting_seconds_per_hour")
        return "not measured" if seconds is None else f"{seconds:,.0f} s an hour"

    @admin.display(boolean=True, description="open")
    def is_open(self, finding: Finding) -> bool:
        return finding.closed_at is None

    @admin.display(description="what it costs")
    def impact_shown(self, finding: Finding) -> SafeString:
        return readable(finding.impact)

    @admin.display(description="evidence")
    def evidence_shown(self, finding: Finding) -> SafeString:
        return readable(finding.evidence)


@admin.register(CodeProbe)
class CodeProbeAdmin(ReadOnly):
    list_display = ["service", "commit", "ran_at", "seconds", "found_count", "error"]
    list_filter = ["service"]
    list_select_related = ["service"]
    fields = ["service", "commit", "ran_at", "seconds", "error", "found_shown"]
    readonly_fields = ["found_shown"]

    @admin.display(description="N+1s found")
    def found_count(self, probe: CodeProbe) -> int:
        return len(probe.found)

    @admin.display(description="found")
    def found_shown(self, probe: CodeProbe) -> SafeString:
        return readable(probe.found)
