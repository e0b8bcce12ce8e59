"""Drilled rollbacks: who may tell one, that it is told once, and what the monthly review makes of it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.urls import reverse
from django.utils.timezone import now

from approvals.models import AuditEntry, PersonSettings, TeamMember
from approvals.policy import Role
from improvements.governance import drilling, monthly
from improvements.governance.facts import Window
from improvements.models import RollbackDrill
from tests.improvements.factories import ReleaseFactory, ServiceFactory
from tests.improvements.test_admin import as_person, shown
from tests.people import person

pytestmark = pytest.mark.django_db
AT = dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC)
MONTH = Window(AT - dt.timedelta(days=19), AT + dt.timedelta(days=11), AT + dt.timedelta(days=11))
ADD = reverse("admin:improvements_rollbackdrill_add")
LIST = reverse("admin:improvements_rollbackdrill_changelist")


def drill(service: Any, **fields: Any) -> RollbackDrill:
    given = {
        "drilled_at": AT - dt.timedelta(hours=1), "tried": "Stopped a rollout at 10 %.", "seconds": 2, "worked": True,
        "notes": "Nothing to mend.",
    }  # fmt: skip
    return RollbackDrill(service=service, **given | fields)


@pytest.mark.parametrize(
    ("held", "team_of", "refused"),
    [
        (Role.ON_CALL, "", ""),
        (Role.LEAD, "", ""),
        (Role.ARCHITECTURE, "", ""),
        (Role.CTO, "", ""),
        (Role.LEAD, "shop", ""),
        (Role.LEAD, "realm", "frank is one of the lead developers of realm, which gives no say in shop"),
        (Role.VIEWER, "", "frank has no role for shop"),
    ],
)
def test_who_operates_a_service_tells_of_its_drills(held: Role, team_of: str, refused: str) -> None:
    frank = person("frank", held)
    if team_of:
        TeamMember.objects.create(scope=team_of, role=held, person=frank)
    one = drill(ServiceFactory(name="shop"))
    if refused:
        with pytest.raises(drilling.Refused, match=refused):
            drilling.tell(one, person=frank, at=AT)
        assert not RollbackDrill.objects.exists()
        return
    drilling.tell(one, person=frank, at=AT)
    one.refresh_from_db()
    assert (one.recorded_by, one.recorded_as, one.recorded_at) == (frank, held, AT)
    entry = AuditEntry.objects.about(one).get()
    assert (entry.action, entry.actor, entry.because) == ("rollback.drilled", "frank", "Nothing to mend.")
    assert (entry.data["service"], entry.data["seconds"], entry.data["worked"]) == ("shop", 2, True)


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"drilled_at": AT + dt.timedelta(minutes=1)}, "not before it"),
        ({"drilled_at": AT - dt.timedelta(days=32)}, "within 31 days"),
        ({"tried": " "}, "what was tried"),
        ({"notes": "\n"}, "what follows"),
        ({"worked": False, "seconds": None}, ""),
    ],
)
def test_a_drill_says_when_what_and_what_follows(fields: dict[str, Any], refused: str, bob: User) -> None:
    one = drill(ServiceFactory(name="shop"), **fields)
    if refused:
        with pytest.raises(drilling.Refused, match=refused):
            drilling.tell(one, person=bob, at=AT)
    else:
        assert drilling.tell(one, person=bob, at=AT).pk


def test_programs_drill_nothing(bob: User) -> None:
    PersonSettings.objects.create(user=bob, is_service_account=True)
    with pytest.raises(drilling.Refused, match="bob has no role"):
        drilling.tell(drill(ServiceFactory(name="shop")), person=bob, at=AT)


def test_a_month_counts_what_was_told_in_it_and_names_what_nobody_tried(bob: User) -> None:
    shop, idle, away = (ServiceFactory(name=name) for name in ("shop", "idle", "away"))
    for service in (shop, idle):
        ReleaseFactory(service=service, share=100)
    drilling.tell(drill(shop), person=bob, at=AT)
    drilling.tell(drill(idle, worked=False, seconds=None), person=bob, at=AT)
    drilling.tell(drill(away), person=bob, at=MONTH.until)  # in the next month, and counted there
    told = {fact.name: fact for fact in monthly.drills(MONTH).facts}
    assert told["Drills told"].value == 2
    assert (told["shop, 2026-11-20"].value, told["idle, 2026-11-20"].value) == ("worked", "did not work")
    note = "Traffic was back after 2 s, told by bob (a lead developer): Stopped a rollout at 10 %."
    assert told["shop, 2026-11-20"].note == note
    assert told["idle, 2026-11-20"].note.startswith("Traffic did not come back")
    unseen = monthly.drills(MONTH).facts[-1]
    assert (unseen.value, unseen.note) == (1, "idle"), "what failed was not exercised with success"


def test_is_told_on_its_page_once_and_never_changed(bob: User, alice: User) -> None:
    shop, client, at = ServiceFactory(name="shop"), as_person(bob), now()
    assert "A rollback that did not run for long" in shown(client, LIST)
    told = {
        "service": shop.pk, "drilled_at_0": f"{at:%Y-%m-%d}", "drilled_at_1": "00:00:00", "tried": "Stopped a rollout.",
        "seconds": "3", "worked": "on", "notes": "Fine.",
    }  # fmt: skip
    missing = client.post(ADD, told | {"seconds": ""}).content.decode()
    assert "Say how many seconds it took" in missing
    refused = client.post(ADD, told | {"tried": "  x", "drilled_at_0": "2020-01-01"}, follow=True).content.decode()
    assert "Not recorded. A drill is told within 31 days" in refused
    assert client.post(ADD, told).status_code == 302
    one = RollbackDrill.objects.get()
    assert (one.recorded_by, one.seconds) == (bob, 3)
    assert AuditEntry.objects.about(one).count() == 1
    page = shown(client, one.get_absolute_url())
    assert "Stopped a rollout." in page
    assert 'name="_save"' not in page
    assert client.post(one.get_absolute_url(), told | {"notes": "Other."}).status_code == 403
    assert client.post(one.get_absolute_url() + "delete/", {"post": "yes"}).status_code == 403
    assert as_person(alice).get(LIST).status_code == 200
    assert as_person(alice).get(ADD).status_code == 403
