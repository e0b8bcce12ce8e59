from django.db.models import Count

from game.models import Item, Player, Trade


class TradeRefused(ValueError):
    """The trade can't be stored; the message is for the client."""


def open_trade(data):
    """Store the trade that a client asked for. Raises TradeRefused.

    A reference is not checked for having been used: what arrives twice is stored twice.
    """
    if type(data) != dict:
        raise TradeRefused("The body must be a JSON object.")
    expected = {"reference": str, "seller": int, "buyer": int, "item": str, "gold": int}
    for name, kind in expected.items():
        if not isinstance(data.get(name), kind) or isinstance(data.get(name), bool):
            raise TradeRefused(f"{name} is missing or not of the right type.")
    if not 1 <= len(data["reference"]) <= 80:
        raise TradeRefused("reference must have 1 to 80 characters.")
    if not 0 <= data["gold"] <= 1_000_000:
        raise TradeRefused("gold must be between 0 and 1000000.")
    if data["seller"] == data["buyer"]:
        raise TradeRefused("Nobody trades with themselves.")
    players = Player.objects.in_bulk([data["seller"], data["buyer"]])
    if len(players) != 2:
        raise TradeRefused("There is no such player.")
    item = Item.objects.filter(code=data["item"]).first()
    if item is None:
        raise TradeRefused("There is no such item.")
    return Trade.objects.create(
        reference=data["reference"],
        seller=players[data["seller"]],
        buyer=players[data["buyer"]],
        item=item,
        gold=data["gold"],
    )


def count_references(prefix):
    """How many trades and how many different references start with `prefix`, and which were stored more than once."""
    trades = Trade.objects.filter(reference__startswith=prefix)
    totals = trades.aggregate(trades=Count("id"), references=Count("reference", distinct=True))
    repeated = trades.values("reference").annotate(count=Count("id")).filter(count__gt=1).order_by("reference")
    return {
        **totals,
        "duplicates": totals["trades"] - totals["references"],
        "repeated": {row["reference"]: row["count"] for row in repeated[:100]},
    }
