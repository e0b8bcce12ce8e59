"""API tokens and the frame of the REST API, over Django's own client."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client
from django.utils.timezone import now

from approvals import limits, roles, tokens
from approvals.models import ApiToken, AuditEntry, Scope
from approvals.policy import Role
from tests.people import person

pytestmark = pytest.mark.django_db
ADD = "/admin/approvals/apitoken/add/"
FAR = "203.0.113.9"


def issued(who: User, *scopes: Scope, days: float = 30) -> tuple[ApiToken, str]:
    expires_at = now() + dt.timedelta(days=days)
    return tokens.issue(who, name="a test", scopes=scopes or (Scope.READ,), expires_at=expires_at, actor=who)


def asked(client: Client, text: str, path: str = "/api/v1/services") -> Any:
    return client.get(path, headers={"Authorization": f"Bearer {text}"}, REMOTE_ADDR=FAR)


def test_is_stored_as_a_hash_only(bob: User) -> None:
    token, text = issued(bob)
    assert re.fullmatch(r"rr_[A-Za-z0-9]{8}_[A-Za-z0-9_-]{43}", text)
    stored = {field.name: getattr(token, field.name) for field in token._meta.concrete_fields}
    assert text not in str(stored)
    assert text.rsplit("_", 1)[1] not in str(stored)
    assert tokens.find(text) == token
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor, entry.data["scopes"]) == ("apitoken.issued", "bob", ["read"])
    assert text not in entry.payload


def spoiled(text: str) -> list[str]:
    secret = "A" * 43
    return ["", "rr_", text[:-1], text + "A", text[:12] + secret, "rr_XXXXXXXX_" + secret, text.swapcase(), "\0" + text]


def test_opens_with_the_exact_text_only(client: Client, bob: User) -> None:
    _, text = issued(bob)
    assert asked(client, text).status_code == 200
    for wrong in spoiled(text):
        assert tokens.find(wrong) is None
    refused = asked(client, text[:-1] + ("A" if text[-1] != "A" else "B"))
    assert (refused.status_code, refused.headers["Content-Type"]) == (401, "application/problem+json")
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    assert client.get("/api/v1/services").status_code == 401


def test_ends_when_it_expires_is_revoked_or_its_person_leaves(client: Client, bob: User) -> None:
    token, text = issued(bob)
    ApiToken.objects.update(created_at=now() - dt.timedelta(days=2), expires_at=now() - dt.timedelta(seconds=1))
    assert asked(client, text).status_code == 401
    ApiToken.objects.update(expires_at=now() + dt.timedelta(days=1))
    assert asked(client, text).status_code == 200
    User.objects.filter(pk=bob.pk).update(is_active=False)
    assert asked(client, text).status_code == 401
    User.objects.filter(pk=bob.pk).update(is_active=True)
    assert tokens.revoke(token, actor=bob)
    assert not tokens.revoke(token, actor=bob), "it ends once"
    assert asked(client, text).status_code == 401
    assert AuditEntry.objects.filter(action="apitoken.revoked").count() == 1


def test_keeps_the_day_of_its_last_use_and_no_more(client: Client, bob: User) -> None:
    token, text = issued(bob)
    asked(client, text)
    token.refresh_from_db()
    assert token.last_used_on == now().date()


@pytest.mark.parametrize(
    ("role", "superuser", "scopes"),
    [
        (Role.VIEWER, False, {"read"}),
        (Role.ON_CALL, False, {"read", "operate", "report"}),
        (Role.LEAD, False, {"read", "operate", "report", "approve"}),
        (Role.ARCHITECTURE, False, {"read", "operate", "report", "approve"}),
        (Role.CTO, False, {"read", "operate", "report", "approve"}),
        (None, True, {"read", "operate", "report"}),
    ],
)
def test_may_do_no_more_than_its_person(db: None, role: Role | None, superuser: bool, scopes: set[str]) -> None:
    who = person("somebody", *([role] if role else []), is_superuser=superuser)
    assert {str(scope) for scope in Scope if tokens.may_hold(who, scope)} == scopes
    for scope in Scope:
        if str(scope) in scopes:
            issued(who, scope)
        else:
            with pytest.raises(tokens.CannotIssue):
                issued(who, scope)


def test_loses_what_its_person_loses(bob: User, rf: Any) -> None:
    _, text = issued(bob, Scope.OPERATE)
    request = rf.get("/", headers={"Authorization": f"Bearer {text}"})
    assert tokens.bearer(request, Scope.OPERATE)
    assert tokens.bearer(request, Scope.READ) is None
    roles.revoke(bob, Role.LEAD)
    assert tokens.bearer(request, Scope.OPERATE) is None


@pytest.mark.parametrize("days", [0, -1, 400])
def test_always_expires(bob: User, days: int) -> None:
    with pytest.raises(tokens.CannotIssue):
        issued(bob, days=days)


def test_a_missing_scope_is_named(client: Client, bob: User) -> None:
    _, text = issued(bob, Scope.REPORT)
    refused = asked(client, text)
    assert refused.status_code == 403
    assert "no scope read" in refused.json()["detail"]


# --- In the admin ------------------------------------------------------------------------------------------------


def test_is_shown_once_when_it_is_made(client: Client, alice: User) -> None:
    client.force_login(alice)
    made = client.post(ADD, {"name": "board", "scopes": ["read"], "days": "365"})
    text = re.findall(r"rr_[A-Za-z0-9]{8}_[A-Za-z0-9_-]{43}", made.content.decode())
    assert len(text) == 1
    assert "no-store" in made.headers["Cache-Control"]
    assert "messages" not in made.cookies
    token = ApiToken.objects.get()
    assert (tokens.find(text[0]), token.person) == (token, alice)
    for page in ("", f"{token.pk}/change/"):
        shown = client.get(f"/admin/approvals/apitoken/{page}").content.decode()
        assert token.prefix in shown
        assert token.digest not in shown
        assert text[0][12:] not in shown


def test_nobody_makes_a_token_above_their_role(client: Client, alice: User) -> None:
    client.force_login(alice)
    refused = client.post(ADD, {"name": "sign for me", "scopes": ["approve"], "days": "1"})
    assert "You have no role for: approve." in refused.content.decode()
    assert not ApiToken.objects.exists()


def test_people_see_and_revoke_their_own(client: Client, alice: User, bob: User) -> None:
    (mine, _), (theirs, _) = issued(alice), issued(bob)
    client.force_login(alice)
    revoke = {"action": "revoke", "_selected_action": [mine.pk, theirs.pk]}
    client.post("/admin/approvals/apitoken/", revoke)
    assert set(ApiToken.objects.filter(revoked_at=None)) == {theirs}
    assert client.get(f"/admin/approvals/apitoken/{theirs.pk}/change/").status_code == 302
    assert client.post(f"/admin/approvals/apitoken/{mine.pk}/delete/", {"post": "yes"}).status_code == 403


def test_a_command_prints_one_for_machines(bob: User, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("api_token", "--person", "bob", "--name", "CI", "--scope", "report")
    token = tokens.find(capsys.readouterr().out.strip())
    assert token is not None
    assert token.scopes == ["report"]


# --- The frame ---------------------------------------------------------------------------------------------------


def test_too_many_requests_wait(client: Client, bob: User, settings: Any) -> None:
    settings.API_REQUESTS_PER_MINUTE = 3
    _, text = issued(bob)
    answers = [asked(client, text) for _ in range(8)]  # a minute may end in between, once
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert 1 <= int(refused[0].headers["Retry-After"]) <= 60
    _, other = issued(bob)
    assert asked(client, other).status_code == 200, "each token has its own"


def test_limits_count_by_the_minute_and_never_without_valkey(settings: Any) -> None:
    what = f"test:{now().timestamp()}"
    assert [limits.seconds_to_wait(what, per_minute=2, at=t) for t in (0, 30, 50, 60)] == [0, 0, 10, 0]
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    assert limits.seconds_to_wait(what, per_minute=0, at=0) == 0


@pytest.mark.parametrize("path", ["/api/v1/nothing", "/api/", "/api/v2/services"])
@pytest.mark.parametrize("method", ["get", "post"])
def test_an_unknown_address_is_a_problem(path: str, method: str) -> None:
    answer = getattr(Client(enforce_csrf_checks=True), method)(path)
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")


def test_a_person_who_signed_in_needs_no_token_but_the_csrf_token(alice: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    assert client.get("/api/v1/services").status_code == 200
    refused = client.post("/api/v1/services")
    assert refused.status_code in (403, 405)
    assert refused.headers["Content-Type"] == "application/problem+json"


def test_nobody_outside_the_staff_reads(client: Client) -> None:
    client.force_login(User.objects.create(username="guest"))
    assert client.get("/api/v1/services").status_code == 403
