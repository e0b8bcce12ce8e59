"""Where the time of a service's requests goes, as its spans tell."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.utils.timezone import now

from approvals.readonly import ReadOnly
from monitoring import profiling
from monitoring.models import SpanIntake

RANGES = {"1": "1 hour", "24": "24 hours", "168": "7 days", "672": "28 days"}
MOST_ENDPOINTS = 50
MOST_STATEMENTS = 8


@admin.register(SpanIntake)
class SpanIntakeAdmin(ReadOnly, admin.ModelAdmin[SpanIntake]):
    nothing = (
        "No spans yet. Point a service's OTEL_EXPORTER_OTLP_ENDPOINT at this address, with its name here as "
        "OTEL_SERVICE_NAME."
    )
    list_display = [
        "service",
        "folded_at",
        "requests",
        "spans",
        "waiting",
        "late_requests",
        "without_request",
        "dropped",
    ]
    list_filter = ["service"]
    list_select_related = ["service"]
    list_display_links = ["service"]
    ordering = ["service__name"]
    show_full_result_count = False
    change_form_template = "admin/monitoring/spanintake/page.html"

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        intake = self.get_object(request, object_id)
        context = dict(extra_context or {})
        if intake is not None:
            asked = request.GET.get("hours", "")
            hours = asked if asked in RANGES else "1"
            until = now()
            endpoints = profiling.profile(intake.service, until - timedelta(hours=int(hours)), until)
            context |= {
                "title": f"Profile of {intake.service}",
                "subtitle": None,
                "intake": intake,
                "hours": hours,
                "ranges": RANGES.items(),
                "endpoints": endpoints[:MOST_ENDPOINTS],
                "more_endpoints": max(0, len(endpoints) - MOST_ENDPOINTS),
                "dependencies": profiling.dependencies(endpoints),
                "most_statements": f":{MOST_STATEMENTS}",
            }
        return super().change_view(request, object_id, form_url, context)
