"""Every broken glass has its review: made when it is confirmed, and signed off once, on whichever page.

The rules of the sign-off are those of `breaking_glass.review`; the review of governance is signed with it.
"""

from __future__ import annotations

import datetime as dt

from django.contrib.auth.models import User
from django.db import transaction
from django.urls import reverse

from approvals import audit, breaking_glass, roles
from approvals.models import BreakGlass
from approvals.policy import Role
from improvements.cadence import Kind
from improvements.governance import reviewing
from improvements.governance.facts import Fact, Section
from improvements.models import Review


def watch() -> None:
    """Have the review made with each confirmation, and signed with its sign-off."""
    breaking_glass.on_broken_glass.append(make_review)
    breaking_glass.on_reviewed.append(sign_review)


def make_review(glass: BreakGlass) -> None:
    """The review of a confirmed one, in the transaction of the confirmation."""
    assert glass.confirmed_by is not None
    assert glass.confirmed_at is not None
    reviewing.review_break_glass(
        str(glass.pk),
        title=f"Break-glass: {glass.request.title}",
        url=reverse("admin:approvals_breakglass_change", args=[glass.pk]),
        facts=[
            Section(
                "What happened",
                (
                    Fact("Change", glass.request.title),
                    Fact("Reason", glass.reason),
                    Fact("Ticket", glass.ticket),
                    Fact("Opened by", glass.opened_by.username),
                    Fact("Confirmed by", glass.confirmed_by.username),
                ),
            )
        ],
        broken_by=[glass.opened_by, glass.confirmed_by],
        at=glass.confirmed_at,
        scope=glass.request.scope,
    )


def sign_review(glass: BreakGlass) -> None:
    """Sign its review with what was written when the glass was reviewed, in that transaction."""
    with transaction.atomic():
        row = Review.objects.select_for_update().filter(kind=Kind.BREAK_GLASS, period=str(glass.pk)).first()
        if row is None or row.signed_at is not None or glass.reviewed_by is None:
            return
        held = roles.facts_of(glass.reviewed_by, scope=glass.request.scope).roles
        row.signed_as = next(role for role in Role if role in held & breaking_glass.REVIEWERS)
        row.signed_by, row.signed_at, row.notes = glass.reviewed_by, glass.reviewed_at, glass.notes[:10_000]
        row.save(update_fields=["signed_by", "signed_as", "signed_at", "notes"])
        audit.record(
            "review.signed",
            row,
            actor=glass.reviewed_by,
            because=row.notes,
            data={"as": row.signed_as, "facts_sha256": row.facts_sha256},
        )


def sign_off(review: Review, *, person: User, notes: str, at: dt.datetime) -> Review:
    """Sign a review off: of a broken glass by reviewing the glass, any other as it is. Raises reviewing.Refused."""
    glass = BreakGlass.objects.filter(pk=int(review.period)).first() if review.kind == Kind.BREAK_GLASS else None
    if glass is None:
        return reviewing.sign_off(review, person=person, notes=notes, at=at)
    try:
        breaking_glass.review(glass, person=person, notes=notes, at=at)
    except breaking_glass.Refused as refused:
        raise reviewing.Refused(str(refused)) from refused
    review.refresh_from_db()
    return review
