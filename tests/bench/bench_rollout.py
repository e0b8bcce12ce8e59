"""Moving traffic and watching it: what a shift costs, what the proxy's log can carry, and how long a verdict takes."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from improvements.haproxy import Mode, RuntimeApi, set_address, set_mode, set_weight
from improvements.verdict import Arm, judge
from tests.bench.rows import Row

LOG_LINE = b"6507-1767571200 %d 1767571300 in_svc0 svc0 r0 200 12 -- GET"
# A sender of its own process, so that it and the reader don't share an interpreter.
SENDER = """
import socket, sys
path, line, count = sys.argv[1], sys.argv[2].encode() + b"\\n", int(sys.argv[3])
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as out:
    out.connect(path)
    for first in range(0, count, 100):
        out.sendall(b"".join(line % number for number in range(first, first + 100)))
"""
SERVER = """
import http.server, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
    def log_message(self, *arguments):
        pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def bench() -> Iterator[Row]:
    # Django must be set up before the recorder's module can be imported; nothing here needs a database.
    import django

    django.setup()
    yield from _verdict()
    folder = Path(tempfile.mkdtemp(prefix="rrb-", dir="/tmp"))
    try:
        yield from _log(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    yield from _shift()


def _verdict() -> Iterator[Row]:
    rng = np.random.default_rng(1)
    control = Arm(np.floor(rng.lognormal(3, 0.6, 90_000)), 90, 90_000)
    candidate = Arm(np.floor(rng.lognormal(3, 0.6, 10_000)), 10, 10_000)
    for name, early in (("peek", True), ("final", False)):
        times = []
        for _ in range(5):
            began = time.perf_counter()
            judge(control, candidate, early=early)
            times.append(time.perf_counter() - began)
        yield Row(f"verdict on 100,000 requests, {name}", statistics.median(times) * 1000, "ms", target=200)


def _log(folder: Path) -> Iterator[Row]:
    from improvements import proxylog

    lines = [LOG_LINE % number for number in range(100_000)]
    buffer = proxylog.Buffer()
    began = time.perf_counter()
    for first in range(0, len(lines), 1000):
        buffer.add(filter(None, map(proxylog.parse, lines[first : first + 1000])))
    yield Row("proxy log: lines parsed and folded", 100_000 / (time.perf_counter() - began), "/s", 50_000, "higher")

    buffer = proxylog.Buffer()
    with contextlib.closing(proxylog.bind(folder / "log.sock")) as listener:
        command = [sys.executable, "-c", SENDER, str(folder / "log.sock"), LOG_LINE.decode(), "100000"]
        with subprocess.Popen(command):
            listener.setblocking(True)
            connected = proxylog.Connection.accepted(listener)
            assert connected is not None
            connected.peer.setblocking(True)
            began = time.perf_counter()
            while connected.read(buffer):
                pass
            took = time.perf_counter() - began
            connected.finish(buffer)
    assert buffer.received == 100_000
    yield Row("proxy log: lines read from its socket and folded", 100_000 / took, "/s", 20_000, "higher")
    yield from _burst()


def _burst() -> Iterator[Row]:
    """What is lost of a burst while the recorder does not run. There is no server behind the proxy: it answers 503."""
    from improvements import proxylog
    from tests.improvements import proxy_stack

    requests, threads = 20_000, 4
    with proxy_stack.running() as stack, contextlib.closing(proxylog.bind(stack.home.proxylog_socket)) as listener:

        def ask() -> None:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", stack.ports[0])) as asking:
                for _ in range(requests // threads):
                    asking.request("GET", "/")
                    asking.getresponse().read()

        listener.setblocking(True)
        connected = proxylog.Connection.accepted(listener)
        assert connected is not None
        connected.peer.settimeout(1)
        began = time.perf_counter()
        asking = [threading.Thread(target=ask) for _ in range(threads)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        took, buffer = time.perf_counter() - began, proxylog.Buffer()
        with contextlib.suppress(TimeoutError):
            while connected.read(buffer):
                pass
        connected.peer.close()
    yield Row(
        f"proxy log: lost of {requests:,} requests within {took:.1f} s, unread", requests - buffer.received, "", 0
    )


def _shift() -> Iterator[Row]:
    from tests.improvements import proxy_stack

    with proxy_stack.running() as stack:
        ports = proxy_stack.free_ports(2)
        servers = [subprocess.Popen([sys.executable, "-c", SERVER, str(port)]) for port in ports]
        try:
            api = RuntimeApi(stack.home.haproxy_socket)
            for name, port in zip(("r0", "r1"), ports, strict=True):
                api.change(set_address("svc0", name, "127.0.0.1", port))
                api.change(set_mode("svc0", name, Mode.DRAIN))
            api.wait_until_checked("svc0", ["r0", "r1"], timeout_seconds=10)
            api.change(*(set_mode("svc0", name, Mode.READY) for name in ("r0", "r1")))
            times = []
            for share in (10, 50, 90, 50) * 10:
                began = time.perf_counter()
                api.change(set_weight("svc0", "r0", 100 - share), set_weight("svc0", "r1", share))
                times.append(time.perf_counter() - began)
            yield Row("traffic moved between two releases", statistics.median(times) * 1000, "ms", 12)
            times = []
            for _ in range(10):
                began = time.perf_counter()
                api.save(stack.home.haproxy_state)
                times.append(time.perf_counter() - began)
            yield Row("the proxy's state written", statistics.median(times) * 1000, "ms")
        finally:
            for server in servers:
                server.terminate()
                server.wait()
