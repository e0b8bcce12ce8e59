"""The pages and addresses of governance: what they show to whom, what their button does, what they cost."""

from __future__ import annotations

import datetime as dt

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from approvals.policy import Role
from improvements.governance import reviewing
from improvements.governance.facts import Fact, Section, unknown
from improvements.models import Review
from monitoring.models import Alert
from tests.improvements.factories import ServiceFactory
from tests.improvements.test_admin import as_person, shown
from tests.people import person

pytestmark = pytest.mark.django_db
LIST = reverse("admin:improvements_review_changelist")
SCORECARD = reverse("admin:improvements_review_scorecard")
WHO = reverse("admin:improvements_review_escalation")
FACTS = [
    Section("Health", (Fact("Mean", 89.2, "of 100", "/admin/", "Of 3 rounds."), unknown("Lowest", "no <b>round</b>")))
]


def review(key: str = "1", **fields: object) -> Review:
    made = reviewing.review_break_glass(
        key, title=f"Emergency {key}", url="/admin/", facts=FACTS, broken_by=[], at=now()
    )
    assert made is not None
    if fields:
        Review.objects.filter(pk=made.pk).update(**fields)
        made.refresh_from_db()
    return made


def overdue(key: str) -> Review:
    return review(key, due_on=dt.date(2026, 3, 2))


@pytest.mark.parametrize("address", [LIST, SCORECARD, WHO])
def test_only_who_may_look_sees_them(address: str, alice: User) -> None:
    assert as_person(alice).get(address).status_code == 200
    stranger = User.objects.create(username="stranger", is_staff=True)
    assert as_person(stranger).get(address).status_code == 403
    assert as_person(stranger).get(review().get_absolute_url()).status_code == 403


def test_empty_pages_say_so(carol: User) -> None:
    client = as_person(carol)
    assert "No review yet." in shown(client, LIST)
    assert "Nothing matches." in shown(client, f"{LIST}?standing=overdue")
    page = shown(client, SCORECARD)
    assert page.count("Not enough data: no ") == 7
    assert "The rows it counts" in page
    assert "The group CTO has no active member: no critical change can be approved." in shown(client, WHO)


def test_lists_what_awaits_the_person(carol: User, bob: User) -> None:
    mine = review()
    late = overdue("2")
    assert "Emergency 1" in shown(as_person(carol), f"{LIST}?standing=me")
    page = shown(as_person(bob), f"{LIST}?standing=me")
    assert "Nothing matches." in page
    page = shown(as_person(bob), f"{LIST}?standing=overdue")
    assert str(late) in page
    assert str(mine) not in page
    reviewing.sign_off(mine, person=carol, notes="Understood.", at=now())
    assert "Emergency 1" not in shown(as_person(carol), f"{LIST}?standing=open")
    assert "Emergency 1" in shown(as_person(carol), f"{LIST}?standing=signed")


def test_shows_the_packet_and_is_signed_off_with_notes(carol: User) -> None:
    one, client = review(), as_person(carol)
    page = shown(client, one.get_absolute_url())
    for text in (
        "89.2 of 100",
        "Of 3 rounds.",
        "Not enough data: no &lt;b&gt;round&lt;/b&gt;",
        "by the end of",
        "carol",
    ):
        assert text in page
    assert "These are not the facts" not in page

    page = client.post(one.get_absolute_url(), {"notes": " "}, follow=True).content.decode()
    assert "Not signed off. Write what you looked at" in page
    page = client.post(one.get_absolute_url(), {"notes": "Rules changed."}, follow=True).content.decode()
    assert "Signed off." in page
    assert "Rules changed." in page
    page = client.post(one.get_absolute_url(), {"notes": "Again."}, follow=True).content.decode()
    assert "Not signed off. carol signed it off already." in page
    one.refresh_from_db()
    assert (one.signed_by, one.notes) == (carol, "Rules changed.")


def test_says_why_somebody_may_not_sign_off(bob: User, carol: User) -> None:
    one = review()
    page = shown(as_person(bob), one.get_absolute_url())
    assert "It is for the architecture team to sign off; bob has no such role." in page
    assert "<textarea" not in page
    as_person(bob).post(one.get_absolute_url(), {"notes": "All well."})
    one.refresh_from_db()
    assert one.signed_at is None
    one.barred.add(carol)
    assert "Took part in it, and may not sign it off: carol." in shown(as_person(carol), one.get_absolute_url())


def test_shows_facts_that_somebody_changed_afterwards(carol: User) -> None:
    one = review(facts=[{"title": "Health", "facts": []}])
    assert "These are not the facts" in shown(as_person(carol), one.get_absolute_url())


def test_the_scorecard_shows_numbers_with_their_range(carol: User) -> None:
    service = ServiceFactory()
    for number in range(6):
        fired = now() - dt.timedelta(days=1, minutes=number)
        Alert.objects.create(
            service=service, name="x", severity="warning", state="resolved", labels_key=str(number), message="…",
            opened_at=fired - dt.timedelta(seconds=90), fired_at=fired,
        )  # fmt: skip
    page = shown(as_person(carol), f"{SCORECARD}?days=90")
    assert '<p class="rr-number">90 s</p>' in page
    assert "95 %: 90 s to 90 s. Counted: 6 alerts." in page
    assert "the trend is against the 30 days before" in shown(as_person(carol), f"{SCORECARD}?days=91")


def test_the_front_page_says_what_is_to_review_and_who_is_missing(carol: User, alice: User) -> None:
    overdue("1")
    page = shown(as_person(carol), reverse("admin:index"))
    assert 'Reviews for you <span class="rr-count">1<' in page
    assert "Emergency 1" in page
    assert "overdue since 2026-03-02" in page
    assert "The group CTO has no active member" in page
    for address in (LIST, SCORECARD, WHO):
        assert f'href="{address}"' in page
    assert "No review awaits you." in shown(as_person(alice), reverse("admin:index"))


def cost(client: Client, address: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        assert client.get(address).status_code == 200
    return len(queries)


@pytest.mark.parametrize(("address", "budget"), [(LIST, 12), (SCORECARD, 45), (WHO, 12)])
def test_costs_the_same_for_one_review_and_for_many(address: str, budget: int, carol: User) -> None:
    client = as_person(carol)
    review("0")
    few = cost(client, address)
    for number in range(1, 12):
        one = review(str(number))
        reviewing.sign_off(one, person=carol, notes="Understood.", at=now())
    assert cost(client, address) <= few <= budget


# --- REST --------------------------------------------------------------------------------------------------------


def test_tells_programs_the_same(carol: User, alice: User) -> None:
    one, late = review("1"), overdue("2")
    client = as_person(alice)
    listed = client.get("/api/v1/reviews").json()["results"]
    assert [row["id"] for row in listed] == [late.pk, one.pk]
    assert "facts" not in listed[0]
    assert (listed[0]["overdue"], listed[0]["asked"], listed[0]["given_to"]) == (True, ["architecture"], "architecture")
    reviewing.sign_off(one, person=carol, notes="Understood.", at=now())
    for standing, ids in (("open", [late.pk]), ("overdue", [late.pk]), ("signed", [one.pk])):
        found = client.get("/api/v1/reviews", {"standing": standing}).json()["results"]
        assert [row["id"] for row in found] == ids
    told = client.get(f"/api/v1/reviews/{one.pk}").json()
    assert told["facts"][0]["facts"][0] == {
        "name": "Mean", "value": 89.2, "unit": "of 100", "link": "/admin/", "note": "Of 3 rounds.",
    }  # fmt: skip
    assert (told["signed_by"], told["notes"]) == ("carol", "Understood.")
    metrics = client.get("/api/v1/scorecard").json()["metrics"]
    assert (metrics[0]["name"], metrics[0]["now"]["value"]) == ("time_to_detect", None)


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/api/v1/reviews/999999", 404),
        ("/api/v1/reviews?kind=daily", 400),
        ("/api/v1/reviews?standing=lost", 400),
        ("/api/v1/scorecard?days=31", 400),
    ],
)
def test_refuses_what_is_not_there(address: str, status: int, alice: User) -> None:
    assert as_person(alice).get(address).status_code == status
    assert Client().get(address).status_code == 401
    assert as_person(person("frank", Role.CTO)).post(address.partition("?")[0]).status_code == 405
