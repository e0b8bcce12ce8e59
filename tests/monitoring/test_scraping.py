"""The HTTP scraper against real servers on loopback that behave badly."""

from __future__ import annotations

import contextlib
import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from monitoring import prometheus
from monitoring.addresses import Approval, Approved
from monitoring.scraping import ScrapeFailed, Scraper

LOOPBACK = Approved.of(Approval("127.0.0.1", None, True), Approval("::1", None, True))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path
        if path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/good")
            self.end_headers()
        elif path == "/endless":
            self.start()
            while True:
                self.write(b"# " + b"x" * 65536 + b"\n")
        elif path == "/drip":
            self.start()
            for _ in range(50):
                self.write(b"# x\n")
                time.sleep(0.1)
        elif path == "/hang":
            time.sleep(3)
        elif path == "/gzip":
            self.start(("Content-Encoding", "gzip"))
            self.write(gzip.compress(b"a 1\n"))
        elif path == "/page":
            self.start()
            self.write(b"<html>")
        elif path == "/openmetrics":
            self.start(("Content-Type", "application/openmetrics-text; version=1.0.0"))
            self.write(b"process_start_time_seconds 5\n# EOF\n")
        elif path == "/good":
            self.start(("Content-Type", "text/plain"))
            self.write(b"process_start_time_seconds 5\nunused 1\n")
        else:
            self.send_error(500)

    def start(self, *headers: tuple[str, str]) -> None:
        self.send_response(200)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def write(self, body: bytes) -> None:
        self.wfile.write(body)
        self.wfile.flush()

    def handle(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the scraper hung up: that is what is tested
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            super().finish()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/good", "/openmetrics"])
def test_reads_what_signals_are_made_of(address: str, path: str) -> None:
    with Scraper(approved=LOOPBACK) as scraper:
        snapshot = scraper.read(address + path, at=7.0)
    assert snapshot.values == {"process_start_time_seconds": {(): 5.0}}
    assert 7.0 < snapshot.at < 17.0, "dated when it was answered"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/redirect", "status 302"),
        ("/broken", "status 500"),
        ("/endless", "larger than"),
        ("/drip", "0.5 s"),
        ("/hang", "within 0.5 s"),
        ("/gzip", "compressed"),
        ("/page", "web page"),
    ],
)
def test_a_bad_server_costs_a_reason_and_ends_in_time(
    address: str, path: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitoring.scraping.LARGEST_BYTES", 1024 * 1024)
    with Scraper(timeout_seconds=0.5, approved=LOOPBACK) as scraper, pytest.raises(ScrapeFailed, match=says):
        scraper.read(address + path, at=0.0)
    assert prometheus.LARGEST_BYTES > 1024 * 1024


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://127.0.0.1:1/metrics", "http://[::1"])
def test_an_address_that_is_no_use_is_said_so(url: str) -> None:
    with Scraper(timeout_seconds=0.5, approved=LOOPBACK) as scraper, pytest.raises(ScrapeFailed):
        scraper.read(url, at=0.0)
