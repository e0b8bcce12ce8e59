"""Moving traffic and watching it: what a shift costs, what the proxy's log can carry, and how long a verdict takes."""

from __future__ import annotations

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

# A sender of its own process, so that it and the reader don't share an interpreter. Like HAProxy it never waits.
SENDER = """
import socket, sys, time
path, rate, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
out.connect(path)
out.setblocking(False)
line = b"<134>Nov 22 14:54:01 haproxy[6507]: svc0 r0 200 12 9 GET 0 --"
sent = lost = 0
began = time.perf_counter()
while (passed := time.perf_counter() - began) < seconds:
    while sent + lost < passed * rate:
        try:
            out.send(line)
            sent += 1
        except BlockingIOError:
            lost += 1
    time.sleep(0.0002)
print(sent, lost)
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

    line = b"<134>Nov 22 14:54:01 haproxy[6507]: svc0 r0 200 12 9 GET 0 --"
    buffer = proxylog.Buffer()
    began = time.perf_counter()
    for second in range(100):
        buffer.add(filter(None, map(proxylog.parse, [line] * 1000)), second)
    yield Row("proxy log: lines parsed and folded", 100_000 / (time.perf_counter() - began), "/s", 50_000, "higher")

    listener = proxylog.bind(folder / "log.sock")
    reading = threading.Event()
    reading.set()
    buffer = proxylog.Buffer()

    def read() -> None:
        import select

        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while reading.is_set():
            if poll.poll(50):
                proxylog.read(listener, buffer)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for rate, target in ((1000, 0.1), (5000, 1.0), (20_000, None)):
            command = [sys.executable, "-c", SENDER, str(folder / "log.sock"), str(rate), "2"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            sent, lost = map(int, done.stdout.split())
            yield Row(f"proxy log: lost at {rate:,} requests/s", 100 * lost / (sent + lost), "%", target)
    finally:
        reading.clear()
        reader.join()
        listener.close()


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
