"""The admin's front page asks for its overview here; the site's own view needs no subclass for it."""

from __future__ import annotations

from typing import Any

from django import template
from django.utils.timezone import now

from improvements.governance import pages
from improvements.overview import overview_for

register = template.Library()


@register.inclusion_tag("admin/overview.html", takes_context=True)
def overview(context: template.Context) -> dict[str, Any]:
    person, at = context["request"].user, now()
    return {"overview": overview_for(person, at), "governance": pages.card(person, at)}
