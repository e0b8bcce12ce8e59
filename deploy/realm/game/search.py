import re
import datetime

from game.models import Item

MAX_RESULTS = 100


def parse_limit(text):
    try:
        limit = int(text)
    except:
        limit = 20
    return max(1, min(limit, MAX_RESULTS))


def search_items(words, code, limit):
    items = Item.objects.all()
    if code != None:
        items = items.filter(code=code)
    if words:
        items = items.filter(name__icontains=words)
    return items.order_by("-power", "name", "id")[:limit]
