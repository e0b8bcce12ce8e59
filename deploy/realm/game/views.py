import json

from django.core.paginator import Paginator
from django.db import DatabaseError, connection
from django.http import JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_GET, require_http_methods

from game.models import Player, Trade
from game.search import parse_limit, search_items
from game.serializers import item_as_json, player_summary, player_with_inventory, trade_as_json
from game.trading import TradeRefused, count_references, open_trade

PAGE_SIZE = 30


@require_GET
def up(request):
    """Whether Realm can serve: 200 when the database answers, else 503."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError as error:
        return JsonResponse({"status": "down", "database": type(error).__name__}, status=503)
    return JsonResponse({"status": "up"})


@require_GET
def player_list(request):
    players = Player.objects.order_by("id")
    page = Paginator(players, PAGE_SIZE).get_page(request.GET.get("page"))
    return JsonResponse(
        {
            "count": page.paginator.count,
            "pages": page.paginator.num_pages,
            "page": page.number,
            "players": [player_summary(player) for player in page],
        }
    )


@require_GET
def player_detail(request, player_id):
    player = get_object_or_404(Player.objects.select_related("guild"), pk=player_id)
    entries = player.inventory.select_related("item").order_by("item__name", "id")
    return JsonResponse(player_with_inventory(player, entries))


@require_GET
def item_search(request):
    words = request.GET.get("q", "").strip()
    code = request.GET.get("code")
    if not words and not code:
        return JsonResponse({"error": "Say what to search for: ?q=words or ?code=code."}, status=400)
    items = search_items(words, code, parse_limit(request.GET.get("limit")))
    return JsonResponse({"items": [item_as_json(item) for item in items]})


@require_GET
def leaderboard(request):
    best = Player.objects.select_related("guild").order_by("-score", "name")[:20]
    ranked = enumerate(best, start=1)
    return JsonResponse(
        {
            "players": [
                {"rank": rank, "name": player.name, "guild": player.guild.name, "score": player.score}
                for rank, player in ranked
            ]
        }
    )


@require_http_methods(["GET", "POST"])
def trades(request):
    """The 50 newest trades, or, by POST, one more of them."""
    if request.method == "POST":
        try:
            trade = open_trade(json.loads(request.body))
        except TradeRefused as refusal:
            return JsonResponse({"error": str(refusal)}, status=400)
        except ValueError:
            return JsonResponse({"error": "The body is not valid JSON."}, status=400)
        return JsonResponse(trade_as_json(trade), status=201)
    newest = Trade.objects.select_related("seller", "buyer", "item").order_by("-id")[:50]
    return JsonResponse({"trades": [trade_as_json(trade) for trade in newest]})


@require_GET
def trade_references(request):
    prefix = request.GET.get("prefix", "")
    return JsonResponse(count_references(prefix))
