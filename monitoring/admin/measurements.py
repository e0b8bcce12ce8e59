"""What was measured."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.timezone import now

from approvals.readonly import ReadOnly
from monitoring.admin import charts
from monitoring.admin.pages import NONE, explained, labels_in_words, score_in_words
from monitoring.alerts import in_words
from monitoring.models import HealthScore, Sample, Series, Target


@admin.register(Target)
class TargetAdmin(ReadOnly, admin.ModelAdmin[Target]):
    nothing = "No target. A registered service has one for each release that runs."
    list_display = ["url", "service", "release", "active", "last_scraped_at", "last_error"]
    list_filter = ["active", "service"]
    list_select_related = ["service"]
    show_full_result_count = False


@admin.register(Series)
class SeriesAdmin(ReadOnly, admin.ModelAdmin[Series]):
    nothing = "No signal yet. The first numbers come with the first scrape of a service."
    list_display = ["signal", "labels_in_words", "service", "newest", "measured_at"]
    list_filter = ["service", "signal"]
    list_select_related = ["service"]
    search_fields = ["signal", "labels_key"]
    ordering = ["service", "signal", "labels_key"]
    show_full_result_count = False
    fields = ["service", "signal", "labels_in_words", "newest", "measured_at", "charts"]
    readonly_fields = ["service", "signal", "labels_in_words", "newest", "measured_at", "charts"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Series]:
        newest = Sample.objects.filter(series=OuterRef("pk")).order_by("-at")
        return (
            super()
            .get_queryset(request)
            .annotate(newest_value=Subquery(newest.values("value")[:1]), newest_at=Subquery(newest.values("at")[:1]))
        )

    @admin.display(description="labels")
    def labels_in_words(self, series: Series) -> str:
        return labels_in_words(series.labels)

    @admin.display(description="newest value")
    def newest(self, series: Any) -> str:
        return NONE if series.newest_value is None else in_words(series.signal, series.newest_value)

    @admin.display
    def measured_at(self, series: Any) -> str:
        return f"{series.newest_at:%Y-%m-%d %H:%M:%S}" if series.newest_at else NONE

    @admin.display(description="over time")
    def charts(self, series: Series) -> SafeString:
        return charts.of_series(series, now())


@admin.register(HealthScore)
class HealthScoreAdmin(ReadOnly, admin.ModelAdmin[HealthScore]):
    nothing = "No health score yet. One is written in every collection interval."
    list_display = ["service", "at", "health", "trend", "sure"]
    list_filter = ["service", "status"]
    list_select_related = ["service"]
    ordering = ["-at"]
    show_full_result_count = False
    fields = ["service", "at", "health", "trend", "sure", "why"]
    readonly_fields = ["service", "at", "health", "trend", "sure", "why"]

    @admin.display(ordering="score")
    def health(self, found: HealthScore) -> str:
        return score_in_words(found.score, found.status)

    @admin.display(description="confidence", ordering="confidence")
    def sure(self, found: HealthScore) -> str:
        return f"{found.confidence:.0%}"

    @admin.display
    def why(self, found: HealthScore) -> SafeString:
        return explained(found)
