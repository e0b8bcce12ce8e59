"""The pages of telling people, on a desk and on a phone in the dark."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils.timezone import now

from monitoring import answering, notifying
from monitoring.models import Alert, Contact, EscalationStep, MaintenanceWindow, Notice, Silence
from monitoring.notifiers import MemoryNotifier
from tests.browser.conftest import opened
from tests.monitoring.factories import ServiceFactory
from tests.monitoring.notices import SECRET, contact, firing, step
from tests.people import PASSWORD

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def addresses(erin: User) -> list[str]:
    """Pages with something on them."""
    erin.set_password(PASSWORD)
    erin.save()
    at = now() - dt.timedelta(minutes=20)
    realm = ServiceFactory(name="realm")
    step(contact("On-call phone", "memory"))
    step(contact("Team channel", "webhook", secret=SECRET), 15)
    alert = firing(realm, at=at, labels={"endpoint": "api/v1/players/{id}/inventory/", "method": "GET"})
    slow = firing(realm, "latency-unusual", severity="warning", at=at)
    answering.silence_alert(slow, actor=erin, reason="known, a fix is on its way", hours=4, at=at)
    memory = MemoryNotifier()
    notifying.decide(at)
    notifying.send_due(at, notifiers={"memory": memory})
    notifying.decide(now())
    notifying.send_due(now(), notifiers={"memory": memory})
    MaintenanceWindow.objects.create(
        name="Sunday backup", service=realm, reason="The database is copied.", timezone="Europe/Berlin",
        first_day=at.date(), begins=dt.time(3), duration_minutes=90, recurrence="FREQ=WEEKLY;BYDAY=SU",
    )  # fmt: skip
    notifying.page(realm, key="k", title="A rollback is stuck: the player list", body="The proxy is gone.", at=at)
    notifying.decide(now())
    found = [f"alert/{alert.pk}/change/", f"alert/{slow.pk}/change/", "alert/", "contact/add/", "silence/add/"]
    for model in (Contact, EscalationStep, Silence, MaintenanceWindow, Notice):
        name = str(model._meta.model_name)
        found += [f"{name}/", *(f"{name}/{pk}/change/" for pk in model.objects.values_list("pk", flat=True)[:2])]
    dead = Notice.objects.get(state="dead")
    return [*dict.fromkeys([*found, f"notice/{dead.pk}/change/", "maintenancewindow/add/", "escalationstep/add/"])]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_fits_and_acknowledges_with_the_keyboard(
    live_server: Any, chromium: str | None, addresses: list[str], width: int, dark: bool
) -> None:
    shots = os.environ.get("RUNEROGUE_SHOTS", "")
    too_wide = []
    with opened(chromium, width=width, dark=dark) as (page, complaints):
        page.goto(f"{live_server.url}/admin/")
        page.keyboard.type("erin")
        page.keyboard.press("Tab")
        page.keyboard.type(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{live_server.url}/admin/")
        for number, address in enumerate(addresses):
            page.goto(f"{live_server.url}/admin/monitoring/{address}")
            if page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
                too_wide.append(address)
            if shots:
                name = address.replace("/", "-").strip("-")
                page.screenshot(path=Path(shots) / f"{width}-{number:02d}-{name}.png", full_page=True)
        page.goto(f"{live_server.url}/admin/monitoring/{addresses[0]}")
        page.get_by_label("I have it:").focus()
        page.keyboard.type("I look at it.")
        page.keyboard.press("Enter")
        page.get_by_text("Acknowledged. Nobody else is told of it.").wait_for()
    assert complaints == []
    assert too_wide == []
    assert Alert.objects.get(acknowledgement="I look at it.").owner is not None
