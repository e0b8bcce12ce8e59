"""A service whose series are in Prometheus, VictoriaMetrics, Mimir or Thanos: they stay there and are asked for.

Each round asks how much the counters that signals are made of grew in a window, summed by route, and what gauges show.
From there on the way is that of a scrape (`derive`), so that the same service gives the same signals either way. A
round is a range of one point: what was missed is asked for with the same queries, over more of them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np

from monitoring import dialects, privacy
from monitoring.credentials import NOBODY, Access
from monitoring.dialects import Allowlist, Dialect, Needed
from monitoring.prometheus import Labels, Numbers, Snapshot
from monitoring.scraping import ScrapeFailed, fetch

MOST_SERIES = 20_000  # in one answer
MOST_POINTS = 11_000  # of a series, in Prometheus and those that follow it
ONE_POINT_STEP_SECONDS = 60.0  # there has to be one


@dataclass(frozen=True)
class Grid:
    """Moments that are `step_seconds` apart, the first at `start` (unix seconds)."""

    start: float
    step_seconds: float
    points: int

    @property
    def end(self) -> float:
        return self.start + (self.points - 1) * self.step_seconds

    def moment(self, place: int) -> float:
        """Unix seconds."""
        return self.start + place * self.step_seconds

    def nothing(self) -> Numbers:
        """float64[points] without a value."""
        return np.full(self.points, np.nan)


@dataclass(frozen=True)
class Interval:
    """What the series were at both ends of a window."""

    before: Snapshot
    after: Snapshot
    up: float | None  # the share of targets that Prometheus itself could scrape; None when it doesn't say


@dataclass
class _Table:
    """What each series was on a grid, float64[points], NaN where there is no value."""

    counts: dict[tuple[str, Labels], Numbers] = field(default_factory=dict)
    levels: dict[tuple[str, Labels], Numbers] = field(default_factory=dict)
    counts_asked: bool = False


@dataclass
class PromQL:
    """Asks the API at `address`, such as http://prometheus:9090 or http://mimir/prometheus, for one service.

    `selector` holds label matchers without braces; `window_seconds` must cover at least two scrapes of that Prometheus.
    `timeout_seconds`, counted from here, is for all queries together.
    """

    client: httpx.Client
    address: str
    selector: str
    window_seconds: float
    timeout_seconds: float
    access: Access = NOBODY

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.timeout_seconds

    def read(self, *, at: float, dialect: Dialect | None, keep: Allowlist) -> Interval:
        """The series in the window that ends at `at` (unix seconds). Raises ScrapeFailed."""
        grid = Grid(at, ONE_POINT_STEP_SECONDS, 1)
        table = self._table(grid, dialect, keep)
        if not (table.counts or table.levels or table.counts_asked):
            matchers = self.selector or "anything"
            raise ScrapeFailed(f"It has no series that RuneRogue knows and {matchers} selects. See metrics.selector.")
        if table.counts_asked and not table.counts:
            raise ScrapeFailed(
                f"The series are there, but have fewer than two samples in {self.window_seconds:g} s. "
                "Set metrics.window_seconds to at least twice the scrape interval of that Prometheus."
            )
        return self._intervals(grid, table)[0]

    def read_past(self, grid: Grid, *, dialect: Dialect | None, keep: Allowlist) -> dict[int, Interval]:
        """What `read` gives at each point of `grid`, by its place.

        Where it would raise there is none: a window that is too short for the scrapes of that time says nothing about
        the service. Only where Prometheus reached no target there is one without series. The metrics and dialect of the
        whole grid count at each of its points. Raises ScrapeFailed, and ValueError for more points than it gives.
        """
        if not 0 < grid.points <= MOST_POINTS:
            raise ValueError(f"A range has 1 to {MOST_POINTS:,} points, not {grid.points:,}.")
        return self._intervals(grid, self._table(grid, dialect, keep))

    def _table(self, grid: Grid, dialect: Dialect | None, keep: Allowlist) -> _Table:
        there = self._names(grid, keep)
        dialect = dialect or self._recognised(there, grid)
        table = _Table()
        wanted = {need.metric: need for need in dialects.needed(dialect or Dialect(name="unknown"))}
        for need in wanted.values():
            if need.metric in there and need.metric != dialects.STARTED_AT:
                table.counts_asked |= need.counts
                (table.counts if need.counts else table.levels).update(self._ask_for(need, grid, keep))
        return table

    def _intervals(self, grid: Grid, table: _Table) -> dict[int, Interval]:
        series = (*table.counts, *table.levels)
        numbers = np.array([*table.counts.values(), *table.levels.values()]).reshape(len(series), grid.points)
        is_count = np.arange(len(series)) < len(table.counts)
        up = self._up(grid)
        found: dict[int, Interval] = {}
        # Most points have the same series, and are then snapshots of one layout.
        known: dict[bytes, Snapshot] = {}
        for place in range(grid.points):
            at, share = grid.moment(place), None if math.isnan(up[place]) else float(up[place])
            here = ~np.isnan(numbers[:, place])
            if not here.any() or (table.counts_asked and not (here & is_count).any()):
                if share == 0.0:
                    found[place] = Interval(Snapshot.of(at - self.window_seconds, {}), Snapshot.of(at, {}), share)
                continue
            if (first := known.get(here.tobytes())) is None:
                values: dict[str, dict[Labels, float]] = {}
                for there, (metric, labels) in zip(here, series, strict=True):
                    if there:
                        values.setdefault(metric, {})[labels] = 0.0
                first = known[here.tobytes()] = Snapshot.of(0.0, values)
            after = replace(first, at=at, numbers=numbers[here, place])
            nothing = np.where(is_count[here], 0.0, np.nan)
            before = replace(first, at=at - self.window_seconds, numbers=nothing)
            found[place] = Interval(before, after, share)
        return found

    def _names(self, grid: Grid, keep: Allowlist) -> set[str]:
        names = "|".join(sorted(metric for metric, _ in keep.labels))
        series = self._select(f'__name__=~"{names}"')
        return {labels.get("__name__", "") for labels, _ in self._query(f"count by (__name__) ({series})", grid)}

    def _recognised(self, there: set[str], grid: Grid) -> Dialect | None:
        for dialect in dialects.DIALECTS:
            for metric in (f"{dialect.latency}_count", dialect.responses):
                if metric in there and (not dialect.marks or self._has_labels(metric, dialect.marks, grid)):
                    return dialect
        return dialects.named("node-exporter") if dialects.HOST_CPU in there else None

    def _has_labels(self, metric: str, labels: Iterable[str], grid: Grid) -> bool:
        matchers = ",".join([f'__name__="{metric}"', *(f'{label}!=""' for label in sorted(labels))])
        return bool(self._query(f"count({self._select(matchers)})", grid))

    def _ask_for(self, need: Needed, grid: Grid, keep: Allowlist) -> dict[tuple[str, Labels], Numbers]:
        series = self._select(f'__name__="{need.metric}"')
        window = math.ceil(self.window_seconds)
        # rate() and not increase(): both extrapolate alike, and this is what people compare with.
        what = f"rate({series}[{window}s])" if need.counts else series
        found: dict[tuple[str, Labels], Numbers] = {}
        for labels, values in self._query(f"sum by ({', '.join(need.labels)}) ({what})", grid):
            # With an empty value a label says that it is not there.
            given = tuple(sorted((label, text) for label, text in labels.items() if text))
            if (kept := keep(need.metric, given)) is None or np.isnan(values).all():
                continue
            key = need.metric, tuple(pair for pair in kept if pair[0] != dialects.APART)
            values = values * window if need.counts else values
            known = found.get(key)
            if known is not None:  # two that are one without what is not kept of them
                values = np.where(np.isnan(known), values, known + np.nan_to_num(values))
            found[key] = values
        return found

    def _up(self, grid: Grid) -> Numbers:
        series = self._select('__name__="up"')
        rows = self._query(f"avg({series})", grid)
        if not rows:
            return grid.nothing()
        share = rows[0][1]
        return np.where((share >= 0) & (share <= 1), share, np.nan)

    def _select(self, matchers: str) -> str:
        return "{" + ",".join(filter(None, (matchers, self.selector))) + "}"

    def _query(self, query: str, grid: Grid) -> list[tuple[dict[str, str], Numbers]]:
        """The labels of each series that a query gives, and its values on the grid."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise ScrapeFailed(f"Its answers took longer than {self.timeout_seconds:g} s together.")
        response, body, _ = fetch(
            self.client,
            f"{self.address}/api/v1/query_range",
            timeout_seconds=left,
            params={
                "query": query,
                "start": f"{grid.start:.3f}",
                "end": f"{grid.end:.3f}",
                "step": f"{grid.step_seconds:g}",
                "timeout": f"{math.ceil(left)}s",
            },
            access=self.access,
        )
        try:
            content: Any = json.loads(body)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or "status" not in content:
            raise ScrapeFailed(
                f"It answered with status {response.status_code} and not as a Prometheus API does. "
                "See metrics.promql; Mimir and others have theirs below a path such as /prometheus."
            )
        if content["status"] != "success":
            words = (self.access.hidden(str(content.get(key))) for key in ("errorType", "error"))
            told = ": ".join(privacy.safe_label(text, longest=300) for text in words)
            raise ScrapeFailed(f"The query was refused: {told}")
        return _rows(content.get("data"), grid)


def _rows(data: Any, grid: Grid) -> list[tuple[dict[str, str], Numbers]]:
    try:
        if data["resultType"] != "matrix":
            raise ScrapeFailed("It answered with something else than was asked for.")
        if len(data["result"]) > MOST_SERIES:
            raise ScrapeFailed(f"There are more than {MOST_SERIES:,} series. Narrow metrics.selector.")
        return [(_texts(row["metric"]), _on(grid, row["values"])) for row in data["result"]]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ScrapeFailed(f"It answered with something else than was asked for: {type(error).__name__}.") from error


def _on(grid: Grid, values: Any) -> Numbers:
    at = np.array([float(moment) for moment, _ in values])
    places = (at - grid.start) / grid.step_seconds
    whole = np.rint(places).astype(np.intp)
    # A millisecond is what times are written in.
    near = np.abs(places - whole) * grid.step_seconds < 0.01
    if not (near & (whole >= 0) & (whole < grid.points)).all():
        raise ValueError("a moment that nobody asked for")
    found = grid.nothing()
    found[whole] = [float(value) for _, value in values]
    return found


def _texts(labels: Mapping[str, Any]) -> dict[str, str]:
    return {str(label): str(text) for label, text in labels.items()}
