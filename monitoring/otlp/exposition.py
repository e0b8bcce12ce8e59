"""OTLP metrics, read into points that are called as a Prometheus exposition of the same SDK calls them.

Names follow the compatibility rules of OpenTelemetry: what is no letter or digit becomes `_`, the unit and `_total` are
appended. So the tables of `dialects` hold for what is sent as they do for what is scraped, and what no table names is
dropped before anything is kept anywhere.

A point is right or refused: what can't be known exactly is never guessed. Exponential histograms are folded at bounds
that are bounds of theirs too, so that every count is exact.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as wire

from monitoring.otlp.decoding import LONGEST_VALUE, MOST_ATTRIBUTES, PROTOBUF, BadExport, TooLarge
from monitoring.prometheus import Keep, Labels

MOST_POINTS = 50_000  # in one export; the rest is refused
MOST_RESOURCES = 1000  # in one export: each is a transaction of its own
LARGEST_JSON_BYTES = 4 * 1024 * 1024  # protobuf's own reader of JSON takes a second for so much
MOST_BOUNDS = 500  # of one histogram
LONGEST_NAME, LONGEST_UNIT = 255, 63  # by OpenTelemetry's specification; names are kept for their next use
# The bounds at which exponential histograms are folded lie between these powers of two: in seconds 61 µs to 12 days.
LOWEST, HIGHEST = -14, 20
FINEST = 1  # two bounds for each power of two

# What tells one process of a service from another, if it has no id of its own.
INSTANCE = ("service.instance.id",)
INSTEAD = ("k8s.pod.uid", "k8s.pod.name", "container.id", "host.id", "host.name", "process.pid")

UNITS = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds", "us": "microseconds",
    "ns": "nanoseconds", "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes",
    "TiBy": "tibibytes", "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes", "TBy": "terabytes", "m": "meters",
    "V": "volts", "A": "amperes", "J": "joules", "W": "watts", "g": "grams", "Cel": "celsius", "Hz": "hertz",
    "%": "percent", "1": "",
}  # fmt: skip
PER = {"s": "second", "m": "minute", "min": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}

NO_NUMBER = "A sum that is negative or no number"
NO_TEMPORALITY = "A sum or histogram that does not say its temporality"
DELTA_LEVEL = "A sum that may fall, in delta temporality: its level is not known; send it as cumulative"
BROKEN = "A histogram whose buckets, bounds and count don't belong together"
NOT_EXACT = "An exponential histogram whose zero threshold is too wide to be folded exactly"
UNKNOWN_KIND = "A metric of a kind that is not known"
TOO_MANY = f"More than {MOST_POINTS:,} points in one export"
NO_TIME = "A point without a time"
TOO_LONG = f"A metric whose name has more than {LONGEST_NAME} letters, or its unit more than {LONGEST_UNIT}"


class Kind(StrEnum):
    """What the numbers of a stream are: a level, a counter, or the counters of a histogram."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Point:
    """One stream at one time. `numbers` are (value,), or of a histogram its cumulative counts at `bounds`, which end in
    +Inf, then count and sum (NaN where there is none). Empty numbers say that the stream has no value any more.

    `name` is that of the exposition without `_bucket`; times are in unix nanoseconds, 0 is unknown.
    """

    name: str
    labels: Labels
    kind: Kind
    is_delta: bool
    start_ns: int
    at_ns: int
    bounds: tuple[float, ...]
    numbers: tuple[float, ...]


@dataclass
class Batch:
    """The points of one resource. `instance` is what tells the process from others of the service: never to be kept as
    it is. `refused` counts points by the reason; `unused` are those of metrics that nothing is made of.
    """

    service: str
    version: str
    instance: str
    points: list[Point] = field(default_factory=list)
    unused: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Resource:
    """What one resource says about itself, and its metrics, not looked at yet."""

    service: str
    version: str
    instance: str
    metrics: wire.ResourceMetrics

    @property
    def size(self) -> int:
        """How many points it has."""
        metrics = [metric for scope in self.metrics.scope_metrics for metric in scope.metrics]
        forms = ((metric, metric.WhichOneof("data")) for metric in metrics)
        return sum(len(getattr(metric, form).data_points) for metric, form in forms if form)


def resources(body: bytes, *, content_type: str) -> list[Resource]:
    """The resources in an ExportMetricsServiceRequest. Raises BadExport."""
    if content_type == PROTOBUF:
        try:
            request = ExportMetricsServiceRequest.FromString(body)
        except DecodeError as error:
            raise BadExport("The body is not the protobuf message that this address takes.") from error
    else:
        request = _from_json(body)
    if len(request.resource_metrics) > MOST_RESOURCES:
        raise TooLarge(f"An export may have {MOST_RESOURCES:,} resources.")
    found = []
    for metrics in request.resource_metrics:
        said = {
            pair.key: pair.value.string_value[:LONGEST_VALUE] or str(pair.value.int_value or "")
            for pair in metrics.resource.attributes[:MOST_ATTRIBUTES]
        }
        named = [said[key] for key in INSTANCE if said.get(key)] or [f"{key}={said.get(key, '')}" for key in INSTEAD]
        found.append(Resource(said.get("service.name", ""), said.get("service.version", ""), "\0".join(named), metrics))
    return found


def _from_json(body: bytes) -> ExportMetricsServiceRequest:
    if len(body) > LARGEST_JSON_BYTES:
        raise TooLarge(f"JSON may have {LARGEST_JSON_BYTES:,} bytes; protobuf may have more.")
    try:
        content = json.loads(body)
        if not isinstance(content, dict):
            raise TypeError("no object")
        return json_format.ParseDict(content, ExportMetricsServiceRequest(), ignore_unknown_fields=True)
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.ParseError) as error:
        # What a parser says may quote what it could not read.
        raise BadExport(f"The body is not the OTLP/JSON that this address takes ({type(error).__name__}).") from error


def points(resource: Resource, *, keep: Keep, room: int = MOST_POINTS) -> Batch:
    """The points of a resource that `keep` keeps, at most `room` of them, in the order of their times."""
    batch = Batch(resource.service, resource.version, resource.instance)
    for scope in resource.metrics.scope_metrics:
        # Two libraries may count the same under the same labels; an exposition tells them apart like this too.
        told_by = (("otel_scope_name", scope.scope.name),) if scope.scope.name else ()
        for metric in scope.metrics:
            if len(metric.name) > LONGEST_NAME or len(metric.unit) > LONGEST_UNIT:
                batch.refused[TOO_LONG] += 1
                continue
            found = _Reader.of(metric)
            if found is None:
                batch.refused[UNKNOWN_KIND] += 1
                continue
            if keep(found.shown, ()) is None:
                batch.unused += len(found.data)
                continue
            for raw in found.data:
                if len(batch.points) >= room:
                    batch.refused[TOO_MANY] += 1
                    continue
                labels = keep(found.shown, (*_labels(raw.attributes), *told_by))
                point = found.point(raw, labels or ())
                if isinstance(point, str):
                    batch.refused[point] += 1
                else:
                    batch.points.append(point)
    batch.points.sort(key=lambda point: point.at_ns)
    return batch


# --- Points ------------------------------------------------------------------------------------------------------

_NO_VALUE = wire.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK
_DELTA, _CUMULATIVE = wire.AGGREGATION_TEMPORALITY_DELTA, wire.AGGREGATION_TEMPORALITY_CUMULATIVE


@dataclass(frozen=True)
class _Reader:
    """One metric: its name, what kind its streams are of, and its data points as they were written."""

    name: str
    shown: str  # the name of one of its series in an exposition
    kind: Kind
    form: str
    temporality: int
    data: Sequence[Any]

    @classmethod
    def of(cls, metric: wire.Metric) -> _Reader | None:
        form = metric.WhichOneof("data")
        if form == "gauge":
            name = exposed_name(metric.name, metric.unit, is_gauge=True)
            return cls(name, name, Kind.GAUGE, form, _CUMULATIVE, metric.gauge.data_points)
        if form == "sum":
            counts = metric.sum.is_monotonic
            name = exposed_name(metric.name, metric.unit, is_counter=counts, is_gauge=not counts)
            kind = Kind.COUNTER if counts else Kind.GAUGE
            return cls(name, name, kind, form, metric.sum.aggregation_temporality, metric.sum.data_points)
        if form not in ("histogram", "exponential_histogram", "summary"):
            return None
        name = exposed_name(metric.name, metric.unit)
        data = getattr(metric, form)
        temporality = _CUMULATIVE if form == "summary" else data.aggregation_temporality
        return cls(name, f"{name}_count", Kind.HISTOGRAM, form, temporality, data.data_points)

    def point(self, raw: Any, labels: Labels) -> Point | str:
        """A data point, or why it is refused."""
        is_delta = self.temporality == _DELTA
        if self.temporality not in (_DELTA, _CUMULATIVE):
            return NO_TEMPORALITY
        if self.kind == Kind.GAUGE and is_delta:
            return DELTA_LEVEL
        if not raw.time_unix_nano:
            return NO_TIME
        bounds: tuple[float, ...] = ()
        numbers: tuple[float, ...] | str = ()
        if not raw.flags & _NO_VALUE:
            if self.form in ("gauge", "sum"):
                numbers = _number(raw, self.kind)
            else:
                bounds, numbers = _HISTOGRAMS[self.form](raw)
        if isinstance(numbers, str):
            return numbers
        return Point(
            self.name, labels, self.kind, is_delta, raw.start_time_unix_nano, raw.time_unix_nano, bounds, numbers
        )


def _number(raw: Any, kind: Kind) -> tuple[float, ...] | str:
    form = raw.WhichOneof("value")
    if form is None:
        return ()
    value = float(getattr(raw, form))
    if kind == Kind.GAUGE:
        return (value,) if math.isfinite(value) else ()
    return (value,) if 0.0 <= value < math.inf else NO_NUMBER


_Observed = tuple[tuple[float, ...], "tuple[float, ...] | str"]


def _explicit(raw: Any) -> _Observed:
    bounds, counts = tuple(raw.explicit_bounds), tuple(raw.bucket_counts)
    if not counts and not bounds:
        counts = (raw.count,)
    rises = all(low < high for low, high in itertools.pairwise(bounds)) and all(map(math.isfinite, bounds))
    if len(counts) != len(bounds) + 1 or len(bounds) > MOST_BOUNDS or sum(counts) != raw.count or not rises:
        return (), BROKEN
    cumulative = map(float, itertools.accumulate(counts))
    return (*bounds, math.inf), (*cumulative, float(raw.count), _sum(raw))


def _summary(raw: Any) -> _Observed:
    """Its quantiles can't be added up; what it counts can."""
    count = float(raw.count)
    return (math.inf,), (count, count, raw.sum if 0.0 <= raw.sum < math.inf else math.nan)


def _exponential(raw: Any) -> _Observed:
    """Folded at powers of √2, or of 2^(2^-scale) where that is coarser: there each of them is a bound of the histogram.

    Bucket i of the histogram holds (base^i, base^(i+1)], base = 2^(2^-scale).
    """
    scale = raw.scale
    counted = raw.zero_count + sum(raw.positive.bucket_counts) + sum(raw.negative.bucket_counts)
    if counted != raw.count or not -10 <= scale <= 20:
        return (), BROKEN
    step = 2.0 ** -min(scale, FINEST)
    exponents = [step * number for number in range(math.ceil(LOWEST / step), math.floor(HIGHEST / step) + 1)]
    bounds = tuple(2.0**exponent for exponent in exponents)
    if not bounds or (raw.zero_count and raw.zero_threshold > bounds[0]):
        return (), NOT_EXACT
    below = float(raw.zero_count + sum(raw.negative.bucket_counts))
    # A value is ≤ 2^e when its bucket ends at or below it: (index + 1) · 2^-scale ≤ e.
    ends = [round(exponent * 2.0**scale) for exponent in exponents]
    counts, offset = list(raw.positive.bucket_counts), raw.positive.offset
    grown = [0, *itertools.accumulate(counts)]
    cumulative = [below + grown[min(max(end - offset, 0), len(counts))] for end in ends]
    return (*bounds, math.inf), (*cumulative, float(raw.count), float(raw.count), _sum(raw))


def _sum(raw: Any) -> float:
    """NaN where there is none, or one that says nothing: with negative values it would fall."""
    return float(raw.sum) if raw.HasField("sum") and 0.0 <= raw.sum < math.inf else math.nan


_HISTOGRAMS = {"histogram": _explicit, "exponential_histogram": _exponential, "summary": _summary}


# --- Names -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=10_000)
def exposed_name(name: str, unit: str, *, is_counter: bool = False, is_gauge: bool = False) -> str:
    """What an exposition calls the metric, by OpenTelemetry's rules: `http.server.request.duration` in `s` is
    `http_server_request_duration_seconds`.
    """
    words = [word for word in re.split(r"[^a-zA-Z0-9:]+", name) if word]
    unit = re.sub(r"\{[^}]*\}", "", unit).strip()
    main, slash, per = unit.partition("/")
    for word in (UNITS.get(main.strip(), main.strip()), f"per_{PER.get(per.strip(), per.strip())}" if slash else ""):
        plain = "_".join(part for part in re.split(r"[^a-zA-Z0-9]+", word) if part)
        if plain and plain != "per" and plain not in words:
            words.append(plain)
    if is_counter:
        words = [*(word for word in words if word != "total"), "total"]
    if is_gauge and unit == "1":
        words = [*(word for word in words if word != "ratio"), "ratio"]
    joined = "_".join(words)
    return f"_{joined}" if joined[:1].isdigit() else joined


@lru_cache(maxsize=10_000)
def _label(key: str) -> str:
    plain = re.sub(r"[^a-zA-Z0-9_]+", "_", key)
    return f"key_{plain}" if plain[:1].isdigit() else plain


def _labels(attributes: Any) -> Iterator[tuple[str, str]]:
    """The attributes as labels, sorted. Two that have one name as labels become one, with both values."""
    found: dict[str, str] = {}
    for pair in attributes[:MOST_ATTRIBUTES]:
        label, text = _label(pair.key[:LONGEST_NAME]), _text(pair.value)
        found[label] = f"{found[label]};{text}" if label in found else text
    yield from sorted(found.items())


def _text(value: Any) -> str:
    match value.WhichOneof("value"):
        case "string_value":
            return str(value.string_value[:LONGEST_VALUE])
        case "bool_value":
            return "true" if value.bool_value else "false"
        case "int_value":
            return str(value.int_value)
        case "double_value":
            return repr(value.double_value)
        case None:
            return ""
        case _:  # lists and objects: what they say is not a label of anything here, but tells streams apart
            return str(value.SerializeToString(deterministic=True).hex()[:LONGEST_VALUE])
