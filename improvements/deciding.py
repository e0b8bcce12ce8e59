"""What approvals tell improvements: somebody decided."""

from __future__ import annotations

from django.db.models.functions import Now

from approvals.subjects import Description
from improvements.models import Improvement, State

AGAIN = (
    "An improvement that goes on is asked about anew by itself; one that ended is suggested again when analysis finds "
    "the same in other code."
)


def wake(pk: int) -> None:
    """Let the improvement look at its request now; the next tick takes its step."""
    Improvement.objects.filter(pk=pk, state=State.AWAITING_APPROVAL).update(wake_at=Now())


def describe(pk: int) -> Description:
    improvement = Improvement.objects.get(pk=pk)
    return Description(improvement.title, improvement.get_absolute_url(), State(improvement.state).label)
