"""Approval requests over REST: read, decided, refused with the rule's name."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils.timezone import now

from approvals import policy, requests, scopes, tokens
from approvals.models import ApprovalRequest, AuditEntry, Authenticator, Scope
from approvals.policy import CONFLICTS, Role, Rule, Tier
from approvals.subjects import SubjectRef
from tests.authenticators import code_of, enrolled
from tests.people import FRESH, person
from tests.racing import at_once

PRINT = "f" * 64


def ask(tier: Tier = Tier.MEDIUM, number: int = 1, *, scope: str = "shop", **more: Any) -> ApprovalRequest:
    return requests.open_request(
        SubjectRef("thing", number, f"Prefetch guilds {number}", "/things/1", scope=scope),
        requirement=policy.required(tier, all_pass=False),
        fingerprint=PRINT,
        facts={"what": "One query instead of fifty", "diff": "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"},
        expires_at=now() + dt.timedelta(hours=72),
        **{"proposed_by": None, **more},
    )


class Caller:
    """A program that acts for somebody by a token."""

    def __init__(self, who: User, *scopes: Scope) -> None:
        expires_at = now() + dt.timedelta(days=1)
        asked = scopes or (Scope.READ, Scope.APPROVE)
        _, self.text = tokens.issue(who, name="test", scopes=asked, expires_at=expires_at, actor=who)

    def headers(self, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.text}", **more}

    def get(self, path: str = "") -> Any:
        return Client().get(f"/api/v1/approvals{path}", headers=self.headers())

    def post(self, path: str, headers: dict[str, str] | None = None, **body: Any) -> Any:
        return Client().post(
            f"/api/v1/approvals{path}", body, content_type="application/json", headers=self.headers(**(headers or {}))
        )


def signed(caller: Caller, request: ApprovalRequest, what: str = "sign", **body: Any) -> Any:
    return caller.post(f"/{request.pk}/{what}", **{"fingerprint": PRINT, "reason": "sound", **body})


@pytest.mark.django_db
def test_lists_and_tells_one_with_what_the_caller_may_do(
    bob: User, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(number=2, scope="realm")
    first = ask(proposed_by=alice)
    requests.approve(ask(number=3), person=bob, how=FRESH, reason="sound")
    caller = Caller(bob)
    rows = caller.get("?state=open").json()["results"]
    assert [(row["title"], row["service"]) for row in rows] == [
        ("Prefetch guilds 1", "shop"), ("Prefetch guilds 2", "realm")
    ]  # fmt: skip
    assert "facts" not in rows[0]
    assert len(caller.get("?awaiting=me").json()["results"]) == 2
    monkeypatch.setattr(scopes, "_KNOWN", [lambda: ["realm", "shop"]])
    assert len(caller.get("?service=realm&tier=medium").json()["results"]) == 1
    assert caller.get("?service=nobody").status_code == 404
    assert caller.get("?state=closed").json()["errors"][0]["pointer"].startswith("/state")
    told = caller.get(f"/{first.pk}").json()
    assert told["facts"]["what"] == "One query instead of fifty"
    assert told["missing"] == ["a lead developer"]
    assert told["may"]["approve"] == ""
    assert Caller(alice, Scope.READ).get(f"/{first.pk}").json()["may"]["approve"] == (
        "Nobody signs what they proposed, and alice proposed this."
    )
    assert caller.get("/999").status_code == 404


@pytest.mark.django_db
def test_signs_a_medium_change_by_a_token_and_says_who_did(bob: User) -> None:
    request = ask()
    answer = signed(Caller(bob), request)
    assert answer.status_code == 200, answer.content
    told = answer.json()
    assert (told["state"], told["missing"]) == ("approved", [])
    (given,) = told["signatures"]
    assert (given["person"], given["channel"], given["second_factor"]) == ("bob", "token", False)


@pytest.mark.django_db(transaction=True)
def test_signs_what_is_high_with_a_code_beside_the_token_only() -> None:
    carol = person("carol", Role.ARCHITECTURE)
    key = enrolled(carol)
    caller, request = Caller(carol), ask(Tier.HIGH)
    for code in ({}, {"code": "000000"}):
        refused = signed(caller, request, **code)
        assert (refused.status_code, refused.json()["rule"]) == (403, "second-factor")
        assert "token alone" in refused.json()["detail"]
    assert not request.signatures.exists()
    # The wrong code made the next one wait; whoever waits is let through.
    Authenticator.objects.of(carol.pk).update(throttling_failure_count=0, throttling_failure_timestamp=None)
    code = code_of(key)
    answer = signed(caller, request, code=code)
    assert (answer.status_code, answer.json()["state"]) == (200, "approved"), answer.content
    again = signed(caller, ask(Tier.HIGH, number=2), code=code)
    assert (again.status_code, again.json()["rule"]) == (403, "second-factor"), "a code counts once"


REFUSED = [
    # (who, tier, what, body, status, rule)
    ("erin", Tier.MEDIUM, "sign", {}, 403, "no-role"),
    ("bob", Tier.HIGH, "sign", {}, 403, "no-role"),
    ("carol", Tier.HIGH, "sign", {"reason": ""}, 403, "no-reason"),
    ("bob", Tier.MEDIUM, "reject", {"reason": " "}, 403, "no-reason"),
    ("bob", Tier.MEDIUM, "sign", {"fingerprint": "e" * 64}, 409, "stale"),
    ("bob", Tier.MEDIUM, "revoke", {}, 409, "nothing-decided"),
]


@pytest.mark.django_db
@pytest.mark.parametrize(("who", "tier", "what", "body", "status", "rule"), REFUSED)
def test_says_which_rule_refused(who: str, tier: Tier, what: str, body: dict[str, str], status: int, rule: str) -> None:
    roles = {"erin": (Role.ON_CALL, Role.CTO), "bob": (Role.LEAD,), "carol": (Role.ARCHITECTURE,)}
    if who == "erin":  # whoever holds the scope may still lack the role for this one
        roles["erin"] = (Role.ON_CALL, Role.ARCHITECTURE)
    refused = signed(Caller(person(who, *roles[who])), ask(tier), what, **body)
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert (refused.status_code, refused.json().get("rule")) == (status, rule), refused.content
    assert refused.json()["detail"].endswith(".")


@pytest.mark.django_db
@pytest.mark.parametrize("what", ["sign", "reject", "changes", "revoke", "comments"])
def test_refuses_a_text_that_is_too_long_in_words(what: str, bob: User) -> None:
    field = "text" if what == "comments" else "reason"
    refused = Caller(bob).post(f"/{ask().pk}/{what}", **{"fingerprint": PRINT, field: "x" * 4001})
    assert refused.status_code == 400
    (mistake,) = refused.json()["errors"]
    assert (mistake["pointer"], mistake["detail"]) == (
        f"/{field}",
        "Ensure this field has no more than 4000 characters.",
    )


@pytest.mark.django_db
def test_knows_each_rule_as_the_person_s_or_the_request_s() -> None:
    personal = {"inactive", "program", "proposed", "edited", "no-role", "second-factor", "credentials-reset"}
    personal |= {"no-reason", "too-long"}
    assert {str(rule) for rule in Rule} == personal | {str(rule) for rule in CONFLICTS}
    assert not personal & {str(rule) for rule in CONFLICTS}


@pytest.mark.django_db
def test_asks_for_changes_takes_that_back_and_comments(bob: User) -> None:
    request, caller = ask(), Caller(bob)
    assert signed(caller, request, "changes", reason="Name it better.").json()["state"] == "changes-asked"
    refused = signed(Caller(person("ben", Role.LEAD)), request)
    assert (refused.status_code, refused.json()["rule"]) == (409, "changes-asked")
    assert caller.post(f"/{request.pk}/revoke", reason="It is named well.").json()["state"] == "open"
    assert caller.post(f"/{request.pk}/comments", text="Looks small.").status_code == 200
    assert request.comments.get().text == "Looks small."
    assert caller.post(f"/{request.pk}/comments", text="").status_code == 400
    assert signed(caller, request, "reject", reason="Not now.").json()["state"] == "rejected"
    for what, body in (("sign", {"fingerprint": PRINT}), ("revoke", {})):
        over = caller.post(f"/{request.pk}/{what}", reason="After all.", **body)
        assert (over.status_code, over.json()["rule"]) == (409, "over")
        assert "nobody takes a rejection back" in over.json()["detail"]
    assert caller.get(f"/{request.pk}").json()["ended"].startswith("This request is rejected, which ended it")


@pytest.mark.django_db
def test_does_a_repeated_write_once(bob: User) -> None:
    request, caller = ask(), Caller(bob)
    sent = {"fingerprint": PRINT, "reason": "sound"}
    answers = [caller.post(f"/{request.pk}/sign", {"Idempotency-Key": "one"}, **sent) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].headers["Idempotent-Replayed"] == "true"
    assert AuditEntry.objects.filter(action="approval.signed").count() == 1
    assert signed(caller, request).json()["rule"] in ("over", "counted-once")


@pytest.mark.django_db(transaction=True)
def test_answers_a_retry_of_a_signature_with_its_code_as_the_first_was() -> None:
    """Whoever heard no answer sends the same again, code and all, perhaps while the first is still at work."""
    carol = person("carol", Role.ARCHITECTURE)
    caller, request = Caller(carol), ask(Tier.HIGH)
    body, key = {"fingerprint": PRINT, "reason": "sound", "code": code_of(enrolled(carol))}, {"Idempotency-Key": "one"}

    def send(**more: str) -> Any:
        return caller.post(f"/{request.pk}/sign", key, **{**body, **more})

    answers = [*at_once(send, send, send), send()]
    assert [answer.status_code for answer in answers] == [200] * 4, [answer.content for answer in answers]
    assert all(answer.json() == answers[0].json() for answer in answers)
    assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 3
    assert request.signatures.count() == 1
    assert send(code="000000").status_code == 422
    assert send(reason="other").status_code == 422
    told = AuditEntry.objects.filter(action__startswith="signin.factor").order_by("sequence")
    assert [one.action for one in told][1:] == ["signin.factor_given"], "no code was looked at twice"


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["get", "put", "delete"])
def test_knows_no_other_method_of_a_decision(method: str) -> None:
    refused = getattr(Client(), method)(f"/api/v1/approvals/{ask().pk}/sign")
    assert (refused.status_code, refused.json()["title"]) == (405, "Method not allowed")


@pytest.mark.django_db
def test_takes_no_decision_from_a_token_without_the_scope(bob: User, carol: User) -> None:
    request = ask()
    assert signed(Caller(bob, Scope.READ, Scope.OPERATE), request).status_code == 403
    assert not request.signatures.exists()
    # A person who signs in needs no token, and decides with the session's second factor.
    client = Client()
    client.force_login(carol)
    refused = client.post(
        f"/api/v1/approvals/{ask(Tier.HIGH, number=2).pk}/sign",
        {"fingerprint": PRINT, "reason": "sound"},
        content_type="application/json",
    )
    assert (refused.status_code, refused.json()["rule"]) == (403, "second-factor")
