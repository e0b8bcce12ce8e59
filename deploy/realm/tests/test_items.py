import pytest


def names(response):
    return [item["name"] for item in response.json()["items"]]


def test_search_finds_words_in_any_case_strongest_first(client, items):
    assert names(client.get("/api/items/search?q=ember")) == ["Ember Ring of Mistvale", "Ember Blade of the Fens"]
    assert names(client.get("/api/items/search?q=THE FENS")) == ["Ember Blade of the Fens", "Iron Helm of the Fens"]


def test_search_finds_a_code(client, items):
    assert names(client.get("/api/items/search?code=W-2")) == ["Frost Axe of Duskhaven"]
    assert names(client.get("/api/items/search?code=W-2&q=ember")) == []


@pytest.mark.parametrize(("limit", "found"), [("1", 1), ("0", 1), ("50", 4), ("many", 4)])
def test_search_honours_a_sensible_limit(client, items, limit, found):
    assert len(names(client.get(f"/api/items/search?q=of&limit={limit}"))) == found


def test_search_takes_wildcards_literally(client, items):
    assert names(client.get("/api/items/search?q=%25")) == []


@pytest.mark.django_db
def test_search_needs_something_to_search_for(client):
    assert client.get("/api/items/search").status_code == 400
    assert client.get("/api/items/search?q=+").status_code == 400
