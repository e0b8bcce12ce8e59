"""A Prometheus to ask: one that answers from a table, and a real one with a history of 32 hours."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from monitoring import reading
from monitoring.addresses import Approval, Approved
from monitoring.manifest import parse
from monitoring.models import Service, Target
from tests.monitoring.factories import MANIFEST, ServiceFactory, TargetFactory, approve_loopback

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


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Twin)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


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


@pytest.fixture(scope="session")
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
