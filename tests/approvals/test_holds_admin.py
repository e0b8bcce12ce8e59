"""The pages of freeze windows and of break-glass."""

from __future__ import annotations

import datetime as dt
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from pytest_django import DjangoAssertNumQueries

from approvals import breaking_glass, requests, scopes
from approvals.models import AuditEntry, BreakGlass, FreezeWindow
from approvals.policy import Role, Tier
from tests.approvals.test_breaking_glass import SHOP, broken, elapse, open_glass, told
from tests.approvals.test_holding import window
from tests.approvals.test_requests import PRINT, ask
from tests.people import FRESH, give_second_factor, person

__all__ = ["told"]  # a fixture: nobody's outbox is written to
pytestmark = pytest.mark.django_db
WINDOWS, GLASSES = "/admin/approvals/freezewindow/", "/admin/approvals/breakglass/"
YEAR_END = {
    "name": "Year end", "kind": "freeze", "scope": "", "reason": "nobody is here", "timezone": "Europe/Berlin",
    "first_day": "2030-03-29", "begins": "17:00", "duration_minutes": "3780", "recurrence": "FREQ=WEEKLY;BYDAY=FR",
    "enabled": "on",
}  # fmt: skip


@pytest.fixture(autouse=True)
def reached_by_roles(db: None) -> None:
    from django.apps import apps

    from approvals import roles

    roles.prepare(sender=apps.get_app_config("approvals"), using="default")


def signed_in(who: User, *, second_factor: bool = True) -> Client:
    client = Client()
    client.force_login(who)
    if second_factor:
        give_second_factor(client)
    return client


def text_of(response: Any) -> str:
    return " ".join(response.content.decode().split())


def test_previews_the_next_five_times_and_saves_nothing(erin: User) -> None:
    page = text_of(signed_in(erin).post(f"{WINDOWS}add/", {**YEAR_END, "_preview": "1"}))
    # The clock changes on the Sunday of the first weekend: 63 hours end at 09:00 there.
    assert (
        "Fri 2030-03-29 17:00 to Mon 2030-04-01 09:00 Europe/Berlin (2030-03-29 16:00 to 2030-04-01 07:00 UTC)" in page
    )
    assert page.count('class="rr-time"') == 5
    assert "Please correct" not in page
    assert not FreezeWindow.objects.exists()


def test_says_what_is_wrong_with_a_window(erin: User) -> None:
    for wrong, why in [
        ({"recurrence": "FREQ=HOURLY"}, "FREQ is one of"),
        ({"timezone": "Berlin"}, "no time zone"),
        ({"scope": "relm"}, "not one of the available"),
        ({"duration_minutes": "90000"}, "less than"),
    ]:
        assert why in text_of(signed_in(erin).post(f"{WINDOWS}add/", {**YEAR_END, **wrong}))
    assert not FreezeWindow.objects.exists()


def test_adds_a_window_for_a_known_service(monkeypatch: pytest.MonkeyPatch, erin: User) -> None:
    monkeypatch.setattr(scopes, "_KNOWN", [lambda: ["shop"]])
    assert signed_in(erin).post(f"{WINDOWS}add/", {**YEAR_END, "scope": "shop"}).status_code == 302
    assert FreezeWindow.objects.get().scope == "shop"
    assert AuditEntry.objects.get(action="freezewindow.added").actor == "erin"


@pytest.mark.parametrize(("who", "works"), [("erin", False), ("bob", True), ("alice", None)])
def test_lets_a_senior_switch_a_freeze_off(request: Any, who: str, works: bool | None) -> None:
    row = window()
    row.save()
    data = {**YEAR_END, "first_day": row.first_day, "begins": row.begins, "timezone": "UTC", "recurrence": ""}
    data.pop("enabled")
    client = signed_in(request.getfixturevalue(who))
    answer = client.post(f"{WINDOWS}{row.pk}/change/", data, follow=works is not None)
    row.refresh_from_db()
    assert row.enabled is not bool(works)
    if works is None:
        assert answer.status_code == 403
    elif not works:
        assert "takes a lead developer" in text_of(answer)


def test_deletes_no_window(dave: User, mallory: User) -> None:
    window().save()
    row = FreezeWindow.objects.get()
    for who in (dave, mallory):
        assert signed_in(who).post(f"{WINDOWS}{row.pk}/delete/", {"post": "yes"}).status_code == 403


def test_lists_windows_with_few_queries(alice: User, django_assert_max_num_queries: DjangoAssertNumQueries) -> None:
    client = signed_in(alice)
    assert "Rollouts may start at any time" in text_of(client.get(WINDOWS))
    for number in range(20):
        window(f"Freeze {number}", begin=now() + dt.timedelta(hours=number - 1)).save()
    with django_assert_max_num_queries(9):
        page = text_of(client.get(WINDOWS))
    assert "in force until" in page
    assert "next at" in page


def test_leads_two_people_through_it(told: Any, bob: User, erin: User, carol: User) -> None:
    request = ask(Tier.CRITICAL, subject=SHOP)
    first, second, third = signed_in(bob), signed_in(erin), signed_in(carol)
    assert "It cannot wait: break-glass" in text_of(first.get(f"/admin/approvals/approvalrequest/{request.pk}/change/"))
    assert "Open break-glass" in text_of(first.get(f"{GLASSES}open/{request.pk}/"))
    data = {"reason": "The shop is down.", "ticket": "INC-7", "fingerprint": PRINT}
    assert first.post(f"{GLASSES}open/{request.pk}/", data).status_code == 302
    glass = BreakGlass.objects.get()
    page = f"{GLASSES}{glass.pk}/change/"
    assert "Confirm break-glass" not in text_of(first.get(page))
    assert "another one" in text_of(first.post(f"{GLASSES}{glass.pk}/confirm/", follow=True))
    assert "Confirm break-glass" in text_of(second.get(page))
    assert "Confirmed" in text_of(second.post(f"{GLASSES}{glass.pk}/confirm/", follow=True))
    standing = requests.standing(request, PRINT)
    assert standing.by_break_glass
    requests.used(request, standing)
    assert "has to be reviewed by" in text_of(third.get("/admin/"))
    assert "Reviewed." in text_of(third.post(f"{GLASSES}{glass.pk}/review/", {"notes": "Sound."}, follow=True))
    assert "rr-alarm" not in text_of(third.get("/admin/"))


def test_refuses_a_ticket_that_is_too_long_in_words(bob: User) -> None:
    request, data = ask(subject=SHOP), {"reason": "The shop is down.", "ticket": "x" * 201, "fingerprint": PRINT}
    said = text_of(signed_in(bob).post(f"{GLASSES}open/{request.pk}/", data))
    assert "Not opened. A ticket has at most 200 characters" in said
    assert "The shop is down." in said
    assert not BreakGlass.objects.exists()


@pytest.mark.parametrize("how", ["open", "confirm"])
def test_wants_a_fresh_second_factor(bob: User, erin: User, how: str) -> None:
    request = ask(subject=SHOP)
    if how == "open":
        address, who, data = f"{GLASSES}open/{request.pk}/", bob, {"reason": "r", "ticket": "t", "fingerprint": PRINT}
    else:
        address, who, data = f"{GLASSES}{open_glass(request, bob).pk}/confirm/", erin, {}
    said = text_of(signed_in(who, second_factor=False).post(address, data, follow=True))
    assert "second factor of the last five minutes" in said
    assert not BreakGlass.objects.exclude(confirmed_by=None).exists()
    assert BreakGlass.objects.exists() is (how == "confirm")


def test_leads_through_the_code_and_keeps_what_was_typed(told: Any, bob: User, erin: User) -> None:
    request = ask(subject=SHOP)
    first, second = signed_in(bob, second_factor=False), signed_in(erin, second_factor=False)
    opening = f"{GLASSES}open/{request.pk}/"
    data = {"reason": "The shop is down.", "ticket": "INC-7", "fingerprint": PRINT}
    assert "asks for a code of your authenticator first" in text_of(first.get(opening))
    led = first.post(opening, data)
    assert led.headers["Location"] == f"{reverse('second-factor')}?{urlencode({'next': f'{opening}#open'})}"
    give_second_factor(first)
    page = text_of(first.get(opening))
    assert "The shop is down.</textarea>" in page
    assert 'value="INC-7"' in page
    assert "asks for a code" not in page
    glass_page = first.post(opening, data).headers["Location"]
    assert "The shop is down.</textarea>" not in text_of(first.get(opening))
    confirming = glass_page.replace("change", "confirm")
    led = second.post(confirming)
    assert led.headers["Location"] == f"{reverse('second-factor')}?{urlencode({'next': f'{glass_page}#confirm'})}"
    give_second_factor(second)
    assert "Confirmed" in text_of(second.post(confirming, follow=True))
    stranger = signed_in(person("ann", Role.VIEWER))
    stranger.post(glass_page.replace("change", "review"), {"notes": "It was no emergency."})
    assert stranger.session["typed"] == {f"{glass_page}#notes": "It was no emergency."}


def test_shows_everybody_that_it_is_open(alice: User, bob: User, erin: User) -> None:
    glass = open_glass(ask(subject=SHOP), bob)
    client = signed_in(alice)
    for address in ("/admin/", WINDOWS, GLASSES, "/admin/approvals/auditentry/"):
        assert "was opened by bob and waits for a second person" in text_of(client.get(address))
    assert "rr-alarm" not in text_of(Client().get("/admin/login/"))
    breaking_glass.confirm(glass, person=erin, how=FRESH, at=now())
    assert "by bob and erin is in force until" in text_of(client.get("/admin/"))
    assert "Confirm break-glass" not in text_of(client.get(f"{GLASSES}{glass.pk}/change/"))


def test_shows_by_the_clock_that_it_is_over(told: Any, alice: User, bob: User, erin: User) -> None:
    client = signed_in(alice)
    open_glass(ask(Tier.MEDIUM), erin)
    elapse(hours=1)
    assert "Break-glass</strong>" not in text_of(client.get("/admin/"))
    glass = broken(ask(Tier.HIGH), bob, erin)
    elapse(hours=5)
    assert glass.state == BreakGlass.State.CONFIRMED, "no tick has written it down"
    assert "by bob and erin is over (lapsed) and has to be reviewed" in text_of(client.get("/admin/"))
    page = text_of(client.get(f"{GLASSES}{glass.pk}/change/"))
    assert "lapsed</span> Its time is up" in page


def test_lists_uses_with_their_reviews_and_few_queries(
    alice: User, bob: User, erin: User, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    client = signed_in(alice)
    assert "Never used." in text_of(client.get(GLASSES))
    broken(ask(subject=SHOP), bob, erin)
    elapse(days=8)
    with django_assert_max_num_queries(10):
        page = text_of(client.get(f"{GLASSES}?review=due"))
    assert "OVERDUE since" in page
    assert client.get(f"{GLASSES}999/change/", follow=True).status_code == 200
    assert client.get(f"{GLASSES}open/999/", follow=True).status_code == 200


def test_is_not_for_who_may_not_look(bob: User) -> None:
    stranger = signed_in(person("stranger"))
    glass = open_glass(ask(subject=SHOP), bob)
    for address in (f"{GLASSES}open/{glass.request_id}/", f"{GLASSES}{glass.pk}/change/"):
        assert stranger.get(address).status_code == 403
    for verb in ("confirm", "revoke", "review"):
        assert stranger.post(f"{GLASSES}{glass.pk}/{verb}/", {"because": "x", "notes": "x"}).status_code == 403
