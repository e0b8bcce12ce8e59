"""Reading the text format: right, or refused with a reason. What is fast is compared with prometheus_client."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

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
    found = parse(TEXT, at=0.0, keep=lambda name, labels: labels[:1] if name == "http_total" else None)
    assert found.values == {"http_total": {(("code", "200"),): 5.0, (("code", "500"),): 1000.0}}


def test_leaves_nan_out_and_keeps_infinity() -> None:
    snapshot = parse("a NaN\nb +Inf\n", at=0.0)
    assert snapshot.values == {"b": {(): math.inf}}


A = {(): 5.0}
LABELLED = {(("x", "1"),): 5.0}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a 5", A),
        ("a 5\r\n", A),
        ("\n\n  a\t5  \n", A),
        ("a 5 1700000000000\n", A),
        ("a{} 5\n", A),
        ("a 5\n# EOF\n", A),
        ("# a comment } 7\n#a 9\na 5\n", A),
        ('a{x="1"}5\n', LABELLED),
        ('a {x="1",} 5 -3\n', LABELLED),
        ('a{ x = "1" } 5\n', LABELLED),
        ('a{x="1"} 5 # {trace_id="} 9"} 0.5 1.7e9\n', LABELLED),
        ('a{x="} 7"} 5\n', {(("x", "} 7"),): 5.0}),
        ('a{x="\\\\\\"\\n"} 5\n', {(("x", '\\"\n'),): 5.0}),
        ('a{x="{y=\\"2\\"} 3 # {"} 5\n', {(("x", '{y="2"} 3 # {'),): 5.0}),
        ('a{x="é ٣"} 5\n', {(("x", "é ٣"),): 5.0}),
        ("a 0x10\n", None),
        ("a 1_000\n", None),
        ("a ٣\n", None),
        ("a 5 6 7\n", None),
        ("a 5 soon\n", None),
        ("a five\n", None),
        ("a\n", None),
        ("a{x=1} 5\n", None),
        ('a{x="1} 5\n', None),
        ('a{x="1",x="2"} 5\n', None),
        ('a{x="1"} 5 # soon\n', None),
        ("1a 5\n", None),
        ("é 5\n", None),
    ],
)
def test_a_line_is_right_or_refused(text: str, found: dict[prometheus.Labels, float] | None) -> None:
    for _ in range(2):  # the second time it is remembered
        if found is None:
            with pytest.raises(NotPrometheus, match="not Prometheus text"):
                parse(text, at=0.0)
        else:
            assert parse(text, at=0.0).values == {"a": found}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no metrics"),
        ("# only a comment\n", "no metrics"),
        ("<!doctype html><html></html>", "web page"),
        ("http_total{view=", "not Prometheus text"),
        ('a{x="1"} 1\na{x="1"} 2\n', "there twice"),
        ('a{x="1",y="2"} 1\na{y="2",x="1"} 2\n', "there twice"),
        ("a 1\na{} 1\n", "there twice"),
        ("a 1\n" + "#" * (prometheus.LARGEST_BYTES), "larger than"),
        ("".join(f'a{{x="{n}"}} 1\n' for n in range(prometheus.MOST_SERIES + 1)), "more than 100,000 series"),
    ],
    ids=["empty", "comment", "html", "cut off", "duplicate", "duplicate in other words", "braces", "large", "too many"],
)
def test_refuses_what_cannot_be_trusted(text: str, reason: str) -> None:
    with pytest.raises(NotPrometheus, match=reason):
        parse(text, at=0.0)


def test_no_reason_quotes_a_label() -> None:
    for text in ('a{mail="alice@example.org"} x\n', 'a{m="alice@example.org",m="2"} 1\n', 'a{m="alice"} 1\n' * 2):
        with pytest.raises(NotPrometheus) as refused:
            parse(text, at=0.0)
        assert "alice" not in str(refused.value)


def test_openmetrics_that_is_cut_off_is_refused() -> None:
    text = '# TYPE http counter\nhttp_total{code="200"} 5 # {trace_id="x"} 1.0\nhttp_created{code="200"} 1.7e9\n'
    found = parse(text + "# EOF\n", at=0.0, openmetrics=True)
    assert found.get("http_total") == {(("code", "200"),): 5.0}
    for cut in ("", "# EO", "# EOF\nhttp_total 6\n"):
        with pytest.raises(NotPrometheus, match="a part is missing"):
            parse(text + cut, at=0.0, openmetrics=True)


# --- Against prometheus_client -----------------------------------------------------------------------------------

HOSTILE = ['"', "\\", "{", "}", " ", ",", "=", "#", "\t", "é", "x", "1", "_", "\\n", '\\"', "a{", "} 5", " # {", "e"]
VALUES = [
    "0",
    "1",
    "5.5",
    "-3",
    "1e9",
    "+Inf",
    "-Inf",
    "NaN",
    "1_0",
    "0x1",
    "٣",
    "1e",
    "1e400",
    ".5",
    "5.",
    "nan",
    "infinity",
    "+",
    "007",
    "1\x0b",
]


def slow(text: str, families: Callable[[str], object] = parse_text) -> dict[tuple[str, prometheus.Labels], float]:
    """As prometheus_client reads it, without comments: types rename counters there."""
    lines = [line for line in text.split("\n") if not line.strip().startswith("#")]
    if families is not parse_text:
        lines = text.split("\n")
    found: dict[tuple[str, prometheus.Labels], float] = {}
    for family in families("\n".join(lines)):  # type: ignore[attr-defined]
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            if key in found:
                raise ValueError("twice")
            found[key] = float(sample.value)
    return {key: value for key, value in found.items() if not math.isnan(value)}


def fast(text: str, *, openmetrics: bool = False) -> dict[tuple[str, prometheus.Labels], float]:
    values = parse(text, at=0.0, openmetrics=openmetrics).values
    return {(name, labels): value for name, series in values.items() for labels, value in series.items()}


def random_line(dice: random.Random) -> str:
    def noise(most: int) -> str:
        return "".join(dice.choice(HOSTILE) for _ in range(dice.randint(0, most)))

    def quoted() -> str:
        text = noise(4) if dice.random() < 0.2 else dice.choice(("a", "b", "1", "} 5", "# ", ""))
        return text if dice.random() < 0.1 else escaped(text)

    labels = ",".join(
        f'{dice.choice("xyz")}{dice.choice(("=", "=", "=", " = "))}"{quoted()}"' for _ in range(dice.randint(0, 3))
    )
    line = dice.choice(("a", "b", "a_total", "c:d", "", "1")) if dice.random() < 0.3 else dice.choice("abcdefg")
    line += f"{{{labels}}}" if dice.random() < 0.7 else ""
    value = dice.choice(VALUES) if dice.random() < 0.2 else f"{dice.randint(-5, 500)}"
    line += dice.choice((" ", " ", " ", "\t", "  ", "")) + value
    line += dice.choice(("", "", "", "", " 1700000000000", " x", "\r", "  ", ' # {t="1"} 5'))
    if dice.random() < 0.05:
        place = dice.randint(0, len(line))
        line = line[:place] + dice.choice(HOSTILE) + line[place:]
    return line


def test_what_is_fast_reads_what_is_slow_reads() -> None:
    dice = random.Random(11)
    read = refused = 0
    for _ in range(6000):
        text = "\n".join(random_line(dice) for _ in range(dice.randint(1, 3))) + dice.choice(("\n", ""))
        try:
            found = fast(text)
        except NotPrometheus:
            refused += 1
            continue
        assert found == slow(text), repr(text)
        assert fast(text) == found, "remembered"
        read += 1
    assert read > 1000
    assert refused > 1000


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def test_nothing_usual_is_refused() -> None:
    dice = random.Random(12)
    for _ in range(500):
        lines = {}
        for _ in range(dice.randint(1, 30)):
            pairs = [
                (name, "".join(dice.choice('ab"\\\n{} é#=,') for _ in range(5))) for name in "xyz"[dice.randint(0, 3) :]
            ]
            shown = ",".join(f'{name}="{escaped(value)}"' for name, value in pairs)
            lines[f"{dice.choice('abc')}{{{shown}}}"] = dice.choice(("1", "2.5", "+Inf", "NaN", "1e-9"))
        text = "# TYPE a gauge\n" + "".join(f"{key} {value}\n" for key, value in lines.items())
        assert fast(text) == slow(text)


@pytest.mark.parametrize("generate", [generate_latest, generate_openmetrics], ids=["text", "openmetrics"])
def test_reads_all_that_the_client_writes(generate: Callable[[CollectorRegistry], bytes]) -> None:
    registry = CollectorRegistry()
    histogram = Histogram("seconds", 'He said: "no\\', ["route"], registry=registry)
    counter = Counter("things", "…", ["kind"], registry=registry)
    for number in range(40):
        histogram.labels(f'/{number % 5}"\\').observe(number / 10, exemplar={"trace_id": f"{number}"})
        counter.labels("\n}").inc()
    text = generate(registry).decode()
    if is_openmetrics := generate is generate_openmetrics:
        assert fast(text, openmetrics=is_openmetrics) == slow(text, parse_openmetrics)
    else:
        assert fast(text) == slow(text)


def test_a_body_of_a_hundred_thousand_lines_is_read() -> None:
    count = prometheus.MOST_SERIES
    text = "".join(f'{"a" if number % 10 else "b"}{{x="{number}"}} {number}\n' for number in range(count))
    found = parse(text, at=0.0, keep=lambda name, labels: labels if name == "b" else None)
    assert len(found.numbers) == count / 10
    assert found.numbers.sum() == sum(range(0, count, 10))


def test_what_is_remembered_is_bounded() -> None:
    memory: prometheus._Memory[int, str] = prometheus._Memory(100)
    for number in range(1000):
        memory.put(number, "x", 7)
    assert memory.weight <= 100
    assert memory.weight == 7 * len(memory.kept)
    assert memory.get(999) == "x"
    assert memory.get(0) is None


# --- Packing -----------------------------------------------------------------------------------------------------


def test_packing_loses_nothing() -> None:
    snapshot = Snapshot.of(1.5, {"a": {(("x", "é"),): 0.1, (): math.inf}, "b": {}}, Clock("boot", 3.25))
    again = unpack(pack(snapshot))
    assert (again.at, again.values, again.clock) == (1.5, snapshot.values, snapshot.clock)
    assert again.layout is unpack(pack(snapshot)).layout, "the same series are compared as a whole"


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b[:9], lambda b: b"", lambda b: b"x" + b[1:]])
def test_what_is_damaged_is_not_unpacked(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack(damage(pack(parse(TEXT, at=0.0))))


def test_a_snapshot_can_have_metrics_replaced() -> None:
    snapshot = parse(TEXT, at=0.0)
    for value in (7.0, 8.0):
        other = snapshot.replacing({"http_total": {(): value}, "new": {(): 1.0}})
        assert other.values == {"process_start_time_seconds": {(): 1.7e9}, "http_total": {(): value}, "new": {(): 1.0}}
    assert np.array_equal(snapshot.numbers, parse(TEXT, at=0.0).numbers)


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
