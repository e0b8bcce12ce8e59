"""The Prometheus text format, read into plain numbers.

The parsing is prometheus_client's; this module bounds it and refuses what would lead to a wrong number.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

Labels = tuple[tuple[str, str], ...]  # sorted by name

LARGEST_BYTES = 8 * 1024 * 1024
MOST_SERIES = 100_000


class NotPrometheus(ValueError):
    """The text is not a usable exposition; the message says why."""


@dataclass(frozen=True)
class Snapshot:
    """The raw values of one target at one time: metric name → labels → value. `at` is in unix seconds."""

    at: float
    values: Mapping[str, Mapping[Labels, float]]

    def get(self, name: str) -> Mapping[Labels, float]:
        """All series of the metric `name`; empty when there are none."""
        return self.values.get(name, {})

    def only(self, name: str) -> float | None:
        """The value of a metric that has exactly one series, else None."""
        series = self.get(name)
        return next(iter(series.values())) if len(series) == 1 else None


def everything(name: str) -> bool:
    return True


def parse(text: str, *, at: float, openmetrics: bool = False, wanted: Callable[[str], bool] = everything) -> Snapshot:
    """Read an exposition, keeping the metrics for which `wanted(name)` holds. NaN values are left out.

    Raises NotPrometheus for text that is malformed, too large, or gives one series twice.
    """
    if len(text) > LARGEST_BYTES:
        raise NotPrometheus(f"The metrics are larger than {LARGEST_BYTES // 1024 // 1024} MB.")
    if text.lstrip()[:1] == "<":
        raise NotPrometheus("The answer is a web page, not Prometheus text. Is metrics.path in the manifest right?")
    values: dict[str, dict[Labels, float]] = {}
    seen = 0
    try:
        for family in (parse_openmetrics if openmetrics else parse_text)(text):
            for sample in family.samples:
                seen += 1
                if seen > MOST_SERIES:
                    raise NotPrometheus(f"There are more than {MOST_SERIES:,} series.")
                if not wanted(sample.name) or math.isnan(sample.value):
                    continue
                labels = tuple(sorted(sample.labels.items()))
                series = values.setdefault(sample.name, {})
                if labels in series:
                    raise NotPrometheus(f"A series of {sample.name} is there twice.")
                series[labels] = float(sample.value)
    except NotPrometheus:
        raise
    except (ValueError, KeyError, IndexError, TypeError) as error:
        # The parser quotes the line, which may hold anything; this text ends in rows and logs.
        raise NotPrometheus(f"This is not Prometheus text ({type(error).__name__}).") from error
    if not seen:
        raise NotPrometheus("The answer holds no metrics.")
    return Snapshot(at, values)


def pack(snapshot: Snapshot) -> bytes:
    """A small form to keep between rounds: compressed JSON."""
    rows = {
        name: [[list(map(list, labels)), value] for labels, value in s.items()] for name, s in snapshot.values.items()
    }
    return zlib.compress(json.dumps({"at": snapshot.at, "values": rows}).encode(), level=6)


def unpack(body: bytes) -> Snapshot:
    """The inverse of `pack`. Raises ValueError for anything else."""
    try:
        content = json.loads(zlib.decompress(body))
    except zlib.error as error:
        raise ValueError(str(error)) from error
    values = {
        name: {tuple((key, text) for key, text in labels): float(value) for labels, value in rows}
        for name, rows in content["values"].items()
    }
    return Snapshot(content["at"], values)
