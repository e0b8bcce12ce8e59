"""The author adds select_related and prefetch_related where the evidence points, or says why it does not."""

import textwrap
from pathlib import Path
from typing import Any

import pytest

from improvements.authors import AUTHORS, Author, CannotWrite, author_for
from improvements.authors.n_plus_one import NPlusOneAuthor

VIEWS = "shop/views.py"


def frame(text: str, marked: str, *, file: str = VIEWS, manager: bool = False) -> dict[str, Any]:
    """A frame as the probe records it: the place of `marked` in `text`, columns in bytes."""
    at = text.index(marked)
    line = text.count("\n", 0, at) + 1
    start = text.rfind("\n", 0, at) + 1
    end = at + len(marked)
    end_start = text.rfind("\n", 0, end) + 1
    return {
        "file": file,
        "line": line,
        "function": "f",
        "end_line": text.count("\n", 0, end) + 1,
        "column": len(text[start:at].encode()),
        "end_column": len(text[end_start:end].encode()),
        "manager": manager,
    }


def n_plus_one(
    lookup: str = "guild",
    kinds: str = "forward",
    *,
    built: list[dict[str, Any]] | None = None,
    frames: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    path = lookup.split("__")
    kind_list = kinds.split()
    source = None
    if built is not None:
        source = {
            "model": "shop.Player",
            "path": path,
            "kinds": kind_list,
            "rows": 4,
            "built": built,
            "evaluated": [],
        }
    return {
        "model": "shop.Player",
        "relation": path[-1],
        "relation_kind": kind_list[-1],
        "route": "player-list",
        "route_template": "players",
        "method": "GET",
        "location": "shop/serializers.py:7",
        "frames": frames or [],
        "repeats": 4,
        "queries_per_request": 10,
        "plain": True,
        "source": source,
        "view": None,
        "test": "tests/test_players.py::test_list",
        **changes,
    }


def write(tmp_path: Path, text: str, *found: dict[str, Any], file: str = VIEWS) -> str:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text, encoding="utf-8", newline="")
    patch = NPlusOneAuthor().write(tmp_path, {"found": list(found)})
    assert list(patch.files) == [file]
    compile(patch.files[file], file, "exec")
    return patch.files[file]


# name: (before, the first call of the expression that ran, lookups as (path, kinds), after)
TABLE: dict[str, tuple[str, str, list[tuple[str, str]], str]] = {
    "an assignment": (
        'qs = Player.objects.filter(level=1).order_by("id")  # stable\n',
        "Player.objects.filter(level=1)",
        [("guild", "forward")],
        'qs = Player.objects.select_related("guild").filter(level=1).order_by("id")  # stable\n',
    ),
    "an inline loop": (
        "for p in Player.objects.all():\n    print(p.guild)\n",
        "Player.objects.all()",
        [("guild", "forward")],
        'for p in Player.objects.select_related("guild").all():\n    print(p.guild)\n',
    ),
    "a comprehension": (
        "rows = [str(p.guild) for p in Player.objects.all() if p.level]\n",
        "Player.objects.all()",
        [("guild", "forward")],
        'rows = [str(p.guild) for p in Player.objects.select_related("guild").all() if p.level]\n',
    ),
    "a returned value": (
        "def f():\n    return Player.objects.exclude(level=0)\n",
        "Player.objects.exclude(level=0)",
        [("inventory", "many")],
        'def f():\n    return Player.objects.prefetch_related("inventory").exclude(level=0)\n',
    ),
    "a class attribute": (
        "class Players(ListView):\n    queryset = Player.objects.all()\n",
        "Player.objects.all()",
        [("guild", "forward"), ("inventory", "many")],
        "class Players(ListView):\n"
        '    queryset = Player.objects.select_related("guild").prefetch_related("inventory").all()\n',
    ),
    "an argument": (
        'page = Paginator(Player.objects.order_by("id"), 50).page(1)\n',
        'Player.objects.order_by("id")',
        [("guild", "forward")],
        'page = Paginator(Player.objects.select_related("guild").order_by("id"), 50).page(1)\n',
    ),
    "a slice": (
        'top = Player.objects.order_by("-score")[:20]\n',
        'Player.objects.order_by("-score")',
        [("guild", "forward")],
        'top = Player.objects.select_related("guild").order_by("-score")[:20]\n',
    ),
    "an existing select_related": (
        'qs = Player.objects.select_related("guild").filter(a=1)\n',
        'Player.objects.select_related("guild")',
        [("home", "forward")],
        'qs = Player.objects.select_related("guild", "home").filter(a=1)\n',
    ),
    "an existing call later in the chain": (
        'qs = Player.objects.filter(a=1).prefetch_related("sales")\n',
        "Player.objects.filter(a=1)",
        [("guild", "forward"), ("inventory", "many")],
        'qs = Player.objects.select_related("guild").filter(a=1).prefetch_related("sales", "inventory")\n',
    ),
    "an existing call written one argument a line": (
        "qs = Player.objects.select_related(\n    'guild',  # name and motto\n)\n",
        "Player.objects.select_related(\n    'guild',  # name and motto\n)",
        [("home", "forward")],
        "qs = Player.objects.select_related(\n    'guild',  # name and motto\n    'home',\n)\n",
    ),
    "a Prefetch object beside it": (
        'qs = Player.objects.prefetch_related(Prefetch("sales", Trade.objects.all()))\n',
        'Player.objects.prefetch_related(Prefetch("sales", Trade.objects.all()))',
        [("inventory", "many")],
        'qs = Player.objects.prefetch_related(Prefetch("sales", Trade.objects.all()), "inventory")\n',
    ),
    "a chain over several lines with comments": (
        """\
        players = (
            Player.objects
            # only those who play
            .filter(level__gt=0)  # zero is a bot
            .order_by("id")
        )
        """,
        "Player.objects\n    # only those who play\n    .filter(level__gt=0)",
        [("guild", "forward")],
        """\
        players = (
            Player.objects
            .select_related("guild")
            # only those who play
            .filter(level__gt=0)  # zero is a bot
            .order_by("id")
        )
        """,
    ),
    "a nested path": (
        "qs = Player.objects.all()\n",
        "Player.objects.all()",
        [("inventory", "many"), ("inventory__item", "many forward")],
        'qs = Player.objects.prefetch_related("inventory__item").all()\n',
    ),
    "forward over forward": (
        "qs = Player.objects.all()\n",
        "Player.objects.all()",
        [("guild__leader", "forward forward"), ("guild", "forward")],
        'qs = Player.objects.select_related("guild__leader").all()\n',
    ),
    "many over forward keeps the join": (
        "qs = Player.objects.all()\n",
        "Player.objects.all()",
        [("guild", "forward"), ("guild__members", "forward many")],
        'qs = Player.objects.select_related("guild").prefetch_related("guild__members").all()\n',
    ),
    "a generic relation": (
        "qs = Player.objects.all()\n",
        "Player.objects.all()",
        [("target", "generic")],
        'qs = Player.objects.prefetch_related("target").all()\n',
    ),
    "related rows of one object": (
        "def f(player):\n    return [e.item for e in player.inventory.all()]\n",
        "player.inventory.all()",
        [("item", "forward")],
        'def f(player):\n    return [e.item for e in player.inventory.select_related("item").all()]\n',
    ),
    "non-ASCII before it on the line": (
        'names = ["Ægir – ß", *[p.guild for p in Player.objects.all()]]\n',
        "Player.objects.all()",
        [("guild", "forward")],
        'names = ["Ægir – ß", *[p.guild for p in Player.objects.select_related("guild").all()]]\n',
    ),
    "an iterator with a chunk size": (
        "for p in Player.objects.filter(a=1).iterator(chunk_size=500):\n    pass\n",
        "Player.objects.filter(a=1)",
        [("inventory", "many")],
        'for p in Player.objects.prefetch_related("inventory").filter(a=1).iterator(chunk_size=500):\n    pass\n',
    ),
    "a file that prefers single quotes": (
        "x = 'a'\nqs = Player.objects.filter(name='b')\n",
        "Player.objects.filter(name='b')",
        [("guild", "forward")],
        "x = 'a'\nqs = Player.objects.select_related('guild').filter(name='b')\n",
    ),
    "Windows line ends": (
        "x = 1\r\nqs = Player.objects.all()\r\n",
        "Player.objects.all()",
        [("guild", "forward")],
        'x = 1\r\nqs = Player.objects.select_related("guild").all()\r\n',
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_writes(tmp_path: Path, case: str) -> None:
    before, marked, lookups, after = (textwrap.dedent(part) if isinstance(part, str) else part for part in TABLE[case])
    found = [n_plus_one(lookup, kinds, built=[frame(before, marked)]) for lookup, kinds in lookups]
    assert write(tmp_path, before, *found) == after


@pytest.mark.parametrize("case", TABLE)
def test_writes_nothing_twice(tmp_path: Path, case: str) -> None:
    before, marked, lookups, after = (textwrap.dedent(part) if isinstance(part, str) else part for part in TABLE[case])
    found = [n_plus_one(lookup, kinds, built=[frame(before, marked)]) for lookup, kinds in lookups]
    with pytest.raises(CannotWrite):
        write(tmp_path, after, *found)


REFUSED = {
    "after values": ('Player.objects.values("id")', {}, r"\.values\(\) follows"),
    "after values_list further on": ("Player.objects.filter(a=1).values_list('id')", {}, "values_list"),
    "after a union": ("Player.objects.filter(a=1).union(other)", {}, "union"),
    "with only()": ('Player.objects.only("name")', {}, r"\.only\(\)"),
    "with select_for_update()": ("Player.objects.select_for_update()", {}, "lock"),
    "on select_related() without names": ("Player.objects.select_related()", {}, "meaning of its own"),
    "on select_related(None)": ("Player.objects.select_related(None)", {}, "meaning of its own"),
    "what an unknown method returns": ("Player.objects.strongest(5)", {}, "not known to be a queryset"),
    "a library function that begins it": ("get_list_or_404(Player)", {}, "no queryset of Player"),
    "rows that are filtered one by one": ("Player.objects.all()", {"plain": False}, "filtered or ordered anew"),
    "a .get() in a loop": ("Player.objects.all()", {"relation_kind": "get"}, r"\.get\(\)"),
    "a deferred field": ("Player.objects.all()", {"relation_kind": "deferred"}, "deferred"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(tmp_path: Path, case: str) -> None:
    expression, changes, reason = REFUSED[case]
    text = f"qs = {expression}\n"
    first = expression[: expression.index(")") + 1]
    with pytest.raises(CannotWrite, match=reason):
        write(tmp_path, text, n_plus_one(built=[frame(text, first)], **changes))


def test_refuses_a_prefetch_before_an_iterator_without_chunk_size(tmp_path: Path) -> None:
    text = "for p in Player.objects.filter(a=1).iterator():\n    pass\n"
    found = n_plus_one("inventory", "many", built=[frame(text, "Player.objects.filter(a=1)")])
    with pytest.raises(CannotWrite, match="chunk_size"):
        write(tmp_path, text, found)


def test_does_what_it_can_and_names_the_rest(tmp_path: Path) -> None:
    text = "qs = Player.objects.all()\n"
    built = [frame(text, "Player.objects.all()")]
    (tmp_path / "shop").mkdir()
    (tmp_path / VIEWS).write_text(text, encoding="utf-8")
    patch = NPlusOneAuthor().write(
        tmp_path, {"found": [n_plus_one(built=built), n_plus_one("sales", "many", built=built, plain=False)]}
    )
    assert patch.files[VIEWS] == 'qs = Player.objects.select_related("guild").all()\n'
    assert "filtered or ordered anew" in patch.explanation
    assert patch.summary == "player-list: fetch guild together with each Player"


def test_goes_behind_a_method_of_the_services_own_manager(tmp_path: Path) -> None:
    manager = "class Players(Manager):\n    def active(self):\n        return self.filter(active=True)\n"
    text = "qs = Player.objects.active().order_by('id')\n"
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/models.py").write_text(manager, encoding="utf-8")
    built = [
        frame(manager, "self.filter(active=True)", file="shop/models.py", manager=True),
        frame(text, "Player.objects.active()"),
    ]
    after = write(tmp_path, text, n_plus_one(built=built))
    assert after == "qs = Player.objects.active().select_related('guild').order_by('id')\n"


def test_never_changes_a_test(tmp_path: Path) -> None:
    text = "qs = Player.objects.all()\n"
    found = n_plus_one(built=[frame(text, "Player.objects.all()", file="tests/test_x.py")])
    with pytest.raises(CannotWrite, match="in a test"):
        write(tmp_path, text, found, file="tests/test_x.py")


def test_never_leaves_the_repository(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    text = "qs = Player.objects.all()\n"
    (tmp_path / "outside.py").write_text(text, encoding="utf-8")
    (checkout / "link.py").symlink_to(tmp_path / "outside.py")
    for file in ("../outside.py", "link.py"):
        found = n_plus_one(built=[frame(text, "Player.objects.all()", file=file)])
        with pytest.raises(CannotWrite, match="not a file of this repository"):
            NPlusOneAuthor().write(checkout, {"found": [found]})


# ---- where only the stack is known


def stack(text: str, *marks: str) -> list[dict[str, Any]]:
    frames = [frame(text, mark) for mark in marks]
    return [{**one, "column": None, "end_column": None, "end_line": None} for one in frames]


def test_searches_the_stack_from_the_inside_out(tmp_path: Path) -> None:
    text = textwrap.dedent("""\
        def summary(player):
            return player.guild.name

        def other(request):
            return Player.objects.filter(level=3)

        def players(request):
            page = Player.objects.order_by("id")[:10]
            return [summary(player) for player in page]
        """)
    after = write(tmp_path, text, n_plus_one(frames=stack(text, "player.guild.name", "summary(player) for")))
    assert after == text.replace(
        'Player.objects.order_by("id")', 'Player.objects.select_related("guild").order_by("id")'
    )


def test_searches_the_class_of_a_generic_view(tmp_path: Path) -> None:
    text = "class Players(ListView):\n    model = Player\n    queryset = Player.objects.all()\n"
    view = {**stack(text, "class Players")[0], "function": "Players"}
    after = write(tmp_path, text, n_plus_one(view=view))
    assert after == text.replace(".objects.all()", '.objects.select_related("guild").all()')


def test_follows_a_loop_over_another_relation(tmp_path: Path) -> None:
    text = textwrap.dedent("""\
        def players(request):
            rows = []
            for player in Player.objects.all():
                for entry in player.inventory.all():
                    rows.append(entry.item.name)
            return rows
        """)
    inner = n_plus_one("item", frames=stack(text, "entry.item.name"), model="shop.Entry")
    outer = n_plus_one("inventory", "many", frames=stack(text, "player.inventory.all()"))
    after = write(tmp_path, text, inner, outer)
    assert after == text.replace("Player.objects.all()", 'Player.objects.prefetch_related("inventory__item").all()')


def test_refuses_to_choose_between_two_querysets(tmp_path: Path) -> None:
    text = "def f(r):\n    a = Player.objects.all()\n    b = Player.objects.filter(x=1)\n    return a if r else b\n"
    with pytest.raises(CannotWrite, match=r"several querysets of Player \(lines 2, 3\)"):
        write(tmp_path, text, n_plus_one(frames=stack(text, "return a")))


def test_says_where_it_looked_when_there_is_no_queryset(tmp_path: Path) -> None:
    text = "def f(players):\n    return [p.guild for p in players]\n"
    with pytest.raises(CannotWrite, match=r"no queryset of Player .*shop/views\.py:2"):
        write(tmp_path, text, n_plus_one(frames=stack(text, "return [p")))


# ---- the seam


class Seen:
    kind = "n-plus-one"
    evidence = {"found": [{}]}


class Unseen:
    kind = "slow-query"
    evidence: dict[str, Any] = {}


def test_every_known_author_is_one() -> None:
    assert all(isinstance(author, Author) and author.name == name for name, author in AUTHORS.items())


def test_finds_the_author_of_a_finding() -> None:
    found = author_for(Seen())
    assert found is not None
    assert found.name == "n-plus-one"
    assert author_for(Unseen()) is None
