"""The CTO reads and signs one of several critical requests; the pages fit a phone."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils.timezone import now
from playwright.sync_api import Page

from approvals import policy, requests
from approvals.models import ApprovalRequest
from approvals.policy import Category, Tier
from approvals.subjects import SubjectRef
from improvements.models import State
from tests.authenticators import code_of, enrolled
from tests.browser.conftest import opened
from tests.browser.test_signing import DIFF, sign_in
from tests.improvements.factories import in_state
from tests.people import FRESH, PASSWORD

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
CRITICAL = "/admin/approvals/approvalrequest/critical/"


def ask(number: int, scope: str) -> ApprovalRequest:
    improvement = in_state(State.AWAITING_APPROVAL, diff=DIFF)
    return requests.open_request(
        SubjectRef("improvement", improvement.pk, f"Split the table of items, part {number}", "/things/1", scope=scope),
        requirement=policy.required(Tier.CRITICAL),
        fingerprint=str(number) * 64,
        proposed_by=None,
        categories=[Category.DATA, Category.PERFORMANCE],
        facts={
            "what": "Items that were sold move to a table of their own.",
            "why": "The leaderboard reads 4 million rows and takes 840 ms at the 95th percentile.",
            "proof": [
                {"name": "Testing", "verdict": "PASS", "summary": "61 of 61 tests passed on base and on patch"},
                {"name": "Staging", "verdict": "INCONCLUSIVE", "summary": "p95 412 ms against 840 ms, 19 requests"},
            ],
            "risk": 0.74,
            "risk_drivers": ["changes the database schema (+0.35 probability)", "61% of the requests (+0.37 size)"],
            "on_approve": "The candidate gets 10 %, 50 %, 100 % of live traffic, with a verdict at each step.",
            "undo": "Traffic goes back to the old release at once, which keeps running.",
            "diff": DIFF,
        },
        expires_at=now() + dt.timedelta(hours=8 * number),
    )


@pytest.fixture
def waiting(bob: User, dave: User) -> list[ApprovalRequest]:
    dave.set_password(PASSWORD)
    dave.save()
    found = [ask(1, "realm"), ask(2, "shop")]
    requests.comment(found[0], person=bob, how=FRESH, reason="I ran it on a copy of the table.")
    return [requests.approve(found[0], person=bob, how=FRESH, reason="Read it twice."), found[1]]


def test_signs_one_of_several_critical_requests(
    chromium: str | None, live_server: Any, waiting: list[ApprovalRequest], dave: User
) -> None:
    code = code_of(enrolled(dave))
    first, second = waiting
    with opened(chromium) as (page, complaints):
        sign_in(page, live_server.url, "dave")
        page.goto(live_server.url + CRITICAL)
        card = page.locator(f"#request-{first.pk}")
        card.get_by_text("Decide on this one").click()
        card.locator("textarea").fill("The plan is sound.")
        card.get_by_role("button", name="Approve").click()
        page.get_by_label("Code").fill(code)
        page.keyboard.press("Enter")
        page.wait_for_url(f"**{CRITICAL}#request-{first.pk}")
        assert page.locator(f"#request-{first.pk} textarea").input_value() == "The plan is sound."
        page.locator(f"#request-{first.pk}").get_by_role("button", name="Approve").click()
        page.get_by_text("Your decision is recorded. The request is approved.").wait_for()
        assert complaints == []
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.state, second.state) == ("approved", "open")
    assert not second.signatures.exists()


def test_fits_every_width(chromium: str | None, live_server: Any, waiting: list[ApprovalRequest], dave: User) -> None:
    improvement = in_state(State.AWAITING_APPROVAL, diff=DIFF)
    pages = {
        "critical": CRITICAL,
        "decision": f"/admin/approvals/approvalrequest/{waiting[0].pk}/change/",
        "requests": "/admin/approvals/approvalrequest/?awaiting=me",
        "verify": "/admin/approvals/auditentry/verify/",
        "log": "/admin/approvals/auditentry/",
        "edit": f"/admin/improvements/improvement/{improvement.pk}/edit/",
    }
    shots, too_wide = os.environ.get("SHOTS"), []

    def look(page: Page, width: int) -> None:
        page.set_viewport_size({"width": width, "height": 800})
        for name, address in pages.items():
            page.goto(live_server.url + address)
            for summary in page.locator("details > summary").all():
                summary.click()
            if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
                too_wide.append(f"{name} at {width}")
            if shots:
                page.screenshot(path=Path(shots) / f"{name}-{width}.png", full_page=True)

    with opened(chromium) as (page, complaints):
        sign_in(page, live_server.url, "dave")
        for width in (1280, 390):
            look(page, width)
        assert complaints == []
    assert too_wide == []
