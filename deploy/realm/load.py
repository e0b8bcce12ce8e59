"""Load for Realm: an open-loop stream of requests, and how they were answered.

Requests are sent when they are due, whether or not earlier ones have been answered, and a latency counts from the
moment a request was due. A service that stalls therefore can't hide the requests that had to wait (coordinated
omission). Needs nothing but Python's standard library, and talks to this machine only.

    python load.py --url http://127.0.0.1:8001 --rate 12 --seconds 60
    python load.py --url http://127.0.0.1:8001 --rate 12 --seconds 0 --report load.json     # until SIGTERM

Prints one JSON object at the end. A request has failed when the connection broke, the answer took longer than
--timeout, or its status was 500 or above. Nothing is ever sent twice. When --max-in-flight requests are waiting, a
request that is due is dropped and counted.
"""

import argparse
import asyncio
import contextlib
import ipaddress
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote_plus, urlsplit

MIX = {
    "player-list": 40,
    "player-detail": 20,
    "item-search": 15,
    "leaderboard": 10,
    "trade-list": 10,
    "trade-create": 5,
}
SEARCH_WORDS = ("ember", "frost", "storm", "jade", "silver ring", "cursed blade", "rune of the", "winterhall", "helm")

MAX_RATE = 1_000
MAX_SECONDS = 24 * 3600  # also what --seconds 0 comes to
MAX_IN_FLIGHT = 1_000
MAX_ANSWER_BYTES = 4_000_000
IDLE_SECONDS = 60  # a connection idle for longer may be about to be closed by the other side
DRAIN_SECONDS = 5  # how long the last answers are waited for


class Broken(Exception):
    """The connection failed, or what came over it is not HTTP."""


class Histogram:
    """Latencies in buckets 1 % apart: percentiles within 0.5 %, in little memory however long the run."""

    STEP = math.log(1.01)

    def __init__(self):
        self.counts = Counter()
        self.total = 0

    def add(self, ms):
        self.counts[round(math.log(max(ms, 0.01)) / self.STEP)] += 1
        self.total += 1

    def merge(self, other):
        self.counts.update(other.counts)
        self.total += other.total

    def percentile(self, percent):
        """The latency in ms that `percent` of the requests did not exceed, or None without requests."""
        wanted = max(1, math.ceil(self.total * percent / 100))
        for bucket in sorted(self.counts):
            wanted -= self.counts[bucket]
            if wanted <= 0:
                return round(math.exp(bucket * self.STEP), 2)
        return None


@dataclass
class Tally:
    """What happened to the requests of one endpoint. Failed requests count in the latencies too."""

    requests: int = 0
    failed: int = 0
    dropped: int = 0
    statuses: Counter = field(default_factory=Counter)
    failures: Counter = field(default_factory=Counter)
    latencies: Histogram = field(default_factory=Histogram)

    def add(self, ms, status, failure):
        self.requests += 1
        self.latencies.add(ms)
        if status is not None:
            self.statuses[str(status)] += 1
        if failure is not None:
            self.failed += 1
            self.failures[failure] += 1

    def merge(self, other):
        self.requests += other.requests
        self.failed += other.failed
        self.dropped += other.dropped
        self.statuses.update(other.statuses)
        self.failures.update(other.failures)
        self.latencies.merge(other.latencies)

    def as_dict(self):
        return {
            "requests": self.requests,
            "failed": self.failed,
            "dropped": self.dropped,
            "statuses": dict(sorted(self.statuses.items())),
            "failures": dict(sorted(self.failures.items())),
            "p50_ms": self.latencies.percentile(50),
            "p95_ms": self.latencies.percentile(95),
            "p99_ms": self.latencies.percentile(99),
        }


class Connections:
    """Keep-alive HTTP/1.1 connections to one address, each used by one request at a time."""

    def __init__(self, host, port):
        self.host = host
        self.port = port
        bracketed = f"[{host}]" if ":" in host else host
        self.host_header = f"{bracketed}:{port}"
        self.idle = []
        self.opened = 0

    async def _connection(self):
        while self.idle:
            reader, writer, idle_since = self.idle.pop()
            if not reader.at_eof() and not writer.is_closing() and time.monotonic() - idle_since < IDLE_SECONDS:
                return reader, writer
            writer.close()
        self.opened += 1
        return await asyncio.open_connection(self.host, self.port, limit=MAX_ANSWER_BYTES)

    async def send(self, method, path, body=None):
        """Send one request, once. Returns the status and the body. Raises OSError or Broken."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host_header}", "User-Agent: realm-load"]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        message = "\r\n".join([*lines, "", ""]).encode() + (body or b"")
        reader, writer = await self._connection()
        reusable = False
        try:
            writer.write(message)
            await writer.drain()
            status, content, reusable = await read_answer(reader)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise Broken("connection closed before the answer was complete") from error
        finally:
            if reusable:
                self.idle.append((reader, writer, time.monotonic()))
            else:
                writer.close()
        return status, content

    def close(self):
        for _, writer, _ in self.idle:
            writer.close()


async def read_answer(reader):
    """Read one HTTP/1.1 answer: its status, its body, and whether the connection can be used again."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status_line, *lines = head.rstrip("\r\n").split("\r\n")
    try:
        version, code, *_ = status_line.split(" ")
        status = int(code)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", -1))
    except ValueError as error:
        raise Broken("not an HTTP answer") from error
    keep = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    if "chunked" in headers.get("transfer-encoding", "").lower():
        chunks = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            chunks.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
        return status, b"".join(chunks), keep
    if length >= 0:
        if length > MAX_ANSWER_BYTES:
            raise Broken("answer too large")
        return status, await reader.readexactly(length), keep
    return status, await reader.read(MAX_ANSWER_BYTES), False


class Load:
    def __init__(self, options):
        self.options = options
        self.connections = Connections(options.host, options.port)
        self.dice = random.Random(options.random_seed)
        self.tallies = {name: Tally() for name, weight in options.mix.items() if weight}
        self.in_flight = set()
        self.stop = asyncio.Event()
        self.run_id = uuid.uuid4().hex[:12]
        self.trades_sent = 0
        self.trades_acknowledged = 0
        self.abandoned = 0
        self.pages = 1
        self.players = []
        self.codes = []
        self.started_at = None
        self.seconds = 0.0

    async def look_around(self):
        """Learn which players and items there are, waiting for Realm to come up. Returns whether it did."""
        until = time.monotonic() + self.options.wait
        while not self.stop.is_set():
            try:
                self.players, self.codes = [], []
                for page in (1, 2, 3):
                    _, body = await self.ask(f"/api/players?page={page}")
                    answer = json.loads(body)
                    self.pages = answer["pages"]
                    self.players += [player["id"] for player in answer["players"]]
                for words in SEARCH_WORDS:
                    _, body = await self.ask(f"/api/items/search?q={quote_plus(words)}")
                    self.codes += [item["code"] for item in json.loads(body)["items"]]
                if len(self.players) < 2 or not self.codes:
                    raise Broken("there are no players or no items; was the database seeded?")
                return True
            except (OSError, Broken, ValueError, KeyError, TimeoutError) as error:
                if time.monotonic() > until:
                    print(f"Realm at {self.connections.host_header} is not ready: {error!r}", file=sys.stderr)
                    return False
            await self.pause(0.5)
        return False

    async def ask(self, path):
        async with asyncio.timeout(self.options.timeout):
            return await self.connections.send("GET", path)

    async def pause(self, seconds):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stop.wait()

    def compose(self, endpoint):
        """One request of this endpoint: method, path, body."""
        dice = self.dice
        match endpoint:
            case "player-list":
                return "GET", f"/api/players?page={dice.randint(1, self.pages)}", None
            case "player-detail":
                return "GET", f"/api/players/{dice.choice(self.players)}", None
            case "item-search" if dice.random() < 0.5:
                return "GET", f"/api/items/search?q={quote_plus(dice.choice(SEARCH_WORDS))}", None
            case "item-search":
                return "GET", f"/api/items/search?code={dice.choice(self.codes)}", None
            case "leaderboard":
                return "GET", "/api/leaderboard", None
            case "trade-list":
                return "GET", "/api/trades", None
        seller, buyer = dice.sample(self.players, 2)
        self.trades_sent += 1
        trade = {
            "reference": f"{self.run_id}-{self.trades_sent}",
            "seller": seller,
            "buyer": buyer,
            "item": dice.choice(self.codes),
            "gold": dice.randint(1, 5_000),
        }
        return "POST", "/api/trades", json.dumps(trade).encode()

    async def request(self, endpoint, due):
        method, path, body = self.compose(endpoint)
        status = failure = None
        try:
            async with asyncio.timeout(self.options.timeout):
                status, _ = await self.connections.send(method, path, body)
            if status >= 500:
                failure = f"status {status}"
        except TimeoutError:
            failure = "timeout"
        except (OSError, Broken, ValueError) as error:
            failure = str(error) if isinstance(error, Broken) else type(error).__name__
        if status == 201:
            self.trades_acknowledged += 1
        self.tallies[endpoint].add((time.monotonic() - due) * 1000, status, failure)

    async def arrivals(self):
        """Start each request when it is due. After a late wake-up, what is overdue starts at once; it counts as due."""
        names, weights = list(self.tallies), [self.options.mix[name] for name in self.tallies]
        limit = self.options.seconds or MAX_SECONDS
        started = due = time.monotonic()
        self.started_at = time.time()
        while not self.stop.is_set():
            gap = 1 / self.options.rate if self.options.constant else self.dice.expovariate(self.options.rate)
            due += gap
            if due - started > limit:
                await self.pause(started + limit - time.monotonic())
                break
            if (wait := due - time.monotonic()) > 0:
                await self.pause(wait)
                if self.stop.is_set():
                    break
            self.seconds = time.monotonic() - started
            endpoint = self.dice.choices(names, weights)[0]
            if len(self.in_flight) >= self.options.max_in_flight:
                self.tallies[endpoint].dropped += 1
                continue
            task = asyncio.create_task(self.request(endpoint, due))
            self.in_flight.add(task)
            task.add_done_callback(self.in_flight.discard)
        self.seconds = time.monotonic() - started

    async def drain(self):
        if self.in_flight:
            _, late = await asyncio.wait(self.in_flight, timeout=min(DRAIN_SECONDS, self.options.timeout))
            self.abandoned = len(late)
            for task in late:
                task.cancel()

    async def trades_stored(self):
        """Ask Realm how often it stored this run's trades. `problem` is set when it could not be asked."""
        found = {"sent": self.trades_sent, "acknowledged": self.trades_acknowledged}
        try:
            _, body = await self.ask(f"/api/trades/references?prefix={self.run_id}-")
            answer = json.loads(body)
            return {
                **found,
                "stored": answer["trades"],
                "duplicates": answer["duplicates"],
                "lost": max(0, self.trades_acknowledged - answer["references"]),
            }
        except (OSError, Broken, ValueError, KeyError, TimeoutError) as error:
            return {**found, "duplicates": None, "problem": repr(error)}

    def totals(self, state):
        everything = Tally()
        for tally in self.tallies.values():
            everything.merge(tally)
        return {
            "state": state,
            "at": round(time.time(), 3),
            "started_at": self.started_at and round(self.started_at, 3),
            "seconds": round(self.seconds, 3),
            "requests_per_second": round(everything.requests / self.seconds, 2) if self.seconds else 0.0,
            **everything.as_dict(),
            "in_flight": len(self.in_flight),
            "connections_opened": self.connections.opened,
            "reference_prefix": f"{self.run_id}-",
            "endpoints": {name: tally.as_dict() for name, tally in self.tallies.items()},
        }

    async def report_every_second(self):
        while True:
            write_report(self.options.report, self.totals("running"))
            await asyncio.sleep(1)

    async def run(self):
        """Returns the final report, or None when Realm never came up."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        if not await self.look_around() and not self.stop.is_set():
            return None
        reporting = asyncio.create_task(self.report_every_second()) if self.options.report else None
        await self.arrivals()
        await self.drain()
        if reporting:
            reporting.cancel()
        trades = await self.trades_stored() if self.trades_sent else None
        self.connections.close()
        duplicates = trades["duplicates"] if trades else 0
        result = {**self.totals("finished"), "abandoned": self.abandoned, "duplicates": duplicates, "trades": trades}
        write_report(self.options.report, result)
        return result


def write_report(path, report):
    """Replace the file in one step, so that a reader never sees half of it."""
    if path is None:
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w") as file:
        json.dump(report, file)
        os.fchmod(file.fileno(), 0o644)
    os.replace(temporary, path)


def between(low, high, kind=float):
    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be between {low} and {high}")
        return value

    return parse


def mix(text):
    """Read "player-list=5,leaderboard=1"; endpoints that are not named get nothing."""
    weights = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        if name not in MIX or not weight.isdigit():
            raise argparse.ArgumentTypeError(f"{part!r} is not name=weight; names: {', '.join(MIX)}")
        weights[name] = int(weight)
    if not any(weights.values()):
        raise argparse.ArgumentTypeError("needs one weight above 0")
    return weights


def loopback(text):
    """Check that the URL leads to this machine. This is a tool for one's own Realm, not for other people's servers."""
    parts = urlsplit(text)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    try:
        allowed = ipaddress.ip_address(host or "").is_loopback
        port = parts.port or 80
    except ValueError:
        allowed = False
    if parts.scheme != "http" or not allowed:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an http:// address of this machine, like http://127.0.0.1:8001"
        )
    return host, port


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", type=loopback, default="http://127.0.0.1:8001")
    parser.add_argument("--rate", type=between(0.1, MAX_RATE), default=12.0, help="requests per second (default 12)")
    parser.add_argument(
        "--seconds", type=between(0, MAX_SECONDS), default=60.0, help=f"0: until SIGTERM, at most {MAX_SECONDS}"
    )
    parser.add_argument("--max-in-flight", type=between(1, MAX_IN_FLIGHT, int), default=200)
    parser.add_argument("--timeout", type=between(0.1, 120), default=10.0, help="seconds per request (default 10)")
    parser.add_argument("--wait", type=between(0, 600), default=30.0, help="seconds to wait for Realm to come up")
    parser.add_argument(
        "--mix", type=mix, default=MIX, help="name=weight,…; default " + ",".join(f"{k}={v}" for k, v in MIX.items())
    )
    parser.add_argument(
        "--constant", action="store_true", help="equal gaps between requests, not random (Poisson) ones"
    )
    parser.add_argument("--random-seed", type=int, default=None, help="the same requests each time")
    parser.add_argument("--report", type=Path, default=None, help="a file that gets the running totals every second")
    options = parser.parse_args(arguments)
    options.host, options.port = options.url
    return options


async def generate(options):
    return await Load(options).run()


def main(arguments=None):
    """The command line. Returns the exit code: 0, or 1 when Realm never came up."""
    report = asyncio.run(generate(parse(arguments)))
    if report is None:
        return 1
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
