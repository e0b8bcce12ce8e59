"""Spans into sums."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from monitoring.otlp import folding
from monitoring.otlp.fingerprints import digest
from monitoring.otlp.folding import Arrived, Folded, Kind, Role, Span, Sums, Times, What

NOW = 1_000_000.0
TRACE = b"t" * 16
LIST = What(Role.ENTRY, Kind.HTTP, "/players", "GET")
PLAYER = What(Role.CALL, Kind.DB, "postgresql", "", "SELECT a FROM player WHERE id = ?", "game/models.py:7 load")
COUNT = What(Role.CALL, Kind.DB, "postgresql", "", "SELECT count(*) FROM player")
BILLING = What(Role.CALL, Kind.HTTP, "billing")
CODE = What(Role.INNER, Kind.CODE, "render")
KEY = ("/players", "GET")


def span(
    number: int,
    what: What,
    start_ms: float,
    end_ms: float,
    *,
    parent: int = 0,
    trace: bytes = TRACE,
    failed: bool = False,
) -> Span:
    base = 10**18
    return Span(
        trace,
        number.to_bytes(8, "big"),
        parent.to_bytes(8, "big") if parent else b"",
        what,
        base + int(start_ms * 1e6),
        base + int(end_ms * 1e6),
        failed,
    )


def fold(*spans: Span, age: float = 10.0, **options: Any) -> Folded:
    return again([Arrived(NOW - age, one) for one in spans], **options)


def again(arrived: list[Arrived], *, now: float = NOW, **options: Any) -> Folded:
    return folding.fold(arrived, now=now, settle_seconds=5.0, patience_seconds=100.0, **options)


REQUEST = [
    span(2, COUNT, 10, 20, parent=1),
    span(3, PLAYER, 20, 30, parent=1),
    span(4, CODE, 30, 80, parent=1),
    span(5, PLAYER, 35, 45, parent=4),
    span(6, PLAYER, 40, 50, parent=4),  # beside 5: ten of the twenty milliseconds are the same
    span(7, BILLING, 60, 75, parent=4, failed=True),
    span(1, LIST, 0, 100, failed=True),
]


def test_a_request_is_all_that_is_below_it() -> None:
    folded = fold(*REQUEST)
    sums = folded.by_endpoint[KEY]
    assert (sums.requests, sums.errors, sums.queries, sums.repeats) == (1, 1, 4, 3)
    assert sums.seconds == pytest.approx(0.100)
    assert sums.db_seconds == pytest.approx(0.035)  # 10–30 and 35–50
    assert sums.self_seconds == pytest.approx(0.050)  # without 60–75 too
    assert {key: (c.calls, c.errors, round(c.seconds, 6)) for key, c in sums.dependencies.items()} == {
        (Kind.DB, "postgresql"): (4, 0, 0.040),
        (Kind.HTTP, "billing"): (1, 1, 0.015),
    }
    statement = sums.statements[digest(PLAYER.statement)]
    assert (statement.calls, statement.requests, statement.most, statement.place) == (3, 1, 3, PLAYER.place)
    assert folded.texts == {digest(s): s for s in (PLAYER.statement, COUNT.statement)}
    assert (folded.spans, folded.requests, folded.carried) == (7, 1, [])


def test_the_exemplar_is_a_folded_tree() -> None:
    (exemplar,) = fold(*REQUEST).by_endpoint[KEY].exemplars
    assert (exemplar.trace, exemplar.failed) == (TRACE.hex(), True)
    assert [(node.what, node.calls) for node in exemplar.parts] == [
        (f"db: {COUNT.statement}", 1),
        (f"db: {PLAYER.statement}", 1),
        ("render", 1),
    ]
    inner = exemplar.parts[2].parts
    assert [(node.what, node.calls) for node in inner] == [(f"db: {PLAYER.statement}", 2), ("http: billing", 1)]


def test_the_order_of_arrival_and_the_exports_do_not_matter() -> None:
    """Children first, parents first, in any pieces over any number of rounds: the sums are the same."""
    whole = folding.as_json(fold(*REQUEST).by_endpoint[KEY])
    chance = random.Random(7)
    for _ in range(50):
        spans = list(REQUEST)
        chance.shuffle(spans)
        cuts = sorted(chance.sample(range(1, len(spans)), 2))
        pieces = [spans[: cuts[0]], spans[cuts[0] : cuts[1]], spans[cuts[1] :]]
        waiting: list[Arrived] = []
        found = []
        for number, piece in enumerate(pieces):
            # A second between exports: less than the time to settle.
            at = NOW + number
            folded = again([*waiting, *(Arrived(at, one) for one in piece)], now=at)
            found += list(folded.by_endpoint.values())
            waiting = folding.unpack(folding.pack(folded.carried)) if folded.carried else []
        folded = again(waiting, now=NOW + 60)
        found += list(folded.by_endpoint.values())
        assert len(found) == 1
        as_dict = folding.as_json(found[0])
        for name in ("requests", "queries", "repeats", "seconds", "self_seconds", "db_seconds"):
            assert as_dict[name] == pytest.approx(whole[name])
        assert {tuple(row[:4]) for row in as_dict["dependencies"]} == {tuple(row[:4]) for row in whole["dependencies"]}
        assert folded.carried == []


def test_nothing_is_folded_before_it_settled() -> None:
    folded = fold(*REQUEST, age=4.0)
    assert (folded.by_endpoint, folded.requests, len(folded.carried)) == ({}, 0, 7)
    assert again(folded.carried, now=NOW + 2).requests == 1


def test_calls_without_a_request_wait_and_are_then_counted_by_dependency() -> None:
    waiting = fold(*REQUEST[:-1], age=50.0)
    assert (waiting.spans, len(waiting.carried)) == (0, 6)
    given = again(waiting.carried, now=NOW + 60)
    assert (given.by_endpoint, given.carried, given.without_request) == ({}, [], 5)
    assert given.dependencies[Kind.DB, "postgresql"].calls == 4
    # The request comes after all: without its calls it would look like one that asks nothing.
    late = again([Arrived(NOW + 61, REQUEST[-1])], now=NOW + 70, given_up=given.given_up)
    assert (late.by_endpoint, late.late_requests, late.requests) == ({}, 1, 0)
    # Other requests of the same trace are no later than before.
    other = span(20, LIST, 0, 5, parent=99)
    assert again([Arrived(NOW + 61, other)], now=NOW + 70, given_up=given.given_up).requests == 1
    # And it is not remembered for ever.
    assert again([], now=NOW + 10_000, given_up=given.given_up).given_up == {}


def test_two_requests_of_one_trace_are_two() -> None:
    """A gateway may call the service twice for one user: ten queries each are no twenty repeats."""
    first = [span(1, LIST, 0, 50, parent=90), *(span(10 + n, PLAYER, n, n + 1, parent=1) for n in range(10))]
    second = [span(2, LIST, 60, 110, parent=91), *(span(30 + n, PLAYER, 60 + n, 61 + n, parent=2) for n in range(10))]
    sums = fold(*first, *second).by_endpoint[KEY]
    assert (sums.requests, sums.queries, sums.repeats) == (2, 20, 20)
    assert sums.statements[digest(PLAYER.statement)].most == 10


def test_a_service_that_calls_itself_counts_each_request_once() -> None:
    inner_entry = replace_what(LIST, name="/inner")
    spans = [
        span(1, LIST, 0, 100),
        span(2, BILLING, 10, 60, parent=1),
        span(3, inner_entry, 15, 55, parent=2),
        span(4, PLAYER, 20, 30, parent=3),
    ]
    folded = fold(*spans)
    assert folded.by_endpoint[KEY].queries == 0
    assert folded.by_endpoint["/inner", "GET"].queries == 1
    assert folded.by_endpoint[KEY].self_seconds == pytest.approx(0.050)


def replace_what(what: What, **changes: str) -> What:
    return what._replace(**changes)


def test_an_orm_and_its_driver_tell_of_one_query() -> None:
    orm = span(2, PLAYER, 10, 30, parent=1)
    driver = span(3, PLAYER, 12, 28, parent=2)
    cache_inside = span(4, replace_what(PLAYER, kind=Kind.CACHE, name="redis"), 13, 14, parent=2)
    sums = fold(span(1, LIST, 0, 50), orm, driver, cache_inside).by_endpoint[KEY]
    assert (sums.queries, sums.repeats) == (1, 1)
    assert sums.dependencies[Kind.DB, "postgresql"].seconds == pytest.approx(0.020)
    assert sums.dependencies[Kind.CACHE, "redis"].calls == 1


def test_a_span_that_came_twice_counts_once() -> None:
    assert folding.as_json(fold(*REQUEST, *REQUEST).by_endpoint[KEY]) == folding.as_json(
        fold(*REQUEST).by_endpoint[KEY]
    )


def test_transactions_are_no_repetition() -> None:
    savepoint = replace_what(PLAYER, statement="SAVEPOINT ?")
    sums = fold(
        span(1, LIST, 0, 50),
        *(span(2 + n, savepoint, n, n + 1, parent=1) for n in range(20)),
        span(40, PLAYER, 30, 31, parent=1),
    ).by_endpoint[KEY]
    assert (sums.queries, sums.repeats) == (21, 1)


def test_calls_that_outlive_their_request_count_inside_it_only() -> None:
    sums = fold(span(1, LIST, 0, 50), span(2, PLAYER, 40, 90, parent=1), span(3, PLAYER, 60, 70, parent=1)).by_endpoint[
        KEY
    ]
    assert (sums.db_seconds, sums.self_seconds) == (pytest.approx(0.010), pytest.approx(0.040))


@pytest.mark.parametrize("loop", [[(2, 2)], [(2, 3), (3, 2)], [(2, 3), (3, 4), (4, 2)]])
def test_spans_in_a_circle_are_calls_without_a_request(loop: list[tuple[int, int]]) -> None:
    folded = fold(span(1, LIST, 0, 5), *(span(own, PLAYER, 1, 2, parent=parent) for own, parent in loop), age=200.0)
    assert (folded.requests, folded.without_request, folded.carried) == (1, len(loop), [])


def test_depth_is_no_danger() -> None:
    deep = [span(n, CODE, 0, 1, parent=n - 1) for n in range(2, 20_000)]
    folded = fold(span(1, LIST, 0, 5), *deep)
    assert folded.spans == 19_999


def test_endpoints_are_renamed_and_machines_left_out() -> None:
    up = replace_what(LIST, name="/up/")
    folded = fold(*REQUEST, span(50, up, 0, 1), endpoints={"/players": "player-list"}, unwatched=frozenset({"up"}))
    assert list(folded.by_endpoint) == [("player-list", "GET")]
    assert folded.carried == []


def test_a_clock_that_was_set_back_stops_nothing() -> None:
    folded = again([Arrived(NOW + 86_400, one) for one in REQUEST])
    assert len(folded.carried) == 7
    assert again(folded.carried, now=NOW + 6).requests == 1


def test_no_service_can_flood_the_tables() -> None:
    many = [span(n, replace_what(LIST, name=f"/e{n}"), 0, 1, trace=n.to_bytes(16, "big")) for n in range(1, 1000)]
    folded = fold(*many)
    assert len(folded.by_endpoint) == folding.MOST_ENDPOINTS
    assert sum(sums.requests for sums in folded.by_endpoint.values()) == 999
    calls = [span(n, replace_what(BILLING, name=f"host-{n}"), n, n + 1, parent=1) for n in range(2, 300)]
    calls += [span(n, replace_what(PLAYER, statement=f"SELECT {n}"), n, n + 1, parent=1) for n in range(300, 900)]
    folded = fold(span(1, LIST, 0, 1000), *calls)
    sums = folded.by_endpoint[KEY]
    assert (len(sums.dependencies), len(sums.statements)) == (folding.MOST_DEPENDENCIES, folding.MOST_STATEMENTS)
    assert len(folded.dependencies) == folding.MOST_DEPENDENCIES
    assert sum(c.calls for c in sums.dependencies.values()) == 898
    assert sum(s.calls for s in sums.statements.values()) == 600
    assert folding.as_json(folding.from_json(folding.as_json(sums))) == folding.as_json(sums)


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "MOST_CARRIED", 10)
    folded = again([Arrived(NOW - n, span(n + 2, PLAYER, 0, 1, parent=1)) for n in range(30)])
    assert (len(folded.carried), folded.dropped) == (10, 20)
    assert max(NOW - one.at for one in folded.carried) == 9  # the newest stay


def test_sums_add_as_if_folded_together() -> None:
    chance = random.Random(3)
    requests = []
    for n in range(40):
        trace = n.to_bytes(16, "big")
        length = chance.uniform(1, 200)
        requests.append(
            [
                span(1, replace_what(LIST, name=f"/e{n % 3}"), 0, length, trace=trace),
                *(span(2 + k, PLAYER, 0, length / 2, parent=1, trace=trace) for k in range(n % 5)),
            ]
        )
    whole = fold(*(one for request in requests for one in request)).by_endpoint
    halves: dict[tuple[str, str], Sums] = {}
    for part in (requests[:17], requests[17:]):
        for key, sums in fold(*(one for request in part for one in request)).by_endpoint.items():
            halves.setdefault(key, Sums()).merge(folding.from_json(folding.as_json(sums)))
    for key, sums in whole.items():
        merged = halves[key]
        assert (sums.requests, sums.queries, sums.repeats) == (merged.requests, merged.queries, merged.repeats)
        assert sums.times.counts == merged.times.counts
        assert sums.seconds == pytest.approx(merged.seconds)
        assert [one.trace for one in sums.exemplars] == [one.trace for one in merged.exemplars]


def test_quantiles_are_within_nine_percent_of_the_definition() -> None:
    chance = random.Random(5)
    for _ in range(20):
        values = sorted(chance.lognormvariate(-3, 1) for _ in range(2000))
        times = Times()
        for value in values:
            times.add(value)
        for q in (0.5, 0.95, 0.99):
            assert times.quantile(q) == pytest.approx(values[int(q * 2000) - 1], rel=0.19)
    assert Times().quantile(0.5) is None
    assert Times(Counter({0: 1})).quantile(0.95) <= Times.SMALLEST_SECONDS  # type: ignore[operator]


def test_what_waits_survives_packing_and_rubbish_does_not() -> None:
    arrived = [Arrived(NOW, one) for one in REQUEST]
    assert folding.unpack(folding.pack(arrived)) == arrived
    for rubbish in (b"", b"x", folding.pack(arrived)[:-9]):
        with pytest.raises(ValueError, match="not packed spans"):
            folding.unpack(rubbish)


def test_covered_time_agrees_with_counting_milliseconds() -> None:
    chance = random.Random(11)
    for _ in range(100):
        entry = span(1, LIST, 10, 90)
        calls = []
        for n in range(chance.randrange(8)):
            start = chance.randrange(100)
            calls.append(span(2 + n, PLAYER, start, start + chance.randrange(40), parent=1))
        base = 10**18
        obvious = sum(any(c.start_ns <= base + ms * 10**6 < c.end_ns for c in calls) for ms in range(10, 90))
        assert folding._covered(entry, calls) == pytest.approx(obvious / 1000)
