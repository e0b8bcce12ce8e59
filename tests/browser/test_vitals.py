"""The script that reports web vitals, in a real browser under a strict content security policy."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User

from approvals.limits import valkey
from monitoring.registry import ensure_self
from tests.browser.conftest import opened
from tests.browser.test_signing import sign_in
from tests.people import PASSWORD

pytestmark = pytest.mark.browser
SCRIPT = (settings.BASE_DIR / "static/vitals.js").read_bytes()
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'"
# Two shifts within a session window and one three seconds of page time later; one interaction that takes its time.
PAGE = """<!doctype html><html><head><title>Items</title>{meta}<link rel="stylesheet" href="/page.css"></head><body>
<h1>A heading that is painted</h1><div id="box">box</div><button id="slow">Press</button>
<script src="/vitals.js" defer {attributes}></script><script src="/page.js" defer></script></body></html>"""
CSS = "body { margin: 0; font-size: 40px; } #box { position: relative; width: 100vw; height: 300px; background: #ccc; }"
JS = """
document.getElementById("slow").addEventListener("click", () => {
  const until = performance.now() + 120;
  while (performance.now() < until) { /* as a slow page does */ }
});
document.cookie = "session=hunter2";
window.shift = (pixels) => { document.getElementById("box").style.marginTop = pixels + "px"; };
"""


class Site:
    """A service's pages, and what they report."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.arrived = threading.Event()
        self.attributes, self.meta, self.address = "", "", ""


@contextmanager
def served() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

        def answer(self, body: bytes, kind: str, status: int = 200) -> None:
            self.send_response(status)
            for name, value in (("Content-Type", kind), ("Content-Length", len(body)), ("Cache-Control", "no-store")):
                self.send_header(name, str(value))
            self.send_header("Content-Security-Policy", POLICY)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            files = {
                "/vitals.js": (SCRIPT, "text/javascript"),
                "/page.js": (JS.encode(), "text/javascript"),
                "/page.css": (CSS.encode(), "text/css"),
                "/favicon.ico": (b"", "image/x-icon"),
            }
            page = PAGE.format(attributes=site.attributes, meta=site.meta).encode()
            self.answer(*files.get(self.path, (page, "text/html")))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            site.reports.append({"to": self.path, "kind": self.headers["Content-Type"], **json.loads(body)})
            site.arrived.set()
            self.answer(b"", "text/plain", 204)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_reports_once_what_the_visit_was_like(chromium: str | None) -> None:
    with served() as site, opened(chromium) as (page, complaints):
        site.attributes = 'data-service="shop" data-route="/items/{id}"'
        page.goto(f"{site.address}/items/17?token=hunter2")
        page.wait_for_function("performance.getEntriesByType('paint').length > 0")
        page.locator("#slow").click()
        # Well after the click: what moves within half a second of it was asked for.
        page.wait_for_timeout(700)
        page.evaluate("shift(100)")
        page.wait_for_timeout(100)
        page.evaluate("shift(200)")
        page.wait_for_timeout(100)
        seen = page.evaluate(
            "new Promise((told) => new PerformanceObserver((list) => told(list.getEntries().filter("
            "(e) => !e.hadRecentInput).map((e) => e.value))).observe({type: 'layout-shift', buffered: true}))"
        )
        page.goto("about:blank")
        assert site.arrived.wait(10)
        assert complaints == []
    (report,) = site.reports
    assert (report["to"], report["service"], report["endpoint"]) == ("/api/v1/vitals", "shop", "/items/{id}")
    assert report["kind"].startswith("text/plain")
    assert set(report) - {"to", "kind"} == {"service", "endpoint", "lcp_ms", "inp_ms", "cls"}
    assert 0 < report["lcp_ms"] < 10_000
    assert 120 <= report["inp_ms"] < 5_000, "the click was kept busy for 120 ms"
    assert len(seen) == 2
    assert report["cls"] == pytest.approx(sum(seen)), "both shifts are in one session window"
    assert report["cls"] > 0
    assert "hunter2" not in str(report)


def test_names_the_route_and_samples(chromium: str | None) -> None:
    cases: list[tuple[str, str, Any]] = [
        ("", '<meta name="route" content="item-detail">', {"endpoint": "item-detail"}),
        ("", "", {"path": "/items/17"}),
        ('data-sample="0"', "", None),
    ]
    with served() as site, opened(chromium) as (page, complaints):
        for site.attributes, site.meta, told in cases:
            site.arrived.clear()
            page.goto(f"{site.address}/items/17?q=hunter2#top")
            page.goto("about:blank")
            assert site.arrived.wait(10 if told else 0.3) == bool(told)
        assert complaints == []
    reported = [{key: value for key, value in one.items() if key in ("endpoint", "path")} for one in site.reports]
    assert reported == [told for _, _, told in cases if told]


def test_windows_of_shifts_and_the_98th_percentile_follow_the_rules(chromium: str | None) -> None:
    """The same entries that a browser would give, by hand: the rules need minutes of real time otherwise."""
    fake = """
    window.observers = {};
    window.PerformanceObserver = class {
      static supportedEntryTypes = ["event", "first-input", "largest-contentful-paint", "layout-shift"];
      constructor(callback) { this.callback = callback; }
      observe({ type }) {
        window.observers[type] = (entries) => this.callback({ getEntries: () => entries });
      }
      takeRecords() { return []; }
    };
    Object.defineProperty(performance, "interactionCount", { get: () => window.interactions });
    navigator.sendBeacon = (url, text) => { window.told = JSON.parse(text); return true; };
    """
    with served() as site, opened(chromium) as (page, _):
        page.add_init_script(fake)
        site.attributes = 'data-service="shop"'
        page.goto(site.address)

        def told(script: str) -> Any:
            page.reload()
            page.evaluate(script)
            page.evaluate("window.dispatchEvent(new Event('pagehide')); window.dispatchEvent(new Event('pagehide'))")
            return page.evaluate("window.told")

        shift = "const s = (t, value, hadRecentInput) => ({ startTime: t, value, hadRecentInput });"
        shifts = f"{shift} observers['layout-shift']"
        # A gap of a second ends a window, and so do five seconds; what follows an input does not count.
        assert told(f"{shifts}([s(0, .1), s(900, .1), s(1900, .15)])")["cls"] == pytest.approx(0.2)
        steady = "[...Array(11).keys()].map((n) => s(n * 500, .01))"
        assert told(f"{shifts}({steady})")["cls"] == pytest.approx(0.10), "those from 0 to 4.5 s"
        assert told(f"{shifts}([s(0, .5, true), s(100, .01)])")["cls"] == pytest.approx(0.01)
        assert told("0")["cls"] == 0

        events = "const e = (interactionId, duration) => ({ interactionId, duration });"
        many = "[...Array(120).keys()].map((n) => e(7 * (n + 1), n + 1))"
        assert told(f"{events} interactions = 120; observers.event({many})")["inp_ms"] == 118, "the third of 120"
        assert told(f"{events} interactions = 49; observers.event([e(7, 30), e(7, 80), e(14, 50)])")["inp_ms"] == 80
        assert "inp_ms" not in told(f"{events} observers.event([e(0, 500)])"), "that was no interaction"

        paints = "observers['largest-contentful-paint']([{ startTime: 300 }, { startTime: 900.5 }])"
        assert told(paints)["lcp_ms"] == 900.5


def test_is_small_and_own_pages_report(live_server: Any, chromium: str | None, bob: User) -> None:
    assert len(SCRIPT) < 4096
    bob.set_password(PASSWORD)
    bob.save()
    service = ensure_self()
    with opened(chromium) as (page, complaints):
        sign_in(page, live_server.url)
        page.goto(f"{live_server.url}/admin/monitoring/feedback/")
        # A page that is gone tells nobody of its last request, so its count is waited for.
        deadline = time.monotonic() + 10
        while "admin:index" not in counted(service.pk) and time.monotonic() < deadline:
            page.wait_for_timeout(20)
        assert complaints == []
    assert "admin:index" in counted(service.pk)


def counted(service: int) -> set[str]:
    """The routes whose vitals Valkey counts."""
    keys = [key for key in valkey().scan_iter(f"runerogue:vitals:{service}:*") if b":routes:" not in key]
    return {field.decode().split(" ", 2)[2] for key in keys for field in valkey().hkeys(key)}
