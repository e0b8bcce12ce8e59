"""Has somebody look when the audit log is not what was written, or when nothing vouches for it any more."""

from __future__ import annotations

import logging
from datetime import datetime

from django.conf import settings
from django.contrib.auth.models import User

from approvals import checkpoints, statements, verifying
from monitoring import notifying
from monitoring.models import Page, Service

log = logging.getLogger(__name__)

WRONG, UNCOVERED = "audit-log-wrong", "audit-log-uncovered"
URL = "/admin/approvals/auditentry/"
LATE = 3  # times AUDIT_CHECKPOINT_MINUTES: then it is no longer a worker that was busy


def verify_log(at: datetime, *, actor: User | None = None) -> bool:
    """Verify the audit log and page on-call about what is wrong with it. Whether it is good."""
    try:
        found = verifying.verify_and_tell(actor=actor)
    except statements.StatementsUnusable as error:
        _page(WRONG, "The audit log can't be verified", str(error), at)
        return False
    if found.fault is not None:
        where = f"Entry {found.fault.sequence}: {found.fault.what}"
        _page(WRONG, "The audit log is not what was written", f"{where}\n\nSee docs/operations.md, Audit log.", at)
        return False
    _call_off(WRONG, "It was verified, and is as it was written.")
    return True


def watch_checkpoints(at: datetime) -> float | None:
    """Page on-call when entries wait too long for a checkpoint. How long, in seconds; None when that can't be told."""
    try:
        age = checkpoints.uncovered().age_seconds(at)
        limit = LATE * 60 * settings.AUDIT_CHECKPOINT_MINUTES
        why = f"The oldest entry without a checkpoint is {age / 60:.0f} minutes old." if age > limit else ""
    except statements.StatementsUnusable as error:
        age, why = None, str(error)
    if why:
        _page(UNCOVERED, "Nothing vouches for the audit log", why, at)
    else:
        _call_off(UNCOVERED, "There are checkpoints again.")
    return age


def _page(key: str, title: str, body: str, at: datetime) -> None:
    service = Service.objects.filter(is_self=True).first()
    if service is None:
        log.critical("%s: %s", title, body)
        return
    # What was over and is back is news: a page that ended is no longer that page.
    notifying.page(service, key=f"{key}-{at:%Y-%m-%d}", title=title, body=body, url=URL, at=at)


def _call_off(key: str, because: str) -> None:
    for page in Page.objects.open().filter(service__is_self=True, key__startswith=f"{key}-").select_related("service"):
        notifying.call_off(page.service, key=page.key, because=because)
