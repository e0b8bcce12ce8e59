"""Series that stay in a Prometheus: the same signals as scraped, from a small twin and from a real one."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import httpx
import pytest

from monitoring import dialects, reading
from monitoring.collecting import collect
from monitoring.derive import compare, quantile, readings
from monitoring.manifest import Metrics, parse
from monitoring.promql import Grid, Interval, PromQL
from monitoring.scraping import ScrapeFailed, open_client
from tests.monitoring.factories import MANIFEST, T0, ServiceFactory, TargetFactory, approve_loopback
from tests.monitoring.prometheus import DOWN, LOOPBACK, NAME, ROUTE, UNTIL, Twin, Vector

# One request a second in a window of a minute: 48 of 0.05 s, 12 of 1.5 s, 6 of those failed.
SERVED: list[tuple[str, Vector | tuple[int, bytes]]] = [
    (
        "__name__=~",
        [
            ({"__name__": name}, 1.0)
            for name in (f"{NAME}_bucket", f"{NAME}_sum", f"{NAME}_count", "http_requests_total", "process_open_fds")
        ],
    ),
    (r'_count",code!=', []),
    (r'_count",status_code!=', []),
    (r'_count",handler!=', [({}, 1.0)]),
    (
        "rate.*_bucket",
        [
            ({**ROUTE, "le": le}, rate)
            for le, rate in (("0.1", 0.8), ("0.5", 0.8), ("2", 1.0), ("5", 1.0), ("+Inf", 1.0))
        ],
    ),
    ("rate.*_sum", [(ROUTE, 0.34)]),
    ("rate.*_count", [(ROUTE, 1.0)]),
    ("rate.*http_requests_total", [({**ROUTE, "status": "2xx"}, 0.9), ({**ROUTE, "status": "5xx"}, 0.1)]),
    ("process_open_fds", [({}, 24.0)]),
    ("up", [({}, 0.5)]),
]


def ask(address: str, *, selector: str = 'job="shop"', timeout_seconds: float = 5.0, window: float = 60.0) -> Interval:
    with open_client(timeout_seconds, LOOPBACK) as client:
        api = PromQL(client, address, selector, window, timeout_seconds)
        return api.read(at=1000.0, dialect=None, keep=dialects.allowlist(None, b"salt"))


def test_gives_the_signals_that_a_scrape_would(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Twin, "table", SERVED)
    monkeypatch.setattr(Twin, "asked", [])
    found = ask(address)
    given = {(r.signal, dict(r.labels).get("endpoint")): r.value for r in readings(compare(found.before, found.after))}
    assert given["requests_per_second", "/things/{id}"] == pytest.approx(1.0)
    assert given["error_ratio", "*"] == pytest.approx(0.1)
    assert given["latency_mean_ms", "*"] == pytest.approx(340.0)
    assert given["latency_p50_ms", "*"] == pytest.approx(62.5)
    assert given["latency_p95_ms", "/things/{id}"] == pytest.approx(1625.0)
    assert given["apdex", "*"] == pytest.approx(0.9)
    assert given["open_fds", None] == 24
    assert found.up == 0.5
    assert all('job="shop"' in query for query in Twin.asked)
    assert len(Twin.asked) < 15


MATRIX = b'{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"__name__":"up"},"values":%s}]}}'


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ([], "no series that RuneRogue knows"),
        (SERVED[:1], "fewer than two samples in 60 s.*window_seconds"),
        ([("", (400, b'{"status":"error","errorType":"bad_data","error":"parse error"}'))], "bad_data: parse error"),
        (
            [("", (503, b'{"status":"error","errorType":"timeout","error":"query timed out"}'))],
            "timeout: query timed out",
        ),
        ([("", (404, b"<html>"))], "status 404 and not as a Prometheus API.*Mimir"),
        ([("", (200, b"[1]"))], "not as a Prometheus API"),
        ([("", (200, b'{"status":"success","data":{"resultType":"vector","result":[]}}'))], "something else"),
        ([("", (200, b'{"status":"success","data":{"resultType":"matrix","result":[{}]}}'))], "something else"),
        ([("", (200, b'{"status":"success","data":{"resultType":"matrix","result":[5]}}'))], "something else"),
        (
            # A value for another time than was asked for.
            [("", (200, MATRIX % b'[[7, "1"]]'))],
            "something else",
        ),
        ([("", (200, MATRIX % b'[[1000, "high"]]'))], "something else"),
        ([("", (200, MATRIX % b'[[%s, "1"]]' % (b"9" * 400)))], "something else"),  # more than a float can be
        ([("", (401, b"who are you?"))], "wants credentials .status 401.*bearer_token_env"),
        ([("", (200, b'{"status":"success"}'))], "something else"),
    ],
)
def test_an_answer_that_is_no_use_is_said_so(
    address: str, table: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Twin, "table", table)
    with pytest.raises(ScrapeFailed, match=says):
        ask(address)


def test_all_queries_share_one_timeout(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Twin, "table", SERVED)
    with open_client(5.0, LOOPBACK) as client:
        api = PromQL(client, address, "", 60.0, 5.0)
        api.deadline = time.monotonic()
        with pytest.raises(ScrapeFailed, match="longer than 5 s together"):
            api.read(at=0.0, dialect=None, keep=dialects.allowlist(None))


@pytest.mark.django_db
def test_a_round_asks_and_stores(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    approve_loopback()
    monkeypatch.setattr(Twin, "table", SERVED)
    text = MANIFEST + f'[metrics]\npromql = "{address}/"\nselector = \'{{job="shop"}}\'\n'
    service = ServiceFactory(manifest=parse(text).model_dump(mode="json"))
    target = TargetFactory(service=service, url=address)
    done = collect(T0, spread_seconds=0.0)
    assert done is not None
    assert done.failed == {}
    assert reading.latest(service, "latency_p95_ms", endpoint="*") == pytest.approx(1625.0)
    assert reading.latest(service, "up") == 0.5
    target.refresh_from_db()
    assert target.last_scraped_at == T0
    monkeypatch.setattr(Twin, "table", [])
    later = collect(T0 + timedelta(minutes=1), spread_seconds=0.0)
    assert later is not None
    assert "no series" in later.failed[target.pk]
    assert reading.latest(service, "up") == 0.0


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"promql": "file:///etc/passwd"}, "address of a Prometheus API"),
        ({"promql": "http://alice:secret@prometheus"}, "address of a Prometheus API"),
        ({"selector": '{job="a"} or up'}, "does not select"),
        ({"selector": 'job="a"}) or vector(1) #'}, "does not select"),
    ],
)
def test_an_address_or_selector_that_is_none_is_refused(table: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refused:
        Metrics.model_validate(table)
    assert "secret" not in str(refused.value) or "promql" in table


def test_braces_around_the_selector_are_optional() -> None:
    for written in ('{job="a", env=~"p.*"}', 'job="a", env=~"p.*",'):
        assert Metrics.model_validate({"selector": written}).selector == 'job="a", env=~"p.*"'


def test_a_real_prometheus_agrees(prometheus: str) -> None:
    keep = dialects.allowlist(None, b"salt")
    with open_client(10.0, LOOPBACK) as client:
        api = PromQL(client, prometheus, 'job="shop"', 120.0, 10.0)
        found = api.read(at=float(UNTIL), dialect=None, keep=keep)
    traffic = compare(found.before, found.after)
    (flow,) = traffic.flows.values()
    given = {r.signal: r.value for r in readings(traffic) if dict(r.labels).get("endpoint") == "/things/:id"}
    assert given["requests_per_second"] == pytest.approx(1.2, rel=0.02)
    assert given["error_ratio"] == pytest.approx(0.1)
    assert given["latency_mean_ms"] == pytest.approx(1000 * (0.05 + 0.3) / 1.2, rel=0.02)
    assert found.up == 1.0
    for q in (0.5, 0.9, 0.99):
        query = f"histogram_quantile({q}, sum by (le) (rate({NAME}_bucket[120s])))"
        params = {"query": query, "time": str(UNTIL)}
        said = httpx.get(f"{prometheus}/api/v1/query", params=params, trust_env=False).json()
        assert quantile(q, flow.latency) == pytest.approx(float(said["data"]["result"][0]["value"][1]))
    for selector, window, says in (
        ("", 10.0, "fewer than two samples in 10 s"),
        ('job="other"', 60.0, "no series that RuneRogue knows"),
        ('job="', 60.0, "The query was refused: bad_data"),
    ):
        with open_client(10.0, LOOPBACK) as client, pytest.raises(ScrapeFailed, match=says):
            PromQL(client, prometheus, selector, window, 10.0).read(at=float(UNTIL), dialect=None, keep=keep)


def test_a_window_too_short_for_former_scrapes_leaves_a_gap_and_no_failure(prometheus: str) -> None:
    with open_client(10.0, LOOPBACK) as client:
        api = PromQL(client, prometheus, 'job="shop"', 20.0, 10.0)
        grid = Grid(DOWN[0] - 600.0, 60.0, 20)
        found = api.read_past(grid, dialect=None, keep=dialects.allowlist(None))
    # Only that Prometheus itself did not reach it is known.
    assert found
    assert {(interval.up, len(interval.after.layout.series)) for interval in found.values()} == {(0.0, 0)}
    assert min(found) == 11


@pytest.mark.parametrize(
    ("points", "refused"), [(0, True), (11_000, False), (11_001, True)], ids=["none", "most", "too many"]
)
def test_a_range_has_no_more_points_than_prometheus_gives(prometheus: str, points: int, refused: bool) -> None:
    grid = Grid(UNTIL - 60.0 * points, 60.0, points)
    with open_client(10.0, LOOPBACK) as client:
        api = PromQL(client, prometheus, 'job="other"', 120.0, 10.0)
        if refused:
            with pytest.raises(ValueError, match="1 to 11,000 points"):
                api.read_past(grid, dialect=None, keep=dialects.allowlist(None))
        else:
            assert api.read_past(grid, dialect=None, keep=dialects.allowlist(None)) == {}
