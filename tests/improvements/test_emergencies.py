"""A broken glass and its review: made together, signed off once."""

from __future__ import annotations

import datetime as dt

import pytest
from django.contrib.auth.models import User
from django.utils.timezone import now

from approvals import breaking_glass
from approvals.models import AuditEntry, BreakGlass
from improvements.governance import emergencies, reviewing
from improvements.models import Review
from tests.approvals.test_breaking_glass import SHOP, broken
from tests.approvals.test_requests import ask

pytestmark = pytest.mark.django_db


@pytest.fixture
def over(bob: User, erin: User) -> BreakGlass:
    """One that two people opened, and that was closed again."""
    glass = broken(ask(subject=SHOP), bob, erin)
    return breaking_glass.revoke(glass, person=bob, because="It is up again.", at=now())


def test_is_made_with_the_confirmation_and_barred_to_the_two(over: BreakGlass, bob: User, erin: User) -> None:
    review = Review.objects.get(kind="break-glass")
    assert {user.username for user in review.barred.all()} == {"bob", "erin"}
    assert review.facts[0]["facts"][1]["value"] == over.reason
    assert review.url == f"/admin/approvals/breakglass/{over.pk}/change/"
    assert review.due_on > now().date()


@pytest.mark.parametrize("where", ["review", "glass"])
def test_is_signed_off_once_on_either_page(where: str, over: BreakGlass, carol: User, dave: User) -> None:
    review = Review.objects.get()
    if where == "review":
        emergencies.sign_off(review, person=carol, notes="It was right.", at=now())
    else:
        breaking_glass.review(over, person=carol, notes="It was right.", at=now())
    review.refresh_from_db()
    over.refresh_from_db()
    assert (review.signed_by, review.signed_as, review.notes) == (carol, "architecture", "It was right.")
    assert (over.reviewed_by, over.notes) == (carol, "It was right.")
    actions = list(AuditEntry.objects.order_by("sequence").values_list("action", flat=True))
    assert actions[-2:] == ["review.signed", "break_glass.reviewed"]
    with pytest.raises(reviewing.Refused, match="reviewed it already"):
        emergencies.sign_off(review, person=dave, notes="Mine too.", at=now())


def test_is_not_signed_off_while_the_glass_is_in_force(bob: User, erin: User, carol: User) -> None:
    broken(ask(subject=SHOP), bob, erin)
    with pytest.raises(reviewing.Refused, match="still in force"):
        emergencies.sign_off(Review.objects.get(), person=carol, notes="Fine.", at=now())
    assert Review.objects.get().signed_at is None


def test_signs_any_other_review_as_it_is(bob: User) -> None:
    review = Review.objects.create(
        kind="weekly", period="2026-W47", title="Weekly", since=now(), until=now(), role="lead", made_at=now(),
        due_on=now().date(), escalates_after=now().date() + dt.timedelta(days=1), facts=[],
    )  # fmt: skip
    assert emergencies.sign_off(review, person=bob, notes="Read.", at=now()).signed_by == bob
