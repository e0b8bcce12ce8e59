"""It finds the N+1s that a service's own tests show, and the author can repair them."""

import json
import os
import re
import shutil
import textwrap
from pathlib import Path

import pytest

from analysis import nplusone
from improvements.authors.n_plus_one import NPlusOneAuthor

pytestmark = pytest.mark.slow

COMMAND = "pytest -q -p no:randomly -p no:cacheprovider --junitxml={report}"
REALM = Path(__file__).parents[2] / "deploy" / "realm"

# A whole small service. SQLite in memory: what is tested here is the probe, and the service's engine is its own choice.
SHOP = {
    "pytest.ini": "[pytest]\nDJANGO_SETTINGS_MODULE = settings\npython_files = test_*.py\npythonpath = .\n",
    "settings.py": """\
        SECRET_KEY = "for the tests of a made-up service"
        INSTALLED_APPS = ["django.contrib.contenttypes", "shop"]
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
        ROOT_URLCONF = "urls"
        TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
        USE_TZ = True
        """,
    "urls.py": """\
        from django.urls import path
        from shop import views

        urlpatterns = [
            path("players", views.players, name="player-list"),
            path("players/<int:pk>", views.player, name="player-detail"),
            path("template", views.Players.as_view(), name="player-page"),
            path("active", views.active, name="active"),
            path("filtered", views.filtered, name="filtered"),
            path("fine", views.fine, name="fine"),
        ]
        """,
    "shop/__init__.py": "",
    "shop/models.py": """\
        from django.db import models


        class Guild(models.Model):
            name = models.CharField(max_length=20)


        class Tag(models.Model):
            name = models.CharField(max_length=20)


        class Players(models.Manager):
            def active(self):
                return self.filter(level__gt=0)


        class Player(models.Model):
            name = models.CharField(max_length=20)
            level = models.IntegerField(default=1)
            guild = models.ForeignKey(Guild, models.CASCADE, related_name="members")
            tags = models.ManyToManyField(Tag)
            objects = Players()


        class Profile(models.Model):
            player = models.OneToOneField(Player, models.CASCADE)
            motto = models.CharField(max_length=20)


        class Kind(models.Model):
            name = models.CharField(max_length=20)


        class Item(models.Model):
            name = models.CharField(max_length=20)
            kind = models.ForeignKey(Kind, models.CASCADE)


        class Entry(models.Model):
            player = models.ForeignKey(Player, models.CASCADE, related_name="inventory")
            item = models.ForeignKey(Item, models.CASCADE)
        """,
    "shop/rendering.py": """\
        def render(player):
            return {
                "guild": player.guild.name,
                "motto": player.profile.motto,
                "tags": [tag.name for tag in player.tags.all()],
                "items": [f"{entry.item.name} ({entry.item.kind.name})" for entry in player.inventory.all()],
            }
        """,
    "shop/views.py": """\
        from django.core.paginator import Paginator
        from django.http import JsonResponse
        from django.views.generic import ListView

        from shop.models import Player
        from shop.rendering import render


        def players(request):
            found = Player.objects.order_by("id")  # stable pages
            page = Paginator(found, 10).get_page(1)
            return JsonResponse({"players": [render(player) for player in page]})


        def player(request, pk):
            one = Player.objects.get(pk=pk)
            return JsonResponse({"items": [entry.item.name for entry in one.inventory.all()]})


        class Players(ListView):
            queryset = Player.objects.order_by("name")
            template_name = "players.html"


        def active(request):
            return JsonResponse({"guilds": [player.guild.name for player in Player.objects.active()]})


        def filtered(request):
            found = Player.objects.all()
            return JsonResponse({"rows": [[e.id for e in p.inventory.filter(id__gt=0)] for p in found]})


        def fine(request):
            found = Player.objects.select_related("guild")
            return JsonResponse({"guilds": [player.guild.name for player in found]})
        """,
    "shop/templates/players.html": "{% for p in object_list %}{{ p.guild.name }}{% endfor %}",
    "tests/__init__.py": "",
    "tests/test_shop.py": """\
        import pytest
        from shop.models import Entry, Guild, Item, Kind, Player, Profile, Tag


        @pytest.fixture
        def world(db):
            for number in range(3):
                guild = Guild.objects.create(name=f"g{number}")
                player = Player.objects.create(name=f"p{number}", guild=guild)
                player.tags.add(Tag.objects.create(name=f"t{number}"))
                Profile.objects.create(player=player, motto="m")
                for part in range(2):
                    item = Item.objects.create(name=f"i{number}{part}", kind=Kind.objects.create(name="k"))
                    Entry.objects.create(player=player, item=item)
            return player


        @pytest.mark.parametrize("path", ["/players", "/template", "/active", "/filtered", "/fine"])
        def test_pages(client, world, path):
            assert client.get(path).status_code == 200


        def test_player(client, world):
            assert len(client.get(f"/players/{world.pk}").json()["items"]) == 2
        """,
}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    for name, text in SHOP.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")
    return folder


def relations(found: list[nplusone.NPlusOne], route: str) -> dict[str, str]:
    return {one.relation: "__".join(one.source.path) if one.source else "" for one in found if one.route == route}


def test_finds_each_relation_and_the_queryset_it_hangs_on(shop: Path) -> None:
    found = nplusone.find(shop, COMMAND, {})
    assert relations(found, "player-list") == {
        "guild": "guild",
        "profile": "profile",
        "tags": "tags",
        "inventory": "inventory",
        "item": "inventory__item",
        "kind": "inventory__item__kind",
    }
    assert relations(found, "player-detail") == {"item": "item"}
    assert relations(found, "player-page") == {"guild": "guild"}
    assert relations(found, "active") == {"guild": "guild"}
    assert relations(found, "fine") == {}
    assert [one.plain for one in found if one.route == "filtered"] == [False]
    guild = next(one for one in found if (one.route, one.relation) == ("player-list", "guild"))
    assert (guild.model, guild.relation_kind, guild.repeats, guild.method) == ("shop.Player", "forward", 3, "GET")
    assert guild.location == "shop/rendering.py:3"
    assert [frame.function for frame in guild.frames[:2]] == ["render", "players.<locals>.<listcomp>"]
    assert guild.source is not None
    assert (guild.source.built[0].file, guild.source.built[0].line) == ("shop/views.py", 10)
    # As many as the ORM makes: a count, the page, and for each of 3 players 4 relations and 2 items with their kinds.
    assert guild.queries_per_request == 2 + 3 * (4 + 2 * 2)
    kinds = {one.relation: one.relation_kind for one in found if one.route == "player-list"}
    assert kinds == {
        "guild": "forward",
        "profile": "forward",
        "tags": "many",
        "inventory": "many",
        "item": "forward",
        "kind": "forward",
    }

    # Evidence is stored as JSON.
    assert [nplusone.from_evidence(json.loads(json.dumps(one.as_evidence()))) for one in found] == found
    assert len(json.dumps([one.as_evidence() for one in found])) < 60_000


def test_the_author_repairs_every_route_and_nothing_is_left(shop: Path) -> None:
    found = nplusone.find(shop, COMMAND, {})
    repaired = ("player-list", "player-detail", "player-page", "active")
    for route in repaired:  # no patch moves a line, so the evidence stays right for the next
        patch = NPlusOneAuthor().write(shop, {"found": [one.as_evidence() for one in found if one.route == route]})
        assert patch.details["not_done"] == []
        for file, text in patch.files.items():
            (shop / file).write_text(text, encoding="utf-8")
    left = nplusone.find(shop, COMMAND, {})
    assert {one.route for one in left} == {"filtered"}
    views = (shop / "shop/views.py").read_text(encoding="utf-8")
    assert (
        'found = Player.objects.select_related("guild", "profile")'
        '.prefetch_related("tags", "inventory__item__kind").order_by("id")  # stable pages' in views
    ), views
    assert 'Player.objects.active().select_related("guild")' in views
    assert 'one.inventory.select_related("item").all()' in views


def test_sees_the_same_under_xdist(shop: Path) -> None:
    found = nplusone.find(shop, f"{COMMAND} -n 2", {})
    assert "guild" in relations(found, "player-list")


def test_a_failing_suite_is_reported_with_what_was_seen(shop: Path) -> None:
    test = shop / "tests/test_shop.py"
    test.write_text(test.read_text(encoding="utf-8") + "\n\ndef test_broken():\n    assert 0\n", encoding="utf-8")
    with pytest.raises(nplusone.CannotLook, match=r"own tests fail \(exit code 1\)") as raised:
        nplusone.find(shop, COMMAND, {})
    assert "test_broken" in raised.value.output
    assert raised.value.found


def test_a_suite_that_is_not_pytest_is_reported(shop: Path) -> None:
    with pytest.raises(nplusone.CannotLook, match="only pytest is understood"):
        nplusone.find(shop, "python -c pass", {})


def test_a_suite_without_requests_is_reported(shop: Path) -> None:
    (shop / "tests/test_shop.py").write_text("def test_nothing():\n    pass\n", encoding="utf-8")
    with pytest.raises(nplusone.CannotLook, match="no test made a request"):
        nplusone.find(shop, COMMAND, {})


def test_a_suite_that_hangs_is_reported(shop: Path) -> None:
    (shop / "tests/test_shop.py").write_text(
        "import time\n\n\ndef test_nothing():\n    time.sleep(60)\n", encoding="utf-8"
    )
    with pytest.raises(nplusone.CannotLook, match="did not end within 3 s"):
        nplusone.find(shop, COMMAND, {}, timeout_seconds=3)


@pytest.mark.skipif(not REALM.is_dir(), reason="the demonstration service is not here")
def test_finds_and_repairs_the_player_list_of_realm(tmp_path: Path, engines: None) -> None:
    realm = tmp_path / "realm"
    shutil.copytree(REALM, realm, ignore=shutil.ignore_patterns("__pycache__", ".venv"))
    environment = {
        "DATABASE_URL": os.environ["DATABASE_URL"],
        "SECRET_KEY": "only for this test, but long enough to be one",
        # Not the worker's name alone: pytest-django calls this worker's own database so.
        "TEST_DATABASE_SUFFIX": re.sub(r"\W", "", "realm" + os.environ.get("PYTEST_XDIST_WORKER", "")),
    }
    found = nplusone.find(realm, "pytest -q --junitxml={report}", environment)
    assert {(one.route, one.relation) for one in found} == {("player-list", "guild"), ("player-list", "inventory")}
    patch = NPlusOneAuthor().write(realm, {"found": [one.as_evidence() for one in found]})
    assert list(patch.files) == ["game/views.py"]
    for file, text in patch.files.items():
        (realm / file).write_text(text, encoding="utf-8")
    assert nplusone.find(realm, "pytest -q --junitxml={report}", environment) == []
