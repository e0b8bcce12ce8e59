"""Stop wins: a person, an alert or a verdict may end an improvement at any time."""

from __future__ import annotations

from django.contrib.auth.models import User
from django.db import transaction

from improvements.approving import withdraw
from improvements.models import LIVE, IllegalMove, Improvement, State
from monitoring import notifying


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
        else:
            target = State.DISMISSED
        if target is not State.ROLLING_BACK:
            withdraw(improvement, because)
        improvement.move_to(target, actor=actor, because=because)
    return target


def retry_rollback(improvement: Improvement, *, actor: User, because: str) -> None:
    """Try a stuck rollback again, after a person removed what held it up."""
    with transaction.atomic():
        notifying.call_off(
            improvement.service, key=_page_key(improvement), because=f"{actor} tries it again: {because}"
        )
        improvement.move_to(State.ROLLING_BACK, actor=actor, because=because)


def page_stuck(improvement: Improvement, *, because: str) -> None:
    """Tell whoever is on call for the service. In the transaction of the move, and only rows are written."""
    notifying.page(
        improvement.service,
        key=_page_key(improvement),
        title=f"A rollback is stuck: {improvement.title}",
        body=f"{because}\n\nRemove what holds it up, then try the rollback again on its page.",
        url=improvement.get_absolute_url(),
    )


def _page_key(improvement: Improvement) -> str:
    """One page for each time that it gets stuck."""
    last = improvement.runs.order_by("-pk").values_list("pk", flat=True).first()
    return f"improvement-{improvement.pk}-stuck-{last}"
