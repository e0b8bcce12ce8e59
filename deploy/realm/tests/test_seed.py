import pytest
from django.core.management import CommandError, call_command

from game.models import Item, Player, Trade

SMALL = {"players": 20, "guilds": 3, "items": 30, "trades": 10}


def world():
    return list(Player.objects.order_by("id").values_list("id", "name", "guild__name", "score")), Trade.objects.count()


@pytest.mark.django_db(transaction=True)  # TRUNCATE can't follow a DELETE in one transaction
def test_the_same_number_gives_the_same_world():
    call_command("seed", **SMALL)
    first = world()
    Trade.objects.all().delete()
    call_command("seed", **SMALL, fresh=True)
    assert world() == first
    assert Item.objects.count() == 30


@pytest.mark.django_db
def test_seeding_twice_keeps_what_is_there():
    call_command("seed", **SMALL)
    Trade.objects.first().delete()
    call_command("seed", **SMALL)
    assert Trade.objects.count() == 9


@pytest.mark.django_db
def test_a_world_of_another_size_is_not_lost_by_mistake():
    call_command("seed", **SMALL)
    with pytest.raises(CommandError, match="--fresh"):
        call_command("seed", **{**SMALL, "players": 21})
