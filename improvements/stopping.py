"""Stop wins: a person, an alert or a verdict may end an improvement at any time."""

from __future__ import annotations

from django.contrib.auth.models import User
from django.db import transaction

from improvements.approving import withdraw
from improvements.models import LIVE, IllegalMove, Improvement, State


def stop(improvement: Improvement, *, actor: User | None, because: str) -> State:
    """End it: with a rollback where live traffic is touched, by dismissing it before. Returns the new state.

    A step that is under way loses its outcome: the compare-and-set finds the state changed. Raises IllegalMove when it
    has ended, is settled, or is already on its way back; LostRace when it moved at the same moment.
    """
    with transaction.atomic():
        # Locks in the order of everybody else: the improvement, its request, and the audit log last.
        improvement.refresh_from_db(from_queryset=Improvement.objects.select_for_update())
        state = State(improvement.state)
        if improvement.settled_at is not None:
            raise IllegalMove(improvement, state, State.ROLLING_BACK)
        if state in LIVE:
            target = State.ROLLING_BACK
        elif state is State.AWAITING_APPROVAL:
            target = State.REJECTED
            withdraw(improvement, because)
        else:
            target = State.DISMISSED
        improvement.move_to(target, actor=actor, because=because)
    return target


def retry_rollback(improvement: Improvement, *, actor: User, because: str) -> None:
    """Try a stuck rollback again, after a person removed what held it up."""
    improvement.move_to(State.ROLLING_BACK, actor=actor, because=because)
