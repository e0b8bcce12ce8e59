"""The machine: what happens in each state, and where it leads. The law (MOVES) says what may happen; a test keeps the
two in agreement, and the documentation is made from both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from improvements import approving, authoring, proving, rolling, suggesting
from improvements.models import Improvement, State
from improvements.outcome import Outcome, Verdict, Waiting


@dataclass(frozen=True)
class Step:
    """One step. `run` never moves state; it says how it ended, and this row says where that leads.

    `passed` is None where a pass leads nowhere else (PROMOTED settles and stays). INCONCLUSIVE leads to `failed` unless
    the row names another state, NO_DATA always does. `endings` are the named others.
    """

    does: str
    run: Callable[[Improvement], Outcome | Waiting]
    passed: State | None
    failed: State
    inconclusive: State | None = None
    endings: Mapping[str, State] = field(default_factory=dict)

    def target(self, outcome: Outcome) -> State | None:
        """Where this outcome leads; None: nowhere, it stays."""
        if outcome.ending:
            return self.endings[outcome.ending]
        if outcome.verdict is Verdict.PASS:
            return self.passed
        if outcome.verdict is Verdict.INCONCLUSIVE and self.inconclusive is not None:
            return self.inconclusive
        return self.failed


PIPELINE: dict[State, Step] = {
    State.SUGGESTED: Step(
        "is it still wanted? Started by a person, or by itself up to SELF_BUILD_RISK_THRESHOLD",
        suggesting.start,
        passed=State.AUTHORING,
        failed=State.DISMISSED,
        endings={"expired": State.EXPIRED},
    ),
    State.AUTHORING: Step(
        "the author writes the patch in a git worktree", authoring.write, passed=State.TESTING, failed=State.FAILED
    ),
    State.TESTING: Step(
        "the service's own tests on base and on patch, in the sandbox",
        proving.test,
        passed=State.SCANNING,
        failed=State.FAILED,
    ),
    State.SCANNING: Step(
        "security scan, secrets, protected paths, migration safety",
        proving.scan,
        passed=State.STAGING,
        failed=State.FAILED,
    ),
    State.STAGING: Step(
        "the candidate started privately: smoke, and benchmark against the current release",
        proving.stage,
        passed=State.AWAITING_APPROVAL,
        inconclusive=State.AWAITING_APPROVAL,
        failed=State.FAILED,
    ),
    State.AWAITING_APPROVAL: Step(
        "risk of the real patch, its tier, the policy; none, one or several signatures",
        approving.await_approval,
        passed=State.ROLLING_OUT,
        failed=State.REJECTED,
        endings={"expired": State.EXPIRED, "outdated": State.AUTHORING},
    ),
    State.ROLLING_OUT: Step(
        "traffic moves step by step, with a verdict at each",
        rolling.roll_out,
        passed=State.VALIDATING,
        failed=State.ROLLING_BACK,
    ),
    State.VALIDATING: Step(
        "bake with all traffic, merge, measure the benefit",
        rolling.validate,
        passed=State.PROMOTED,
        failed=State.ROLLING_BACK,
    ),
    State.PROMOTED: Step(
        "watched for a while, then the old release is stopped", rolling.watch, passed=None, failed=State.ROLLING_BACK
    ),
    State.ROLLING_BACK: Step(
        "traffic back first, then the commit reverted, then proven",
        rolling.roll_back,
        passed=State.ROLLED_BACK,
        failed=State.STUCK,
    ),
}
