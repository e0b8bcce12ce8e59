"""Series that stay in a Prometheus: the same signals as scraped, from a small twin and from a real one."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError
from django.test import Client

from approvals.models import AuditEntry
from monitoring import backfilling, baselining, dialects, reading, registry, storing
from monitoring.addresses import Approval, Approved
from monitoring.collecting import collect
from monitoring.derive import Reading, compare, quantile, readings
from monitoring.manifest import Metrics, parse
from monitoring.models import Backfill, ExternalService, HealthScore, Round, Service, Status, Target, labels_key
from monitoring.promql import Grid, Interval, PromQL
from monitoring.scraping import ScrapeFailed, open_client
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
            asked = float(parse_qs(urlsplit(self.path).query)["start"][0])
            result = [{"metric": labels, "values": [[asked, str(value)]]} for labels, value in found]
            status, body = (
                200,
                json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}).encode(),
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


# --- A real Prometheus -------------------------------------------------------------------------------------------

BINARY = os.environ.get("PROMETHEUS_BINARY") or shutil.which("prometheus")
UNTIL = int(datetime(2026, 3, 3, 12, tzinfo=UTC).timestamp())  # when the history ends: by day, whenever this runs
HOURS = 32
EVERY = 30  # seconds between samples
BEFORE = 19  # the last one so many seconds before UNTIL: none is at the edge of a window of whole minutes
RESTARTED = UNTIL - 5 * 3600 - BEFORE  # its counters began again at zero
DOWN = (UNTIL - 3 * 3600, UNTIL - 3 * 3600 + 1200)  # Prometheus could not scrape it


def history() -> str:
    """One request of 0.05 s a second, and each fifth second one of 1.5 s, of which a tenth fails; at night half."""
    rows: dict[str, dict[str, list[str]]] = {NAME: {}, "up": {}, "process_open_fds": {}}

    def add(family: str, series: str, value: float, moment: int) -> None:
        rows[family].setdefault(series, []).append(f"{series} {value:g} {moment}")

    fast = slow = 0.0
    for moment in range(UNTIL - HOURS * 3600 - BEFORE, UNTIL, EVERY):
        share = 0.5 if moment % 86_400 < 6 * 3600 else 1.0
        if moment == RESTARTED:
            fast = slow = 0.0
        fast, slow = fast + EVERY * share, slow + EVERY * share / 5
        is_down = DOWN[0] <= moment < DOWN[1]
        add("up", 'up{job="shop"}', float(not is_down), moment)
        if is_down:
            continue
        add("process_open_fds", 'process_open_fds{job="shop"}', 20 + moment // 600 % 7, moment)
        route = 'job="shop",route="/things/:id",method="GET"'
        for status, part in (("200", 0.9), ("500", 0.1)):
            of = f'{route},status_code="{status}"'
            for le, value in (("0.1", fast), ("0.5", fast), ("2.0", fast + slow), ("+Inf", fast + slow)):
                add(NAME, f'{NAME}_bucket{{{of},le="{le}"}}', part * value, moment)
            add(NAME, f"{NAME}_sum{{{of}}}", part * (fast * 0.05 + slow * 1.5), moment)
            add(NAME, f"{NAME}_count{{{of}}}", part * (fast + slow), moment)
    kinds = {NAME: "histogram", "up": "gauge", "process_open_fds": "gauge"}
    blocks = []
    for family, series in rows.items():
        # One group of labels after the other, as OpenMetrics wants it.
        by_status = sorted(series, key=lambda name: ('status_code="500"' in name, name.replace("+Inf", "9")))
        blocks.append(
            f"# TYPE {family} {kinds[family]}\n" + "\n".join(row for name in by_status for row in series[name])
        )
    return "\n".join(blocks) + "\n# EOF\n"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus on a folder that `promtool` filled from OpenMetrics text."""
    if not BINARY or not (promtool := shutil.which("promtool", path=f"{Path(BINARY).parent}:{os.defpath}")):
        pytest.skip("prometheus is not installed: apt-get install prometheus, or set PROMETHEUS_BINARY")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "history").write_text(history())
    (folder / "prometheus.yml").write_text("global: {}\n")
    fill = [promtool, "tsdb", "create-blocks-from", "openmetrics", str(folder / "history"), str(folder / "data")]
    subprocess.run(fill, check=True, capture_output=True, timeout=60)
    # It takes a free port itself and logs which: of two workers that looked for one, both could find the same.
    options = (f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}")
    command = [str(BINARY), *options, "--web.listen-address=127.0.0.1:0", "--storage.tsdb.retention.time=100y"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(600):
            said = (folder / "log").read_text()
            assert server.poll() is None, said
            if found := re.search(r'msg="Listening on" address=(127\.0\.0\.1:\d+)', said):
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"http://{found[1]}/-/ready", trust_env=False).status_code == 200:
                        break
            threading.Event().wait(0.05)
        else:
            raise AssertionError((folder / "log").read_text())
        yield f"http://{found[1]}"
    finally:
        server.terminate()
        server.wait(timeout=30)


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


# --- What nobody measured ----------------------------------------------------------------------------------------


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def watched(address: str, more: str = "", **environment: str) -> Target:
    """The target of a service that is asked for at `address`."""
    approve_loopback()
    text = MANIFEST + f'[metrics]\npromql = "{address}"\nselector = \'job="shop"\'\nwindow_seconds = 120\n{more}\n'
    service = ServiceFactory(manifest=parse(text).model_dump(mode="json"), environment=environment)
    return TargetFactory(service=service, url=address)


def all_rows(service: Service, *, since: float, until: float) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(signal, labels) → (unix seconds, value) of what was measured of the service itself."""
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for value in reading.recent(moment(since), moment(until), None):
        if value.service_id == service.pk and not value.signal.startswith("scrape_"):
            rows.setdefault((value.signal, value.labels_key), []).append((value.at.timestamp(), value.value))
    return rows


@pytest.mark.django_db
def test_the_time_before_is_what_rounds_would_have_stored(prometheus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfilling, "FINE", timedelta(hours=6))
    target = watched(prometheus, "history_days = 1")
    collect(moment(UNTIL + 7), spread_seconds=0.0)
    done = backfilling.run(moment(UNTIL + 20), seconds=60.0)
    assert done is not None
    assert done.finished == (target.service,)
    row = Backfill.objects.get()
    assert row.is_done
    assert row.samples == done.samples > 5000
    assert row.oldest == backfilling.known_since(target.service) == moment(UNTIL - 24 * 3600 + 300)

    found = all_rows(target.service, since=UNTIL - 26 * 3600, until=UNTIL + 3600)
    at = [when for when, _ in found["up", "{}"]]
    # A minute apart where rules look, five before; nothing beside the round that was there.
    assert at == [
        *range(UNTIL - 24 * 3600 + 300, UNTIL - 6 * 3600 + 1, 300), *range(UNTIL - 6 * 3600 + 60, UNTIL, 60), UNTIL + 7
    ]  # fmt: skip
    restart, (down, up) = UNTIL - 5 * 3600, DOWN
    for when in (UNTIL - 60, restart, restart + 60, down, down + 60, down + 600, up, up + 60, UNTIL - 20 * 3600):
        given = {
            key: value for key, rows in all_rows(target.service, since=when, until=when).items() for _, value in rows
        }
        # Prometheus sums floats in an order of its own.
        assert given == pytest.approx(a_round(prometheus, when), rel=1e-9)
    rate = given["requests_per_second", '{"endpoint":"*","method":"*"}']
    assert rate in (pytest.approx(0.6, rel=0.02), pytest.approx(1.2, rel=0.02))  # by night, by day
    assert dict(found["up", "{}"])[down + 600] == 0.0
    assert down + 600 not in dict(found["open_fds", "{}"])


def a_round(address: str, at: float) -> dict[tuple[str, str], float]:
    """(signal, labels) → what a round that asks at exactly `at` would store."""
    with open_client(10.0, LOOPBACK) as client:
        try:
            api = PromQL(client, address, 'job="shop"', 120.0, 10.0)
            found = api.read(at=at, dialect=None, keep=dialects.allowlist(None))
        except ScrapeFailed:
            return {("up", "{}"): 0.0}
    rows = [Reading("up", (), found.up or 0.0), *readings(compare(found.before, found.after))]
    return {(row.signal, labels_key(dict(row.labels))): row.value for row in rows}


def watched_twin(target: Target) -> Target:
    """The same target of another service; the first one is measured no longer."""
    Target.objects.filter(pk=target.pk).update(active=False)
    service = ServiceFactory(manifest=target.service.manifest)
    return TargetFactory(service=service, url=target.url)


@pytest.mark.django_db
def test_a_pause_is_filled_where_the_series_are_and_stays_a_gap_elsewhere(prometheus: str) -> None:
    target = watched(prometheus, "history_days = 1")
    scraped = TargetFactory(service=ServiceFactory(), url="http://127.0.0.1:9/metrics")
    begin, end = UNTIL - 7200 + 20, UNTIL - 3600 + 20
    Backfill.objects.create(
        target=target, is_first=True, since=moment(begin), until=moment(begin), asked_at=moment(begin)
    )
    for when in (begin - 120, begin - 60, begin, end):
        Round.objects.all().delete()
        collect(moment(when), spread_seconds=0.0)
        Target.objects.filter(pk=scraped.pk).update(last_scraped_at=moment(when))  # as if it had answered
    row = Backfill.objects.get(is_first=False)
    assert (row.target, row.since, row.until) == (target, moment(begin), moment(end))

    done = backfilling.run(moment(end + 5), seconds=60.0)
    assert done is not None
    assert done.finished == ()
    assert not Backfill.objects.filter(is_first=False).exists()
    at = [when for when, _ in all_rows(target.service, since=begin - 200, until=end)["up", "{}"]]
    assert at == [begin - 120, begin - 60, begin, *range(begin + 40, end - 20, 60), end]
    counted = all_rows(target.service, since=begin, until=end)["requests_per_second", '{"endpoint":"*","method":"*"}']
    assert len(counted) == len(at) - 2
    assert [when for when, _ in all_rows(scraped.service, since=begin - 200, until=end)["up", "{}"]] == [
        begin - 120, begin - 60, begin, end
    ]  # fmt: skip


@pytest.mark.django_db
def test_a_target_that_is_removed_while_it_is_asked_has_no_pause() -> None:
    target = watched("http://127.0.0.1:9")
    target.last_scraped_at = moment(UNTIL)
    manifests = {target.service.pk: target.service.parsed}
    assert backfilling.note_pauses([target], manifests, moment(UNTIL + 600)) == 1
    Target.objects.all().delete()
    assert backfilling.note_pauses([target], manifests, moment(UNTIL + 600)) == 0


@pytest.mark.django_db
def test_what_was_asked_for_already_is_told_apart_from_nothing(prometheus: str) -> None:
    target = watched(prometheus, "history_days = 1")
    collect(moment(UNTIL), spread_seconds=0.0)
    # A round that was refused said so; what it would have measured is added, its 0 stays.
    storing.store([(target.service, Reading("up", (), 0.0))], at=moment(UNTIL - 597))
    since = moment(UNTIL - 900)
    row = Backfill.objects.create(
        target=target, is_first=True, since=since, until=moment(UNTIL), asked_at=moment(UNTIL)
    )
    first = backfilling.run(moment(UNTIL + 10), seconds=60.0)
    assert first is not None
    found = all_rows(target.service, since=UNTIL - 900, until=UNTIL - 1)
    assert len(found["open_fds", "{}"]) == 15
    assert len(found["up", "{}"]) == 15
    assert dict(found["up", "{}"])[UNTIL - 597] == 0.0
    Backfill.objects.filter(pk=row.pk).update(until=moment(UNTIL))
    again = backfilling.run(moment(UNTIL + 70), seconds=60.0)
    assert again is not None
    assert again.samples == 0
    assert all_rows(target.service, since=UNTIL - 900, until=UNTIL - 1) == found
    assert backfilling.run(moment(UNTIL + 71)) is None


@pytest.mark.django_db
def test_a_piece_that_fails_is_tried_again_and_smaller(prometheus: str, caplog: pytest.LogCaptureFixture) -> None:
    target = watched(prometheus, "history_days = 1")
    Target.objects.update(last_scraped_at=moment(UNTIL))
    ExternalService.objects.all().delete()
    caplog.clear()
    for minute in range(2):
        done = backfilling.run(moment(UNTIL + 60 * minute), seconds=60.0)
        assert done == backfilling.Run(0, ())
    row = Backfill.objects.get()
    assert (row.points, row.until) == (60, moment(UNTIL))
    assert "not an approved host" in row.problem
    assert "not an approved host" in backfilling.told(target.service)
    assert len(caplog.records) == 1
    approve_loopback()
    Backfill.objects.update(since=moment(UNTIL - 3 * 3600))
    done = backfilling.run(moment(UNTIL + 120), seconds=60.0)
    assert done is not None
    assert done.finished == (target.service,)
    row.refresh_from_db()
    assert (row.points, row.problem) == (240, "")
    assert f"known back to {moment(UNTIL - 3 * 3600):%Y-%m-%d %H:%M} UTC" in backfilling.told(target.service)


@pytest.mark.django_db
def test_a_past_that_breaks_a_run_keeps_no_other_waiting(prometheus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = watched(prometheus, "history_days = 1")
    other = TargetFactory(service=ServiceFactory(manifest=broken.service.manifest), url=prometheus)
    Target.objects.update(last_scraped_at=moment(UNTIL))
    store_past = storing.store_past

    def breaks(service: Service, found: Any) -> int:
        if service == broken.service:
            raise DatabaseError("it can't be stored")
        return store_past(service, found)

    monkeypatch.setattr(storing, "store_past", breaks)
    with pytest.raises(DatabaseError):
        backfilling.run(moment(UNTIL), seconds=60.0)
    with contextlib.suppress(DatabaseError):
        backfilling.run(moment(UNTIL + 60), seconds=60.0)
    assert Backfill.objects.get(target=other).is_done


@pytest.mark.django_db
def test_a_time_limit_ends_a_run_and_the_next_goes_on(prometheus: str) -> None:
    watched(prometheus, "history_days = 1")
    Target.objects.update(last_scraped_at=moment(UNTIL))
    assert backfilling.run(moment(UNTIL), seconds=0.0) == backfilling.Run(0, ())
    Backfill.objects.update(since=moment(UNTIL - 600))
    done = backfilling.run(moment(UNTIL + 60), seconds=60.0)
    assert done is not None
    assert done.samples > 0


@pytest.mark.django_db
def test_a_baseline_comes_with_the_time_before(prometheus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfilling, "FINE", timedelta())
    target = watched(prometheus, "history_days = 1")
    collect(moment(UNTIL), spread_seconds=0.0)
    HealthScore.objects.create(
        service=target.service, at=moment(UNTIL), score=95.0, status=Status.HEALTHY, components={}, confidence=1.0
    )
    assert baselining.refresh(moment(UNTIL + 60)) == []
    backfilling.run(moment(UNTIL + 60), seconds=60.0)
    (made,) = baselining.refresh(moment(UNTIL + 120))
    assert made.service == target.service
    assert made.since == moment(UNTIL - 24 * 3600)
    assert made.series.filter(signal="latency_p95_ms").exists()


@pytest.mark.django_db
def test_nothing_is_asked_of_others() -> None:
    TargetFactory(last_scraped_at=T0)  # scraped
    watched("http://127.0.0.1:9", "history_days = 0")  # turned off
    Target.objects.update(last_scraped_at=T0)
    moved = watched_twin(Target.objects.latest("pk"))  # asked elsewhere by now
    Backfill.objects.create(target=moved, is_first=True, since=T0, until=T0 + timedelta(hours=1))
    Target.objects.filter(pk=moved.pk).update(url="http://127.0.0.1:10")
    assert backfilling.run(T0, seconds=60.0) == backfilling.Run(0, ())
    assert not Backfill.objects.exists()


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


# --- Who asks ----------------------------------------------------------------------------------------------------

TOKEN, PASSWORD, TENANT = "tok-9f3a7c51e2", "pass:9f3a7c51e2", "team-shop"
LOGIN = base64.b64encode(f"shop:{PASSWORD}".encode()).decode()


class Guard(BaseHTTPRequestHandler):
    """A proxy before Prometheus that wants `wanted` and, where it is refused, repeats what it was sent.

    At /metrics it is a service of its own, and everything below /moved/ is elsewhere.
    """

    client: ClassVar[httpx.Client]  # one: each would read the machine's certificates
    behind: ClassVar[str] = ""
    elsewhere: ClassVar[str] = ""
    wanted: ClassVar[dict[str, str]] = {}
    refuses_with: ClassVar[tuple[int, str]] = (401, "who is {sent}?")
    seen: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        if self.path.startswith("/moved/"):
            self.answer(302, b"", location=f"{self.elsewhere}{self.path}")
        elif any(self.headers.get(name) != value for name, value in self.wanted.items()):
            status, words = self.refuses_with
            self.answer(status, words.format(sent=self.headers.get("Authorization", "this")).encode())
        elif self.path == "/metrics":
            self.answer(200, b"http_requests_inprogress 7\n")
        else:
            said = self.client.get(f"{self.behind}{self.path}")
            self.answer(said.status_code, said.content)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Guard)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setattr(Guard, "seen", [])
    with httpx.Client(trust_env=False) as client:
        monkeypatch.setattr(Guard, "client", client, raising=False)
        yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


WAYS: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "bearer": ('bearer_token_env = "T"', {"METRICS__T": TOKEN}, {"Authorization": f"Bearer {TOKEN}"}),
    "basic": ('username = "shop"\npassword_env = "T"', {"T": PASSWORD}, {"Authorization": f"Basic {LOGIN}"}),
    "tenant": (f'headers = {{X-Scope-OrgID = "{TENANT}"}}', {}, {"X-Scope-OrgID": TENANT}),
    "key": ('headers_env = {X-Api-Key = "T"}', {"T": TOKEN}, {"X-Api-Key": TOKEN}),
}


@pytest.mark.django_db
@pytest.mark.parametrize("way", WAYS)
def test_a_prometheus_that_wants_to_know_who_asks_is_told(
    way: str, guard: str, prometheus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more, environment, wanted = WAYS[way]
    monkeypatch.setattr(Guard, "behind", prometheus)
    monkeypatch.setattr(Guard, "wanted", wanted)
    target = watched(guard, f"history_days = 1\n{more}", **environment)
    other = TargetFactory(service=target.service, url=f"{guard}/metrics")
    done = collect(moment(UNTIL), spread_seconds=0.0)
    assert done is not None
    # It is told to that Prometheus and to no other target of the service.
    assert list(done.failed) == [other.pk]
    assert "wants credentials (status 401)" in done.failed[other.pk]
    Backfill.objects.create(
        target=target, is_first=True, since=moment(UNTIL - 600), until=moment(UNTIL), asked_at=moment(UNTIL)
    )
    filled = backfilling.run(moment(UNTIL + 1), seconds=60.0)
    assert filled is not None
    assert filled.samples > 0


@pytest.mark.django_db
@pytest.mark.parametrize("way", WAYS)
def test_so_is_a_service_that_is_scraped(way: str, guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    more, environment, wanted = WAYS[way]
    monkeypatch.setattr(Guard, "wanted", wanted)
    approve_loopback()
    manifest = parse(f"{MANIFEST}[metrics]\n{more}\n").model_dump(mode="json")
    service = ServiceFactory(manifest=manifest, environment=environment)
    TargetFactory(service=service, url=f"{guard}/metrics")
    done = collect(T0, spread_seconds=0.0)
    assert done is not None
    assert done.failed == {}
    assert reading.latest(service, "requests_in_flight") == 7


@pytest.mark.django_db
@pytest.mark.parametrize("at", ["promql", "metrics"])
@pytest.mark.parametrize("refuses_with", [(401, "who is {sent}?"), (500, '{{"status":"error","error":"{sent}"}}')])
@pytest.mark.parametrize("way", ["bearer", "basic"])
def test_secrets_are_nowhere_to_be_seen(
    way: str,
    refuses_with: tuple[int, str],
    at: str,
    guard: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    client: Client,
) -> None:
    more, environment, _ = WAYS[way]
    monkeypatch.setattr(Guard, "wanted", {"Authorization": "another"})
    monkeypatch.setattr(Guard, "refuses_with", refuses_with)
    caplog.set_level(logging.DEBUG)
    target = watched(guard if at == "promql" else "http://127.0.0.1:9", more, **environment)
    if at == "metrics":
        manifest = parse(f"{MANIFEST}[metrics]\n{more}\n").model_dump(mode="json")
        Service.objects.filter(pk=target.service.pk).update(manifest=manifest)
        Target.objects.filter(pk=target.pk).update(url=f"{guard}/metrics")
    done = collect(T0, spread_seconds=0.0)
    assert done is not None
    assert list(done.failed) == [target.pk]
    Target.objects.update(last_scraped_at=T0)
    backfilling.run(T0, seconds=60.0)
    assert any("authorization" in headers for headers in Guard.seen)

    client.force_login(User.objects.create_superuser("alice", password="a long one for alice"))
    pages = [
        client.get(path, {"service": target.service.name}).content.decode()
        for path in (
            f"/admin/monitoring/service/{target.service.pk}/change/",
            "/admin/monitoring/service/",
            "/health/detailed",
            "/api/v1/services/",
            "/metrics",
        )
    ]
    assert "environment" in pages[0].lower()
    rows = json.dumps([list(model.objects.values()) for model in (Target, Backfill, AuditEntry)], default=str)
    for secret in (TOKEN, PASSWORD, LOGIN):
        for text in (*pages, rows, *caplog.messages, *done.failed.values()):
            assert secret not in text


@pytest.mark.django_db
def test_a_variable_that_is_missing_is_said_so_and_nothing_is_asked(guard: str) -> None:
    target = watched(guard, 'bearer_token_env = "PROM_TOKEN"')
    done = collect(T0, spread_seconds=0.0)
    assert done is not None
    assert "metrics.bearer_token_env names the variable PROM_TOKEN" in done.failed[target.pk]
    assert Guard.seen == []


@pytest.mark.django_db
def test_a_redirect_takes_no_credentials_along(guard: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "elsewhere", address)
    monkeypatch.setattr(Twin, "asked", [])
    more, environment, _ = WAYS["bearer"]
    target = watched(f"{guard}/moved", more, **environment)
    done = collect(T0, spread_seconds=0.0)
    assert done is not None
    assert "status 302" in done.failed[target.pk]
    assert len(Guard.seen) == 1
    assert Twin.asked == []


def test_what_is_for_measuring_never_reaches_the_services_own_code() -> None:
    service = ServiceFactory.build(environment={"METRICS__T": TOKEN, "DEBUG": "0"})
    assert registry.running_environment(service) == {"DEBUG": "0"}
    assert registry.environment_for_tests(service) == {"DEBUG": "0"}
