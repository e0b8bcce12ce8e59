import pytest

from game.models import Trade


@pytest.fixture
def order(players, items):
    return {"reference": "r-1", "seller": players[0].id, "buyer": players[1].id, "item": items[0].code, "gold": 25}


def post(client, body):
    return client.post("/api/trades", body, content_type="application/json")


def test_a_trade_is_stored(client, order):
    response = post(client, order)
    assert response.status_code == 201
    assert response.json()["seller"] == "Alba"
    assert Trade.objects.get().reference == "r-1"


def test_the_newest_trades_come_first(client, order, trade):
    post(client, order)
    answer = client.get("/api/trades").json()
    assert [row["reference"] for row in answer["trades"]] == ["r-1", "old-1"]
    assert answer["trades"][1]["item"] == "Ember Blade of the Fens"


def test_a_request_that_arrives_twice_is_stored_twice_and_shows(client, order, trade):
    post(client, order)
    post(client, order)
    post(client, {**order, "reference": "r-2"})
    assert client.get("/api/trades/references?prefix=r-").json() == {
        "trades": 3,
        "references": 2,
        "duplicates": 1,
        "repeated": {"r-1": 2},
    }


@pytest.mark.parametrize(
    "change",
    [
        {"reference": ""},
        {"reference": "x" * 81},
        {"reference": None},
        {"gold": -1},
        {"gold": 1.5},
        {"gold": True},
        {"buyer": 999_999},
        {"item": "nothing"},
    ],
    ids=str,
)
def test_a_wrong_trade_is_refused_with_a_reason(client, order, change):
    response = post(client, {**order, **change})
    assert response.status_code == 400
    assert response.json()["error"]
    assert not Trade.objects.exists()


def test_nobody_trades_with_themselves(client, order):
    assert post(client, {**order, "buyer": order["seller"]}).status_code == 400


@pytest.mark.parametrize("body", ["", "{", "[]", "null"])
def test_a_body_that_is_no_trade_is_refused(client, order, body):
    assert post(client, body).status_code == 400
