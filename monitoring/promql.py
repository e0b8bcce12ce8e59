"""A service whose series are in Prometheus, VictoriaMetrics, Mimir or Thanos: they stay there and are asked for.

Each round asks how much the counters that signals are made of grew in a window, summed by route, and what gauges show.
From there on the way is that of a scrape (`derive`), so that the same service gives the same signals either way.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from monitoring import dialects, privacy
from monitoring.dialects import Allowlist, Dialect, Needed
from monitoring.prometheus import Labels, Snapshot
from monitoring.scraping import ScrapeFailed, fetch

MOST_SERIES = 20_000  # in one answer


@dataclass(frozen=True)
class Interval:
    """What the series were at both ends of a window."""

    before: Snapshot
    after: Snapshot
    up: float | None  # the share of targets that Prometheus itself could scrape; None when it doesn't say


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

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.timeout_seconds

    def read(self, *, at: float, dialect: Dialect | None, keep: Allowlist) -> Interval:
        """The series in the window that ends at `at` (unix seconds). Raises ScrapeFailed."""
        there = self._names(at, keep)
        if not there:
            matchers = self.selector or "anything"
            raise ScrapeFailed(f"It has no series that RuneRogue knows and {matchers} selects. See metrics.selector.")
        dialect = dialect or self._recognised(there, at)
        wanted = {need.metric: need for need in dialects.needed(dialect or Dialect(name="unknown"))}
        counts: dict[str, dict[Labels, float]] = {}
        levels: dict[str, dict[Labels, float]] = {}
        for need in wanted.values():
            if need.metric in there and need.metric != dialects.STARTED_AT:
                (counts if need.counts else levels)[need.metric] = self._ask_for(need, at, keep)
        if not any(counts.values()) and set(counts):
            raise ScrapeFailed(
                f"The series are there, but have fewer than two samples in {self.window_seconds:g} s. "
                "Set metrics.window_seconds to at least twice the scrape interval of that Prometheus."
            )
        nothing = {name: dict.fromkeys(rows, 0.0) for name, rows in counts.items()}
        return Interval(
            Snapshot.of(at - self.window_seconds, nothing), Snapshot.of(at, {**counts, **levels}), self._up(at)
        )

    def _names(self, at: float, keep: Allowlist) -> set[str]:
        names = "|".join(sorted(metric for metric, _ in keep.labels))
        series = self._select(f'__name__=~"{names}"')
        rows = self._query(f"count by (__name__) ({series})", at)
        return {labels.get("__name__", "") for labels, _ in rows}

    def _recognised(self, there: set[str], at: float) -> Dialect | None:
        for dialect in dialects.DIALECTS:
            for metric in (f"{dialect.latency}_count", dialect.responses):
                if metric in there and (not dialect.marks or self._has_labels(metric, dialect.marks, at)):
                    return dialect
        return dialects.named("node-exporter") if dialects.HOST_CPU in there else None

    def _has_labels(self, metric: str, labels: Iterable[str], at: float) -> bool:
        matchers = ",".join([f'__name__="{metric}"', *(f'{label}!=""' for label in sorted(labels))])
        return bool(self._query(f"count({self._select(matchers)})", at))

    def _ask_for(self, need: Needed, at: float, keep: Allowlist) -> dict[Labels, float]:
        series = self._select(f'__name__="{need.metric}"')
        window = f"{math.ceil(self.window_seconds)}s"
        # rate() and not increase(): both extrapolate alike, and this is what people compare with.
        what = f"rate({series}[{window}])" if need.counts else series
        found: dict[Labels, float] = {}
        for labels, value in self._query(f"sum by ({', '.join(need.labels)}) ({what})", at):
            # With an empty value a label says that it is not there.
            given = tuple(sorted((label, text) for label, text in labels.items() if text))
            if (kept := keep(need.metric, given)) is not None and not math.isnan(value):
                kept = tuple(pair for pair in kept if pair[0] != dialects.APART)
                found[kept] = found.get(kept, 0.0) + (value * math.ceil(self.window_seconds) if need.counts else value)
        return found

    def _up(self, at: float) -> float | None:
        series = self._select('__name__="up"')
        rows = self._query(f"avg({series})", at)
        return rows[0][1] if rows and 0 <= rows[0][1] <= 1 else None

    def _select(self, matchers: str) -> str:
        return "{" + ",".join(filter(None, (matchers, self.selector))) + "}"

    def _query(self, query: str, at: float) -> list[tuple[dict[str, str], float]]:
        """The labels and value of each series that a query gives at `at`."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise ScrapeFailed(f"Its answers took longer than {self.timeout_seconds:g} s together.")
        response, body, _ = fetch(
            self.client,
            f"{self.address}/api/v1/query",
            timeout_seconds=left,
            params={"query": query, "time": f"{at:.3f}", "timeout": f"{math.ceil(left)}s"},
        )
        try:
            content: Any = json.loads(body)
        except ValueError:
            content = None
        if not isinstance(content, dict) or "status" not in content:
            raise ScrapeFailed(
                f"It answered with status {response.status_code} and not as a Prometheus API does. "
                "See metrics.promql; Mimir and others have theirs below a path such as /prometheus."
            )
        if content["status"] != "success":
            told = (privacy.safe_label(str(content.get(key)), longest=300) for key in ("errorType", "error"))
            raise ScrapeFailed(f"The query was refused: {': '.join(told)}")
        return _rows(content.get("data"))


def _rows(data: Any) -> list[tuple[dict[str, str], float]]:
    try:
        if data["resultType"] != "vector":
            raise ScrapeFailed("It answered with something else than was asked for.")
        if len(data["result"]) > MOST_SERIES:
            raise ScrapeFailed(f"There are more than {MOST_SERIES:,} series. Narrow metrics.selector.")
        return [(_texts(row["metric"]), float(row["value"][1])) for row in data["result"]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ScrapeFailed(f"It answered with something else than was asked for: {type(error).__name__}.") from error


def _texts(labels: Mapping[str, Any]) -> dict[str, str]:
    return {str(label): str(text) for label, text in labels.items()}
