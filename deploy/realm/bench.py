"""Time Realm's endpoints in this process, against the database of DATABASE_URL, without writing to it.

Prints one JSON object: medians in milliseconds and queries per request. Lower is better.
"""

import json
import os
import statistics
import time

import django

ENDPOINTS = {
    "player_list": [f"/api/players?page={page}" for page in range(1, 16)],
    "player_detail": [f"/api/players/{player}" for player in range(1, 21)],
    "item_search": [
        f"/api/items/search?q={words}"
        for words in ("ember", "frost blade", "ring of the fens", "storm", "jade helm") * 2
    ],
    "item_by_code": [f"/api/items/search?code=W-{number:06d}" for number in range(1, 16)],
    "leaderboard": ["/api/leaderboard"] * 20,
    "trade_list": ["/api/trades"] * 20,
}


def main():
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "realm.settings")
    django.setup()
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    client = Client(SERVER_NAME="127.0.0.1")
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")

    def get(path):
        started = time.perf_counter()
        response = client.get(path)
        seconds = time.perf_counter() - started
        if response.status_code != 200:
            raise SystemExit(f"{path} answered {response.status_code}, so there is nothing to compare.")
        return seconds * 1000

    numbers = {}
    for name, paths in ENDPOINTS.items():
        get(paths[0])  # fills caches, opens the connection
        with CaptureQueriesContext(connection) as queries:
            get(paths[0])
        numbers[f"{name}_queries"] = len(queries)  # now: the next request empties the log
        numbers[f"{name}_ms"] = round(statistics.median(get(path) for path in paths), 3)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
