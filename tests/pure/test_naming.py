"""Endpoints and dependencies from what spans say."""

from __future__ import annotations

import pytest

from monitoring.otlp import naming

ENDPOINTS = [
    # http.route, span name, path, status → endpoint
    ("/players/{id}", "GET", "/players/8123", 200, "/players/{id}"),
    ("api/players/<int:player_id>", "GET api/players/<int:player_id>", "", 200, "api/players/<int:player_id>"),
    ("^articles/(?P<year>[0-9]{4})/$", "GET", "", 200, "articles/<year>/"),
    ("/players/8123", "", "", 200, "/players/{id}"),  # a careless route
    ("/p/alice@example.org/{x}", "", "", 200, "/p/{id}/{x}"),
    ("", "GET /players/{id}", "/players/8123", 200, "/players/{id}"),
    ("", "GET /players/:id", "/players/8123", 200, "/players/:id"),
    ("", "GET", "/players/8123?name=alice", 200, "/players/{id}"),
    ("", "GET", "/players/alice", 200, "/players/{id}"),
    ("", "GET", "http://host:80/api/v1/orders/17/lines/3?x=1", 200, "/api/v1/orders/{id}/lines/{id}"),
    ("", "GET", "/static/app.js", 200, "/static/app.js"),
    ("", "GET", "/files/Alice%20Example", 200, "/files/{id}"),
    ("", "GET", "/a/b/c/d/e/f/g/h/i/j", 200, "/a/b/c/d/e/f/g/h/…"),
    ("", "GET /players/8123", "", 200, "/players/{id}"),
    ("", "HTTP GET", "", 200, "(no route)"),
    ("", "GET", "/wp-admin", 404, "(no route)"),
    ("", "GET", "/", 200, "/"),
    ("", "alice logs in", "", 200, "(no route)"),
]


@pytest.mark.parametrize(("route", "span_name", "path", "status", "expected"), ENDPOINTS)
def test_endpoints_are_templates(route: str, span_name: str, path: str, status: int, expected: str) -> None:
    assert naming.endpoint(http_route=route, span_name=span_name, path=path, status=status) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("db.internal", "db.internal"),
        ("API.Example.org:8443", "api.example.org"),
        ("https://user:secret@api.example.org/path?q=1", "api.example.org"),
        ("127.0.0.1", "localhost"),
        ("[::1]", "localhost"),
        ("203.0.113.7", "(address)"),
        ("203.0.113.7:80", ""),
        ("/var/run/.s.PGSQL.5432", ""),
        ("alice@example.org", ""),
        ("a b", ""),
        ("http://[", ""),
        ("", ""),
    ],
)
def test_hosts_are_names_and_nothing_else(address: str, expected: str) -> None:
    assert naming.host(address) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("billing", "billing"),
        ("shop.v1.Cart/Get", "shop.v1.Cart/Get"),
        ("reply-8123-17", "reply-{id}-17"),
        ("alice@example.org", "(unnamed)"),
        ("two words", "(unnamed)"),
        ("", "(unnamed)"),
    ],
)
def test_names_come_from_code(text: str, expected: str) -> None:
    assert naming.name(text) == expected
