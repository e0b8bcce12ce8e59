"""Findings in the admin: what, where, how sure, and the evidence."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from analysis.models import CodeProbe, Finding
from approvals import outline
from approvals.readonly import ReadOnly

NOTHING = SafeString("–")


class MachineWritten(ReadOnly, admin.ModelAdmin[Any]):
    """What analysis wrote: people read it."""

    show_full_result_count = False
    actions = None


class OpenFilter(admin.SimpleListFilter):
    title = "open or closed"
    parameter_name = "open"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("yes", "open"), ("no", "closed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Finding]) -> QuerySet[Finding]:
        return queryset if self.value() is None else queryset.filter(closed_at__isnull=self.value() == "yes")


def readable(value: Any) -> SafeString:
    rows = (
        (line.depth, f"{line.name}: " if line.name and line.text else line.name, line.text)
        for line in outline.lines(value)
    )
    return format_html_join("", '<div class="rr-line rr-depth-{}"><strong>{}</strong>{}</div>', rows)


def n_plus_ones(found: list[dict[str, Any]]) -> SafeString:
    """One paragraph for each place, as the probe saw it, and how the code came there."""
    return format_html_join(
        "",
        "<p><strong>{}.{}</strong> is read one row at a time at <code>{}</code>: {} times in one request of {} queries "
        "to {}, in the service's own test <code>{}</code>.</p>{}",
        (
            (
                one["model"], one["relation"], one["location"], one["repeats"], one["queries_per_request"],
                f"{one['method']} {one['route']}", one["test"], _calls(one["frames"]),
            )
            for one in found
        ),
    )  # fmt: skip


def _calls(frames: list[dict[str, Any]]) -> SafeString:
    steps = format_html_join(
        "", "<li><code>{}:{}</code> {}</li>", ((one["file"], one["line"], one["function"]) for one in frames)
    )
    return format_html(
        "<details><summary>How the code came there, innermost first</summary><ol>{}</ol></details>", steps
    )


@admin.register(Finding)
class FindingAdmin(MachineWritten):
    nothing = (
        "No finding yet. Analysis reads what is measured and the code behind it, and writes here what it is sure of."
    )
    list_display = ["title", "service", "location", "waiting", "sure", "last_seen_at", "is_open"]
    list_filter = ["service", "kind", OpenFilter]
    list_select_related = ["service"]
    search_fields = ["title", "endpoint", "location"]
    fields = [
        "title", "service", "kind", "endpoint", "location", "sure", "improvements_shown", "impact_shown",
        "evidence_shown", "commit", "first_seen_at", "last_seen_at", "closed_at", "closed_because",
    ]  # fmt: skip
    readonly_fields = ["sure", "improvements_shown", "impact_shown", "evidence_shown"]

    @admin.display(description="users wait")
    def waiting(self, finding: Finding) -> str:
        seconds = finding.impact.get("waiting_seconds_per_hour")
        return "not measured" if seconds is None else f"{seconds:,.0f} s an hour"

    @admin.display(description="confidence", ordering="confidence")
    def sure(self, finding: Finding) -> str:
        return f"{finding.confidence:.0%}"

    @admin.display(boolean=True, description="open")
    def is_open(self, finding: Finding) -> bool:
        return finding.closed_at is None

    @admin.display(description="improvements")
    def improvements_shown(self, finding: Finding) -> SafeString:
        """Rows of the app above, reached through their own relation to the finding."""
        rows = ((one.get_absolute_url(), one, one.get_state_display()) for one in finding.improvements.all())
        return format_html_join("", '<p><a href="{}">{}</a> ({})</p>', rows) or NOTHING

    @admin.display(description="what it costs")
    def impact_shown(self, finding: Finding) -> SafeString:
        return readable(finding.impact)

    @admin.display(description="evidence")
    def evidence_shown(self, finding: Finding) -> SafeString:
        rest = {name: value for name, value in finding.evidence.items() if name != "found"}
        return format_html("{}{}", n_plus_ones(finding.evidence.get("found", [])), readable(rest) if rest else "")


@admin.register(CodeProbe)
class CodeProbeAdmin(MachineWritten):
    nothing = "No probe yet. Each new commit's own tests are run once under the N+1 detector."
    list_display = ["service", "commit_shown", "ran_at", "took", "found_count", "problem"]
    list_filter = ["service"]
    list_select_related = ["service"]
    fields = ["service", "commit", "ran_at", "took", "error", "found_shown"]
    readonly_fields = ["took", "found_shown"]

    @admin.display(description="commit")
    def commit_shown(self, probe: CodeProbe) -> str:
        return probe.commit[:12]

    @admin.display
    def took(self, probe: CodeProbe) -> str:
        return f"{probe.seconds:.1f} s"

    @admin.display
    def problem(self, probe: CodeProbe) -> str:
        return Truncator(probe.error).chars(120) or "–"

    @admin.display(description="N+1s found")
    def found_count(self, probe: CodeProbe) -> int:
        return len(probe.found)

    @admin.display(description="found")
    def found_shown(self, probe: CodeProbe) -> SafeString:
        return n_plus_ones(probe.found) or NOTHING
