"""What people said."""

from __future__ import annotations

from django.contrib import admin

from approvals.readonly import ReadOnly
from monitoring.models import Feedback


@admin.register(Feedback)
class FeedbackAdmin(ReadOnly, admin.ModelAdmin[Feedback]):
    nothing = "No feedback. A service's pages send it to /api/v1/feedback; docs/operations.md says how."
    list_display = ["at", "service", "rating", "text", "endpoint"]
    list_filter = ["service", "rating"]
    list_select_related = ["service"]
    search_fields = ["text", "endpoint"]
    date_hierarchy = "at"
    show_full_result_count = False
