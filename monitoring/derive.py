"""From two snapshots of raw counters to what happened between them: rates, error ratios, quantiles.

Which metric means what is in `dialects`. Where each number of a layout goes is worked out once per layout (`Plan`); a
scrape that shows the same series as before is subtracted as a whole.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from monitoring import dialects
from monitoring.dialects import (
    CPU_COUNTERS,
    CPU_SECONDS_BY_PROCESS,
    STARTED_AT,
    Client,
    Dialect,
)
from monitoring.prometheus import Labels, Layout, Numbers, Snapshot

SHORTEST_SECONDS = 0.5
SAME_START_SECONDS = 0.05  # workers of one master start within a second of each other
MOST_ROUTES = 300
MOST_DEPENDENCIES = 50
QUANTILES = {"latency_p50_ms": 0.5, "latency_p95_ms": 0.95, "latency_p99_ms": 0.99}
FRUSTRATED = 4  # times the satisfying latency; apdex.org
SATISFYING_MS = 500.0
ALL = "*"
# File systems that hold no data of anybody.
NO_DISKS = frozenset(
    [
        "tmpfs",
        "devtmpfs",
        "ramfs",
        "overlay",
        "squashfs",
        "iso9660",
        "proc",
        "sysfs",
        "nsfs",
        "autofs",
        "rootfs",
        "fuse.lxcfs",
    ]
)


@dataclass(frozen=True)
class Histogram:
    """Observations of an interval. `cumulative[i]` of them were ≤ `bounds[i]` seconds; bounds rise. NaN is unknown."""

    bounds: tuple[float, ...] = ()
    cumulative: tuple[float, ...] = ()
    sum: float = 0.0
    count: float = 0.0


@dataclass(frozen=True)
class Route:
    """Where requests go; ALL where the library does not say."""

    endpoint: str
    method: str


@dataclass(frozen=True)
class Dependency:
    """Another service that is called: its name, and "http" or "database"."""

    dependency: str
    kind: str


@dataclass(frozen=True)
class Flow:
    """What one route did in an interval."""

    per_second: float = 0.0
    latency: Histogram = field(default_factory=Histogram)
    responses: float = 0.0
    errors: float = 0.0  # answers with status 5xx

    @property
    def requests(self) -> float:
        """Answers, or latencies where answers are not counted: some libraries observe a failed request twice."""
        return self.responses or self.latency.count


@dataclass(frozen=True)
class Traffic:
    """What a target, or several together, did between two snapshots. None is unknown, never zero."""

    flows: Mapping[Route, Flow]
    calls: Mapping[Dependency, Flow] = field(default_factory=dict)
    queries: float | None = None
    cpu_percent: float | None = None  # 100 is one core
    gauges: Mapping[str, float] = field(default_factory=dict)  # signal → level; of several targets their sum
    host: Mapping[str, float] = field(default_factory=dict)  # signal → percent; of several hosts the worst


@dataclass(frozen=True)
class Reading:
    """One derived value, ready to be stored."""

    signal: str
    labels: tuple[tuple[str, str], ...]
    value: float


# --- Differences -------------------------------------------------------------------------------------------------


def compare(
    before: Snapshot | None, after: Snapshot, *, dialect: Dialect | None = None, longest_seconds: float = math.inf
) -> Traffic:
    """What happened between two snapshots of one target.

    Without a usable `before` (none, closer than half a second, further than `longest_seconds`, from after `after`, or
    from another process that was running all along) only gauges are known: the flows are empty and the rates None.
    """
    plan = _plan(after.layout, dialect)
    now = np.where(np.isfinite(after.numbers), after.numbers, np.nan)
    levels = Traffic({}, gauges=plan.levels(now), host=plan.host_levels(now))
    seconds = after.seconds_since(before) if before else 0.0
    if before is None or not SHORTEST_SECONDS <= seconds <= longest_seconds or _is_someone_else(before, after):
        return levels
    restarted = _has_restarted(before, after)
    earlier = _aligned(before, after.layout)
    if restarted:
        earlier = np.full_like(earlier, np.nan)
    grown = _growth(earlier, now)
    cpu_seconds = _cpu_seconds(before, after, restarted=restarted)
    flows, calls = plan.flows(earlier, now, grown, seconds)
    return replace(
        levels,
        flows=_bounded(flows, Route("other", "other"), MOST_ROUTES),
        calls=_bounded(calls, Dependency("other", "other"), MOST_DEPENDENCIES),
        queries=_total(grown[plan.queries]),
        cpu_percent=None if cpu_seconds is None else 100.0 * cpu_seconds / seconds,
        host=dict(levels.host) | plan.host_rates(earlier, grown, seconds),
    )


def _total(values: Numbers) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.sum()) if len(known) else None


def _aligned(before: Snapshot, layout: Layout) -> Numbers:
    """The values of `before` in the order of `layout`; NaN for series that were not there."""
    numbers = np.where(np.isfinite(before.numbers), before.numbers, np.nan)
    if before.layout is layout:
        return numbers
    place_of = before.layout.place_of
    places = np.array([place_of.get(series, -1) for series in layout.series], dtype=np.intp)
    return np.where(places >= 0, numbers[places], np.nan) if len(numbers) else np.full(len(places), np.nan)


def _growth(earlier: Numbers, now: Numbers) -> Numbers:
    """How much each counter grew; NaN where there is no value.

    A counter that went down began again at zero, so its value is its growth. The same holds for a series that was not
    there before: client libraries create a series when it first counts.
    """
    start = np.where(np.isnan(earlier) | (now < earlier), 0.0, earlier)
    return now - start


def increases(
    before: Mapping[Labels, float], after: Mapping[Labels, float], *, restarted: bool = False
) -> dict[Labels, float]:
    """How much each counter grew, per series. A series that vanished grew by nothing known."""
    earlier = np.array([math.nan if restarted else before.get(labels, math.nan) for labels in after], float)
    grown = _growth(earlier, np.array(list(after.values()), float))
    return dict(zip(after, grown.tolist(), strict=True))


def _cpu_seconds(before: Snapshot, after: Snapshot, *, restarted: bool) -> float | None:
    was, is_now = before.get(CPU_SECONDS_BY_PROCESS), after.get(CPU_SECONDS_BY_PROCESS)
    if was and is_now:
        return sum(
            grown
            for labels, grown in increases(was, is_now).items()
            # A process that was there but not seen before would bring the CPU time of its whole life.
            if labels in was or float(dict(labels)["created"]) >= before.at
        )
    if dialects.HOST_CPU in after.layout.places:
        return None  # an exporter's own process says nothing about a service
    for metric in CPU_COUNTERS:
        was, is_now = before.get(metric), after.get(metric)
        if was and is_now:
            return sum(increases(was, is_now, restarted=restarted).values())
    return None


def _has_restarted(before: Snapshot, after: Snapshot) -> bool:
    """Whether the process began anew in between. When its counters are higher again than they were, only this tells."""
    was, is_now = before.only(STARTED_AT), after.only(STARTED_AT)
    return was is not None and is_now is not None and abs(is_now - was) > SAME_START_SECONDS


def _is_someone_else(before: Snapshot, after: Snapshot) -> bool:
    """Whether `after` comes from another process that ran before `before` was taken: nothing can be subtracted."""
    started = after.only(STARTED_AT)
    return started is not None and _has_restarted(before, after) and started < before.at - 1.0


_K = TypeVar("_K", bound="Route | Dependency")


# --- Plans -------------------------------------------------------------------------------------------------------

_Key = Route | Dependency
# From labels to what they stand for, and whether it failed; None for what is not counted.
_Told = Callable[[dict[str, str]], "tuple[Route | Dependency, bool | None] | None"]


@dataclass(frozen=True)
class _Series:
    """One histogram or summary of a layout: from `begin` on its buckets, then its count, then its sum.

    `key` is a place in the plan's keys; `is_error` is None where no label tells how requests ended.
    """

    key: int
    bounds: tuple[float, ...]
    begin: int
    unit_seconds: float
    is_error: bool | None


class Plan:
    """Where each number of a layout goes, for one dialect."""

    def __init__(self, layout: Layout, dialect: Dialect | None) -> None:
        self.layout = layout
        self.dialect = dialect
        self.keys: dict[_Key, int] = {}
        self.histograms: list[_Series] = []
        order: list[int] = []
        if dialect and dialect.latency:
            self._add(order, dialect.latency, dialect.unit_seconds, _as_route(dialect))
        has_route = bool(self.histograms)
        for client in dialects.CLIENTS:
            self._add(order, client.latency, client.unit_seconds, _as_dependency(client))
        self.order = np.array(order, dtype=np.intp)
        self.starts = np.array([series.begin for series in self.histograms], dtype=np.intp)
        self.lengths = np.array([len(series.bounds) + 2 for series in self.histograms], dtype=np.intp)
        # Two buckets of one histogram, side by side.
        inside = np.concatenate([np.empty(0, np.intp), *map(np.arange, self.lengths)])
        self.follows = (inside > 0) & (inside < np.repeat(self.lengths - 2, self.lengths))
        self.is_sum = inside == np.repeat(self.lengths - 1, self.lengths)
        responses: list[tuple[int, int, float]] = []
        if dialect and dialect.responses and (not has_route or self._counts_the_same(dialect)):
            told = _as_route(dialect)
            for place in layout.places.get(dialect.responses, ()):
                if (found := told(dict(layout.series[place][1]))) is not None:
                    responses.append((place, self._key(found[0]), float(bool(found[1]))))
        self.responses = np.array([place for place, _, _ in responses], dtype=np.intp)
        self.responses_of = np.array([key for _, key, _ in responses], dtype=np.intp)
        self.responses_failed = np.array([failed for _, _, failed in responses], dtype=float)
        self.queries = np.array(layout.places.get(dialect.queries, []) if dialect else [], dtype=np.intp)
        self.gauges = self._gauges()

    def _add(self, order: list[int], metric: str, unit_seconds: float, told: _Told) -> None:
        layout = self.layout
        buckets: dict[Labels, list[tuple[float, int]]] = defaultdict(list)
        for place in layout.places.get(f"{metric}_bucket", ()):
            labels = layout.series[place][1]
            try:
                bound = float(dict(labels)["le"])
            except (KeyError, ValueError):
                continue
            buckets[_without_bound(labels)].append((bound, place))
        sums = {layout.series[p][1]: p for p in layout.places.get(f"{metric}_sum", ())}
        counts = {layout.series[p][1]: p for p in layout.places.get(f"{metric}_count", ())}
        missing = len(layout.series)  # the place after the last, where a NaN is put
        for labels in dict.fromkeys((*buckets, *counts)):
            rising = sorted(buckets.get(labels, []))
            count = counts.get(labels, rising[-1][1] if rising and math.isinf(rising[-1][0]) else missing)
            if count == missing or (found := told(dict(labels))) is None:
                continue
            bounds = tuple(bound * unit_seconds for bound, _ in rising)
            self.histograms.append(_Series(self._key(found[0]), bounds, len(order), unit_seconds, found[1]))
            order += [*(place for _, place in rising), count, sums.get(labels, missing)]

    def _key(self, key: _Key) -> int:
        return self.keys.setdefault(key, len(self.keys))

    def _counts_the_same(self, dialect: Dialect) -> bool:
        """Whether answers are counted by the same labels as latencies; both could not be put together otherwise."""

        def by(metric: str) -> tuple[bool, bool]:
            there = {label for place in self.layout.places.get(metric, ()) for label, _ in self.layout.series[place][1]}
            return not there.isdisjoint(dialect.endpoint), not there.isdisjoint(dialect.method)

        return by(dialect.responses) == by(f"{dialect.latency}_count")

    def _gauges(self) -> list[tuple[str, NDArray[np.intp]]]:
        if self.dialect and self.dialect.is_host:
            return []
        chosen: dict[str, tuple[str, ...]] = dict(dialects.GAUGES)
        for signal, metric in self.dialect.gauges if self.dialect else ():
            chosen[signal] = (metric, *chosen.get(signal, ()))
        found = []
        for signal, metrics in chosen.items():
            if places := next((self.layout.places[name] for name in metrics if name in self.layout.places), None):
                found.append((signal, np.array(places, dtype=np.intp)))
        return found

    def levels(self, now: Numbers) -> dict[str, float]:
        """Signal → level."""
        totals = {signal: _total(now[places]) for signal, places in self.gauges}
        return {signal: total for signal, total in totals.items() if total is not None}

    def flows(
        self, earlier: Numbers, now: Numbers, grown: Numbers, seconds: float
    ) -> tuple[dict[Route, Flow], dict[Dependency, Flow]]:
        """What each route and each dependency did in `seconds`."""
        parts: list[list[tuple[Histogram, bool | None]]] = [[] for _ in self.keys]
        for series, histogram in zip(self.histograms, self._histograms(earlier, now), strict=True):
            if histogram is not None:
                parts[series.key].append((histogram, series.is_error))
        amounts = np.nan_to_num(grown[self.responses])
        totals = np.bincount(self.responses_of, amounts, len(self.keys)).tolist()
        errors = np.bincount(self.responses_of, amounts * self.responses_failed, len(self.keys)).tolist()
        counted = np.bincount(self.responses_of, ~np.isnan(grown[self.responses]), len(self.keys)).tolist()
        routes: dict[Route, Flow] = {}
        calls: dict[Dependency, Flow] = {}
        for (key, place), observed in zip(self.keys.items(), parts, strict=True):
            if not observed and not counted[place]:
                continue
            if not len(self.responses) or isinstance(key, Dependency):
                for histogram, failed in observed:
                    if failed is not None:
                        totals[place] += histogram.count
                        errors[place] += histogram.count if failed else 0.0
            latency = add(histogram for histogram, _ in observed)
            requests = totals[place] or latency.count
            flow = Flow(requests / seconds, latency, totals[place], errors[place])
            if isinstance(key, Route):
                routes[key] = flow
            else:
                calls[key] = flow
        return routes, calls

    def _histograms(self, earlier: Numbers, now: Numbers) -> list[Histogram | None]:
        """What each histogram of the plan observed; None when that can't be known."""
        if not self.histograms:
            return []
        was, is_now = np.append(earlier, np.nan)[self.order], np.append(now, np.nan)[self.order]
        # A restart shows in any of its numbers, and then holds for all of them.
        down = is_now < np.where(self.is_sum, was - 1e-9, was)
        unknown = np.isnan(was)
        began = np.logical_or.reduceat(down, self.starts) | np.logical_and.reduceat(unknown, self.starts)
        was = np.where(np.repeat(began, self.lengths), 0.0, was)
        # Where only some numbers were there before, the buckets were changed; what is new among them says nothing.
        grown = is_now - was
        # A scrape may fall between two increments of one observation; counts that fall with rising bounds are that.
        falls = bool((np.diff(grown, prepend=0.0)[self.follows] < 0).any())
        values: list[float] = grown.tolist()
        partly = bool(np.isnan(grown[~self.is_sum]).any())
        found: list[Histogram | None] = []
        for series in self.histograms:
            end = series.begin + len(series.bounds)
            bounds, cumulative = series.bounds, tuple(values[series.begin : end])
            count, total = values[end], values[end + 1]
            if partly:
                if math.isnan(count):
                    found.append(None)
                    continue
                known = [(b, v) for b, v in zip(bounds, cumulative, strict=True) if not math.isnan(v)]
                bounds, cumulative = tuple(b for b, _ in known), tuple(v for _, v in known)
            if falls:
                cumulative = tuple(itertools.accumulate(cumulative, max))
            found.append(Histogram(bounds, cumulative, total * series.unit_seconds, count))
        return found

    def host_levels(self, now: Numbers) -> dict[str, float]:
        """How full memory and the fullest disk of the host are, in percent."""
        found = {}

        def of(metric: str) -> dict[Labels, float]:
            return {self.layout.series[p][1]: float(now[p]) for p in self.layout.places.get(metric, ())}

        memory, available = of(dialects.HOST_MEMORY).get((), 0.0), of(dialects.HOST_MEMORY_AVAILABLE).get((), math.nan)
        if memory > 0 and not math.isnan(available):
            found["host_memory_percent"] = 100.0 * (1.0 - available / memory)
        free, left = of(dialects.DISK_FREE), of(dialects.DISK_AVAILABLE)
        fullness = []
        for labels, size in of(dialects.DISK_SIZE).items():
            available = left.get(labels, math.nan)
            if dict(labels).get("fstype") in NO_DISKS or not size > 0 or math.isnan(available):
                continue
            used = size - free.get(labels, available)
            # As df does it: what is reserved for root is neither used nor there to be used.
            fullness.append(100.0 * used / (used + available) if used + available > 0 else 100.0)
        if fullness:
            found["disk_used_percent"] = max(fullness)
        return found

    def host_rates(self, earlier: Numbers, grown: Numbers, seconds: float) -> dict[str, float]:
        """How busy processor and busiest disk of the host were, in percent of what they can do."""
        found = {}
        busy = total = 0.0
        for place in self.layout.places.get(dialects.HOST_CPU, ()):
            mode = dict(self.layout.series[place][1]).get("mode", "")
            if math.isnan(earlier[place] + grown[place]) or mode in ("guest", "guest_nice"):  # part of user time
                continue
            total += float(grown[place])
            busy += 0.0 if mode in ("idle", "iowait") else float(grown[place])
        if total > 0:
            found["host_cpu_percent"] = 100.0 * busy / total
        places = self.layout.places.get(dialects.DISK_BUSY, [])
        shares = [100.0 * float(grown[p]) / seconds for p in places if not math.isnan(earlier[p] + grown[p])]
        if shares:
            found["host_disk_busy_percent"] = min(100.0, max(shares))
        return found


def _plan(layout: Layout, dialect: Dialect | None) -> Plan:
    known = layout.notes.get(dialect)
    if not isinstance(known, Plan):
        known = layout.notes[dialect] = Plan(layout, dialect or dialects.recognise(layout))
    return known


def _without_bound(labels: Labels) -> Labels:
    return tuple(pair for pair in labels if pair[0] != "le")


def _as_route(dialect: Dialect) -> _Told:
    """From labels to a route and whether it failed; None for what machines ask."""

    def told(labels: dict[str, str]) -> tuple[Route, bool | None] | None:
        endpoint = dialects.first(dialect.endpoint, labels) or ALL
        if endpoint in dialect.unwatched or endpoint in dialects.UNWATCHED_PATHS:
            return None
        method = dialects.first(dialect.method, labels)
        status = dialects.first(dialect.status, labels)
        route = Route(dialects.template(endpoint), dialects.method(method) if method else ALL)
        return route, None if status is None else status.startswith("5")

    return told


def _as_dependency(client: Client) -> _Told:
    def told(labels: dict[str, str]) -> tuple[Dependency, bool | None] | None:
        name = dialects.first(client.dependency, labels)
        if not name or name in ("none", "UNKNOWN"):
            return None
        status, error = dialects.first(client.status, labels), dialects.first(client.error, labels)
        failed = bool(error) or bool(status and (status.startswith("5") or not status[0].isdigit()))
        return Dependency(name, client.kind), failed

    return told


# --- Sums --------------------------------------------------------------------------------------------------------


def add(histograms: Iterable[Histogram]) -> Histogram:
    """Several histograms as one. Cumulative counts add exactly at the bounds that all of them have, and only there."""
    parts = [part for part in histograms if part.count or part.bounds]
    if len(parts) < 2:
        return parts[0] if parts else Histogram()
    counted = [part for part in parts if part.count > 0] or parts
    bounds = counted[0].bounds
    if all(part.bounds == bounds for part in counted):
        cumulative = tuple(float(sum(column)) for column in zip(*(part.cumulative for part in counted), strict=True))
    else:
        bounds = tuple(sorted(set.intersection(*(set(part.bounds) for part in counted))))
        tables = [dict(zip(part.bounds, part.cumulative, strict=True)) for part in counted]
        cumulative = tuple(sum(table[bound] for table in tables) for bound in bounds)
    return Histogram(bounds, cumulative, sum(part.sum for part in parts), sum(part.count for part in parts))


def together(flows: Iterable[Flow]) -> Flow:
    """Several flows as one."""
    parts = list(flows)
    return Flow(
        per_second=sum(part.per_second for part in parts),
        latency=add(part.latency for part in parts),
        responses=sum(part.responses for part in parts),
        errors=sum(part.errors for part in parts),
    )


def merge(parts: Sequence[Traffic]) -> Traffic:
    """Several targets as one: a release that runs twice, or all releases of a service."""
    if len(parts) == 1:
        return parts[0]
    gauges: dict[str, float] = defaultdict(float)
    host: dict[str, float] = {}
    for part in parts:
        for signal, level in part.gauges.items():
            gauges[signal] += level
        for signal, percent in part.host.items():
            host[signal] = max(percent, host.get(signal, 0.0))

    def total(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    return Traffic(
        _summed(part.flows for part in parts),
        _summed(part.calls for part in parts),
        queries=total(part.queries for part in parts),
        cpu_percent=total(part.cpu_percent for part in parts),
        gauges=dict(gauges),
        host=host,
    )


def _summed(parts: Iterable[Mapping[_K, Flow]]) -> dict[_K, Flow]:
    by_key: dict[_K, list[Flow]] = defaultdict(list)
    for part in parts:
        for key, flow in part.items():
            by_key[key].append(flow)
    return {key: together(flows) for key, flows in by_key.items()}


def _bounded(flows: dict[_K, Flow], rest: _K, most: int) -> dict[_K, Flow]:
    """At most `most` of them: a service that puts ids into its labels must not flood the database."""
    if len(flows) <= most:
        return flows
    busiest = sorted(flows, key=lambda key: (-flows[key].requests, str(key)))
    kept = {key: flows[key] for key in busiest[: most - 1]}
    kept[rest] = together([*(flows[key] for key in busiest[most - 1 :]), *([kept[rest]] if rest in kept else [])])
    return kept


# --- Readings ----------------------------------------------------------------------------------------------------


def quantile(q: float, histogram: Histogram) -> float | None:
    """The q-quantile in seconds by linear interpolation, as PromQL's histogram_quantile; None when it can't be known.

    Unknown: no observations, no +Inf bucket, or no other bucket. An observation beyond the last finite bound is given
    that bound, so a quantile never exceeds what the buckets can tell.
    """
    bounds, cumulative = histogram.bounds, histogram.cumulative
    if len(bounds) < 2 or not math.isinf(bounds[-1]) or cumulative[-1] <= 0:
        return None
    rank = q * cumulative[-1]
    place = bisect_left(cumulative, rank)
    if place >= len(bounds) - 1:
        return bounds[-2]
    if place == 0 and bounds[0] <= 0:
        return bounds[0]
    start, below = (bounds[place - 1], cumulative[place - 1]) if place else (0.0, 0.0)
    inside = cumulative[place] - below
    # With q = 0 the rank can fall on an empty first bucket.
    return start if inside <= 0 else start + (bounds[place] - start) * (rank - below) / inside


def within(seconds: float, histogram: Histogram) -> float | None:
    """How many observations took at most `seconds`, by linear interpolation; None when it can't be known.

    Unknown: the same as for `quantile`, and when observations lie beyond the last finite bound and `seconds` does too.
    """
    bounds, cumulative = histogram.bounds, histogram.cumulative
    if len(bounds) < 2 or not math.isinf(bounds[-1]) or cumulative[-1] <= 0:
        return None
    place = bisect_left(bounds, seconds)
    if place < len(bounds) and bounds[place] == seconds:
        return cumulative[place]
    if place >= len(bounds) - 1:
        return cumulative[-1] if cumulative[-2] == cumulative[-1] else None
    start, below = (bounds[place - 1], cumulative[place - 1]) if place else (0.0, 0.0)
    if bounds[place] <= start or seconds < start:
        return below
    return below + (cumulative[place] - below) * (seconds - start) / (bounds[place] - start)


def apdex(satisfying_seconds: float, histogram: Histogram) -> float | None:
    """0–1: the satisfied and half of the tolerating (up to four times as long) of all; None when it can't be known."""
    satisfied = within(satisfying_seconds, histogram)
    tolerated = within(FRUSTRATED * satisfying_seconds, histogram)
    if satisfied is None or tolerated is None:
        return None
    return (satisfied + (tolerated - satisfied) / 2) / histogram.cumulative[-1]


def readings(traffic: Traffic, *, release: str = "", satisfying_ms: float = SATISFYING_MS) -> list[Reading]:
    """The values to store: per route, for the whole (`endpoint="*"`), per dependency, and per process.

    Unknown values are left out. `satisfying_ms` is the latency that users are content with, for apdex and slow_ratio.
    """
    tag = (("release", release),) if release else ()
    found: list[Reading] = []
    for route, flow in traffic.flows.items():
        if route.endpoint != ALL:
            found += _of_flow(flow, (("endpoint", route.endpoint), ("method", route.method), *tag), satisfying_ms)
    whole = together(traffic.flows.values())
    if traffic.flows:
        found += _of_flow(whole, (("endpoint", ALL), ("method", ALL), *tag), satisfying_ms)
    for called, flow in traffic.calls.items():
        found += _of_calls(flow, (("dependency", called.dependency), ("kind", called.kind), *tag))
    if traffic.queries is not None and whole.requests > 0:
        # Unwatched endpoints (health, metrics) are left out below the line; above it they ask next to nothing.
        found.append(Reading("queries_per_request", tag, traffic.queries / whole.requests))
    if traffic.cpu_percent is not None:
        found.append(Reading("cpu_percent", tag, traffic.cpu_percent))
    levels = {**traffic.gauges, **traffic.host}
    return found + [Reading(signal, tag, level) for signal, level in levels.items()]


def _of_flow(flow: Flow, labels: Labels, satisfying_ms: float) -> list[Reading]:
    found = [Reading("requests_per_second", labels, flow.per_second)]
    latency = flow.latency
    if flow.responses > 0:
        found.append(Reading("error_ratio", labels, flow.errors / flow.responses))
    if latency.count > 0:
        if not math.isnan(latency.sum):
            found.append(Reading("latency_mean_ms", labels, 1000.0 * latency.sum / latency.count))
        for signal, q in QUANTILES.items():
            if (seconds := quantile(q, latency)) is not None:
                found.append(Reading(signal, labels, 1000.0 * seconds))
        if (content := apdex(satisfying_ms / 1000.0, latency)) is not None:
            found.append(Reading("apdex", labels, content))
        if (quick := within(satisfying_ms / 1000.0, latency)) is not None:
            found.append(Reading("slow_ratio", labels, 1.0 - quick / latency.cumulative[-1]))
    return found


def _of_calls(flow: Flow, labels: Labels) -> list[Reading]:
    found = [Reading("dependency_calls_per_second", labels, flow.per_second)]
    if flow.responses > 0:
        found.append(Reading("dependency_error_ratio", labels, flow.errors / flow.responses))
    if flow.latency.count > 0:
        if not math.isnan(flow.latency.sum):
            found.append(Reading("dependency_latency_mean_ms", labels, 1000.0 * flow.latency.sum / flow.latency.count))
        if (seconds := quantile(QUANTILES["latency_p95_ms"], flow.latency)) is not None:
            found.append(Reading("dependency_latency_p95_ms", labels, 1000.0 * seconds))
    return found
