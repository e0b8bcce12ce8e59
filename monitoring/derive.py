"""From two snapshots of raw counters to what happened between them: rates, error ratios, quantiles.

Every dialect (the names a library gives its metrics) is one entry of `DIALECTS`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from monitoring.privacy import safe_label
from monitoring.prometheus import Labels, Snapshot

SHORTEST_SECONDS = 0.5
SAME_START_SECONDS = 0.05  # workers of one master start within a second of each other
MOST_ROUTES = 300
LONGEST_LABEL = 200
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
QUANTILES = {"latency_p50_ms": 0.5, "latency_p95_ms": 0.95, "latency_p99_ms": 0.99}
ALL = "*"

CPU_SECONDS = "process_cpu_seconds_total"
MEMORY_BYTES = "process_resident_memory_bytes"
STARTED_AT = "process_start_time_seconds"
# Measured from outside, one series per process with labels pid and created (unix seconds): better than what one of
# several workers tells about itself.
CPU_SECONDS_BY_PROCESS = "runerogue_observed_cpu_seconds"


@dataclass(frozen=True)
class Dialect:
    """The names one instrumentation library uses. Metric names are as in the exposition, without `_bucket`."""

    name: str
    latency: str  # a histogram in seconds, per endpoint and method
    endpoint: str  # its label that names the route
    method: str
    responses: str  # a counter per status, endpoint and method
    status: str
    queries: str = ""  # a counter of statements sent to the database
    unwatched: frozenset[str] = frozenset()  # endpoints that machines ask, not users


DIALECTS = (
    Dialect(
        name="django-prometheus",
        latency="django_http_requests_latency_seconds_by_view_method",
        endpoint="view",
        method="method",
        responses="django_http_responses_total_by_status_view_method_total",
        status="status",
        queries="django_db_execute_total",
        unwatched=frozenset(
            {
                "prometheus-django-metrics",
                "metrics",
                "up",
                "health",
                "health-live",
                "health-ready",
                "health-detailed",
                "health-score",
                "health-trends",
                "monitoring-alerts",
            }
        ),
    ),
)
_NAMES = frozenset(
    name
    for dialect in DIALECTS
    for name in (
        f"{dialect.latency}_bucket",
        f"{dialect.latency}_sum",
        f"{dialect.latency}_count",
        dialect.responses,
        dialect.queries,
    )
) | {CPU_SECONDS, CPU_SECONDS_BY_PROCESS, MEMORY_BYTES, STARTED_AT}


# The labels by which anything is derived; what a source says beside them is not kept.
METHOD_LABELS = frozenset(dialect.method for dialect in DIALECTS)
STATUSES = frozenset(dialect.status for dialect in DIALECTS)
LABELS = frozenset(dialect.endpoint for dialect in DIALECTS) | METHOD_LABELS | STATUSES | {"le", "pid", "created"}


def wanted(name: str) -> bool:
    """Whether a metric is used by any dialect; the rest need not be kept."""
    return name in _NAMES


def named(name: str | None) -> Dialect | None:
    """The dialect called `name`; None when none is."""
    return next((dialect for dialect in DIALECTS if dialect.name == name), None)


def recognise(snapshot: Snapshot) -> Dialect | None:
    """The dialect of a snapshot, None when no known one has served a request yet."""
    for dialect in DIALECTS:
        if snapshot.get(f"{dialect.latency}_count") or snapshot.get(dialect.responses):
            return dialect
    return None


@dataclass(frozen=True)
class Histogram:
    """Observations of an interval. `cumulative[i]` of them were ≤ `bounds[i]` seconds; bounds rise."""

    bounds: tuple[float, ...] = ()
    cumulative: tuple[float, ...] = ()
    sum: float = 0.0
    count: float = 0.0


@dataclass(frozen=True)
class Route:
    endpoint: str
    method: str


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
    queries: float | None = None
    cpu_percent: float | None = None  # 100 is one core
    memory_bytes: float | None = None


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
    dialect = dialect or recognise(after)
    memory = after.only(MEMORY_BYTES)
    seconds = after.at - before.at if before else 0.0
    if before is None or not SHORTEST_SECONDS <= seconds <= longest_seconds or _is_someone_else(before, after):
        return Traffic({}, memory_bytes=memory)

    restarted = _has_restarted(before, after)
    cpu_seconds = _cpu_seconds(before, after, restarted=restarted)
    cpu_percent = None if cpu_seconds is None else 100.0 * cpu_seconds / seconds
    if dialect is None:
        return Traffic({}, cpu_percent=cpu_percent, memory_bytes=memory)

    latencies = _histograms(dialect, before, after, restarted=restarted)
    totals: dict[Route, float] = defaultdict(float)
    errors: dict[Route, float] = defaultdict(float)
    counted = increases(before.get(dialect.responses), after.get(dialect.responses), restarted=restarted)
    for labels, amount in counted.items():
        if (route := _route(dialect, labels)) is None:
            continue
        totals[route] += amount
        if dict(labels).get(dialect.status, "").startswith("5"):
            errors[route] += amount
    flows = {}
    for route in latencies.keys() | totals.keys():
        flow = Flow(0.0, latencies.get(route, Histogram()), totals.get(route, 0.0), errors.get(route, 0.0))
        flows[route] = replace(flow, per_second=flow.requests / seconds)
    queries = increases(before.get(dialect.queries), after.get(dialect.queries), restarted=restarted)
    return Traffic(
        _bounded(flows),
        queries=sum(queries.values()) if queries else None,
        cpu_percent=cpu_percent,
        memory_bytes=memory,
    )


def _cpu_seconds(before: Snapshot, after: Snapshot, *, restarted: bool) -> float | None:
    was, is_now = before.get(CPU_SECONDS_BY_PROCESS), after.get(CPU_SECONDS_BY_PROCESS)
    if was and is_now:
        return sum(
            grown
            for labels, grown in increases(was, is_now).items()
            # A process that was there but not seen before would bring the CPU time of its whole life.
            if labels in was or float(dict(labels)["created"]) >= before.at
        )
    grown = increases(before.get(CPU_SECONDS), after.get(CPU_SECONDS), restarted=restarted)
    return sum(grown.values()) if grown and before.get(CPU_SECONDS) else None


def increases(
    before: Mapping[Labels, float], after: Mapping[Labels, float], *, restarted: bool = False
) -> dict[Labels, float]:
    """How much each counter grew, per series.

    A counter that went down began again at zero, so its value is its growth. The same holds for a series that was not
    there before: client libraries create a series when it first counts. A series that vanished grew by nothing known.
    """
    grown = {}
    for labels, value in after.items():
        earlier = 0.0 if restarted else before.get(labels, 0.0)
        grown[labels] = value - earlier if value >= earlier else value
    return grown


def _has_restarted(before: Snapshot, after: Snapshot) -> bool:
    """Whether the process began anew in between. When its counters are higher again than they were, only this tells."""
    was, is_now = before.only(STARTED_AT), after.only(STARTED_AT)
    return was is not None and is_now is not None and abs(is_now - was) > SAME_START_SECONDS


def _is_someone_else(before: Snapshot, after: Snapshot) -> bool:
    """Whether `after` comes from another process that ran before `before` was taken: nothing can be subtracted."""
    started = after.only(STARTED_AT)
    return started is not None and _has_restarted(before, after) and started < before.at - 1.0


def _histograms(dialect: Dialect, before: Snapshot, after: Snapshot, *, restarted: bool) -> dict[Route, Histogram]:
    found: dict[Route, list[Histogram]] = defaultdict(list)
    was = _by_series(dialect, before)
    for labels, now in _by_series(dialect, after).items():
        if (route := _route(dialect, labels)) is None:
            continue
        earlier = was.get(labels)
        if earlier is None or restarted or _went_down(earlier, now):
            earlier = Histogram()
        found[route].append(_difference(earlier, now))
    return {route: add(parts) for route, parts in found.items()}


def _by_series(dialect: Dialect, snapshot: Snapshot) -> dict[Labels, Histogram]:
    buckets: dict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for labels, value in snapshot.get(f"{dialect.latency}_bucket").items():
        try:
            bound = float(dict(labels)["le"])
        except (KeyError, ValueError):
            continue
        buckets[tuple(pair for pair in labels if pair[0] != "le")].append((bound, value))
    sums, counts = snapshot.get(f"{dialect.latency}_sum"), snapshot.get(f"{dialect.latency}_count")
    series = {}
    for labels in buckets.keys() | counts.keys():
        rising = sorted(buckets.get(labels, []))
        series[labels] = Histogram(
            bounds=tuple(bound for bound, _ in rising),
            cumulative=tuple(value for _, value in rising),
            sum=sums.get(labels, 0.0),
            count=counts.get(labels, rising[-1][1] if rising and math.isinf(rising[-1][0]) else 0.0),
        )
    return series


def _went_down(before: Histogram, now: Histogram) -> bool:
    """A restart shows in any of its numbers, and then holds for all of them."""
    if now.count < before.count or now.sum < before.sum - 1e-9:
        return True
    earlier = dict(zip(before.bounds, before.cumulative, strict=True))
    return any(value < earlier.get(bound, 0.0) for bound, value in zip(now.bounds, now.cumulative, strict=True))


def _difference(before: Histogram, now: Histogram) -> Histogram:
    earlier = dict(zip(before.bounds, before.cumulative, strict=True))
    if before.bounds and before.bounds != now.bounds:
        # The buckets were changed without a restart that shows; only bounds known on both sides can be subtracted.
        shared = [(b, v) for b, v in zip(now.bounds, now.cumulative, strict=True) if b in earlier]
        now = Histogram(tuple(b for b, _ in shared), tuple(v for _, v in shared), now.sum, now.count)
    grown = [value - earlier.get(bound, 0.0) for bound, value in zip(now.bounds, now.cumulative, strict=True)]
    # A scrape may fall between two increments of one observation; counts that fall with rising bounds are that.
    cumulative = tuple(float(value) for value in np.maximum.accumulate(grown)) if grown else ()
    return Histogram(now.bounds, cumulative, now.sum - before.sum, now.count - before.count)


def _route(dialect: Dialect, labels: Labels) -> Route | None:
    named = dict(labels)
    endpoint = safe_label(named.get(dialect.endpoint, ""), longest=LONGEST_LABEL)
    if not endpoint or endpoint in dialect.unwatched:
        return None
    method = named.get(dialect.method, "")
    return Route(endpoint, method if method in METHODS else "other")


# --- Sums --------------------------------------------------------------------------------------------------------


def add(histograms: Iterable[Histogram]) -> Histogram:
    """Several histograms as one. Cumulative counts add exactly at the bounds that all of them have, and only there."""
    parts = [part for part in histograms if part.count or part.bounds]
    if not parts:
        return Histogram()
    counted = [part for part in parts if part.count > 0] or parts
    shared = sorted(set.intersection(*(set(part.bounds) for part in counted)))
    tables = [dict(zip(part.bounds, part.cumulative, strict=True)) for part in counted]
    return Histogram(
        bounds=tuple(shared),
        cumulative=tuple(sum(table[bound] for table in tables) for bound in shared),
        sum=sum(part.sum for part in parts),
        count=sum(part.count for part in parts),
    )


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
    by_route: dict[Route, list[Flow]] = defaultdict(list)
    for part in parts:
        for route, flow in part.flows.items():
            by_route[route].append(flow)

    def total(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    return Traffic(
        {route: together(flows) for route, flows in by_route.items()},
        queries=total(part.queries for part in parts),
        cpu_percent=total(part.cpu_percent for part in parts),
        memory_bytes=total(part.memory_bytes for part in parts),
    )


def _bounded(flows: dict[Route, Flow]) -> dict[Route, Flow]:
    """At most MOST_ROUTES routes: a service that puts ids into its labels must not flood the database."""
    if len(flows) <= MOST_ROUTES:
        return flows
    busiest = sorted(flows, key=lambda route: (-flows[route].requests, route.endpoint, route.method))
    kept = {route: flows[route] for route in busiest[: MOST_ROUTES - 1]}
    kept[Route("other", "other")] = together(flows[route] for route in busiest[MOST_ROUTES - 1 :])
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
    place = int(np.searchsorted(cumulative, rank, side="left"))
    if place >= len(bounds) - 1:
        return bounds[-2]
    if place == 0 and bounds[0] <= 0:
        return bounds[0]
    start, below = (bounds[place - 1], cumulative[place - 1]) if place else (0.0, 0.0)
    inside = cumulative[place] - below
    # With q = 0 the rank can fall on an empty first bucket.
    return start if inside <= 0 else start + (bounds[place] - start) * (rank - below) / inside


def readings(traffic: Traffic, *, release: str = "") -> list[Reading]:
    """The values to store: per route, for the whole (`endpoint="*"`), and per process. Unknown values are left out."""
    tag = (("release", release),) if release else ()
    found: list[Reading] = []
    for route, flow in traffic.flows.items():
        found += _of_flow(flow, (("endpoint", route.endpoint), ("method", route.method), *tag))
    whole = together(traffic.flows.values())
    if traffic.flows:
        found += _of_flow(whole, (("endpoint", ALL), ("method", ALL), *tag))
    if traffic.queries is not None and whole.requests > 0:
        # Unwatched endpoints (health, metrics) are left out below the line; above it they ask next to nothing.
        found.append(Reading("queries_per_request", tag, traffic.queries / whole.requests))
    if traffic.cpu_percent is not None:
        found.append(Reading("cpu_percent", tag, traffic.cpu_percent))
    if traffic.memory_bytes is not None:
        found.append(Reading("memory_bytes", tag, traffic.memory_bytes))
    return found


def _of_flow(flow: Flow, labels: Labels) -> list[Reading]:
    found = [Reading("requests_per_second", labels, flow.per_second)]
    if flow.responses > 0:
        found.append(Reading("error_ratio", labels, flow.errors / flow.responses))
    if flow.latency.count > 0:
        found.append(Reading("latency_mean_ms", labels, 1000.0 * flow.latency.sum / flow.latency.count))
        for signal, q in QUANTILES.items():
            if (seconds := quantile(q, flow.latency)) is not None:
                found.append(Reading(signal, labels, 1000.0 * seconds))
    return found
