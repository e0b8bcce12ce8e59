"""What is kept of texts from outside."""

from __future__ import annotations

import logging

import pytest

from monitoring.privacy import PrivateFormatter, pseudonym, route_template, safe_label, safe_labels, scrub

TOKEN = "kX92hsGq0Zp4Vw7mT1"


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("", "/"),
        ("/", "/"),
        ("/players", "/players"),
        ("/players/", "/players/"),
        ("/players/17/items?token=abc#top", "/players/{}/items"),
        ("https://alice:pw@shop.example.org:8443/cart;jsessionid=1F?x=1", "/cart"),
        ("/users/jane", "/users/{}"),
        ("/users/me", "/users/me"),
        ("/Users/jane", "/{}/{}"),
        ("/hello/Jane%20Doe", "/hello/{}"),
        ("/hello/jane.doe%40example.org", "/hello/{}"),
        ("/a/4111111111111111/b", "/a/{}/b"),
        ("/a/6f0e1d9c-6d3e-4ac0-9f6e-0c7a2f0b9e11", "/a/{}"),
        (f"/reset/{TOKEN}", "/reset/{}"),
        ("/blog/how-i-met-jane-doe", "/blog/{}"),
        ("/api/v2/openapi.json", "/api/v2/openapi.json"),
        ("/oauth2/token", "/oauth2/token"),
        ("/api/getItem", "/api/getItem"),
        ("/players/<int:pk>/items", "/players/<int:pk>/items"),
        ("/players/{player_id}/items", "/players/{player_id}/items"),
        ("/players/:id", "/players/:id"),
        (r"^players/(?P<pk>[^/.]+)/$", "players/<pk>/"),
        ("/files/[...path]", "/files/[...path]"),
        ("/static/app.3f9ab27c.js", "/static/{}"),
        ("/a" * 30, "/a" * 10 + "/*"),
        ("/\x00\n", "/{}"),
        ("/ünïcode", "/{}"),
    ],
)
def test_a_route_keeps_its_fixed_parts_only(path: str, template: str) -> None:
    assert route_template(path) == template


@pytest.mark.parametrize("path", ["/players/17/items", "/a/b?c", "/players/<int:pk>", "/users/jane/edit"])
def test_a_template_is_its_own_template(path: str) -> None:
    assert route_template(route_template(path)) == route_template(path)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("player-detail", "player-detail"),
        ("admin:auth_user_change", "admin:auth_user_change"),
        ("game.views.PlayerViewSet.retrieve", "game.views.PlayerViewSet.retrieve"),
        ("<unnamed view>", "<unnamed view>"),
        ("get_user_profile_by_v2_identifier", "get_user_profile_by_v2_identifier"),
        ("GET /players/17", "GET /players/{}"),
        ("/players/17", "/players/{}"),
        ("http://shop.example.org/players/17?x=1", "/players/{}"),
        ("jane.doe@example.org", "{email}"),
        ("Jane Doe", "{name}"),
        ("Zoë O'Neil", "{name}"),
        ("203.0.113.77", "{address}"),
        ("2001:db8::42", "{address}"),
        ("::1", "{address}"),
        ("10.0.0.7", "{address}"),
        ("a:b:c", "a:b:c"),
        ("4111 1111 1111 1111", "{number}"),
        ("4111111111111111", "{number}"),
        ("+49 170 1234567", "{number}"),
        (TOKEN, "{token}"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJqYW5lIn0.c2ln", "{token}"),
        ("a\nb", "a_b"),
        ("x" * 500, "x" * 200),
    ],
)
def test_a_label_says_nothing_about_a_person(value: str, kept: str) -> None:
    assert safe_label(value) == kept


def test_labels_are_an_allowlist() -> None:
    assert safe_labels({"endpoint": "/users/jane", "user": "jane", "ip": "203.0.113.7"}) == {"endpoint": "/users/{}"}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("It did not answer within 5 s.", "It did not answer within 5 s."),
        ("2026-03-02 12:00:00,123 INFO collected 4000 samples", "2026-03-02 12:00:00,123 INFO collected 4000 samples"),
        ('File "/srv/app/monitoring/views.py", line 17', 'File "/srv/app/monitoring/views.py", line 17'),
        ("redirected to https://jane:pw@a.example/b?token=17", "redirected to https://a.example/b?…"),
        ("Authorization: Bearer abc", "Authorization: {secret}"),
        ("password=hunter2&x", "password={secret}&x"),
        ("asked with Bearer abc", "asked with Bearer {secret}"),
        ("Cookie: sessionid=17", "Cookie: {secret}"),
        ("http://127.0.0.1:8000/ and 10.0.0.7 and ::1", "http://127.0.0.1:8000/ and 10.0.0.7 and ::1"),
        ("from 203.0.113.7 and 2001:db8::7", "from {address} and {address}"),
        ("is that so? yes", "is that so? yes"),
    ],
)
def test_a_message_loses_what_it_quotes(text: str, kept: str) -> None:
    assert scrub(text) == kept


def test_a_log_line_of_a_refused_method_names_no_invented_one() -> None:
    for method, shown in (("JANE", "other"), ("POST", "POST")):
        record = logging.LogRecord("django.request", 30, "", 0, "Refused (%s): %s", (method, "/a?b"), None)
        assert PrivateFormatter("%(message)s").format(record) == f"Refused ({shown}): /a"


@pytest.mark.parametrize(
    ("message", "arguments", "shown"),
    [
        ("Invalid request from ip=10.0.0.7: Invalid HTTP Header: 'Jane'", (), "Invalid request."),
        ("Error handling request %s", ("/users/jane?token=17",), "Error handling request /users/{}"),
        ("Booting worker with pid: %s", (17,), "Booting worker with pid: 17"),
        ("Listening at: %s (%s)", ("http://127.0.0.1:8000", 17), "Listening at: http://127.0.0.1:8000 (17)"),
    ],
)
def test_gunicorns_lines_quote_no_visitor(message: str, arguments: tuple[object, ...], shown: str) -> None:
    record = logging.LogRecord("gunicorn.error", 30, "", 0, message, arguments, None)
    assert PrivateFormatter("%(message)s").format(record) == shown


def test_a_traceback_says_where_and_not_what() -> None:
    try:
        int("janeplanted")
    except ValueError as error:
        record = logging.LogRecord("django.request", 40, "", 0, "Oops", None, (ValueError, error, error.__traceback__))
    told = PrivateFormatter("%(message)s").format(record)
    assert "in test_a_traceback_says_where_and_not_what" in told
    assert told.endswith("ValueError")
    assert "invalid literal" not in told


def test_a_log_line_shows_the_route_of_what_was_asked() -> None:
    record = logging.LogRecord("django.request", 30, "", 0, "%s: %s", ("Not Found", "/users/jane/a@b.example"), None)
    assert PrivateFormatter("%(message)s").format(record) == "Not Found: /users/{}/{}"
    assert record.args == ("Not Found", "/users/jane/a@b.example"), "other handlers get the record as it was"


def test_a_pseudonym_tells_apart_and_needs_its_key() -> None:
    assert pseudonym("jane", key="k") == pseudonym("jane", key="k") != pseudonym("joan", key="k")
    assert pseudonym("jane", key="k") != pseudonym("jane", key="other")
    assert len(pseudonym("jane\udcff", key="k")) == 16
