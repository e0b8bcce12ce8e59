"""After somebody else reset a person's second factor or password, nobody signs anything high in that person's name."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client

from approvals import deputies, forecasting, policy, requests, roles, second_factor
from approvals.models import ApprovalRequest, AuditEntry, CredentialsReset, Letter
from approvals.policy import Rule, Subject, Tier
from approvals.subjects import Forecast, SubjectRef
from tests.people import FRESH, PASSWORD, person

pytestmark = pytest.mark.django_db

AT = dt.datetime(2026, 5, 4, 12, 0, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
NEW = "another battery and a staple"


@pytest.fixture
def carol() -> User:
    """Of the architecture team, with an address, and signed in once before."""
    return person("carol", policy.Role.ARCHITECTURE, email="carol@example.org", last_login=AT)


def as_person(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def ask(tier: Tier = Tier.HIGH) -> ApprovalRequest:
    return requests.open_request(
        SubjectRef("improvement", 1, "An index", ""), requirement=policy.required(tier), fingerprint="f" * 64,
        proposed_by=None, facts={}, expires_at=AT + dt.timedelta(days=3650),
    )  # fmt: skip


def refused_now(person: User) -> Any:
    with pytest.raises(requests.Refused) as refused:
        requests.approve(ask(), person=person, how=FRESH, reason="Sound.")
    return refused.value


def set_password_of(user: User, actor: User) -> None:
    sent = {"password1": NEW, "password2": NEW, "usable_password": "true"}
    assert as_person(actor).post(f"/admin/auth/user/{user.pk}/password/", sent).status_code == 302


def test_refuses_for_a_day_and_says_who_did_it_until_when_and_who_else(carol: User, mallory: User) -> None:
    second_factor.reset(carol, actor=mallory, by=FRESH, because="She called.", at=AT)
    asked = policy.RequestFacts(policy.required(Tier.HIGH))
    for later, waits in ((0 * HOUR, True), (23 * HOUR, True), (24 * HOUR, False)):
        answer = policy.may_sign(roles.facts_of(carol, at=AT + later), asked)
        assert isinstance(answer, policy.Refused) is waits
    why = policy.may_sign(roles.facts_of(carol, at=AT), asked).why  # type: ignore[union-attr]
    assert why.rule is Rule.CREDENTIALS_RESET
    assert why == (
        "mallory reset the second factor of carol on 2026-05-04 12:00 UTC, so until 2026-05-05 12:00 UTC nothing of "
        "high or critical risk is signed in the name of carol. Meanwhile somebody else may be asked: the architecture "
        "team."
    )
    assert why in forecasting.who_must_sign(Forecast(Tier.HIGH, Subject()), AT).kept_out


def test_tells_the_person_how_long_they_have_to_object(carol: User, mallory: User) -> None:
    second_factor.reset(carol, actor=mallory, by=FRESH, because="She called.", at=AT)
    set_password_of(carol, mallory)
    until = "nothing of high or critical risk is signed in your name."
    assert [until in " ".join(one.lines) for one in Letter.objects.filter(person=carol)] == [True, True]
    assert Letter.objects.filter(subject="RuneRogue: mallory set your password").exists()


def test_refuses_after_a_password_of_somebody_elses(carol: User, mallory: User, settings: Any) -> None:
    set_password_of(carol, mallory)
    why = refused_now(carol)
    assert why.rule is Rule.CREDENTIALS_RESET
    assert "mallory reset the password of carol" in why.why
    client = as_person(User.objects.get(pk=carol.pk))
    page = client.get(f"/admin/approvals/approvalrequest/{ask().pk}/change/")
    assert "mallory reset the password of carol" in page.content.decode()
    assert AuditEntry.objects.filter(action="signin.password_changed", subject="carol", actor="mallory").count() == 1
    settings.CREDENTIALS_SETTLE_HOURS = 0
    assert requests.approve(ask(), person=carol, how=FRESH, reason="Sound.").state == "approved"


def test_does_not_end_early_when_whoever_has_the_password_sets_another(carol: User, mallory: User) -> None:
    set_password_of(carol, mallory)
    client = as_person(carol)
    sent = {"old_password": NEW, "new_password1": PASSWORD, "new_password2": PASSWORD}
    assert client.post("/admin/password_change/", sent).status_code == 302
    assert refused_now(carol).rule is Rule.CREDENTIALS_RESET


def test_makes_nobody_wait_for_what_they_did_themselves(carol: User, mallory: User) -> None:
    User.objects.filter(pk=carol.pk).update(password=make_password(PASSWORD))
    carol.refresh_from_db()
    sent = {"old_password": PASSWORD, "new_password1": NEW, "new_password2": NEW}
    assert as_person(carol).post("/admin/password_change/", sent).status_code == 302
    second_factor.remove(carol, by=FRESH, at=AT)
    newcomer = person("newcomer", policy.Role.ARCHITECTURE)  # nobody signed in with it yet
    set_password_of(newcomer, mallory)
    assert not CredentialsReset.objects.exists()


def test_counts_a_command_at_the_machine(carol: User) -> None:
    call_command("reset_second_factor", "carol", because="She called.", verbosity=0)
    assert "somebody at the machine reset the second factor" in refused_now(carol).why


def test_lends_no_right_meanwhile(carol: User, mallory: User, alice: User) -> None:
    set_password_of(carol, mallory)
    since = CredentialsReset.objects.get().at
    deputies.name_deputy(carol, alice, since=since, until=since + 900 * HOUR, because="away", actor=carol)
    assert "in the name of carol" in refused_now(alice).why


def test_leaves_what_was_signed_before(carol: User, mallory: User) -> None:
    request = requests.approve(ask(), person=carol, how=FRESH, reason="Sound.")
    set_password_of(carol, mallory)
    assert requests.standing(request, request.fingerprint).satisfied


def test_lets_nobody_edit_when_somebody_signed_in(carol: User, mallory: User) -> None:
    form = {"username": "carol", "is_active": "on", "is_staff": "on", "last_login_0": "", "last_login_1": ""}
    assert as_person(mallory).post(f"/admin/auth/user/{carol.pk}/change/", form).status_code == 302
    carol.refresh_from_db()
    assert carol.last_login == AT
