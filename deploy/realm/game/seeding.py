"""The world of Realm, invented from a number: the same number gives the same world."""

import random
from datetime import datetime, timedelta, timezone

from django.db import connection, transaction

from game.models import Guild, InventoryEntry, Item, Player, Trade

BEGINNING = datetime(2024, 1, 1, tzinfo=timezone.utc)
BATCH = 5_000
LOCK = 0x5EED  # any constant; two seeds at once must not mix

ADJECTIVES = (
    "Ancient", "Ashen", "Blazing", "Blessed", "Cracked", "Crimson", "Cursed", "Ember", "Fabled", "Frost", "Gilded",
    "Hollow", "Iron", "Jade", "Lunar", "Mythic", "Obsidian", "Phantom", "Rusty", "Silver", "Storm", "Sunken", "Verdant",
    "Whispering",
)  # fmt: skip
NOUNS = {
    "weapon": ("Axe", "Blade", "Bow", "Dagger", "Hammer", "Spear", "Staff"),
    "armour": ("Boots", "Cloak", "Gauntlets", "Helm", "Shield"),
    "charm": ("Amulet", "Coin", "Ring", "Rune", "Talisman"),
    "potion": ("Draught", "Elixir", "Flask", "Tonic"),
}
PLACES = (
    "the Abyss", "Barrowmoor", "Cinderfall", "Duskhaven", "Eldermere", "the Fens", "Grimwatch", "the Hollow King",
    "Ironhold", "the Lost Legion", "Mistvale", "Northreach", "the Red Tower", "Stormgate", "Thornwood", "Winterhall",
)  # fmt: skip
RARITIES = ("common", "common", "common", "uncommon", "uncommon", "rare", "epic")
SYLLABLES = ("al", "bar", "cor", "dra", "el", "fen", "gor", "hal", "is", "ka", "lor", "mir", "nor", "or", "ra", "syl")


def moment(dice):
    return BEGINNING + timedelta(seconds=dice.randrange(365 * 24 * 3600))


def seed_world(*, guilds, players, items, trades, number=1):
    """Replace all rows by a new world. Returns how many rows it has. All or nothing."""
    dice = random.Random(number)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
            tables = [model._meta.db_table for model in (Trade, InventoryEntry, Item, Player, Guild)]
            # The identities restart, so that the ids too are the same each time.
            cursor.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY")
        rows = [
            Guild(
                name=f"{dice.choice(ADJECTIVES)} {dice.choice(('Circle', 'Company', 'Hand', 'Order', 'Watch'))} {n}",
                motto=f"By the {dice.choice(('blade', 'book', 'flame', 'stone'))} of {dice.choice(PLACES)}",
                founded_at=moment(dice),
            )
            for n in range(1, guilds + 1)
        ]
        Guild.objects.bulk_create(rows, BATCH)
        rows = [
            Player(
                name=f"{''.join(dice.choices(SYLLABLES, k=3)).title()}{n}",
                guild_id=dice.randint(1, guilds),
                level=dice.randint(1, 80),
                score=int(dice.paretovariate(1.2) * 1_000) % 10_000_000,
                gold=dice.randint(0, 50_000),
                joined_at=moment(dice),
            )
            for n in range(1, players + 1)
        ]
        Player.objects.bulk_create(rows, BATCH)
        rows = []
        for n in range(1, items + 1):
            kind = dice.choice(tuple(NOUNS))
            rows.append(
                Item(
                    code=f"{kind[0].upper()}-{n:06d}",
                    name=f"{dice.choice(ADJECTIVES)} {dice.choice(NOUNS[kind])} of {dice.choice(PLACES)}",
                    kind=kind,
                    rarity=dice.choice(RARITIES),
                    power=dice.randint(1, 1_000),
                )
            )
        Item.objects.bulk_create(rows, BATCH)
        rows = [
            InventoryEntry(player_id=player_id, item_id=item_id, quantity=dice.randint(1, 5))
            for player_id in range(1, players + 1)
            for item_id in dice.sample(range(1, items + 1), dice.randint(2, min(6, items)))
        ]
        InventoryEntry.objects.bulk_create(rows, BATCH)
        carried = len(rows)
        rows = []
        for n in range(1, trades + 1):
            seller, buyer = dice.sample(range(1, players + 1), 2)
            item = dice.randint(1, items)
            rows.append(
                Trade(
                    reference=f"seed-{n}", seller_id=seller, buyer_id=buyer, item_id=item, gold=dice.randint(1, 5_000)
                )
            )
        Trade.objects.bulk_create(rows, BATCH)
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {', '.join(tables)}")
    return guilds + players + items + carried + trades
