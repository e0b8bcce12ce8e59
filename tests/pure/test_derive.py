"""Differences of counters, sums of histograms, quantiles: each against its slow, obvious definition."""

from __future__ import annotations

import math
import random

import pytest

from monitoring.derive import (
    MOST_ROUTES,
    Histogram,
    Reading,
    Route,
    add,
    compare,
    increases,
    merge,
    quantile,
    readings,
)
from monitoring.dialects import CPU_SECONDS, DIALECTS, MEMORY_BYTES, STARTED_AT
from monitoring.prometheus import Labels, Snapshot

DJANGO = DIALECTS[0]
BOUNDS = (0.01, 0.05, 0.1, 0.5, 1.0, math.inf)


def labels(**pairs: str) -> Labels:
    return tuple(sorted(pairs.items()))


class Server:
    """A django-prometheus service in miniature: it counts requests and shows what a scrape would see."""

    def __init__(self, started_at: float = 0.0, bounds: tuple[float, ...] = BOUNDS) -> None:
        self.started_at, self.bounds = started_at, bounds
        self.values: dict[str, dict[Labels, float]] = {STARTED_AT: {(): started_at}}

    def count(self, name: str, key: Labels, amount: float = 1.0) -> None:
        series = self.values.setdefault(name, {})
        series[key] = series.get(key, 0.0) + amount

    def serve(self, seconds: float, view: str = "players", method: str = "GET", status: str = "200") -> None:
        route = {"view": view, "method": method}
        for bound in self.bounds:
            le = "+Inf" if math.isinf(bound) else str(bound)
            self.count(f"{DJANGO.latency}_bucket", labels(le=le, **route), float(seconds <= bound))
        self.count(f"{DJANGO.latency}_sum", labels(**route), seconds)
        self.count(f"{DJANGO.latency}_count", labels(**route))
        self.count(DJANGO.responses, labels(status=status, **route))

    def scrape(self, at: float) -> Snapshot:
        return Snapshot.of(at, self.values)


def value(found: list[Reading], signal: str, **wanted: str) -> float | None:
    matches = [r.value for r in found if r.signal == signal and wanted.items() <= dict(r.labels).items()]
    assert len(matches) <= 1
    return matches[0] if matches else None


# --- Quantiles ---------------------------------------------------------------------------------------------------


def obvious_quantile(q: float, bounds: tuple[float, ...], cumulative: tuple[float, ...]) -> float:
    """PromQL's bucketQuantile, line by line as its source reads."""
    observations = cumulative[-1]
    if len(bounds) < 2 or not math.isinf(bounds[-1]) or observations == 0:
        return math.nan
    rank = q * observations
    b = 0
    while b < len(bounds) - 1 and cumulative[b] < rank:
        b += 1
    if b == len(bounds) - 1:
        return bounds[-2]
    if b == 0 and bounds[0] <= 0:
        return bounds[0]
    start, end, count = 0.0, bounds[b], cumulative[b]
    if b > 0:
        start = bounds[b - 1]
        count -= cumulative[b - 1]
        rank -= cumulative[b - 1]
    return start + (end - start) * (rank / count)


def test_quantiles_agree_with_the_definition_on_random_histograms() -> None:
    dice = random.Random(4)
    for _ in range(2000):
        bounds = (*sorted(dice.sample(range(1, 1000), dice.randint(1, 12))), math.inf)
        inside = [dice.choice((0, 0, 1, 3, 50)) for _ in bounds]
        cumulative = tuple(float(sum(inside[: i + 1])) for i in range(len(bounds)))
        q = dice.choice((0.01, 0.5, 0.9, 0.95, 0.99, 0.999))
        found = quantile(q, Histogram(tuple(map(float, bounds)), cumulative, 0, cumulative[-1]))
        expected = obvious_quantile(q, tuple(map(float, bounds)), cumulative)
        assert (found is None and math.isnan(expected)) or found == pytest.approx(expected)


def test_a_quantile_lies_in_the_bucket_of_the_true_one() -> None:
    dice = random.Random(5)
    for _ in range(200):
        seconds = [dice.lognormvariate(-2.5, 1.0) for _ in range(500)]
        histogram = Histogram(BOUNDS, tuple(float(sum(s <= b for s in seconds)) for b in BOUNDS), sum(seconds), 500.0)
        true = sorted(seconds)[math.ceil(0.95 * 500) - 1]
        below = max([0.0, *[b for b in BOUNDS if b < true]])
        above = min(b for b in BOUNDS if b >= true)
        found = quantile(0.95, histogram)
        assert found is not None
        assert below <= found <= (BOUNDS[-2] if math.isinf(above) else above)


@pytest.mark.parametrize(
    ("bounds", "cumulative"),
    [
        ((), ()),
        ((math.inf,), (10.0,)),
        ((0.1, 0.5), (3.0, 10.0)),
        ((0.1, math.inf), (0.0, 0.0)),
    ],
    ids=["no buckets", "+Inf only", "no +Inf", "no observations"],
)
def test_gives_no_quantile_rather_than_a_wrong_one(bounds: tuple[float, ...], cumulative: tuple[float, ...]) -> None:
    assert quantile(0.95, Histogram(bounds, cumulative, 1.0, cumulative[-1] if cumulative else 0.0)) is None


def test_what_lies_beyond_the_last_finite_bucket_is_given_its_bound() -> None:
    assert quantile(0.99, Histogram((0.1, 1.0, math.inf), (0.0, 1.0, 100.0), 500.0, 100.0)) == 1.0


# --- Counters ----------------------------------------------------------------------------------------------------

A, B = labels(x="a"), labels(x="b")


@pytest.mark.parametrize(
    ("before", "after", "restarted", "grown"),
    [
        ({A: 5.0}, {A: 5.0}, False, {A: 0.0}),
        ({A: 5.0}, {A: 9.0}, False, {A: 4.0}),
        ({A: 5.0}, {A: 3.0}, False, {A: 3.0}),
        ({A: 5.0}, {A: 0.0}, False, {A: 0.0}),
        ({A: 5.0}, {A: 9.0}, True, {A: 9.0}),
        ({A: 5.0, B: 7.0}, {A: 3.0, B: 8.0}, False, {A: 3.0, B: 1.0}),
        ({}, {A: 2.0}, False, {A: 2.0}),
        ({A: 5.0}, {}, False, {}),
    ],
    ids=["idle", "grew", "reset", "reset and idle", "restart hidden by growth", "one series reset", "new", "vanished"],
)
def test_counter_growth(
    before: dict[Labels, float], after: dict[Labels, float], restarted: bool, grown: dict[Labels, float]
) -> None:
    assert increases(before, after, restarted=restarted) == grown


def test_growth_is_never_negative_and_never_more_than_was_counted() -> None:
    dice = random.Random(6)
    for _ in range(2000):
        was, now = dice.randint(0, 50), dice.randint(0, 50)
        grown = increases({A: float(was)}, {A: float(now)})[A]
        assert 0 <= grown <= now


def test_rates_errors_and_latency_of_an_interval() -> None:
    server = Server()
    for _ in range(100):
        server.serve(0.02)
    before = server.scrape(100.0)
    for number in range(60):
        server.serve(0.3, status="500" if number < 3 else "200")
    server.serve(0.02, view="items", method="POST")
    found = readings(compare(before, server.scrape(110.0)), release="abc")
    assert value(found, "requests_per_second", endpoint="players", release="abc") == pytest.approx(6.0)
    assert value(found, "error_ratio", endpoint="players") == pytest.approx(0.05)
    assert value(found, "latency_mean_ms", endpoint="players") == pytest.approx(300.0)
    assert value(found, "latency_p50_ms", endpoint="players") == pytest.approx(300.0)
    assert value(found, "requests_per_second", endpoint="items", method="POST") == pytest.approx(0.1)
    assert value(found, "requests_per_second", endpoint="*") == pytest.approx(6.1)
    assert value(found, "error_ratio", endpoint="*") == pytest.approx(3 / 61)


def test_an_idle_interval_has_a_rate_of_zero_and_nothing_else() -> None:
    server = Server()
    server.serve(0.02)
    found = readings(compare(server.scrape(100.0), server.scrape(110.0)))
    assert {(r.signal, r.value) for r in found} == {("requests_per_second", 0.0)}


@pytest.mark.parametrize(
    ("seconds", "requests"), [(0.02, 5), (0.3, 500)], ids=["fewer than before", "more than before"]
)
def test_a_restart_counts_what_came_after_it(seconds: float, requests: int) -> None:
    old = Server(started_at=0.0)
    for _ in range(50):
        old.serve(0.7)
    fresh = Server(started_at=105.0)
    for _ in range(requests):
        fresh.serve(seconds)
    found = readings(compare(old.scrape(100.0), fresh.scrape(110.0)))
    assert value(found, "requests_per_second", endpoint="*") == pytest.approx(requests / 10)
    assert value(found, "latency_mean_ms", endpoint="*") == pytest.approx(1000 * seconds)


def test_a_histogram_that_went_down_anywhere_is_new_everywhere() -> None:
    """Without a start time, the new process may have served more requests in total, but fewer fast ones."""
    old, fresh = Server(), Server()
    for _ in range(10):
        old.serve(0.02)
    for _ in range(20):
        fresh.serve(0.3)
    before, after = old.scrape(100.0), fresh.scrape(110.0)
    found = readings(compare(before, after))
    assert value(found, "latency_p50_ms", endpoint="players") == pytest.approx(300.0)
    assert value(found, "latency_mean_ms", endpoint="players") == pytest.approx(300.0)


def test_another_process_that_ran_all_along_is_not_compared() -> None:
    one, other = Server(started_at=10.0), Server(started_at=10.5)
    one.serve(0.02)
    for _ in range(1000):
        other.serve(0.02)
    assert readings(compare(one.scrape(100.0), other.scrape(110.0))) == []


def test_a_route_seen_first_counts_from_zero_and_one_that_vanished_counts_nothing() -> None:
    before, after = Server(), Server()
    before.serve(0.02, view="old")
    after.serve(0.02, view="new", status="500")
    found = readings(compare(before.scrape(100.0), after.scrape(110.0)))
    assert value(found, "error_ratio", endpoint="new") == 1.0
    assert value(found, "requests_per_second", endpoint="old") is None
    assert value(found, "requests_per_second", endpoint="*") == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("before_at", "after_at"),
    [(100.0, 100.0), (100.0, 100.4), (100.0, 90.0), (100.0, 5000.0)],
    ids=["same moment", "too short", "clock went back", "too long ago"],
)
def test_an_interval_that_says_nothing_gives_no_rates(before_at: float, after_at: float) -> None:
    server = Server()
    server.serve(0.02)
    server.values[MEMORY_BYTES] = {(): 5e7}
    found = readings(compare(server.scrape(before_at), server.scrape(after_at), longest_seconds=600))
    assert [(r.signal, r.value) for r in found] == [("memory_bytes", 5e7)]


def test_the_first_snapshot_gives_only_gauges() -> None:
    server = Server()
    server.serve(0.02)
    server.values |= {MEMORY_BYTES: {(): 5e7}, CPU_SECONDS: {(): 9.0}}
    assert [r.signal for r in readings(compare(None, server.scrape(100.0)))] == ["memory_bytes"]


def test_cpu_is_in_percent_of_one_core() -> None:
    server = Server()
    server.values[CPU_SECONDS] = {(): 10.0}
    before = server.scrape(100.0)
    server.values[CPU_SECONDS] = {(): 25.0}
    assert value(readings(compare(before, server.scrape(110.0)), release="r"), "cpu_percent") == pytest.approx(150.0)


def test_queries_per_request_leave_health_and_metrics_out() -> None:
    server = Server()
    before = server.scrape(100.0)
    for _ in range(10):
        server.serve(0.02)
        server.serve(0.001, view="up")
        server.serve(0.001, view="prometheus-django-metrics")
        server.count(DJANGO.queries, labels(alias="default", vendor="postgresql"), 41)
    found = readings(compare(before, server.scrape(110.0)))
    assert value(found, "queries_per_request") == pytest.approx(41.0)
    assert value(found, "requests_per_second", endpoint="*") == pytest.approx(1.0)
    assert value(found, "requests_per_second", endpoint="up") is None


def test_a_failed_request_that_was_observed_twice_counts_once() -> None:
    """django-prometheus observes the latency of an unhandled exception in two hooks."""
    server = Server()
    before = server.scrape(100.0)
    server.serve(0.02, status="500")
    server.serve(0.02, status="500")
    server.values[DJANGO.responses][labels(status="500", view="players", method="GET")] = 1.0
    found = readings(compare(before, server.scrape(110.0)))
    assert value(found, "requests_per_second", endpoint="*") == pytest.approx(0.1)


def test_invented_methods_and_routes_stay_bounded() -> None:
    server = Server()
    before = server.scrape(100.0)
    for number in range(1000):
        server.serve(0.02, view=f"player-{number}")
    for number in range(50):
        server.serve(0.02, view="busy", method=f"HACK{number}")
    traffic = compare(before, server.scrape(110.0))
    assert len(traffic.flows) == MOST_ROUTES
    assert sum(flow.per_second for flow in traffic.flows.values()) == pytest.approx(105.0)
    assert traffic.flows[Route("busy", "other")].responses == 50


# --- Sums --------------------------------------------------------------------------------------------------------


def test_histograms_add_only_at_bounds_that_all_have() -> None:
    fine = Histogram((0.1, 0.2, 0.5, math.inf), (1.0, 2.0, 3.0, 4.0), 1.0, 4.0)
    coarse = Histogram((0.2, 1.0, math.inf), (5.0, 6.0, 6.0), 1.0, 6.0)
    assert add([fine, coarse]) == Histogram((0.2, math.inf), (7.0, 10.0), 2.0, 10.0)


def test_the_order_of_sums_does_not_matter() -> None:
    dice = random.Random(7)
    parts = []
    for _ in range(5):
        inside = [dice.randint(0, 9) for _ in BOUNDS]
        rising = tuple(float(sum(inside[: i + 1])) for i in range(len(BOUNDS)))
        parts.append(Histogram(BOUNDS, rising, float(dice.randint(0, 9)), rising[-1]))
    expected = add(parts)
    for _ in range(10):
        dice.shuffle(parts)
        assert add(parts) == expected


def test_releases_of_one_service_merge_to_what_one_server_would_have_seen() -> None:
    dice = random.Random(8)
    one, two, whole = Server(), Server(), Server()
    befores = [server.scrape(100.0) for server in (one, two, whole)]
    for _ in range(300):
        seconds, status = dice.lognormvariate(-3, 1), dice.choice(("200", "200", "500"))
        dice.choice((one, two)).serve(seconds, status=status)
        whole.serve(seconds, status=status)
    parts = [compare(before, s.scrape(110.0)) for before, s in zip(befores, (one, two, whole), strict=True)]
    merged = {(r.signal, r.labels): r.value for r in readings(merge(parts[:2]))}
    expected = {(r.signal, r.labels): r.value for r in readings(parts[2])}
    assert merged == pytest.approx(expected)
