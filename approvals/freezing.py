"""When rollouts may start: freezes and rollout windows on the wall clocks of people. Arithmetic; times are aware.

A freeze holds while it is open. Where there are rollout windows, everything outside of them is held. A freeze beats a
rollout window, and what holds for every service cannot be loosened for one: each level must let a rollout through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from approvals import recurrence
from approvals.recurrence import BadWindow, Window

LONGEST = timedelta(days=62)  # over the holidays and the end of the year, with room
# Looking further for the end of a hold tells nobody anything: "more than a year" is said instead.
HORIZON = timedelta(days=400)


class Kind(StrEnum):
    """What a window does while it is open."""

    FREEZE = "freeze"
    ROLLOUTS = "rollouts"

    @property
    def meaning(self) -> str:
        return {Kind.FREEZE: "freeze: nothing rolls out", Kind.ROLLOUTS: "rollouts only then"}[self]


@dataclass(frozen=True)
class Rule:
    """One window in force. `scope` is the name of a service; empty: every service."""

    name: str
    kind: Kind
    window: Window
    scope: str = ""
    reason: str = ""

    def is_about(self, scope: str) -> bool:
        return self.scope in ("", scope)


@dataclass(frozen=True)
class Hold:
    """Why a rollout may not start now. `until` is the next moment at which this is over; None: no end is known."""

    why: str
    until: datetime | None = None

    def __str__(self) -> str:
        return f"{self.why} Until {self.until:%Y-%m-%d %H:%M} UTC." if self.until else self.why


def held(
    rules: Sequence[Rule],
    at: datetime,
    *,
    scope: str = "",
    is_reliability_fix: bool = False,
    is_rollback: bool = False,
    fixes_pass: bool = False,
) -> Hold | None:
    """What keeps a rollout of `scope` from starting `at` that moment; None when nothing does.

    A rollback is never held. `fixes_pass` says whether a reliability fix passes.
    """
    if is_rollback or (is_reliability_fix and fixes_pass):
        return None
    about = [rule for rule in rules if rule.is_about(scope)]
    try:
        why = _why(about, at)
        return Hold(why, _free_from(about, at)) if why else None
    except BadWindow as error:
        # A zone may vanish with an update of the system. What cannot be read must not let anything through.
        return Hold(f"A window for rollouts cannot be read, so nothing rolls out: {error}")


def loosens(was: Rule | None, became: Rule | None, *, others: Sequence[Rule] = ()) -> bool:
    """Whether a change of one window might let through what it held. None: not there, or not enabled.

    Whatever is not plainly stricter loosens. `others` are the other windows in force: the first rollout window of a
    level closes it, and each further one opens it more.
    """
    if was is None:
        return became is not None and became.kind is Kind.ROLLOUTS and _has_level(others, became.scope)
    if became is None:
        # The last rollout window of a level opens all of it; one of several closes its own hours only.
        return was.kind is Kind.FREEZE or not _has_level(others, was.scope)
    same = (was.kind, was.window.first, was.window.zone, was.window.rule) == (
        became.kind, became.window.first, became.window.zone, became.window.rule,
    )  # fmt: skip
    if not same:
        return True
    if was.kind is Kind.FREEZE:
        return became.scope not in ("", was.scope) or became.window.duration < was.window.duration
    return became.scope != was.scope or became.window.duration > was.window.duration


def _has_level(rules: Sequence[Rule], scope: str) -> bool:
    return any(rule.kind is Kind.ROLLOUTS and rule.scope == scope for rule in rules)


def _freezes(rules: Sequence[Rule], at: datetime) -> list[tuple[datetime, Rule]]:
    """The open freezes with their ends, the longest first."""
    found = [
        (end, rule)
        for rule in rules
        if rule.kind is Kind.FREEZE and (end := recurrence.open_until(rule.window, at)) is not None
    ]
    return sorted(found, key=lambda one: one[0], reverse=True)


def _closed_levels(rules: Sequence[Rule], at: datetime) -> list[list[Rule]]:
    """For each level ("every service", this service) that is outside of its rollout windows, those windows."""
    levels: dict[str, list[Rule]] = {}
    for rule in rules:
        if rule.kind is Kind.ROLLOUTS:
            levels.setdefault(rule.scope, []).append(rule)
    return [
        windows
        for _, windows in sorted(levels.items())
        if not any(recurrence.open_until(rule.window, at) for rule in windows)
    ]


def _why(rules: Sequence[Rule], at: datetime) -> str:
    if freezes := _freezes(rules, at):
        rule = freezes[0][1]
        because = f" ({rule.reason.rstrip('.')})" if rule.reason else ""
        names = " and ".join(f"“{one.name}”" for _, one in freezes)
        return f"{rule.scope or 'Every service'} is frozen by {names}{because}."
    if closed := _closed_levels(rules, at):
        rule = closed[0][0]
        names = ", ".join(f"“{one.name}”" for one in closed[0])
        return f"{rule.scope or 'Every service'} rolls out only in {names}, and it is outside of that now."
    return ""


def _free_from(rules: Sequence[Rule], at: datetime) -> datetime | None:
    """The first moment after `at` at which nothing holds; None when there is none within the horizon."""
    moment = at
    while moment <= at + HORIZON:
        if freezes := _freezes(rules, moment):
            moment = freezes[0][0]  # nothing before the longest one's end can be free
            continue
        closed = _closed_levels(rules, moment)
        if not closed:
            return moment
        begins = [_next_begin(windows, moment) for windows in closed]
        if None in begins:
            return None  # its rollout windows are over: somebody has to plan another one
        moment = max(begin for begin in begins if begin is not None)
    return None


def _next_begin(rules: Sequence[Rule], after: datetime) -> datetime | None:
    return min((begin for rule in rules for begin, _ in recurrence.upcoming(rule.window, after, 1)), default=None)
