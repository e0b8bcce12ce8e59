"""Reading the text format: right, or refused with a reason."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from monitoring import prometheus
from monitoring.derive import compare, readings
from monitoring.dialects import DIALECTS, allowlist
from monitoring.prometheus import Clock, NotPrometheus, Snapshot, pack, parse, unpack

TEXT = """# HELP http_total Requests.
# TYPE http_total counter
http_total{view="a",code="200"} 5
http_total{view="b \\"quoted\\"",code="500"} 1e3
process_start_time_seconds 1.7e9
"""


def test_reads_names_labels_and_values() -> None:
    snapshot = parse(TEXT, at=3.0)
    assert snapshot.at == 3.0
    assert snapshot.get("http_total") == {
        (("code", "200"), ("view", "a")): 5.0,
        (("code", "500"), ("view", 'b "quoted"')): 1000.0,
    }
    assert snapshot.only("process_start_time_seconds") == 1.7e9
    assert snapshot.only("http_total") is None
    assert snapshot.get("unknown") == {}


def test_keeps_only_what_is_wanted() -> None:
    assert set(parse(TEXT, at=0.0, keep=lambda name, labels: labels if name == "http_total" else None).values) == {
        "http_total"
    }


def test_leaves_nan_out_and_keeps_infinity() -> None:
    snapshot = parse("a NaN\nb +Inf\n", at=0.0)
    assert snapshot.values == {"b": {(): math.inf}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no metrics"),
        ("# only a comment\n", "no metrics"),
        ("<!doctype html><html></html>", "web page"),
        ("http_total{view=", "not Prometheus text"),
        ("http_total five\n", "not Prometheus text"),
        ('a{x="1"} 1\na{x="1"} 2\n', "there twice"),
        ("a 1\n" + "#" * (prometheus.LARGEST_BYTES), "larger than"),
        ("".join(f'a{{x="{n}"}} 1\n' for n in range(prometheus.MOST_SERIES + 1)), "more than 100,000 series"),
    ],
    ids=["empty", "comment", "html", "cut off", "no number", "duplicate", "too large", "too many"],
)
def test_refuses_what_cannot_be_trusted(text: str, reason: str) -> None:
    with pytest.raises(NotPrometheus, match=reason):
        parse(text, at=0.0)


def test_reads_openmetrics_too() -> None:
    text = '# TYPE http counter\nhttp_total{code="200"} 5 # {trace_id="x"} 1.0\n# EOF\n'
    assert parse(text, at=0.0, openmetrics=True).get("http_total") == {(("code", "200"),): 5.0}


def test_packing_loses_nothing() -> None:
    snapshot = Snapshot.of(1.5, {"a": {(("x", "é"),): 0.1, (): math.inf}}, Clock("b", 3.25))
    again = unpack(pack(snapshot))
    assert (again.at, again.values, again.clock) == (snapshot.at, snapshot.values, snapshot.clock)


def test_understands_what_the_real_client_writes() -> None:
    registry = CollectorRegistry()
    latency = Histogram(DIALECTS[0].latency, "…", ["view", "method"], registry=registry)
    responses = Counter(DIALECTS[0].responses, "…", ["status", "view", "method"], registry=registry)

    def serve(seconds: float) -> None:
        latency.labels("players", "GET").observe(seconds)
        responses.labels("200", "players", "GET").inc()

    serve(5.0)
    before = parse(generate_latest(registry).decode(), at=0.0, keep=allowlist(None))
    for _ in range(20):
        serve(0.02)
    after = parse(generate_latest(registry).decode(), at=10.0, keep=allowlist(None))
    found = {r.signal: r.value for r in readings(compare(before, after)) if ("endpoint", "players") in r.labels}
    assert found["requests_per_second"] == pytest.approx(2.0)
    assert 10.0 <= found["latency_p95_ms"] <= 25.0
    assert found["latency_mean_ms"] == pytest.approx(20.0)
