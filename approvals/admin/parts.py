"""What the admin's pages of approvals share."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from approvals import outline

STYLES = {"all": ["approvals.css"]}


def signed_in(request: HttpRequest) -> User:
    assert isinstance(request.user, User)
    return request.user


def as_text(value: Any) -> SafeString | str:
    """A recorded value for people; a dash for nothing."""
    if value is None:
        return "—"
    rows = (
        (line.depth, f"{line.name}: " if line.name and line.text else line.name, line.text)
        for line in outline.lines(value)
    )
    return format_html_join("", '<div class="rr-line rr-depth-{}"><strong>{}</strong>{}</div>', rows)
