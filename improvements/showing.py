"""One improvement as a page: composed once here, printed by the template."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from approvals import diff
from improvements.models import MOVES, Improvement, Rollout, State
from improvements.outcome import Verdict
from improvements.pipeline import PIPELINE

# Texts longer than this are cut on the page; the whole is in the database and its hash in the audit log.
LONGEST_EVIDENCE = 20_000


@dataclass(frozen=True)
class ShownEvidence:
    kind: str
    summary: str
    sha256: str
    text: str


@dataclass(frozen=True)
class ShownStep:
    state: str
    does: str
    verdict: str
    css: str
    reason: str
    started_at: datetime
    seconds: float | None
    evidence: tuple[ShownEvidence, ...]


@dataclass(frozen=True)
class Page:
    improvement: Improvement
    state: str
    state_css: str
    path: tuple[tuple[str, str], ...]
    steps: tuple[ShownStep, ...]
    diff: tuple[diff.Line, ...]
    rollout: Rollout | None
    measured: dict[str, Any]
    may_begin: bool
    may_stop: bool
    stop_means: str


def page_of(improvement: Improvement) -> Page:
    """Everything the page of one improvement shows."""
    state = State(improvement.state)
    runs = list(improvement.runs.prefetch_related("evidence"))
    may_stop = not improvement.has_ended and bool(MOVES[state] & {State.ROLLING_BACK, State.DISMISSED, State.REJECTED})
    return Page(
        improvement=improvement,
        state="settled: promoted for good" if improvement.settled_at else state.label,
        state_css=_state_css(state),
        path=_path(state, {State(run.state) for run in runs}),
        steps=tuple(
            ShownStep(
                state=State(run.state).label,
                does=PIPELINE[State(run.state)].does,
                verdict=run.verdict or ("CRASHED" if run.crashed else "under way" if run.ended_at is None else "ended"),
                css=(run.verdict or ("FAIL" if run.crashed else "waiting")).lower(),
                reason=run.reason,
                started_at=run.started_at,
                seconds=run.seconds,
                evidence=tuple(
                    ShownEvidence(
                        item.kind,
                        item.summary,
                        item.sha256,
                        json.dumps(item.content, indent=2, ensure_ascii=False)[:LONGEST_EVIDENCE],
                    )
                    for item in run.evidence.all()
                ),
            )
            for run in runs
        ),
        diff=tuple(diff.lines(improvement.diff)),
        rollout=Rollout.objects.filter(improvement=improvement)
        .select_related("current__service", "candidate__service")
        .first(),
        measured=improvement.measured,
        may_begin=state is State.SUGGESTED and improvement.started_at is None,
        may_stop=may_stop and state is not State.STUCK,
        stop_means="Traffic goes back to the old release at once, and a merged commit is reverted."
        if improvement.is_live
        else "Nothing live is touched yet; it ends here.",
    )


def _path(state: State, seen: set[State]) -> tuple[tuple[str, str], ...]:
    """The way through the machine, with where it stands: (label, done | now | ahead)."""
    way: list[State] = [one for one in PIPELINE if one is not State.ROLLING_BACK]
    if state not in way:
        detour = [State.ROLLING_BACK] if State.ROLLING_BACK in seen else []
        way = [one for one in [*way, *detour] if one in seen and one is not state] + [state]
    at = way.index(state)
    return tuple((one.label, "done" if i < at else "now" if i == at else "ahead") for i, one in enumerate(way))


def _state_css(state: State) -> str:
    if state is State.PROMOTED:
        return Verdict.PASS.lower()
    if state in (State.FAILED, State.STUCK, State.ROLLING_BACK, State.ROLLED_BACK, State.REJECTED):
        return Verdict.FAIL.lower()
    return "waiting"
