"""What the pages of this app share."""

from __future__ import annotations

from typing import Any

from django.forms import ModelForm
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from approvals import audit
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
    return f"{status} ({score:.0f})" if score is not None else status


def labels_in_words(labels: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(labels.items())) or "whole service"


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
