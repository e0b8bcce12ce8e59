"""Web vitals and feedback: what is taken from pages, what is kept of it, and what becomes of it in a round."""

from __future__ import annotations

import datetime as dt
import json
import threading
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils.timezone import now

from approvals import rest, tokens
from approvals.limits import valkey
from approvals.models import Scope, StoredAnswer
from monitoring import experience, feedback, reading
from monitoring.models import Feedback, Service
from tests.monitoring.factories import T0, ServiceFactory, parse

pytestmark = pytest.mark.django_db
SHOP = "https://shop.example.org"
OWN = "http://testserver"
MANIFEST = """[service]
name = "shop"
[run]
command = "gunicorn shop.wsgi --bind 127.0.0.1:{port}"
health = "/up"
[test]
command = "pytest -q --junitxml={report}"
[experience]
origins = ["https://shop.example.org"]
"""
VITALS, FEEDBACK = "/api/v1/vitals", "/api/v1/feedback"


@pytest.fixture
def shop(db: None) -> Service:
    return ServiceFactory(name="shop", manifest=parse(MANIFEST).model_dump(mode="json"))


@pytest.fixture
def own(db: None) -> Service:
    return ServiceFactory(name="runerogue", is_self=True)


def told(client: Client, path: str, body: dict[str, Any], origin: str | None = SHOP, **headers: str) -> Any:
    sent = {**headers, **({"Origin": origin} if origin else {})}
    return client.post(path, json.dumps(body), content_type="text/plain;charset=UTF-8", headers=sent)


def counted(service: Service) -> dict[str, int]:
    """Everything that Valkey holds about the service's vitals: field → count."""
    found: dict[str, int] = {}
    for key in valkey().scan_iter(f"runerogue:vitals:{service.pk}:*"):
        if b":routes:" not in key:
            found |= {field.decode(): int(count) for field, count in valkey().hgetall(key).items()}
    return found


# --- Who may report ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "origin", "status"),
    [
        ("shop", SHOP, 204),
        ("shop", "https://shop.example.org:8443", 403),
        ("shop", "http://shop.example.org", 403),
        ("shop", "https://evil.example.org", 403),
        ("shop", OWN, 403),
        ("shop", "null", 403),
        ("shop", None, 403),
        ("", OWN, 204),
        ("runerogue", OWN, 204),
        ("", SHOP, 403),
        ("nobody", SHOP, 404),
    ],
)
def test_only_named_origins_report(
    client: Client, shop: Service, own: Service, service: str, origin: str | None, status: int
) -> None:
    for path, body in ((VITALS, {"cls": 0.1}), (FEEDBACK, {"rating": 5})):
        answer = told(client, path, {"service": service, **body}, origin)
        assert answer.status_code == (201 if (path, status) == (FEEDBACK, 204) else status)
        allowed = answer.headers.get("Access-Control-Allow-Origin")
        assert allowed == (origin if answer.status_code < 300 else None)
        assert "Origin" in answer.headers["Vary"]
        assert not answer.cookies


def test_a_browser_that_asks_first_is_told(client: Client, shop: Service) -> None:
    asked = client.options(FEEDBACK, headers={"Origin": SHOP, "Access-Control-Request-Method": "POST"})
    assert (asked.status_code, asked.headers["Access-Control-Allow-Origin"]) == (204, SHOP)
    assert "Access-Control-Allow-Credentials" not in asked.headers
    refused = client.options(FEEDBACK, headers={"Origin": "https://evil.example.org"})
    assert "Access-Control-Allow-Origin" not in refused.headers


def test_a_program_reports_with_a_token(client: Client, shop: Service, bob: User) -> None:
    def bearer(scope: Scope) -> str:
        expires_at = now() + dt.timedelta(days=1)
        return "Bearer " + tokens.issue(bob, name="x", scopes=[scope], expires_at=expires_at, actor=bob)[1]

    body = {"service": "shop", "rating": 4}
    assert told(client, FEEDBACK, body, origin=None, Authorization=bearer(Scope.REPORT)).status_code == 201
    assert told(client, FEEDBACK, body, origin=None, Authorization=bearer(Scope.READ)).status_code == 403


def test_a_session_is_not_looked_at(client: Client, shop: Service, mallory: User) -> None:
    client.force_login(mallory)
    assert told(client, VITALS, {"service": "shop", "cls": 0}, origin=None).status_code == 403


# --- What is taken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"lcp_ms": 1200.5, "inp_ms": 80, "cls": 0.01, "endpoint": "items"}, 204),
        ({"cls": 0}, 204),
        ({}, 400),
        ({"lcp_ms": -1}, 400),
        ({"lcp_ms": 1e12}, 400),
        ({"lcp_ms": "quick"}, 400),
        ({"cls": 0, "endpoint": "x" * 201}, 400),
        ({"cls": 0, "path": "/" + "x" * 4000}, 413),
    ],
)
def test_takes_what_a_page_can_measure(client: Client, shop: Service, body: dict[str, Any], status: int) -> None:
    answer = told(client, VITALS, {"service": "shop", **body})
    assert answer.status_code == status
    if status >= 400:
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert counted(shop) == {}
    else:
        assert len(counted(shop)) == len({"lcp_ms", "inp_ms", "cls"} & set(body))


@pytest.mark.parametrize("text", ["{", "[]", '"text"', '{"service": "shop", "cls": NaN}', ""])
def test_refuses_garbage_in_the_form_of_the_api(client: Client, shop: Service, text: str) -> None:
    answer = client.post(VITALS, text, content_type="text/plain", headers={"Origin": SHOP})
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/problem+json")


def test_keeps_templates_and_no_people(client: Client, shop: Service) -> None:
    for where in (
        {"path": "/players/jane.doe@example.org/items/4711?token=hunter2#top"},
        {"endpoint": "jane.doe@example.org"},
        {"endpoint": "player-detail"},
        {"endpoint": "admin:monitoring_service_change"},
        {"endpoint": "/items/{id}"},
    ):
        assert told(client, VITALS, {"service": "shop", "cls": 0, **where}).status_code == 204
    endpoints = {field.split(" ", 2)[2] for field in counted(shop)}
    assert endpoints == {
        "/players/{}/items/{}",
        "{email}",
        "player-detail",
        "admin:monitoring_service_change",
        "/items/{id}",
    }


def test_invented_routes_do_not_fill_the_memory(shop: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experience, "MOST_ROUTES", 5)
    for number in range(20):
        experience.record(shop, {"cls": 0.1}, endpoint=f"route-{chr(97 + number)}", at=T0)
    fields = counted(shop)
    assert len(fields) == 6
    assert sum(fields.values()) == 20
    for key in valkey().scan_iter(f"runerogue:vitals:{shop.pk}:*"):
        assert valkey().ttl(key) > 0, "nothing stays for ever"


def test_too_many_pages_of_one_service_wait(client: Client, shop: Service, own: Service, settings: Any) -> None:
    settings.VITALS_PER_MINUTE = 2
    answers = [told(client, VITALS, {"service": "shop", "cls": 0}).status_code for _ in range(6)]
    assert answers.count(429) >= 2
    assert told(client, VITALS, {"cls": 0}, OWN).status_code == 204


def test_without_valkey_it_says_so_and_the_round_goes_on(client: Client, shop: Service, settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    answer = told(client, VITALS, {"service": "shop", "cls": 0})
    assert (answer.status_code, answer.headers["Content-Type"]) == (503, "application/problem+json")
    assert experience.write_round(T0) == 0


# --- What becomes of it ------------------------------------------------------------------------------------------


def visited(service: Service, values: list[float], *, at: Any, endpoint: str = "items") -> None:
    for value in values:
        experience.record(service, {"lcp_ms": value}, endpoint=endpoint, at=at)


def p75(service: Service, endpoint: str = "items") -> list[float]:
    labels = {"endpoint": endpoint}
    since, until = T0 - timedelta(hours=1), T0 + timedelta(hours=2)
    found = reading.arrays(service, "lcp_p75_ms", since=since, until=until, labels=labels)
    return [float(value) for series in found for value in series.value]


def test_a_round_writes_the_p75_of_each_route_and_of_the_whole(shop: Service) -> None:
    visited(shop, [1000.0] * 30 + [3000.0] * 10, at=T0 - timedelta(seconds=30))
    visited(shop, [5000.0] * 40, at=T0 - timedelta(seconds=20), endpoint="cart")
    assert experience.write_round(T0) == 3
    assert p75(shop) == [pytest.approx(1000, rel=0.02)]
    assert p75(shop, "cart") == [pytest.approx(5000, rel=0.02)]
    assert p75(shop, "*") == [pytest.approx(5000, rel=0.02)], "the 60th of 80 waited 5 s"
    felt = experience.felt(shop, since=T0 - timedelta(hours=1), until=T0 + timedelta(hours=1))
    assert [(one.endpoint, one.rating) for one in felt] == [("*", "poor"), ("cart", "poor"), ("items", "good")]


def test_few_visits_look_further_back_and_silence_is_silence(shop: Service) -> None:
    visited(shop, [1000.0] * 4, at=T0 - timedelta(minutes=10))
    visited(shop, [4000.0] * 2, at=T0 - timedelta(seconds=30))
    experience.write_round(T0)
    assert p75(shop) == [pytest.approx(4000, rel=0.02)], "the 5th of 6 in a quarter of an hour"
    experience.write_round(T0 + timedelta(minutes=5))
    assert len(p75(shop)) == 1, "nobody came since: nothing new is known"


def test_two_visits_say_nothing(shop: Service) -> None:
    visited(shop, [9000.0] * 2, at=T0 - timedelta(seconds=30))
    assert experience.write_round(T0) == 0


def test_several_processes_count_together(shop: Service) -> None:
    # Each thread has a connection of its own, as processes have.
    threads = [threading.Thread(target=visited, args=(shop, [800.0] * 50), kwargs={"at": T0}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counted(shop).values()) == 200


# --- Feedback ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Slow since Monday, 3 of 10 times", "Slow since Monday, 3 of 10 times"),
        ("write to jane.doe+x@mail.example.org!", "write to {email}!"),
        ("call +49 (30) 123 45-67", "call {number}"),
        ("call 030 1234567 or 555-0123-99", "call {number} or {number}"),
        ("card 4111 1111 1111 1111 refused", "card {number} refused"),
        ("from 192.168.17.4", "from {address}"),
        ("from 2001:db8::ff00:42:8329", "from {address}"),
        ("order 12345 in 2026", "order 12345 in 2026"),
        ("a\0b\x1bc", "a b c"),
    ],
)
def test_takes_people_out_of_what_they_say(said: str, kept: str) -> None:
    assert feedback.scrubbed(said) == kept


def test_keeps_feedback_for_the_analysis(client: Client, shop: Service, carol: User) -> None:
    body = {"service": "shop", "rating": 2, "text": "It hangs. jane@example.org", "path": "/cart/17"}
    assert told(client, FEEDBACK, body).json() == {"status": "received"}
    (row,) = feedback.recent(shop, now() - timedelta(minutes=5))
    assert (row.rating, row.text, row.endpoint) == (2, "It hangs. {email}", "/cart/{}")
    assert feedback.recent(shop, now() + timedelta(minutes=5)) == []
    assert client.get(FEEDBACK).status_code == 401
    client.force_login(carol)
    assert client.get(FEEDBACK, {"service": "shop"}).json()["results"][0]["text"] == row.text
    assert "It hangs." in client.get("/admin/monitoring/feedback/").content.decode()


@pytest.mark.parametrize(
    "body", [{}, {"rating": 0}, {"rating": 6}, {"rating": "good"}, {"text": "x" * 2001}, {"text": " \0 "}]
)
def test_refuses_feedback_that_says_nothing(client: Client, shop: Service, body: dict[str, Any]) -> None:
    assert told(client, FEEDBACK, {"service": "shop", **body}).status_code == 400
    assert not Feedback.objects.exists()


def test_counts_feedback_by_the_round(shop: Service, own: Service) -> None:
    Feedback.objects.create(service=shop, rating=1, at=T0 - timedelta(seconds=10))
    Feedback.objects.create(service=shop, rating=1, at=T0 - timedelta(seconds=90))
    feedback.write_round(T0)
    assert reading.latest(shop, "feedback_count") == 1.0
    assert reading.latest(own, "feedback_count") is None, "it never had any"


# --- Done once ---------------------------------------------------------------------------------------------------


def test_a_repeated_write_is_done_once_and_answered_alike(client: Client, shop: Service) -> None:
    body = {"service": "shop", "rating": 5}
    first = told(client, FEEDBACK, body, **{"Idempotency-Key": "k1"})
    again = told(client, FEEDBACK, body, **{"Idempotency-Key": "k1"})
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert Feedback.objects.count() == 1
    other = told(client, FEEDBACK, {"service": "shop", "rating": 1}, **{"Idempotency-Key": "k1"})
    assert (other.status_code, other.headers["Content-Type"]) == (422, "application/problem+json")
    assert told(client, FEEDBACK, body, **{"Idempotency-Key": "k2"}).status_code == 201
    assert Feedback.objects.count() == 2
    assert told(client, FEEDBACK, body, **{"Idempotency-Key": "k" * 201}).status_code == 400


def test_a_key_belongs_to_its_caller(client: Client, shop: Service, own: Service) -> None:
    for body, origin in (({"service": "shop", "rating": 5}, SHOP), ({"rating": 5}, OWN)):
        assert told(client, FEEDBACK, body, origin, **{"Idempotency-Key": "same"}).status_code == 201


def test_what_failed_may_be_tried_again(client: Client, shop: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    body, key = {"service": "shop", "rating": 5}, {"Idempotency-Key": "k"}
    with monkeypatch.context() as broken:
        broken.setattr(feedback, "take", lambda *a, **k: 1 / 0)
        answer = told(client, FEEDBACK, body, **key)
    assert (answer.status_code, answer.headers["Content-Type"]) == (500, "application/problem+json")
    assert "division" not in answer.content.decode()
    assert not StoredAnswer.objects.exists()
    assert told(client, FEEDBACK, body, **key).status_code == 201


def test_answers_are_forgotten_after_a_day(client: Client, shop: Service) -> None:
    told(client, FEEDBACK, {"service": "shop", "rating": 5}, **{"Idempotency-Key": "k"})
    assert StoredAnswer.objects.forget_old(now()) == 0
    assert StoredAnswer.objects.forget_old(now() + timedelta(hours=25)) == 1


@pytest.mark.django_db(transaction=True)
def test_the_same_write_twice_at_once_is_done_once(shop: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "WAIT_FOR_TWIN", "10s")
    both = threading.Barrier(2)
    answers: list[int] = []

    def send() -> None:
        both.wait(10)
        answers.append(
            told(Client(), FEEDBACK, {"service": "shop", "rating": 5}, **{"Idempotency-Key": "k"}).status_code
        )
        connection.close()

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [201, 201]
    assert Feedback.objects.count() == 1
