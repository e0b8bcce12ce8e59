from datetime import datetime, timezone

import pytest
from django.test import Client

from game.models import Guild, InventoryEntry, Item, Player, Trade

JOINED = datetime(2024, 5, 17, 12, 0, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def no_faults(monkeypatch, tmp_path):
    """A drill that is on in this folder must not reach the tests."""
    monkeypatch.setenv("REALM_FAULTS_FILE", str(tmp_path / "faults.json"))
    return tmp_path / "faults.json"


@pytest.fixture
def client():
    return Client(SERVER_NAME="127.0.0.1", raise_request_exception=False)


@pytest.fixture
def items(db):
    return Item.objects.bulk_create(
        [
            Item(code="W-1", name="Ember Blade of the Fens", kind="weapon", rarity="rare", power=70),
            Item(code="W-2", name="Frost Axe of Duskhaven", kind="weapon", rarity="common", power=40),
            Item(code="A-3", name="Iron Helm of the Fens", kind="armour", rarity="common", power=55),
            Item(code="C-4", name="Ember Ring of Mistvale", kind="charm", rarity="epic", power=90),
        ]
    )


@pytest.fixture
def players(items):
    """Four players in three guilds, each carrying something else."""
    wolves, ravens, bears = Guild.objects.bulk_create(
        [
            Guild(name="Wolves", motto="Together", founded_at=JOINED),
            Guild(name="Ravens", motto="Watchful", founded_at=JOINED),
            Guild(name="Bears", founded_at=JOINED),
        ]
    )
    people = Player.objects.bulk_create(
        [
            Player(name="Alba", guild=wolves, level=10, score=500, gold=100, joined_at=JOINED),
            Player(name="Brin", guild=ravens, level=20, score=900, gold=200, joined_at=JOINED),
            Player(name="Caro", guild=bears, level=30, score=700, gold=300, joined_at=JOINED),
            Player(name="Dorn", guild=wolves, level=40, score=700, gold=400, joined_at=JOINED),
        ]
    )
    alba, brin, caro, dorn = people
    blade, axe, helm, ring = items
    InventoryEntry.objects.bulk_create(
        [
            InventoryEntry(player=alba, item=blade, quantity=1),
            InventoryEntry(player=alba, item=helm, quantity=2),
            InventoryEntry(player=brin, item=axe, quantity=4),
            InventoryEntry(player=caro, item=ring, quantity=1),
            InventoryEntry(player=caro, item=blade, quantity=1),
        ]
    )
    return people


@pytest.fixture
def trade(players, items):
    return Trade.objects.create(reference="old-1", seller=players[0], buyer=players[1], item=items[0], gold=50)
