"""The tick: what can take a step, takes it. Level-triggered: a crash or a lost message costs a tick and nothing else.

One step is: claim a lease, run the step outside any transaction, and record its outcome and the move in one. While the
step runs a thread renews the lease; when the worker dies the lease runs out, and the next tick takes the
step again. Steps are written to be taken again.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import threading
import traceback
import uuid
from collections.abc import Iterator

from django.conf import settings
from django.db import DatabaseError, close_old_connections, connection, transaction
from django.utils import timezone

from approvals import audit, occasion
from improvements import approving, rolling, stopping
from improvements.models import ENDED, Improvement, LostRace, State, StepRun
from improvements.outcome import Outcome, Waiting
from improvements.pipeline import PIPELINE

log = logging.getLogger(__name__)

# A step that crashed this often in so short a time has failed: it would crash for ever. Crashes that lie further apart
# are bad luck (an engine restarted, a machine was out of memory) and only cost a tick.
MOST_CRASHES = 5
CRASH_WINDOW = dt.timedelta(minutes=10)
WITHOUT_ROLLOUT = ENDED - {State.ROLLED_BACK}


class LostLease(Exception):
    """The lease ran out under a running step and somebody else has it. The outcome is void."""


def due() -> list[tuple[int, State]]:
    """The improvements that could take a step now, with their states: traffic comes before new ideas."""
    order = {state: index for index, state in enumerate(PIPELINE)}
    rows = Improvement.objects.due().values_list("pk", "state")
    return sorted(((pk, State(state)) for pk, state in rows), key=lambda row: -order[row[1]])


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
    run = _open_run(improvement, token)
    if run is None:
        _fail_for_good(improvement, token)
        return True
    with occasion.within(correlation=f"improvement-{improvement.pk}-step-{run.pk}"):
        return _run(improvement, run, token)


def _run(improvement: Improvement, run: StepRun, token: uuid.UUID) -> bool:
    """Do what the step does and record what came of it. True when another may follow at once."""
    try:
        with _renewing(improvement, token):
            result = PIPELINE[State(run.state)].run(improvement)
        if isinstance(result, Waiting):
            StepRun.objects.filter(pk=run.pk).update(reason=audit.plain(result.reason) or "waiting")
            improvement.release_lease(token, sleep_seconds=result.seconds, state=run.state)
            return False
        return _record(improvement, run, token, result)
    except (LostLease, LostRace) as lost:
        log.warning("improvement %s: the outcome of %s is void: %s", improvement.pk, run.state, lost)
        improvement.release_lease(token)
    except Exception:  # noqa: BLE001 - the boundary: a bug in a step is recorded on the step and the step is taken again
        _record_crash(improvement, run, token)
    return False


def _open_run(improvement: Improvement, token: uuid.UUID) -> StepRun | None:
    """The row of this step: the one under way if it waits, a new one otherwise. None when it crashed too often."""
    with transaction.atomic():
        open_run = improvement.runs.select_for_update().filter(ended_at=None).first()
        if open_run and open_run.state == improvement.state and open_run.reason:
            # It said that it waits, and goes on now. Without its reason, a worker that dies now is seen to have died.
            open_run.lease, open_run.reason = token, ""
            open_run.save(update_fields=["lease", "reason"])
            return open_run
        if open_run:
            # Its worker died, or a stop overtook it: that run has no outcome.
            open_run.ended_at = timezone.now()
            open_run.crashed = open_run.state == improvement.state
            open_run.reason = open_run.reason or "its worker went away before it ended"
            open_run.save(update_fields=["ended_at", "crashed", "reason"])
        since = max(improvement.state_since, timezone.now() - CRASH_WINDOW)
        if improvement.runs.filter(state=improvement.state, crashed=True, ended_at__gte=since).count() >= MOST_CRASHES:
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
        run.verdict, run.reason, run.ended_at = outcome.verdict, audit.plain(outcome.reason), timezone.now()
        run.save(update_fields=["verdict", "reason", "ended_at"])
        kept = [run.keep(evidence) for evidence in outcome.evidence]
        if target is not None:
            _leave(improvement, target, because=outcome.reason)
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
        if target is None:
            rolling.settle(improvement, because=outcome.reason)
        else:
            improvement.move_to(target, actor=None, because=outcome.reason)
        improvement.release_lease(token)
    log.info("improvement %s: %s %s → %s: %s", improvement.pk, run.state, outcome.verdict, target, outcome.reason)
    return target is not None


def _leave(improvement: Improvement, target: State, *, because: str) -> None:
    """Inside the transaction of the move, before anything locks the audit log: an end takes the question along. Who
    goes back to AUTHORING leaves it: the signatures hold when the same patch is proven again.
    """
    if target in WITHOUT_ROLLOUT:
        approving.withdraw(improvement, because)
    elif improvement.state == State.AWAITING_APPROVAL and target is not State.ROLLING_OUT:
        approving.discard_prepared(improvement)
    if target is State.STUCK:
        log.critical("improvement %s is STUCK and needs a person: %s", improvement.pk, because)
        stopping.page_stuck(improvement, because=because)


def _record_crash(improvement: Improvement, run: StepRun, token: uuid.UUID) -> None:
    log.exception("improvement %s: the step %s raised", improvement.pk, run.state)
    if not connection.in_atomic_block:
        # The step may have failed because its connection did.
        close_old_connections()
    text = traceback.format_exc(limit=-6)
    StepRun.objects.filter(pk=run.pk).update(ended_at=timezone.now(), crashed=True, reason=audit.plain(text[-4000:]))
    crashes = improvement.runs.filter(
        state=run.state, crashed=True, ended_at__gte=timezone.now() - CRASH_WINDOW
    ).count()
    improvement.release_lease(token, sleep_seconds=min(2.0**crashes, 60), state=run.state)


def _fail_for_good(improvement: Improvement, token: uuid.UUID) -> None:
    """The step crashed too often: it goes where a failed step goes. Live traffic is taken back like after a FAIL."""
    failed = PIPELINE[State(improvement.state)].failed
    last = improvement.runs.filter(state=improvement.state, crashed=True).last()
    told = last.reason[-300:] if last else "nothing"
    reason = f"the step {improvement.state} crashed {MOST_CRASHES} times; it last said: {told}"
    with contextlib.suppress(LostRace), transaction.atomic():
        improvement.hold()
        _leave(improvement, failed, because=reason)
        improvement.move_to(failed, actor=None, because=reason)
    improvement.release_lease(token)


@contextlib.contextmanager
def _renewing(improvement: Improvement, token: uuid.UUID) -> Iterator[None]:
    """Keep the lease alive while the step runs. It ends with the process: a dead worker renews nothing."""
    done = threading.Event()

    def renew() -> None:
        try:
            while not done.wait(settings.LEASE_SECONDS / 3):
                try:
                    held = improvement.renew(token, seconds=settings.LEASE_SECONDS)
                except DatabaseError as error:
                    # PostgreSQL may be restarting. If that outlasts the lease, `hold` keeps this worker from harm.
                    log.warning("improvement %s: the lease could not be renewed yet: %s", improvement.pk, error)
                    connection.close()
                    continue
                if not held:
                    log.warning("improvement %s: lease %s was taken away", improvement.pk, token)
                    return
        finally:
            connection.close()

    thread = threading.Thread(target=renew, name=f"lease-{improvement.pk}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)
