"""One improvement as a page: composed once here, printed by the template."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from approvals import diff, outline
from improvements.models import MOVES, Improvement, Rollout, State
from improvements.outcome import Verdict
from improvements.pipeline import PIPELINE


@dataclass(frozen=True)
class ShownEvidence:
    kind: str
    summary: str
    sha256: str
    lines: tuple[outline.Line, ...]


@dataclass(frozen=True)
class Measured:
    """One number of the endpoint, before and after, in words."""

    name: str
    before: str
    after: str
    change: str


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
    added: int
    removed: int
    rollout: Rollout | None
    rollout_says: str
    measured: tuple[Measured, ...]
    may_begin: bool
    may_stop: bool
    may_retry: bool
    stop_label: str
    stop_means: str


def page_of(improvement: Improvement) -> Page:
    """Everything the page of one improvement shows."""
    state = State(improvement.state)
    runs = list(improvement.runs.prefetch_related("evidence"))
    changed = diff.lines(improvement.diff)
    added, removed = diff.counts(changed)
    rollout = (
        Rollout.objects.filter(improvement=improvement).select_related("current__service", "candidate__service").first()
    )
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
                        tuple(outline.lines(item.content)),
                    )
                    for item in run.evidence.all()
                ),
            )
            for run in runs
        ),
        diff=tuple(changed),
        added=added,
        removed=removed,
        rollout=rollout,
        rollout_says=_rollout_says(rollout) if rollout else "",
        measured=_measured(improvement),
        may_begin=state is State.SUGGESTED and improvement.started_at is None,
        may_stop=may_stop and state is not State.STUCK,
        may_retry=state is State.STUCK,
        stop_label="Stop" if improvement.started_at else "Dismiss",
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


def _rollout_says(rollout: Rollout) -> str:
    """Afterwards the candidate may have been replaced, and its share says nothing about this rollout."""
    if rollout.state == Rollout.State.LIVE:
        return f"{rollout.candidate.share} % of the traffic is on the candidate"
    return rollout.state


def _measured(improvement: Improvement) -> tuple[Measured, ...]:
    """The benefit's numbers. What had no number before has no line; what has none now says so."""
    before, after, change = (improvement.measured.get(part, {}) for part in ("before", "after", "change"))
    return tuple(
        Measured(
            name=outline.quantity(name, value)[0],
            before=outline.quantity(name, value)[1],
            after="no data" if after.get(name) is None else outline.quantity(name, after[name])[1],
            change="" if change.get(name) is None else f"{change[name]:+.0%}",
        )
        for name, value in before.items()
        if value is not None
    )


def _state_css(state: State) -> str:
    if state is State.PROMOTED:
        return Verdict.PASS.lower()
    if state in (State.FAILED, State.STUCK, State.ROLLING_BACK, State.ROLLED_BACK, State.REJECTED):
        return Verdict.FAIL.lower()
    return "waiting"
