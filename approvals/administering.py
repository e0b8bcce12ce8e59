"""What people change on Django's own admin pages goes into the audit log, whatever the model."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntryManager
from django.contrib.auth.models import User
from django.db import transaction

from approvals import audit, occasion

VERBS = {ADDITION: "admin.added", CHANGE: "admin.changed", DELETION: "admin.deleted"}


_log_actions: Any = LogEntryManager.log_actions


def log_actions(
    self: LogEntryManager,
    user_id: Any,
    queryset: Any,
    action_flag: int,
    change_message: Any = "",
    *,
    single_object: bool = False,
) -> Any:
    """What Django does, and an audit entry for each row, in the transaction of the change."""
    rows = list(queryset)
    logged = _log_actions(self, user_id, rows, action_flag, change_message, single_object=single_object)
    actor = User.objects.filter(pk=user_id).first()
    with transaction.atomic():
        for row in rows:
            if not (_is_told(row) or (action_flag == DELETION and _tells_deletions(row))):
                data = {"message": change_message} if change_message else None
                audit.record(VERBS[action_flag], row, actor=actor, data=data)
    return logged


def _tells_deletions(row: Any) -> bool:
    """Whether its page records deletions itself, with more to say: Django writes its history before it deletes."""
    page = admin.site._registry.get(type(row))
    return bool(getattr(page, "tells_deletions", False))


def _is_told(row: Any) -> bool:
    """Whether this request has recorded the same already, with what was and what became."""
    return (row._meta.label_lower, str(row.pk)) in (occasion.current().told or ())


def watch() -> None:
    """Have the admin's own history go through `log_actions`.

    The method is replaced and not the manager, which is part of a migration of Django's; every ModelAdmin calls it,
    also for many rows at once, of which no signal tells.
    """
    LogEntryManager.log_actions = log_actions  # type: ignore[method-assign]
