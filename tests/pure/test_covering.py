"""What is seen of a service, as a table of cases."""

from __future__ import annotations

import json

import pytest

from monitoring import covering
from monitoring.covering import Routes, State

AT = 1_800_000_000.0
DAY = 86_400.0


@pytest.mark.parametrize(
    ("age_seconds", "up_age_seconds", "measures_all", "state"),
    [
        (10.0, 10.0, False, State.LIVE),
        (300.0, 10.0, False, State.LIVE),
        (301.0, 10.0, False, State.QUIET),
        (27 * DAY, 10.0, False, State.QUIET),
        (29 * DAY, 10.0, False, State.BLIND),
        (29 * DAY, 10.0, True, State.READY),
        (None, 10.0, True, State.READY),
        (None, 10.0, False, State.BLIND),
        # When the service is not scraped, nobody would see who asks what.
        (3600.0, 3600.0, True, State.BLIND),
        (None, None, True, State.BLIND),
    ],
)
def test_a_route_is_seen_or_not(
    age_seconds: float | None, up_age_seconds: float | None, measures_all: bool, state: State
) -> None:
    seen = {key: AT - age for key, age in (("route:items", age_seconds), ("up", up_age_seconds)) if age is not None}
    routes = Routes(("items",), "a test", measures_all)
    found = covering.assess(routes, {}, seen, at=AT, fresh_seconds=300)
    assert [part.state for part in found.parts] == [state]
    assert found.ratio == (0.0 if state is State.BLIND else 1.0)
    assert all(part.why for part in found.parts)


@pytest.mark.parametrize(
    ("keys", "ratio"),
    [(["dependency:db.internal"], 1.0), (["queries_per_request"], 1.0), (["dependency:other"], 0.0), ([], 0.0)],
)
def test_a_dependency_is_seen_by_any_of_its_signs(keys: list[str], ratio: float) -> None:
    seen = {"up": AT, **dict.fromkeys(keys, AT)}
    needs = {"postgresql": ["dependency:db.internal", "queries_per_request"]}
    # That all routes are measured says nothing about what the service calls.
    found = covering.assess(Routes((), "a test", True), needs, seen, at=AT, fresh_seconds=300)
    assert found.ratio == ratio
    assert [part.name for part in found.blind_spots] == ([] if ratio else ["postgresql"])


def test_nothing_known_is_no_coverage() -> None:
    assert covering.assess(Routes((), "a test"), {}, {"up": AT}, at=AT, fresh_seconds=300).ratio is None


def test_what_machines_ask_is_left_out() -> None:
    routes = Routes(("metrics", "up", "health-live", "/healthz", "items"), "a test", True)
    found = covering.assess(routes, {}, {"up": AT}, at=AT, fresh_seconds=300)
    assert [part.name for part in found.parts] == ["items"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/items/{id}", "items/<int:pk>"),
        ("/items/{item_id}/", "^items/(?P<pk>[0-9]+)/$"),
        ("GET /items/{id}", "/items/:id"),
        ("player-list", "player-list"),
    ],
)
def test_knows_a_route_by_its_other_names(one: str, other: str) -> None:
    assert covering.spelled(one) == covering.spelled(other)
    found = covering.assess(Routes((one,), "x"), {}, {"up": AT, f"route:{other}": AT}, at=AT, fresh_seconds=300)
    assert found.parts[0].state is State.LIVE


@pytest.mark.parametrize(("one", "other"), [("/items/{id}", "/items"), ("/items/{id}", "/item/{id}"), ("a:b", "a:c")])
def test_tells_routes_apart(one: str, other: str) -> None:
    assert covering.spelled(one) != covering.spelled(other)


def test_reads_an_openapi_document() -> None:
    assert covering.of_openapi({"paths": {"/a": {}, "/b/{id}": {}}}).names == ("/a", "/b/{id}")
    with pytest.raises(ValueError, match="paths"):
        covering.of_openapi({"paths": []})


YAML = """
openapi: 3.1.0
info: {title: Shop, paths: {"/no": 1}}
paths:
  /items/{id}:
    get: {parameters: [{name: id, in: path}], responses: {"200": {description: ok}}}
  "/pay":
    post:
      description: |
        /nor/this: it is a text
components:
  schemas: {paths: {/neither: {}}}
"""


@pytest.mark.parametrize("text", [YAML, json.dumps({"paths": {"/items/{id}": {}, "/pay": {}}})])
def test_reads_a_document_in_yaml_or_json(text: str) -> None:
    assert covering.of_document(text).names == ("/items/{id}", "/pay")


NONE = {
    "empty": "",
    "words": "just words",
    "list": "[]",
    "paths are a list": "paths: []",
    "page": "<html></html>",
    "cut off": "a: [",
    "alias": "paths: *nowhere",
    "deep JSON": "[" * 200_000,
    "deep YAML": "a: " + "[" * 200_000,
    "deep list": "- " * 100_000,
    "control": "\0",
    "paths elsewhere": "other: {paths: {/a: {}}}",
}


@pytest.mark.parametrize("what", NONE)
def test_a_document_that_is_none_is_refused_and_ends_nothing(what: str) -> None:
    with pytest.raises(ValueError, match=r"paths|JSON|deeply"):
        covering.of_document(NONE[what])
