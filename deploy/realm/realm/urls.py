from django.urls import path
from django_prometheus.exports import ExportToDjangoView

from game import views

urlpatterns = [
    path("up", views.up, name="up"),
    path("metrics", ExportToDjangoView, name="metrics"),
    path("api/players", views.player_list, name="player-list"),
    path("api/players/<int:player_id>", views.player_detail, name="player-detail"),
    path("api/items/search", views.item_search, name="item-search"),
    path("api/leaderboard", views.leaderboard, name="leaderboard"),
    path("api/trades", views.trades, name="trades"),
    path("api/trades/references", views.trade_references, name="trade-references"),
]
