import pytest

from game import views


def test_the_list_names_each_guild_and_counts_what_is_carried(client, players):
    answer = client.get("/api/players").json()
    rows = [(player["name"], player["guild"], player["items_carried"]) for player in answer["players"]]
    assert rows == [("Alba", "Wolves", 3), ("Brin", "Ravens", 4), ("Caro", "Bears", 2), ("Dorn", "Wolves", 0)]
    assert (answer["count"], answer["pages"], answer["page"]) == (4, 1, 1)


def test_the_list_comes_in_pages(client, players, monkeypatch):
    monkeypatch.setattr(views, "PAGE_SIZE", 3)
    assert [player["name"] for player in client.get("/api/players?page=1").json()["players"]] == [
        "Alba",
        "Brin",
        "Caro",
    ]
    assert [player["name"] for player in client.get("/api/players?page=2").json()["players"]] == ["Dorn"]


@pytest.mark.parametrize(("page", "shown"), [("nonsense", 1), ("0", 1), ("99", 1), ("", 1)])
def test_a_page_that_is_not_there_becomes_the_nearest(client, players, page, shown):
    assert client.get(f"/api/players?page={page}").json()["page"] == shown


@pytest.mark.django_db
def test_the_list_of_an_empty_world_is_empty(client):
    assert client.get("/api/players").json()["players"] == []


def test_a_player_shows_guild_and_inventory(client, players):
    answer = client.get(f"/api/players/{players[0].id}").json()
    assert answer["guild"] == {"name": "Wolves", "motto": "Together"}
    assert [(entry["name"], entry["quantity"]) for entry in answer["inventory"]] == [
        ("Ember Blade of the Fens", 1),
        ("Iron Helm of the Fens", 2),
    ]


@pytest.mark.django_db
def test_a_player_who_is_not_there_is_404(client):
    assert client.get("/api/players/999999").status_code == 404


def test_the_leaderboard_ranks_by_score_then_name(client, players):
    answer = client.get("/api/leaderboard").json()
    assert [(row["rank"], row["name"], row["guild"]) for row in answer["players"]] == [
        (1, "Brin", "Ravens"),
        (2, "Caro", "Bears"),
        (3, "Dorn", "Wolves"),
        (4, "Alba", "Wolves"),
    ]


def test_players_can_only_be_read(client, players):
    assert client.post("/api/players").status_code == 405
