"""Metrics that are sent: what they are called, what is right and what is refused, and what they add up to."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from monitoring import derive, dialects, prometheus
from monitoring.otlp import exposition, streams
from monitoring.otlp.decoding import JSON, PROTOBUF, BadExport, TooLarge
from monitoring.otlp.exposition import Kind, exposed_name

S = 1_000_000_000
BOUNDS = [0.005, 0.1, 1.0]
DELTA, CUMULATIVE = 1, 2


def attributes(**given: Any) -> list[dict[str, Any]]:
    def value(one: Any) -> dict[str, Any]:
        return {"intValue": str(one)} if isinstance(one, int) else {"stringValue": one}

    return [{"key": key.replace("__", "."), "value": value(one)} for key, one in given.items()]


def observed(counts: list[int], *, at: int, start: int = 1, total: float = 1.0, **labels: Any) -> dict[str, Any]:
    """A data point of a histogram; times are in seconds."""
    return {
        "startTimeUnixNano": str(start * S), "timeUnixNano": str(at * S), "count": str(sum(counts)), "sum": total,
        "bucketCounts": [str(count) for count in counts], "explicitBounds": BOUNDS,
        "attributes": attributes(**{"http__route": "/a", "http__request__method": "GET", **labels}),
    }  # fmt: skip


def requests(*points: dict[str, Any], temporality: int = CUMULATIVE, **more: Any) -> dict[str, Any]:
    data = {"aggregationTemporality": temporality, "dataPoints": list(points)}
    return {"name": "http.server.request.duration", "unit": "s", "histogram": data, **more}


def counter(name: str, *points: dict[str, Any], temporality: int = CUMULATIVE, monotonic: bool = True, unit: str = "s"):
    data = {"aggregationTemporality": temporality, "isMonotonic": monotonic, "dataPoints": list(points)}
    return {"name": name, "unit": unit, "sum": data}


def value(number: Any, *, at: int, start: int = 1, **more: Any) -> dict[str, Any]:
    return {"startTimeUnixNano": str(start * S), "timeUnixNano": str(at * S), "asDouble": number, **more}


def export(*metrics: dict[str, Any], scope: str = "", **resource: Any) -> dict[str, Any]:
    said = {"service__name": "realm", "service__instance__id": "one", **resource}
    scopes = [{"scope": {"name": scope}, "metrics": list(metrics)}]
    return {"resourceMetrics": [{"resource": {"attributes": attributes(**said)}, "scopeMetrics": scopes}]}


def as_protobuf(content: dict[str, Any]) -> bytes:
    return json_format.ParseDict(content, ExportMetricsServiceRequest()).SerializeToString()


def batch(*metrics: dict[str, Any], **resource: Any) -> exposition.Batch:
    body = json.dumps(export(*metrics, **resource)).encode()
    (found,) = exposition.resources(body, content_type=JSON)
    return exposition.points(found, keep=dialects.allowlist(None, b"salt"))


class Sender:
    """A process that sends, and the totals that are kept of it."""

    def __init__(self) -> None:
        self.state = streams.State()
        self.heard: float | None = None

    def send(self, *metrics: dict[str, Any], now: float) -> streams.Added:
        added = streams.add(self.state, batch(*metrics).points, now=now, heard=self.heard)
        self.heard = now if added.counted else self.heard
        self.state = streams.unpack(streams.pack(self.state))
        return added

    def total(self, name: str = "http_server_request_duration_seconds_count") -> float:
        return sum(streams.snapshot(self.state).get(name).values())


# --- Names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "unit", "kind", "shown"),
    [
        ("http.server.request.duration", "s", {}, "http_server_request_duration_seconds"),
        ("http.server.duration", "ms", {}, "http_server_duration_milliseconds"),
        ("db.client.operation.duration", "s", {}, "db_client_operation_duration_seconds"),
        ("http.server.active_requests", "{request}", {"is_gauge": True}, "http_server_active_requests"),
        ("process.cpu.time", "s", {"is_counter": True}, "process_cpu_time_seconds_total"),
        ("process.memory.usage", "By", {"is_gauge": True}, "process_memory_usage_bytes"),
        ("cpu.utilization", "1", {"is_gauge": True}, "cpu_utilization_ratio"),
        ("already_seconds_total", "s", {"is_counter": True}, "already_seconds_total"),
        ("net.speed", "By/s", {}, "net_speed_bytes_per_second"),
        ("2.things--odd..", "", {}, "_2_things_odd"),
    ],
)
def test_is_called_as_in_an_exposition(name: str, unit: str, kind: dict[str, bool], shown: str) -> None:
    assert exposed_name(name, unit, **kind) == shown


def test_both_forms_say_the_same() -> None:
    content = export(requests(observed([1, 2, 3, 4], at=9)))
    keep = dialects.allowlist(None, b"salt")
    forms = ((json.dumps(content).encode(), JSON), (as_protobuf(content), PROTOBUF))
    one, other = (exposition.resources(body, content_type=form)[0] for body, form in forms)
    assert exposition.points(one, keep=keep) == exposition.points(other, keep=keep)
    assert (one.service, one.size) == ("realm", 1)


def test_keeps_what_signals_are_made_of_and_of_its_labels_the_known_ones() -> None:
    secret = "jane@example.org"
    found = batch(
        requests(observed([1, 0, 0, 0], at=9, http__route=f"/u/{secret}", user__email=secret)),
        counter("orders.of.people", value(1.0, at=9)),
    )
    (point,) = found.points
    labels = dict(point.labels)
    assert (labels["http_route"], labels["http_request_method"]) == ("/u/{id}", "GET")
    assert (secret not in repr(found.points), found.unused) == (True, 1)


def test_two_libraries_that_count_alike_are_two_streams() -> None:
    content = export(requests(observed([1, 0, 0, 0], at=9)), scope="a")
    content["resourceMetrics"][0]["scopeMetrics"] += export(requests(observed([2, 0, 0, 0], at=9)), scope="b")[
        "resourceMetrics"
    ][0]["scopeMetrics"]
    (found,) = exposition.resources(json.dumps(content).encode(), content_type=JSON)
    points = exposition.points(found, keep=dialects.allowlist(None, b"salt")).points
    assert len({point.labels for point in points}) == 2


# --- Right or refused --------------------------------------------------------------------------------------------

REFUSED = {
    "no time": (requests(observed([1, 0, 0, 0], at=0)), exposition.NO_TIME),
    "counts that don't add up": (requests({**observed([1, 0, 0, 0], at=9), "count": "2"}), exposition.BROKEN),
    "bounds that fall": (
        requests({**observed([1, 0, 0, 0], at=9), "explicitBounds": [1.0, 0.1, 2.0]}),
        exposition.BROKEN,
    ),
    "a bound too many": (requests({**observed([1, 0, 0], at=9)}), exposition.BROKEN),
    "a counter that is no number": (counter("process.cpu.time", value("NaN", at=9)), exposition.NO_NUMBER),
    "a counter below zero": (counter("process.cpu.time", value(-1.0, at=9)), exposition.NO_NUMBER),
    "a counter without end": (counter("process.cpu.time", value("Infinity", at=9)), exposition.NO_NUMBER),
    "no temporality": (counter("process.cpu.time", value(1.0, at=9), temporality=0), exposition.NO_TEMPORALITY),
    "a delta of a level": (
        counter("process.memory.usage", value(1.0, at=9), monotonic=False, temporality=DELTA, unit="By"),
        exposition.DELTA_LEVEL,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_cannot_be_right(case: str) -> None:
    metric, reason = REFUSED[case]
    found = batch(metric)
    assert (found.points, dict(found.refused)) == ([], {reason: 1})


@pytest.mark.parametrize("too_long", [{"name": "a" * 256}, {"unit": "{" * 64}])
def test_names_and_units_have_a_length(too_long: dict[str, str]) -> None:
    kept = exposed_name.cache_info().currsize
    found = batch({**requests(observed([1, 0, 0, 0], at=100)), **too_long})
    assert (found.points, found.refused) == ([], {exposition.TOO_LONG: 1})
    assert exposed_name.cache_info().currsize == kept


def test_a_level_without_a_number_has_no_value() -> None:
    memory = {"name": "process.memory.usage", "unit": "By", "gauge": {"dataPoints": [value("NaN", at=9)]}}
    (point,) = batch(memory).points
    assert (point.kind, point.numbers) == (Kind.GAUGE, ())


@pytest.mark.parametrize("body", [b"\xff", b"[]", b"null", b'{"resourceMetrics": 3}', b"[" * 5000, b'{"a": NaN'])
def test_what_is_no_export_is_refused(body: bytes) -> None:
    with pytest.raises(BadExport, match="OTLP/JSON"):
        exposition.resources(body, content_type=JSON)


def test_so_many_resources_are_taken_at_once() -> None:
    content = {"resourceMetrics": [{}] * exposition.MOST_RESOURCES}
    assert len(exposition.resources(as_protobuf(content), content_type=PROTOBUF)) == exposition.MOST_RESOURCES
    content["resourceMetrics"].append({})
    with pytest.raises(TooLarge, match="resources"):
        exposition.resources(as_protobuf(content), content_type=PROTOBUF)


def test_large_json_is_refused() -> None:
    with pytest.raises(TooLarge):
        exposition.resources(b" " * (exposition.LARGEST_JSON_BYTES + 1), content_type=JSON)


@pytest.mark.parametrize("scale", [-2, -1, 0, 1, 3, 8, 20])
def test_an_exponential_histogram_is_folded_exactly(scale: int) -> None:
    """Against the definition: every observation counted at every bound."""
    chance = np.random.default_rng(scale + 100)
    base_exponent = 2.0**-scale
    spread = 3.0 if scale < 15 else 0.0005  # an SDK keeps 160 buckets, so fine ones are close together
    values = [float(v) for v in 2.0 ** chance.uniform(-spread, spread, 400)]
    places = [math.ceil(math.log2(v) / base_exponent) - 1 for v in values]
    offset = min(places)
    counts = [0] * (max(places) - offset + 1)
    for place in places:
        counts[place - offset] += 1
    point = {
        "timeUnixNano": str(9 * S), "count": str(len(values) + 5), "zeroCount": "5", "scale": scale, "sum": sum(values),
        "positive": {"offset": offset, "bucketCounts": [str(count) for count in counts]},
    }  # fmt: skip
    metric = {"name": "http.server.request.duration", "unit": "s"}
    metric["exponentialHistogram"] = {"aggregationTemporality": CUMULATIVE, "dataPoints": [point]}  # type: ignore[assignment]
    (found,) = batch(metric).points
    *cumulative, count, total = found.numbers
    assert cumulative == [5 + sum(v <= bound for v in values) for bound in found.bounds]
    assert (count, total) == (405.0, sum(values))
    wide = {**point, "zeroThreshold": 1.0}
    metric["exponentialHistogram"]["dataPoints"] = [wide]  # type: ignore[index]
    assert dict(batch(metric).refused) == {exposition.NOT_EXACT: 1}


# --- What they add up to -----------------------------------------------------------------------------------------


def test_a_cumulative_stream_counts_what_is_new_and_a_repetition_nothing() -> None:
    sender = Sender()
    for at, count in ((10, 100), (70, 160), (70, 160), (10, 100), (130, 160)):
        sender.send(requests(observed([count, 0, 0, 0], at=at)), now=at)
    assert sender.total() == 160


def test_a_restart_counts_from_zero_even_when_it_is_higher_again() -> None:
    sender = Sender()
    sender.send(requests(observed([100, 0, 0, 0], at=10)), now=10)
    sender.send(requests(observed([150, 0, 0, 0], at=70, start=20)), now=70)
    assert sender.total() == 250
    sender.send(requests(observed([30, 0, 0, 0], at=130, start=0)), now=130)  # and one that does not say when it began
    assert sender.total() == 280


def test_a_restart_that_says_when_it_began_counts_nothing_twice() -> None:
    def began(moment: float, *, at: int) -> dict[str, Any]:
        points = [{"timeUnixNano": str(at * S), "asDouble": moment}]
        return {"name": "process.start.time", "unit": "s", "gauge": {"dataPoints": points}}

    sender = Sender()
    sender.send(requests(observed([1000, 0, 0, 0], at=100, start=1)), began(1.0, at=100), now=100.0)
    before = streams.snapshot(sender.state)
    sender.send(requests(observed([7, 0, 0, 0], at=160, start=130)), began(130.0, at=160), now=160.0)
    did = derive.compare(before, streams.snapshot(sender.state))
    assert sum(flow.requests for flow in did.flows.values()) == 7


def test_delta_adds_up_and_is_counted_once() -> None:
    sender = Sender()
    for start, at, count in ((1, 10, 5), (10, 70, 7), (10, 70, 7), (70, 130, 2)):
        sender.send(requests(observed([count, 1, 0, 0], at=at, start=start), temporality=DELTA), now=at)
    assert sender.total() == 17
    late = sender.send(requests(observed([9, 0, 0, 0], at=80, start=75), temporality=DELTA), now=131)
    assert (sender.total(), dict(late.refused)) == (17, {streams.OLD: 1})


@pytest.mark.parametrize("temporality", [DELTA, CUMULATIVE])
def test_two_processes_that_send_as_one_are_refused(temporality: int) -> None:
    sender = Sender()
    for turn in range(4):
        for start in (1, 2):
            at = 10 + 60 * turn + start
            begin = start if temporality == CUMULATIVE else max(1, at - 60)
            point = observed([100 * start, 0, 0, 0], at=at, start=begin)
            sender.send(requests(point, temporality=temporality), now=at)
    assert sender.state.is_contested(200.0)
    assert not sender.state.is_contested(800.0)


def test_a_change_of_temporality_loses_an_interval_and_counts_none_twice() -> None:
    sender = Sender()
    sender.send(requests(observed([50, 0, 0, 0], at=10)), now=10)
    sender.send(requests(observed([4, 0, 0, 0], at=70, start=10), temporality=DELTA), now=70)
    assert sender.total() == 54
    sender.send(requests(observed([60, 0, 0, 0], at=130)), now=130)
    sender.send(requests(observed([66, 0, 0, 0], at=190)), now=190)
    assert sender.total() == 60


def test_what_has_no_value_any_more_goes_and_what_counts_may_come_back() -> None:
    sender = Sender()
    memory = {"name": "process.memory.usage", "unit": "By", "gauge": {"dataPoints": [value(5.0, at=10)]}}
    sender.send(memory, requests(observed([50, 0, 0, 0], at=10)), now=10)
    assert sender.total("process_memory_usage_bytes") == 5.0
    gone = {"startTimeUnixNano": str(S), "timeUnixNano": str(70 * S), "flags": 1}
    memory["gauge"] = {"dataPoints": [gone]}
    end = {**gone, "attributes": observed([0, 0, 0, 0], at=1)["attributes"]}
    sender.send(memory, requests(end), now=70)
    assert (sender.total("process_memory_usage_bytes"), sender.total()) == (0, 50)
    sender.send(requests(observed([53, 0, 0, 0], at=130)), now=130)
    assert sender.total() == 53


def test_a_clock_that_was_set_back_begins_anew_after_a_while() -> None:
    sender = Sender()
    sender.send(requests(observed([50, 0, 0, 0], at=100_000)), now=10)
    sender.send(requests(observed([60, 0, 0, 0], at=500)), now=70)
    assert (sender.total(), sender.state.at_ns) == (50, 100_000 * S)
    sender.send(requests(observed([90, 0, 0, 0], at=900)), now=400)
    assert sender.state.at_ns == 900 * S


def test_a_histogram_that_becomes_coarser_is_exact_where_it_can_be() -> None:
    sender = Sender()
    sender.send(requests(observed([1, 2, 3, 4], at=10)), now=10)
    coarse = {**observed([7, 9], at=70), "explicitBounds": [1.0]}
    sender.send(requests(coarse), now=70)
    buckets = streams.snapshot(sender.state).get("http_server_request_duration_seconds_bucket")
    assert sorted(buckets.values()) == [7, 16]


def test_there_is_room_for_so_many_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MOST_NUMBERS", 20)
    sender = Sender()
    routes = (observed([1, 0, 0, 0], at=9, http__route=f"/r{letter}") for letter in "abcdefghi")
    added = sender.send(requests(*routes), now=9)
    assert (added.counted, dict(added.refused)) == (3, {streams.NO_ROOM: 6})


def test_streams_of_another_version_are_no_streams() -> None:
    for body in (b"", b"x", streams.zlib.compress(b"{}"), streams.zlib.compress(b'{"version": 99}')):
        with pytest.raises(ValueError, match="not"):
            streams.unpack(body)


@pytest.mark.parametrize("temporality", [DELTA, CUMULATIVE])
def test_gives_the_signals_that_a_scrape_of_the_same_service_gives(temporality: int) -> None:
    """One service, sent and scraped: the same readings to the last digit."""
    chance = np.random.default_rng(7)
    was = np.zeros((2, 4), int)
    sender, sent, scraped = Sender(), [], []
    keep = dialects.allowlist(None, b"salt")
    for at in (60, 120):
        now = was + chance.integers(0, 50, (2, 4))
        shown = now - was if temporality == DELTA else now
        start = max(1, at - 60) if temporality == DELTA else 1
        sender.send(
            requests(
                *(
                    observed(row.tolist(), at=at, start=start, total=float(row.sum()), http__response__status_code=code)
                    for row, code in zip(shown, (200, 500), strict=True)
                ),
                temporality=temporality,
            ),
            now=at,
        )
        lines = []
        for row, code in zip(now, (200, 500), strict=True):
            name = "http_server_request_duration_seconds"
            labels = f'http_route="/a",http_request_method="GET",http_response_status_code="{code}"'
            lines += [
                f'{name}_bucket{{{labels},le="{bound}"}} {count}'
                for bound, count in zip([*BOUNDS, "+Inf"], row.cumsum(), strict=True)
            ]
            lines += [f"{name}_sum{{{labels}}} {row.sum()}", f"{name}_count{{{labels}}} {row.sum()}"]
        sent.append(streams.snapshot(sender.state))
        scraped.append(prometheus.parse("\n".join(lines) + "\n", at=float(at), keep=keep))
        was = now
    told = [set(derive.readings(derive.compare(*pair))) for pair in (sent, scraped)]
    assert told[0] == told[1]
    assert {"requests_per_second", "error_ratio", "latency_p95_ms"} <= {one.signal for one in told[0]}


CONVENTIONS = {
    "server": ("http.server.request.duration", "s", {"http__route": "/a"}, "latency_mean_ms", 20.0),
    "server, old": ("http.server.duration", "ms", {"http__route": "/a"}, "latency_mean_ms", 0.02),
    "client": ("http.client.request.duration", "s", {"server__address": "b"}, "dependency_latency_mean_ms", 20.0),
    "client, old": ("http.client.duration", "ms", {"net__peer__name": "b"}, "dependency_latency_mean_ms", 0.02),
    "database": ("db.client.operation.duration", "s", {"db__system__name": "pg"}, "dependency_latency_mean_ms", 20.0),
}


@pytest.mark.parametrize("case", CONVENTIONS)
def test_conventions_new_and_old_give_the_usual_signals(case: str) -> None:
    name, unit, labels, signal, expected = CONVENTIONS[case]
    sender, seen = Sender(), []
    for at in (60, 120):
        point = observed([50 * at // 60, 0, 0, 0], at=at, total=at / 60)
        point["attributes"] = attributes(**labels)
        sender.send({**requests(point), "name": name, "unit": unit}, now=at)
        seen.append(streams.snapshot(sender.state))
    found = {reading.signal: reading.value for reading in derive.readings(derive.compare(*seen))}
    assert found[signal] == pytest.approx(expected)


def test_a_process_tells_what_it_uses() -> None:
    sender, seen = Sender(), []
    for at in (60, 120):
        levels = {"process.memory.usage": ("By", 5e7), "process.thread.count": ("{thread}", 9.0)}
        levels["process.unix.file_descriptor.count"] = ("{file_descriptor}", 7.0)
        levels["http.server.active_requests"] = ("{request}", 2.0)
        modes = [
            value(at / 6 * part, at=at, attributes=attributes(cpu__mode=m)) for m, part in (("user", 2), ("system", 1))
        ]
        gauges = [
            counter(name, value(number, at=at), monotonic=False, unit=unit) for name, (unit, number) in levels.items()
        ]
        sender.send(counter("process.cpu.time", *modes), *gauges, now=at)
        seen.append(streams.snapshot(sender.state))
    found = {reading.signal: reading.value for reading in derive.readings(derive.compare(*seen))}
    assert found == {
        "cpu_percent": pytest.approx(50.0), "memory_bytes": 5e7, "threads": 9.0, "open_fds": 7.0,
        "requests_in_flight": 2.0,
    }  # fmt: skip
