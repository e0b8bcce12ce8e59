def player_summary(player):
    return {
        "id": player.id,
        "name": player.name,
        "level": player.level,
        "score": player.score,
        "guild": player.guild.name,
        "items_carried": sum(entry.quantity for entry in player.inventory.all()),
    }


def player_with_inventory(player, entries):
    return {
        "id": player.id,
        "name": player.name,
        "level": player.level,
        "score": player.score,
        "gold": player.gold,
        "guild": {"name": player.guild.name, "motto": player.guild.motto},
        "joined_at": player.joined_at.isoformat(),
        "inventory": [
            {"code": entry.item.code, "name": entry.item.name, "power": entry.item.power, "quantity": entry.quantity}
            for entry in entries
        ],
    }


def item_as_json(item):
    return {"code": item.code, "name": item.name, "kind": item.kind, "rarity": item.rarity, "power": item.power}


def trade_as_json(trade):
    return {
        "id": trade.id,
        "reference": trade.reference,
        "seller": trade.seller.name,
        "buyer": trade.buyer.name,
        "item": trade.item.name,
        "gold": trade.gold,
        "created_at": trade.created_at.isoformat(),
    }
