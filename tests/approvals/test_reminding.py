"""Reminders, escalation and expiry in working hours, and whom they reach."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils.timezone import now

from approvals import policy, reminding, requests
from approvals.models import ApprovalRequest, AuditEntry, Letter, PersonSettings, WorkingHours
from approvals.policy import Role, Tier
from approvals.subjects import SubjectRef
from tests.people import FRESH, person

pytestmark = pytest.mark.django_db
MONDAY = dt.datetime(2026, 11, 23, 9, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


@pytest.fixture(autouse=True)
def team(settings: Any) -> None:
    settings.WORKING_HOURS, settings.SELF_BUILD_APPROVAL_REQUIRED = "mon-fri 09:00-17:00 UTC", "low"
    for name, role in [
        ("alice", Role.VIEWER),
        ("bob", Role.LEAD),
        ("carol", Role.ARCHITECTURE),
        ("dave", Role.CTO),
        ("erin", Role.ON_CALL),
    ]:
        person(name, role, email=f"{name}@example.org")
    person("mallory", is_superuser=True, email="mallory@example.org")


def ask(tier: Tier = Tier.HIGH, *, at: dt.datetime = MONDAY, scope: str = "shop", **more: Any) -> ApprovalRequest:
    row = requests.open_request(
        SubjectRef("thing", 1, "Prefetch guilds", "/things/1", scope=scope),
        requirement=policy.required(tier, approval_required=Tier.LOW),
        fingerprint="f" * 64,
        proposed_by=more.pop("proposed_by", None),
        facts={"what": "one query instead of fifty"},
        expires_at=reminding.expiry(scope, tier, at),
        **more,
    )
    ApprovalRequest.objects.filter(pk=row.pk).update(created_at=at)
    row.refresh_from_db()
    return row


def told(words: str) -> list[str]:
    return sorted(Letter.objects.filter(subject__startswith=words).values_list("person__username", flat=True))


CAN_ACT = {
    Tier.LOW: ["bob"],
    Tier.MEDIUM: ["bob"],
    Tier.HIGH: ["carol"],
    Tier.CRITICAL: ["bob", "carol", "dave"],
}
PATHS = {Tier.LOW: ["bob"], Tier.MEDIUM: ["bob"], Tier.HIGH: ["carol"], Tier.CRITICAL: ["dave"]}


@pytest.mark.parametrize("tier", Tier)
def test_reminds_who_can_act_first_and_tells_the_escalation_role_then(tier: Tier) -> None:
    request = ask(tier)
    when = reminding.timers("shop", tier)
    assert told("Your decision is asked for") == CAN_ACT[tier]
    week = WorkingHours.objects.of("shop")
    minute = dt.timedelta(minutes=1)
    remind_at, escalate_at = (
        week.after(MONDAY, hours * HOUR) for hours in (when.remind_after_hours, when.escalate_after_hours)
    )
    for at, reminded, escalated in [
        (remind_at - minute, [], []),
        (remind_at, CAN_ACT[tier], []),
        (escalate_at - minute, CAN_ACT[tier], []),
        (escalate_at, CAN_ACT[tier], PATHS[tier]),
        (escalate_at + minute, CAN_ACT[tier], PATHS[tier]),
    ]:
        reminding.run(at)
        assert told("Still waiting for") == reminded
        assert told("Nobody has decided") == escalated
    request.refresh_from_db()
    assert request.state == "open", "nothing is approved by silence"
    assert not request.signatures.exists()
    actions = list(AuditEntry.objects.order_by("sequence").values_list("action", flat=True))
    assert actions == ["approval.opened", "approval.reminded", "approval.escalated"]


def test_has_timers_for_every_tier() -> None:
    for tier in Tier:
        when = reminding.timers("shop", tier)
        assert when.remind_after_hours < when.escalate_after_hours < when.expire_after_hours


# When, tier, asked → reminded, escalated, expired (UTC), for people who work from nine to five in Berlin and have
# Christmas Day off. Each is written out from the table of hours in docs/operations.md.
WEEKS = [
    ("within a week", Tier.HIGH, "2026-11-23 08:00", "2026-11-23 12:00", "2026-11-24 12:00", "2026-11-27 16:00"),
    ("over a weekend", Tier.CRITICAL, "2026-11-20 15:00", "2026-11-23 09:00", "2026-11-23 13:00", "2026-11-27 15:00"),
    ("over a holiday", Tier.MEDIUM, "2026-12-24 10:00", "2026-12-28 10:00", "2026-12-29 10:00", "2027-01-01 10:00"),
    ("into summer time", Tier.CRITICAL, "2026-03-27 15:00", "2026-03-30 08:00", "2026-03-30 12:00", "2026-04-03 14:00"),
    ("out of summer time", Tier.HIGH, "2026-10-23 14:00", "2026-10-26 11:00", "2026-10-27 11:00", "2026-10-30 15:00"),
    ("at night", Tier.LOW, "2026-11-23 22:00", "2026-11-24 16:00", "2026-11-25 16:00", "2026-11-30 16:00"),
]


@pytest.mark.parametrize(("tier", "times"), [(tier, times) for _, tier, *times in WEEKS], ids=[row[0] for row in WEEKS])
def test_reminds_escalates_and_expires_in_working_hours_of_the_service_and_approves_nothing(
    tier: Tier, times: list[str]
) -> None:
    WorkingHours.objects.create(
        scope="shop", zone="Europe/Berlin", weekdays=[0, 1, 2, 3, 4], opens=dt.time(9), closes=dt.time(17),
        holidays=[dt.date(2026, 12, 25)],
    )  # fmt: skip
    asked, reminded, escalated, expired = (dt.datetime.fromisoformat(one).replace(tzinfo=dt.UTC) for one in times)
    request, minute = ask(tier, at=asked), dt.timedelta(minutes=1)
    assert request.expires_at == expired
    for at, who_reminded, who_escalated in [
        (reminded - minute, [], []),
        (reminded, CAN_ACT[tier], []),
        (escalated - minute, CAN_ACT[tier], []),
        (escalated, CAN_ACT[tier], PATHS[tier]),
        (expired - minute, CAN_ACT[tier], PATHS[tier]),
    ]:
        assert reminding.run(at) == 0
        assert (told("Still waiting"), told("Nobody has decided")) == (who_reminded, who_escalated), at
        request.refresh_from_db()
        assert request.state == "open", "nothing is approved by silence"
    assert reminding.run(expired) == 1
    request.refresh_from_db()
    assert (request.state, request.because) == ("expired", f"Nobody decided by {expired:%Y-%m-%d %H:%M} UTC.")
    assert not request.signatures.exists()


def test_has_a_row_for_every_tier() -> None:
    assert {tier for _, tier, *_ in WEEKS} == set(CAN_ACT) == set(PATHS) == set(Tier)


@pytest.mark.parametrize("scope", ["", "shop", "other"])
def test_counts_in_the_hours_of_the_service(scope: str) -> None:
    monday = {"weekdays": [0, 1, 2, 3, 4]}
    assert reminding.expiry(scope, Tier.HIGH, MONDAY) == MONDAY + dt.timedelta(days=4, hours=8)
    WorkingHours.objects.create(scope="", opens=dt.time(9), closes=dt.time(11), **monday)
    WorkingHours.objects.create(scope="shop", opens=dt.time(0), closes=dt.time(0), zone="Europe/Berlin", **monday)
    expected = MONDAY + (40 * HOUR if scope == "shop" else dt.timedelta(days=25, hours=2))
    assert reminding.expiry(scope, Tier.HIGH, MONDAY) == expected


def test_tells_nobody_who_cannot_act() -> None:
    ask(Tier.CRITICAL, proposed_by=User.objects.get(username="carol"), edited_by=[User.objects.get(username="bob")])
    assert told("Your decision") == ["dave"]
    PersonSettings.objects.create(user=person("robot", Role.CTO, email="r@example.org"), is_service_account=True)
    person("gone", Role.CTO, email="gone@example.org", is_active=False)
    reminding.run(MONDAY + 2 * HOUR)
    assert told("Still waiting") == ["dave"]


def test_tells_who_signed_already_no_more() -> None:
    request = ask(Tier.CRITICAL)
    requests.approve(request, person=User.objects.get(username="carol"), how=FRESH, reason="sound")
    reminding.run(MONDAY + 2 * HOUR)
    assert told("Still waiting") == ["dave"], "what is missing is the CTO"


def test_tells_who_can_change_it_what_is_asked_for() -> None:
    request = ask(proposed_by=User.objects.get(username="alice"))
    carol = User.objects.get(username="carol")
    requests.ask_for_changes(request, person=carol, how=FRESH, reason="smaller, please")
    assert told("Changes are asked for") == ["alice", "bob"]
    assert "smaller, please" in Letter.objects.filter(subject__startswith="Changes").first().lines  # type: ignore[union-attr]
    reminding.run(MONDAY + 4 * HOUR)
    assert told("Still waiting for the changes") == ["carol"]


def test_opens_a_page_and_decides_nothing() -> None:
    request = ask()
    letter = Letter.objects.get()
    assert letter.url == f"/admin/approvals/approvalrequest/{request.pk}/change/"
    client = Client()
    client.force_login(letter.person)
    assert client.get(letter.url).status_code == 200
    request.refresh_from_db()
    assert (request.state, request.signatures.count()) == ("open", 0)


# --- The pages -----------------------------------------------------------------------------------------------------

FORM = {
    "scope": "shop",
    "zone": "Europe/Berlin",
    "weekdays": ["0", "2"],
    "opens": "08:00",
    "closes": "16:00",
    "holidays": "2026-12-25",
}
PAGE = "/admin/approvals/workinghours/"


def test_sets_working_hours_on_a_page_and_writes_it_down(client: Client) -> None:
    bob = User.objects.get(username="bob")
    client.force_login(bob)
    assert "WORKING_HOURS" in client.get(PAGE).content.decode()
    client.post(f"{PAGE}add/", FORM)
    row = WorkingHours.objects.get()
    assert str(row) == "shop: mon, wed 08:00-16:00 Europe/Berlin"
    assert row.holidays == [dt.date(2026, 12, 25)]
    client.post(f"{PAGE}{row.pk}/change/", FORM | {"closes": "15:00"})
    client.post(f"{PAGE}{row.pk}/delete/", {"post": "yes"})
    entries = AuditEntry.objects.filter(action__startswith="workinghours").order_by("sequence")
    assert [(one.action, one.actor, one.was, one.became) for one in entries] == [
        ("workinghours.set", "bob", None, "shop: mon, wed 08:00-16:00 Europe/Berlin"),
        (
            "workinghours.set",
            "bob",
            "shop: mon, wed 08:00-16:00 Europe/Berlin",
            "shop: mon, wed 08:00-15:00 Europe/Berlin",
        ),
        ("workinghours.dropped", "bob", "shop: mon, wed 08:00-15:00 Europe/Berlin", None),
    ]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"zone": "Mars/Olympus"}, "no time zone"),
        ({"weekdays": []}, "required"),
        ({"closes": "07:00"}, "end after it began"),
    ],
)
def test_refuses_wrong_working_hours(client: Client, wrong: dict[str, Any], why: str) -> None:
    client.force_login(User.objects.get(username="bob"))
    assert why in client.post(f"{PAGE}add/", FORM | wrong).content.decode()
    assert not WorkingHours.objects.exists()


def test_lists_what_people_were_told_in_few_queries(client: Client, django_assert_max_num_queries: Any) -> None:
    client.force_login(User.objects.get(username="alice"))
    assert "Nobody was told" in client.get("/admin/approvals/letter/").content.decode()
    ask(Tier.CRITICAL)
    with django_assert_max_num_queries(12):
        page = client.get("/admin/approvals/letter/").content.decode()
    assert page.count("Your decision is asked for") == 3
    letter = Letter.objects.first()
    assert letter is not None
    assert client.get(f"/admin/approvals/letter/{letter.pk}/change/").status_code == 200
    assert now() >= letter.created_at
