"""What keeps an approved rollout from starting now: freeze windows, and the reasons that higher apps register."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from django.contrib.auth.models import User
from django.db import transaction

from approvals import audit, freezing, recurrence, roles, terms
from approvals.freezing import Hold, Rule
from approvals.models.freeze import FreezeWindow
from approvals.models.request import ApprovalRequest
from approvals.policy import Role

MAY_LOOSEN = frozenset({Role.LEAD, Role.ARCHITECTURE, Role.CTO})
# Kinds of subjects that move no traffic: deciding about the policy is no rollout.
NO_ROLLOUT = frozenset({"policy"})


class Refused(Exception):
    """A rule forbids it; the text is the rule's own sentence, fit for people."""


@dataclass(frozen=True)
class Finding:
    """What one reason says: a hold, or in a sentence what could not be established. Neither: all is well."""

    hold: Hold | None = None
    note: str = ""


Reason = Callable[[str, dt.datetime], Finding]
_reasons: dict[str, Reason] = {}


def register(name: str, reason: Reason) -> None:
    """Have `reason(scope, at)` asked before a rollout starts. A reliability fix passes what it holds, a rollback too.

    It is asked in the transaction that starts the rollout: it reads rows and nothing slower.
    """
    _reasons[name] = reason


def rules() -> list[Rule]:
    """The freeze windows that are switched on."""
    return [row.rule for row in FreezeWindow.objects.filter(enabled=True)]


def look(scope: str, at: dt.datetime, *, is_reliability_fix: bool, is_rollback: bool = False) -> Finding:
    """The first thing that holds a rollout of the service `scope`, or what could not be established about it."""
    if is_rollback:
        return Finding()  # stop wins: nothing ever holds a rollback
    passes = terms.in_force().document.of(scope).reliability_fixes_pass_freezes
    if hold := freezing.held(rules(), at, scope=scope, is_reliability_fix=is_reliability_fix, fixes_pass=passes):
        return Finding(hold)
    if is_reliability_fix:
        return Finding()
    found = [reason(scope, at) for reason in _reasons.values()]
    first = next((one.hold for one in found if one.hold), None)
    return Finding(first, " ".join(one.note for one in found if one.note and not first))


def hold(scope: str, at: dt.datetime, *, is_reliability_fix: bool, is_rollback: bool = False) -> Hold | None:
    """What keeps a rollout of the service `scope` from starting `at` that moment; None when nothing does."""
    return look(scope, at, is_reliability_fix=is_reliability_fix, is_rollback=is_rollback).hold


def look_at(request: ApprovalRequest, at: dt.datetime) -> Finding:
    """What holds the subject of an approval request."""
    if request.subject_kind in NO_ROLLOUT:
        return Finding()
    return look(request.scope, at, is_reliability_fix=bool(request.facts.get("is_reliability_fix")))


def save(window: FreezeWindow, *, actor: User) -> None:
    """Add a window, or change it, and record it. Raises Refused when it may let through what was held.

    Whoever operates may freeze; to remove, shorten or loosen takes a lead developer, the architecture team or the CTO.
    """
    with transaction.atomic():
        # One change at a time: whether the last rollout window goes depends on the others.
        others = list(FreezeWindow.objects.select_for_update().order_by("pk"))
        was = next((one for one in others if one.pk == window.pk), None)
        refuse_loosening(window, was, [one for one in others if one.pk != window.pk], actor)
        names = [field.attname for field in FreezeWindow._meta.concrete_fields if not field.primary_key]
        changed = [name for name in names if was is None or getattr(was, name) != getattr(window, name)]
        window.save()
        if changed:
            audit.record(
                f"freezewindow.{'changed' if was else 'added'}",
                window,
                actor=actor,
                because=window.reason,
                was={name: getattr(was, name) for name in changed} if was else None,
                became={name: getattr(window, name) for name in changed},
            )


def refuse_loosening(window: FreezeWindow, was: FreezeWindow | None, others: list[FreezeWindow], actor: User) -> None:
    loosened = freezing.loosens(
        was.rule if was and was.enabled else None,
        window.rule if window.enabled else None,
        others=[one.rule for one in others if one.enabled],
    )
    if not loosened:
        return
    # Where it was and where it goes: moved to one's own service, a window of another would be gone.
    places = {window.scope, was.scope if was else window.scope}
    held = [roles.people([actor.pk], scope=scope, lock=True)[actor.pk] for scope in sorted(places)]
    if not all(person.active and person.roles & MAY_LOOSEN for person in held):
        raise Refused(
            "This would let through what is held now. On-call engineers may add and lengthen freezes; to remove, "
            "shorten or move one takes a lead developer, the architecture team or the CTO."
        )


def in_words(row: FreezeWindow, at: dt.datetime) -> str:
    """'in force until …', or when it begins next."""
    if not row.enabled:
        return "switched off"
    try:
        if end := recurrence.open_until(row.window, at):
            return f"in force until {end:%Y-%m-%d %H:%M} UTC"
        following = recurrence.upcoming(row.window, at, 1)
    except recurrence.BadWindow as error:
        return f"cannot be read, and holds everything: {error}"
    return f"next at {following[0][0]:%Y-%m-%d %H:%M} UTC" if following else "over"
