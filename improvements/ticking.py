"""The tick: what can take a step, takes it. Level-triggered: a crash or a lost message costs a tick and nothing else.

One step is: claim a lease, run the step outside any transaction, and record its outcome and the move in one. While the
step runs a thread renews the lease; when the worker dies the lease runs out, and the next tick takes the
step again. Steps are written to be taken again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import traceback
import uuid
from collections.abc import Iterator

from django.conf import settings
from django.db import close_old_connections, connection, transaction
from django.utils import timezone

from approvals import audit
from improvements.models import Improvement, LostRace, State, StepRun
from improvements.outcome import Outcome, Verdict, Waiting
from improvements.pipeline import PIPELINE

log = logging.getLogger(__name__)

# A step that raised this many times in a row has failed: it would raise for ever.
CRASHES_BEFORE_FAILURE = 5


class LostLease(Exception):
    """The lease ran out under a running step and somebody else has it. The outcome is void."""


def due() -> list[int]:
    """The improvements that could take a step now, the most advanced first: traffic comes before new ideas."""
    order = {state: index for index, state in enumerate(PIPELINE)}
    rows = Improvement.objects.due().values_list("pk", "state")
    return [pk for pk, state in sorted(rows, key=lambda row: -order.get(State(row[1]), 0))]


def advance(pk: int) -> State | None:
    """Take steps until the improvement waits, ends, or is another worker's. Returns its state, None if not ours."""
    improvement = Improvement.objects.select_related("service", "finding").get(pk=pk)
    state: State | None = None
    while take_step(improvement):
        state = State(improvement.state)
    return state


def take_step(improvement: Improvement) -> bool:
    """Take one step. True when another may follow at once."""
    token = improvement.claim(seconds=settings.LEASE_SECONDS)
    if token is None:
        return False
    step = PIPELINE[State(improvement.state)]
    run = _open_run(improvement, token)
    if run is None:
        _fail_for_good(improvement, token)
        return True
    try:
        with _renewing(improvement, token):
            result = step.run(improvement)
    except Exception:  # noqa: BLE001 - the boundary: a bug in a step is recorded on the step and the step is taken again
        _record_crash(improvement, run, token)
        return False
    if isinstance(result, Waiting):
        StepRun.objects.filter(pk=run.pk).update(reason=result.reason)
        improvement.release_lease(token, sleep_seconds=result.seconds)
        return False
    try:
        return _record(improvement, run, token, result)
    except (LostLease, LostRace) as lost:
        log.warning("improvement %s: the outcome of %s is void: %s", improvement.pk, run.state, lost)
        improvement.release_lease(token)
        return False


def _open_run(improvement: Improvement, token: uuid.UUID) -> StepRun | None:
    """The row of this step: the one under way if it waits, a new one otherwise. None when it crashed too often."""
    with transaction.atomic():
        open_run = improvement.runs.select_for_update().filter(ended_at=None).first()
        if open_run and open_run.state == improvement.state and open_run.reason:
            # It said that it waits, and goes on now.
            open_run.lease = token
            open_run.save(update_fields=["lease"])
            return open_run
        if open_run:
            # Its worker died, or a stop overtook it: that run has no outcome.
            open_run.ended_at = timezone.now()
            open_run.crashed = open_run.state == improvement.state
            open_run.reason = open_run.reason or "its worker went away before it ended"
            open_run.save(update_fields=["ended_at", "crashed", "reason"])
        crashes = improvement.runs.filter(
            state=improvement.state, crashed=True, started_at__gte=improvement.state_since
        ).count()
        if crashes >= CRASHES_BEFORE_FAILURE:
            return None
        return improvement.runs.create(state=improvement.state, lease=token)


def _record(improvement: Improvement, run: StepRun, token: uuid.UUID, outcome: Outcome) -> bool:
    """Outcome, evidence and move in one transaction: all of it happened, or none."""
    step = PIPELINE[State(run.state)]
    target = step.target(outcome)
    with transaction.atomic():
        held = (
            Improvement.objects.select_for_update().filter(pk=improvement.pk, leased_by=token).values("state").first()
        )
        if held is None:
            raise LostLease(f"lease {token}")
        if held["state"] != run.state:
            raise LostRace(improvement, State(run.state), target or State(run.state))
        run.verdict, run.reason, run.ended_at = outcome.verdict, outcome.reason, timezone.now()
        run.save(update_fields=["verdict", "reason", "ended_at"])
        kept = [run.keep(evidence) for evidence in outcome.evidence]
        audit.record(
            "improvement.step",
            improvement,
            because=outcome.reason,
            data={
                "step": run.state,
                "verdict": outcome.verdict.value,
                "evidence": [{"kind": record.kind, "sha256": record.sha256} for record in kept],
            },
        )
        if target is not None:
            improvement.move_to(target, actor=None, because=outcome.reason)
        else:
            Improvement.objects.filter(pk=improvement.pk).update(settled_at=timezone.now())
        improvement.release_lease(token)
    log.info("improvement %s: %s %s → %s: %s", improvement.pk, run.state, outcome.verdict, target, outcome.reason)
    return target is not None


def _record_crash(improvement: Improvement, run: StepRun, token: uuid.UUID) -> None:
    log.exception("improvement %s: the step %s raised", improvement.pk, run.state)
    if not connection.in_atomic_block:
        # The step may have failed because its connection did.
        close_old_connections()
    text = traceback.format_exc(limit=-6)
    StepRun.objects.filter(pk=run.pk).update(ended_at=timezone.now(), crashed=True, reason=text[-4000:])
    crashes = improvement.runs.filter(state=run.state, crashed=True).count()
    improvement.release_lease(token, sleep_seconds=min(2.0**crashes, 60))


def _fail_for_good(improvement: Improvement, token: uuid.UUID) -> None:
    """The step crashed too often: it goes where a failed step goes. Live traffic is taken back like after a FAIL."""
    failed = PIPELINE[State(improvement.state)].failed
    last = improvement.runs.filter(state=improvement.state, crashed=True).last()
    told = last.reason[-300:] if last else "nothing"
    reason = f"the step {improvement.state} crashed {CRASHES_BEFORE_FAILURE} times; it last said: {told}"
    with contextlib.suppress(LostRace):
        improvement.move_to(failed, actor=None, because=reason)
    improvement.release_lease(token)


@contextlib.contextmanager
def _renewing(improvement: Improvement, token: uuid.UUID) -> Iterator[None]:
    """Keep the lease alive while the step runs. It ends with the process: a dead worker renews nothing."""
    done = threading.Event()

    def renew() -> None:
        try:
            while not done.wait(settings.LEASE_SECONDS / 3):
                if not improvement.renew(token, seconds=settings.LEASE_SECONDS):
                    log.warning("improvement %s: lease %s was taken away", improvement.pk, token)
                    return
        finally:
            close_old_connections()

    thread = threading.Thread(target=renew, name=f"lease-{improvement.pk}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)


def verdict_of(improvement: Improvement, state: State) -> Verdict | None:
    """How the last finished run of a step ended."""
    run = improvement.runs.filter(state=state).exclude(verdict="").last()
    return Verdict(run.verdict) if run else None
