"""What is normal, version by version."""

from __future__ import annotations

from django.contrib import admin
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from approvals.readonly import ReadOnly
from monitoring.admin.pages import labels_in_words
from monitoring.models import Baseline

MOST_ROWS = 100
COLUMNS = ("signal", "of", "p05", "p50", "p95", "p99", "samples", "by hour")


@admin.register(Baseline)
class BaselineAdmin(ReadOnly, admin.ModelAdmin[Baseline]):
    nothing = "No baseline yet. One is set by itself after six hours in which all was well, or through the API."
    list_display = ["service", "version", "made_at", "made", "reason", "since", "until", "series_count"]
    list_filter = ["service"]
    list_select_related = ["service", "made_by"]
    ordering = ["-made_at"]
    show_full_result_count = False
    fields = ["service", "version", "made_at", "made", "reason", "since", "until", "signals"]
    readonly_fields = ["service", "version", "made_at", "made", "reason", "since", "until", "signals"]

    @admin.display(description="made by", ordering="made_by__username")
    def made(self, baseline: Baseline) -> str:
        return baseline.author

    @admin.display
    def signals(self, baseline: Baseline) -> SafeString | str:
        rows = list(baseline.series.defer("kept")[: MOST_ROWS + 1])
        if not rows:
            return "The numbers of old versions are not kept."
        cells = [
            (
                row.signal,
                labels_in_words({name: value for name, value in row.labels.items() if value != "*"}),
                *(f"{getattr(row, name):.4g}" for name in ("p05", "p50", "p95", "p99")),
                f"{row.count:,}",
                "week" if row.hours.get("week") else "day" if row.hours.get("day") else "–",
            )
            for row in rows[:MOST_ROWS]
        ]
        head = format_html_join("", '<th scope="col">{}</th>', ((name,) for name in COLUMNS))
        body = format_html_join("", "<tr>{}</tr>", ((format_html_join("", "<td>{}</td>", zip(row)),) for row in cells))
        more = "" if len(rows) <= MOST_ROWS else f"The first {MOST_ROWS} are shown; /performance/baseline has all."
        return format_html(
            '<div class="rr-scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>{}',
            head,
            body,
            more,
        )
