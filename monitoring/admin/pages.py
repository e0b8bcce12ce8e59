"""What the pages of this app share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from django.forms import ModelForm
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from approvals import audit
from monitoring.covering import Coverage, State
from monitoring.experience import Felt
from monitoring.models import HealthScore

NONE = "–"


class Audited:
    """What a person changes here goes into the audit log, in the transaction of the change."""

    def save_model(self, request: HttpRequest, obj: Any, form: ModelForm[Any], change: bool) -> None:
        was = {name: form.initial.get(name) for name in form.changed_data} if change else None
        super().save_model(request, obj, form, change)  # type: ignore[misc]
        if form.changed_data:
            became = {name: getattr(obj, name) for name in form.changed_data if not hasattr(getattr(obj, name), "pk")}
            action = f"{obj._meta.model_name}.{'changed' if change else 'added'}"
            audit.record(action, obj, actor=request.user, was=was, became=became)


def score_in_words(score: float | None, status: str) -> str:
    """Rounded down: 79.7 is degraded, and "degraded (80)" would contradict that healthy begins at 80."""
    return f"{status} ({math.floor(score)})" if score is not None else status


def labels_in_words(labels: dict[str, str]) -> str:
    """What a series is of; `*` is all of them together."""
    known = (f"every {name}" if value == "*" else f"{name} {value}" for name, value in sorted(labels.items()))
    return ", ".join(known) or "whole service"


def explained(found: HealthScore) -> SafeString:
    """The components with their messages, for a person."""
    return format_html_join(
        "",
        "<p><strong>{}</strong>: {}. {}</p>",
        (
            (name.capitalize(), score_in_words(part["score"], part["status"]), part["message"])
            for name, part in found.parts.items()
        ),
    )


STATES_IN_WORDS = {
    State.BLIND: "Blind spots",
    State.LIVE: "Live",
    State.QUIET: "Quiet: measured before, not asked now",
    State.READY: "Ready: never asked, and measured when they are",
}


def covered(found: Coverage) -> SafeString:
    """How much is seen, and all parts by how they are seen; the blind spots open, the others folded."""
    if found.ratio is None:
        return format_html("<p>{}</p>", "Nothing is known of its routes and dependencies yet.")
    groups = []
    for state, words in STATES_IN_WORDS.items():
        parts = [part for part in found.parts if part.state is state]
        if parts:
            rows = format_html_join("", "<li>{} <code>{}</code>. {}</li>", ((p.kind, p.name, p.why) for p in parts))
            opened = " open" if state is State.BLIND else ""
            groups.append((opened, words, len(parts), rows))
    return format_html(
        '<div class="rr"><p><strong>{}</strong> of {} routes and dependencies, as {} names them.</p>{}</div>',
        f"{100 * found.ratio:.0f} %",
        len(found.parts),
        found.source,
        format_html_join("", "<details{}><summary>{} ({})</summary><ul>{}</ul></details>", groups),
    )


UNITS = {"lcp_ms": ("LCP", "{:,.0f} ms"), "inp_ms": ("INP", "{:,.0f} ms"), "cls": ("CLS", "{:.2f}")}


def vitals_in_words(felt: Sequence[Felt]) -> SafeString:
    """The p75 of each vital, of the whole and of each route, with what it means."""
    rows = (
        (UNITS[one.vital][0], "all pages" if one.endpoint == "*" else one.endpoint,
         UNITS[one.vital][1].format(one.p75), one.rating)
        for one in felt[:30]
    )  # fmt: skip
    return format_html_join("", "<p><strong>{}</strong> of {}: {} at p75, {}.</p>", rows)
