"""The digest as a mail and its pages, on a desk and on a phone, in light and dark."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import pytest
from django.contrib.auth.models import User
from django.urls import reverse

from approvals.models import PersonSettings
from approvals.policy import Role
from improvements.digest import subscribing
from improvements.models import DigestSent
from tests.browser.conftest import opened
from tests.improvements.digests import MONDAY, busy_week, reader
from tests.people import PASSWORD

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

LOOKS: tuple[tuple[int, Literal["light", "dark"]], ...] = (
    (1280, "light"), (1280, "dark"), (390, "dark"), (390, "light"),
)  # fmt: skip
BACKGROUNDS = {"light": "rgb(244, 245, 246)", "dark": "rgb(20, 23, 26)"}
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
NARROW = "document.documentElement.scrollWidth <= window.innerWidth"


@pytest.fixture
def carol() -> User:
    busy_week()
    carol = reader("carol", Role.ARCHITECTURE, Role.LEAD, zone="Europe/Berlin")
    carol.set_password(PASSWORD)
    carol.save()
    DigestSent.objects.create(week="2026-W47", reader=carol, state="sent", sent_at=MONDAY, tries=1)
    DigestSent.objects.create(week="2026-W47", reader=reader("nobody"), state="skipped", problem="They have no role.")
    return carol


def test_fits_and_follows_the_readers_colours(
    live_server: Any, settings: Any, chromium: str | None, carol: User
) -> None:
    settings.PUBLIC_URL = live_server.url
    link = subscribing.unsubscribe_url(carol)
    mine, mail, listed = (
        live_server.url + reverse(f"admin:improvements_digestsent_{name}") for name in ("mine", "mail", "changelist")
    )
    week = "?week=2026-W47"
    shots = os.environ.get("RUNEROGUE_SHOTS", "")
    pages = {"mine": mine + week, "text": f"{mine}{week}&form=text", "mail": mail + week, "list": listed, "stop": link}
    with opened(chromium) as (page, complaints):
        page.goto(live_server.url + "/admin/")
        page.keyboard.type("carol")
        page.keyboard.press("Tab")
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(live_server.url + "/admin/")
        for name, address in pages.items():
            page.goto(address)
            for width, colours in LOOKS:
                page.set_viewport_size({"width": width, "height": 800})
                page.emulate_media(color_scheme=colours)
                assert page.evaluate(NARROW), f"{name} is wider than {width} pixels"
                if name == "mail":
                    assert page.evaluate(BACKGROUND) == BACKGROUNDS[colours]
                if shots:
                    page.screenshot(path=Path(shots) / f"{name}-{width}-{colours}.png", full_page=True)
        page.goto(mine + week)
        frame = page.frame_locator("iframe")
        frame.get_by_role("heading", name="What needs you").wait_for()
        with page.expect_popup() as opened_beside:
            frame.get_by_role("link", name="Prefetch the guilds 1").click()
        assert "/admin/approvals/approvalrequest/" in opened_beside.value.url
        page.goto(link)
        page.get_by_role("button", name="Stop it").press("Enter")
        page.get_by_text("carol gets no more weekly digests.").wait_for()
    # The cage keeps the test's own scripts out as well, and the browser says so.
    assert [one for one in complaints if "'allow-scripts' permission is not set" not in one] == []
    assert not PersonSettings.objects.get(user=carol).wants_digest
