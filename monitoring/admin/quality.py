"""Reports of commits."""

from __future__ import annotations

from django.contrib import admin
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from approvals.readonly import ReadOnly
from monitoring.admin.pages import NONE
from monitoring.models import QualityReport

MOST_ROWS = 50


@admin.register(QualityReport)
class QualityReportAdmin(ReadOnly, admin.ModelAdmin[QualityReport]):
    list_display = ["short_commit", "kind", "service", "branch_name", "numbers", "source", "at"]
    list_filter = ["service", "kind", "on_main"]
    search_fields = ["commit"]
    search_help_text = "A commit."
    list_select_related = ["service"]
    show_full_result_count = False
    ordering = ["-at"]
    fields = ("service", "commit", "branch_name", "kind", "at", "source", "numbers", "details", "sha256")
    readonly_fields = fields

    @admin.display(description="commit", ordering="commit")
    def short_commit(self, report: QualityReport) -> str:
        return report.commit[:12]

    @admin.display(description="branch")
    def branch_name(self, report: QualityReport) -> str:
        return report.branch or report.service.branch

    @admin.display(description="numbers")
    def numbers(self, report: QualityReport) -> str:
        told = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in sorted(report.signals.items())]
        return ", ".join(told) or f"{len(report.content.get('numbers', {}))} for comparison"

    @admin.display(description="details")
    def details(self, report: QualityReport) -> SafeString | str:
        match report.kind:
            case "junit":
                rows = [("failed", name) for name in report.content["failed"]]
                rows = rows or [("passed", f"{len(report.content['passed'])} tests")]
            case "ruff" | "sarif":
                by_count = sorted(report.content["rules"].items(), key=lambda rule: (-rule[1], rule[0]))
                rows = [(name or "no rule", str(count)) for name, count in by_count]
            case "benchmark":
                rows = [(n, ", ".join(f"{v:.4g}" for v in values)) for n, values in report.content["numbers"].items()]
            case _:
                rows = [(str(name), str(value)) for name, value in report.content.items()]
        left = len(rows) - MOST_ROWS
        rows = rows[:MOST_ROWS] + ([("…", f"{left} more")] if left > 0 else [])
        return format_html_join("\n", "<div>{}: {}</div>", rows) if rows else NONE
