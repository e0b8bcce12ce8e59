"""A lead developer signs with nothing but the keyboard; an architect sets a second factor up on the way."""

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
from approvals.models import ApprovalRequest, AuditEntry
from approvals.policy import Tier
from approvals.subjects import SubjectRef
from improvements.models import State
from tests.authenticators import code_of
from tests.browser.conftest import opened
from tests.improvements.factories import in_state
from tests.people import PASSWORD

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
DIFF = "--- a/game/views.py\n+++ b/game/views.py\n@@ -1 +1 @@\n-    slow()\n+    quick()\n"


@pytest.fixture
def request_to_sign(bob: User, settings: Any) -> ApprovalRequest:
    settings.SELF_BUILD_APPROVAL_REQUIRED = "medium"
    bob.set_password(PASSWORD)
    bob.save()
    improvement = in_state(State.AWAITING_APPROVAL, diff=DIFF)
    return requests.open_request(
        SubjectRef("improvement", improvement.pk, improvement.title, improvement.get_absolute_url()),
        requirement=policy.required(Tier.MEDIUM, approval_required=Tier.MEDIUM),
        fingerprint="f" * 64,
        proposed_by=None,
        facts={"what": "The player list is read at once", "diff": DIFF},
        expires_at=now() + dt.timedelta(hours=1),
    )


def sign_in(page: Page, address: str, name: str = "bob") -> None:
    page.goto(f"{address}/admin/")
    page.keyboard.type(name)  # the name has the focus
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/admin/")


@pytest.fixture
def risky_request(carol: User) -> ApprovalRequest:
    carol.set_password(PASSWORD)
    carol.save()
    return requests.open_request(
        SubjectRef("thing", 1, "Drop a column", "/things/1"),
        requirement=policy.required(Tier.HIGH),
        fingerprint="e" * 64,
        proposed_by=None,
        facts={"what": "A column goes", "diff": DIFF},
        expires_at=now() + dt.timedelta(hours=1),
    )


def tab_to(page: Page, text: str) -> None:
    """Press Tab until what has the focus says `text`."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == text:
            return
    raise AssertionError(f"the keyboard does not reach {text!r}")


def test_signs_with_the_keyboard(live_server: Any, chromium: str | None, request_to_sign: ApprovalRequest) -> None:
    with opened(chromium) as (page, complaints):
        sign_in(page, live_server.url)
        tab_to(page, request_to_sign.title)
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/approvalrequest/{request_to_sign.pk}/change/")
        assert page.locator(".diff-added").inner_text().strip().endswith("quick()")
        tab_to(page, "Go to your decision")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.type("I read the change.")
        tab_to(page, "Approve")
        page.keyboard.press("Enter")
        page.get_by_text("Your decision is recorded. The request is approved.").wait_for()
    assert complaints == []
    request_to_sign.refresh_from_db()
    assert request_to_sign.state == "approved"
    assert request_to_sign.signatures.get().reason == "I read the change."
    assert AuditEntry.objects.filter(action="approval.signed", actor="bob").exists()


def test_sets_up_a_second_factor_on_the_way_and_signs(
    live_server: Any, chromium: str | None, risky_request: ApprovalRequest
) -> None:
    shots = os.environ.get("RUNEROGUE_SHOTS", "")
    too_wide = []

    def look(page: Page, name: str) -> None:
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 800})
            if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
                too_wide.append(f"{name} at {width}")
            if shots:
                page.screenshot(path=Path(shots) / f"{width}-{name}.png", full_page=True)

    with opened(chromium) as (page, complaints):
        sign_in(page, live_server.url, "carol")
        page.goto(f"{live_server.url}/admin/approvals/approvalrequest/{risky_request.pk}/change/")
        page.locator("#reason").fill("Nobody reads the column.")
        page.get_by_role("button", name="Approve").press("Enter")
        page.get_by_role("heading", name="Set up your authenticator app").wait_for()
        look(page, "enrol")
        assert page.locator("svg.qr").bounding_box()["width"] > 200, "the picture is drawn"
        key = page.locator("pre.rr-secret").inner_text()
        page.keyboard.type(code_of(key))  # the code has the focus
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Keep your recovery codes").wait_for()
        look(page, "codes")
        recovery = page.locator("pre.rr-secret").inner_text().split()
        page.get_by_role("link", name="I have kept them: continue").press("Enter")
        page.wait_for_url("**/change/#decide")
        assert page.locator("#reason").input_value() == "Nobody reads the column."
        look(page, "decide")
        page.get_by_role("button", name="Approve").press("Enter")
        page.get_by_text("Your decision is recorded. The request is approved.").wait_for()
        page.goto(f"{live_server.url}/admin/second-factor/settings/")
        look(page, "settings")
        page.goto(f"{live_server.url}/admin/second-factor/?next=/admin/")
        look(page, "step-up")
        page.keyboard.type(recovery[0])
        page.keyboard.press("Enter")
        page.wait_for_url(f"{live_server.url}/admin/")
    assert complaints == []
    assert too_wide == []
    assert len(recovery) == 10
    assert risky_request.signatures.get().second_factor


def test_fits_a_phone_in_the_dark(live_server: Any, chromium: str | None, request_to_sign: ApprovalRequest) -> None:
    pages = [
        "/admin/",
        "/admin/approvals/approvalrequest/",
        f"/admin/approvals/approvalrequest/{request_to_sign.pk}/change/",
        request_to_sign.url,
        "/admin/improvements/improvement/",
        "/admin/approvals/auditentry/",
    ]
    too_wide = []
    with opened(chromium, width=390, dark=True) as (page, complaints):
        sign_in(page, live_server.url)
        for address in pages:
            page.goto(live_server.url + address)
            if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
                too_wide.append(address)
        labels = page.locator("#result_list tbody tr").first.locator("[data-label='Action']")
        assert labels.count() == 1, "a card names what its column was"
    assert complaints == []
    assert too_wide == []
