"""Series that stay in a Prometheus: the same signals as scraped, from a small twin and from a real one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from monitoring import dialects, reading
from monitoring.addresses import Approval, Approved
from monitoring.collecting import collect
from monitoring.derive import compare, quantile, readings
from monitoring.manifest import Metrics, parse
from monitoring.promql import Interval, PromQL
from monitoring.scraping import ScrapeFailed, open_client
from runerogue.stack.ports import next_free
from tests.monitoring.factories import MANIFEST, T0, ServiceFactory, TargetFactory, approve_loopback

Vector = list[tuple[dict[str, str], float]]
NAME = "http_request_duration_seconds"
ROUTE = {"handler": "/things/17", "method": "GET"}


class Twin(BaseHTTPRequestHandler):
    """Answers queries from a table: a pattern of the query → what it gives, or a whole answer (status, body)."""

    table: ClassVar[list[tuple[str, Vector | tuple[int, bytes]]]] = []
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)["query"][0]
        self.asked.append(query)
        found = next((answer for pattern, answer in self.table if re.search(pattern, query)), [])
        if isinstance(found, tuple):
            status, body = found
        else:
            result = [{"metric": labels, "value": [0, str(value)]} for labels, value in found]
            status, body = (
                200,
                json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode(),
            )
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


LOOPBACK = Approved.of(Approval("127.0.0.1", None, True), Approval("localhost", None, True))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Twin)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


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
        ([("", (200, b'{"status":"success","data":{"resultType":"matrix","result":[]}}'))], "something else"),
        ([("", (200, b'{"status":"success","data":{"resultType":"vector","result":[{}]}}'))], "something else"),
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


# --- A real Prometheus -------------------------------------------------------------------------------------------

BINARY = os.environ.get("PROMETHEUS_BINARY") or shutil.which("prometheus")


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Starts Prometheus on a folder that `promtool` filled from OpenMetrics text, and gives its address."""
    if not BINARY or not (promtool := shutil.which("promtool", path=f"{Path(BINARY).parent}:{os.defpath}")):
        pytest.skip("prometheus is not installed: apt-get install prometheus, or set PROMETHEUS_BINARY")
    started: list[subprocess.Popen[bytes]] = []

    def start(text: str) -> str:
        (tmp_path / "history").write_text(text)
        (tmp_path / "prometheus.yml").write_text("global: {}\n")
        fill = [
            promtool,
            "tsdb",
            "create-blocks-from",
            "openmetrics",
            str(tmp_path / "history"),
            str(tmp_path / "data"),
        ]
        subprocess.run(fill, check=True, capture_output=True, timeout=60)
        address = f"127.0.0.1:{next_free('127.0.0.1', 19190)}"
        options = (f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}")
        command = [str(BINARY), *options, f"--web.listen-address={address}", "--storage.tsdb.retention.time=10y"]
        with (tmp_path / "log").open("wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        for _ in range(600):
            try:
                if httpx.get(f"http://{address}/-/ready", trust_env=False).status_code == 200:
                    return f"http://{address}"
            except httpx.HTTPError:
                pass
            assert started[0].poll() is None, (tmp_path / "log").read_text()
            threading.Event().wait(0.05)
        raise AssertionError((tmp_path / "log").read_text())

    yield start
    for server in started:
        server.terminate()
        server.wait(timeout=30)


def history(until: int) -> str:
    """Ten minutes of samples, 15 s apart: each second one request of 0.05 s, and each fifth one of 1.5 s more."""
    buckets: dict[str, list[str]] = {}
    for moment in range(until - 600, until + 1, 15):
        fast, slow = moment - until + 600, (moment - until + 600) // 5
        for name, labels, value in (
            (f"{NAME}_bucket", ',le="0.1"', fast),
            (f"{NAME}_bucket", ',le="0.5"', fast),
            (f"{NAME}_bucket", ',le="2.0"', fast + slow),
            (f"{NAME}_bucket", ',le="+Inf"', fast + slow),
            (f"{NAME}_sum", "", fast * 0.05 + slow * 1.5),
            (f"{NAME}_count", "", fast + slow),
        ):
            row = f'{name}{{job="shop",route="/things/:id",method="GET",status_code="200"{labels}}} {value} {moment}'
            buckets.setdefault(NAME, []).append(row)
        buckets.setdefault("up", []).append(f'up{{job="shop"}} 1 {moment}')
    kinds = {NAME: "histogram", "up": "gauge"}
    blocks = []
    for name, rows in buckets.items():
        # One series after the other, as OpenMetrics wants it.
        rows.sort(key=lambda row: (row.rsplit(" ", 2)[0].replace('"+Inf"', '"9"'), int(row.rsplit(" ", 1)[1])))
        blocks.append(f"# TYPE {name} {kinds[name]}\n" + "\n".join(rows))
    return "\n".join(blocks) + "\n# EOF\n"


def test_a_real_prometheus_agrees(prometheus: Callable[[str], str]) -> None:
    until = int(datetime.now(UTC).timestamp()) - 3600
    address = prometheus(history(until))
    with open_client(10.0, LOOPBACK) as client:
        api = PromQL(client, address, 'job="shop"', 120.0, 10.0)
        found = api.read(at=float(until), dialect=None, keep=dialects.allowlist(None, b"salt"))
    traffic = compare(found.before, found.after)
    (flow,) = traffic.flows.values()
    given = {r.signal: r.value for r in readings(traffic) if dict(r.labels).get("endpoint") == "/things/:id"}
    assert given["requests_per_second"] == pytest.approx(1.2, rel=0.02)
    assert given["latency_mean_ms"] == pytest.approx(1000 * (0.05 + 0.3) / 1.2, rel=0.02)
    assert found.up == 1.0
    for q in (0.5, 0.9, 0.99):
        query = f"histogram_quantile({q}, sum by (le) (rate({NAME}_bucket[120s])))"
        said = httpx.get(f"{address}/api/v1/query", params={"query": query, "time": str(until)}, trust_env=False).json()
        assert quantile(q, flow.latency) == pytest.approx(float(said["data"]["result"][0]["value"][1]))
    with open_client(10.0, LOOPBACK) as client, pytest.raises(ScrapeFailed, match="fewer than two samples in 10 s"):
        PromQL(client, address, "", 10.0, 10.0).read(at=float(until), dialect=None, keep=dialects.allowlist(None))
    with open_client(10.0, LOOPBACK) as client, pytest.raises(ScrapeFailed, match="no series that RuneRogue knows"):
        PromQL(client, address, 'job="other"', 60.0, 10.0).read(
            at=float(until), dialect=None, keep=dialects.allowlist(None)
        )
    with open_client(10.0, LOOPBACK) as client, pytest.raises(ScrapeFailed, match="The query was refused: bad_data"):
        PromQL(client, address, 'job="', 60.0, 10.0).read(at=0.0, dialect=None, keep=dialects.allowlist(None))
