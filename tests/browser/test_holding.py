"""The pages of freezes and of break-glass, on a phone in the dark."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User

from approvals.models import FreezeWindow
from approvals.policy import Tier
from approvals.subjects import SubjectRef
from tests.approvals.test_breaking_glass import broken, elapse, open_glass, told
from tests.approvals.test_holding import window
from tests.approvals.test_requests import ask
from tests.browser.conftest import opened
from tests.people import PASSWORD

__all__ = ["told"]  # a fixture: nobody's outbox is written to
pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def addresses(bob: User, carol: User, dave: User, erin: User) -> list[str]:
    """Pages with something on them."""
    bob.set_password(PASSWORD)
    bob.save()
    window("Year end", reason="Nobody is here to look after what goes wrong.", timezone="Europe/Berlin").save()
    window("Office hours", kind="rollouts", scope="realm", recurrence="FREQ=WEEKLY;BYDAY=MO,TU,WE,TH", hours=7).save()
    first, second, third, fourth = (
        ask(
            Tier.CRITICAL,
            subject=SubjectRef("thing", number, f"Prefetch guilds of the player list, {number}", scope="realm"),
        )
        for number in (1, 2, 3, 4)
    )
    broken(first, carol, erin)
    elapse(hours=5)
    broken(second, dave, carol)
    waiting = open_glass(third, erin)
    return [
        "breakglass/", f"breakglass/{waiting.pk}/change/", f"breakglass/open/{fourth.pk}/",
        f"approvalrequest/{fourth.pk}/change/", "freezewindow/", "freezewindow/add/",
    ]  # fmt: skip


def test_fits_a_phone_and_previews(live_server: Any, chromium: str | None, addresses: list[str]) -> None:
    shots = os.environ.get("RUNEROGUE_SHOTS", "")
    too_wide = []
    with opened(chromium, width=390, dark=True) as (page, complaints):
        page.goto(f"{live_server.url}/admin/")
        page.keyboard.type("bob")
        page.keyboard.press("Tab")
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{live_server.url}/admin/")
        for number, address in enumerate(addresses):
            page.goto(f"{live_server.url}/admin/approvals/{address}")
            if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
                too_wide.append(address)
            if shots:
                name = address.replace("/", "-").strip("-")
                page.screenshot(path=Path(shots) / f"390-{number:02d}-{name}.png", full_page=True)
        for label, text in {
            "Name:": "Weekends", "Reason:": "Nobody looks.", "Time zone:": "Europe/Berlin", "First day:": "2030-03-29",
            "Begins:": "17:00", "Duration in minutes:": "3780", "Recurrence:": "FREQ=WEEKLY;BYDAY=FR",
        }.items():  # fmt: skip
            page.get_by_label(label).fill(text)
        page.get_by_role("button", name="Preview").click()
        page.get_by_text("Mon 2030-04-01 09:00 Europe/Berlin").wait_for()
    assert complaints == []
    assert too_wide == []
    assert not FreezeWindow.objects.filter(name="Weekends").exists()
