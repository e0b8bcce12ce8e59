"""Break-glass on other pages: the banner on all of them, and the line on the page of a request."""

from __future__ import annotations

from typing import Any

from django import template
from django.utils.timezone import now

from approvals import breaking_glass
from approvals.holding import NO_ROLLOUT
from approvals.models import ApprovalRequest, BreakGlass

register = template.Library()
MOST_SHOWN = 5


@register.inclusion_tag("admin/approvals/breakglass/banner.html", takes_context=True)
def break_glass_banner(context: template.Context) -> dict[str, Any]:
    """One query into an index that holds the unsettled ones alone; none for who is not signed in."""
    user = getattr(context.get("request"), "user", None)
    if user is None or not user.is_active or not user.is_staff:
        return {"glasses": []}
    rows = BreakGlass.objects.unsettled().select_related("request", "opened_by", "confirmed_by")
    at = now()
    shown = [(glass, breaking_glass.has_lapsed(glass, at)) for glass in rows.order_by("opened_at")[:MOST_SHOWN]]
    # A tick writes down what lapsed; until then the clock says it. What nobody confirmed in time is over for good.
    return {"glasses": [(glass, over) for glass, over in shown if glass.confirmed_at or not over]}


@register.inclusion_tag("admin/approvals/breakglass/of_request.html")
def break_glass_of(row: ApprovalRequest) -> dict[str, Any]:
    """For the page of an approval request: the uses so far, and the way in. Who may not open it is told so there."""
    return {
        "asked": row,
        "glasses": list(row.broken_glass.select_related("opened_by", "confirmed_by")),
        "is_open": row.state in breaking_glass.ANSWERABLE and row.subject_kind not in NO_ROLLOUT,
    }
