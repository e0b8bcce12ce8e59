"""The drill on the real thing: Realm is started, used, measured and hurt, and the alert rules say when they saw it.

One collection interval is a second or so of real requests and one real scrape, stamped with virtual time a minute
apart. What is usual is learnt from clean rounds first. Nothing else of RuneRogue has to run but its PostgreSQL, in
which Realm gets a database of its own for the time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from django.db import connection
from psycopg import sql
from psycopg.conninfo import make_conninfo

from monitoring import derive, deviation, drilling
from monitoring.addresses import Approval, Approved
from monitoring.alerts import DEFAULT_RULES, Rule
from monitoring.drilling import FAULTS, INTERVAL, MONDAY, Clean, Fault, Judge, Report, Samples, poisson_interval
from monitoring.manifest import parse
from monitoring.prometheus import Snapshot
from monitoring.scraping import ScrapeFailed, Scraper
from runerogue.stack.ports import next_free

SOURCE = Path(__file__).resolve().parent.parent / "deploy" / "realm"
FIRST_PORT = 18_900
UP_SECONDS = 30.0
STOP_SECONDS = 15.0
# A small world, and no request that costs much: what is measured is the rules, not what two cores can do.
WORLD = ("seed", "--players=200", "--guilds=10", "--items=500", "--trades=50")
MIX = "player-detail=40,item-search=40,trade-list=20"
# What is usual leaves the newest rounds out, and is worked out only so often.
LEARNING_ROUNDS = deviation.LEAST_SAMPLES + deviation.RECENT_INTERVALS + int(deviation.USED_SECONDS / INTERVAL) + 2
SETTLING_ROUNDS = 2  # after a fault: what it left in the queue is no clean traffic
BETWEEN_ROUNDS = 2
LONGEST_ROUNDS = 15  # a fault that is not found by then is not found
WHOLE = {"endpoint": derive.ALL, "method": derive.ALL}

# What each of the simulated faults is in Realm; see deploy/realm/realm/faults.py. A crash is a killed process.
SWITCHES: Mapping[str, Mapping[str, Any] | None] = {
    "latency ×1.5": {"latency_ratio": 0.5},
    "latency ×2": {"latency_ratio": 1},
    "latency ×5": {"latency_ratio": 4},
    "errors 5 %": {"error_ratio": 0.05},
    "errors 20 %": {"error_ratio": 0.2},
    "saturation": {"cpu_ms": 30},
    "crash": None,
    "silence of metrics": {"latency_ms": 4000, "everything": True, "only_views": ["metrics"]},
}


class DrillFailed(Exception):
    """Realm could not be brought up. The message says what failed and what it printed."""


@dataclass
class Realm:
    """A Realm of the drill's own in `folder`: its database, its process, its faults."""

    folder: Path
    database: str
    port: int
    environment: Mapping[str, str]
    _server: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve, and wait until it does. Raises DrillFailed."""
        with (self.folder / "realm.log").open("ab") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "realm.wsgi", "--bind", f"127.0.0.1:{self.port}"],
                cwd=self.folder / "realm",
                env=dict(self.environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + UP_SECONDS
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.address}/up", timeout=2, trust_env=False).status_code == 200:
                    return
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise DrillFailed(f"Realm does not serve: {(self.folder / 'realm.log').read_text()[-1500:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, as a crash does, its workers too."""
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait(STOP_SECONDS)
            self._server = None

    def hurt(self, fault: str) -> None:
        """Begin a fault of SWITCHES."""
        switches = SWITCHES[fault]
        if switches is None:
            self.kill()
        else:
            self._switch(switches)

    def heal(self) -> None:
        """End every fault."""
        self._switch({})
        if self._server is None:
            self.start()

    def _switch(self, faults: Mapping[str, Any]) -> None:
        partial = self.folder / "faults.partial"
        partial.write_text(json.dumps(faults))
        partial.replace(self.folder / "faults.json")


@contextmanager
def realm(scratch: Path) -> Iterator[Realm]:
    """Realm with a small world, serving; afterwards its processes, its database and its folder are gone."""
    name = f"realm_drill_{secrets.token_hex(4)}"
    folder = scratch / name
    shutil.copytree(SOURCE, folder / "realm", ignore=shutil.ignore_patterns("__pycache__", "tests", "faults.json"))
    given = connection.get_connection_params()
    server = {key: given[key] for key in ("host", "port", "user", "password") if given.get(key)}
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DATABASE_URL": make_conninfo("", **server, dbname=name),
        "SECRET_KEY": secrets.token_urlsafe(40),
        "GUNICORN_THREADS": "16",
        "REALM_FAULTS_FILE": str(folder / "faults.json"),
    }
    made = Realm(folder, name, next_free("127.0.0.1", FIRST_PORT), environment)
    try:
        _in_postgres("CREATE DATABASE {}", name)
        for command in (("migrate", "--verbosity=0"), WORLD):
            _manage(made, *command)
        made.start()
        yield made
    finally:
        made.kill()
        _in_postgres("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
        shutil.rmtree(folder, ignore_errors=True)


def _in_postgres(statement: str, name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL(statement).format(sql.Identifier(name)).as_string(cursor.connection))


def _manage(made: Realm, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=made.folder / "realm",
        env=dict(made.environment),
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        raise DrillFailed(f"Realm's `manage.py {arguments[0]}` failed: {done.stderr[-1500:]}")


@contextmanager
def load(made: Realm, *, rate: float) -> Iterator[None]:
    """`rate` requests per second by Realm's own generator, whatever becomes of the earlier ones."""
    generator = subprocess.Popen(
        [
            sys.executable, str(SOURCE / "load.py"), "--url", made.address, "--rate", str(rate), "--seconds", "0",
            "--mix", MIX, "--random-seed", "1", "--timeout", "5",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": os.environ.get("PATH", "")},
        start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        generator.kill()
        generator.wait(STOP_SECONDS)


@dataclass
class Rounds:
    """One real scrape after another, `interval_seconds` apart, and what each told: signal → value."""

    made: Realm
    interval_seconds: float
    scraper: Scraper = field(init=False)
    _before: Snapshot | None = None
    _due: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        approved = Approved.of(Approval("127.0.0.1", self.made.port, allows_private=True))
        self.scraper = Scraper(timeout_seconds=max(0.5, 0.8 * self.interval_seconds), approved=approved)
        self.metrics = parse((SOURCE / "runerogue.toml").read_text()).metrics

    def next(self, *, fault: str = "", begins: float = 0.0) -> dict[str, float]:
        """Wait for the end of the interval and measure it; `fault` begins when this share of it is over."""
        # After a long scrape the next interval is a whole one all the same.
        self._due = max(self._due, time.monotonic() - 0.2 * self.interval_seconds) + self.interval_seconds
        if fault:
            _sleep_until(self._due - (1.0 - begins) * self.interval_seconds)
            self.made.hurt(fault)
        _sleep_until(self._due)
        try:
            after = self.scraper.read(f"{self.made.address}{self.metrics.path}", at=time.time())
        except ScrapeFailed:
            return {"up": 0.0}
        traffic = derive.compare(self._before, after, dialect=self.metrics.spoken)
        self._before = after
        found = {"up": 1.0}
        for reading in derive.readings(traffic, satisfying_ms=1000 * drilling.SLOW_SECONDS):
            if dict(reading.labels) in ({}, WHOLE):
                found[reading.signal] = reading.value
        if "requests_per_second" in found:
            # The interval stands for a minute, but has no more requests than were sent.
            found["requests_per_second"] *= self.interval_seconds / INTERVAL
        return found


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


SIGNALS = (
    "requests_per_second", "error_ratio", "latency_mean_ms", "latency_p50_ms", "latency_p95_ms", "slow_ratio", "up",
    "memory_bytes",
)  # fmt: skip


def stamped(rounds: Sequence[Mapping[str, float]]) -> Samples:
    """Rounds as samples, a minute of virtual time apart."""
    at = np.asarray(MONDAY + INTERVAL * (1.0 + np.arange(len(rounds))), dtype=np.float64)
    return Samples(at, {name: np.array([each.get(name, math.nan) for each in rounds]) for name in SIGNALS})


def drill(
    scratch: Path,
    *,
    runs: int,
    interval_seconds: float,
    rate: float,
    most_seconds: float,
    faults: Sequence[Fault] = FAULTS,
    rules: Sequence[Rule] = DEFAULT_RULES,
    seed: int = 1,
    learning_rounds: int = LEARNING_ROUNDS,
    tell: Callable[[str], None],
) -> Report:
    """Inject each fault `runs` times, with recovery between; no injection begins after `most_seconds`.

    Raises DrillFailed when Realm can't be brought up.
    """
    dice = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, str]]] = {}
    with realm(scratch) as made, load(made, rate=rate):
        ends = time.monotonic() + most_seconds
        rounds = Rounds(made, interval_seconds)
        with rounds.scraper:
            for _ in range(SETTLING_ROUNDS):
                rounds.next()
            tell(f"Learning what is usual: {learning_rounds} rounds of {interval_seconds:g} s.")
            clean = [rounds.next() for _ in range(learning_rounds)]
            for fault in [fault for _ in range(runs) for fault in faults]:
                if time.monotonic() > ends:
                    tell("The time is over; what follows is not injected any more.")
                    break
                found.setdefault(fault.name, []).append(
                    _one_run(rounds, clean, fault, rules, begins=float(dice.uniform()))
                )
                took, by = found[fault.name][-1]
                tell(f"{fault.name}: {took:.2f} intervals, {by}" if by else f"{fault.name}: not found")
                made.heal()
                for _ in range(SETTLING_ROUNDS):
                    rounds.next()
                clean += [rounds.next() for _ in range(BETWEEN_ROUNDS)]
    detections = tuple(
        drilling.detection(fault, found[fault.name], longest=LONGEST_ROUNDS) for fault in faults if fault.name in found
    )
    return Report(seed, interval_seconds, detections, _clean(clean, learning_rounds, rules), subject="Realm")


def _one_run(
    rounds: Rounds, clean: Sequence[Mapping[str, float]], fault: Fault, rules: Sequence[Rule], *, begins: float
) -> tuple[float, str]:
    """How many intervals it took, and the rule that found it; infinite and "" when none did."""
    during: list[Mapping[str, float]] = []
    for number in range(LONGEST_ROUNDS):
        during.append(rounds.next(fault="" if number else fault.name, begins=begins))
        judged = Judge(stamped([*clean, *during]), rules)
        # All of the run again: what was pending before this round is not kept anywhere else.
        fired = [names for place in range(len(during)) if (names := judged.round(len(clean) + place))]
        if fired:
            return number + 1.0 - begins, fired[0][0]
    return math.inf, ""


def _clean(clean: Sequence[Mapping[str, float]], learnt: int, rules: Sequence[Rule]) -> Clean:
    judged = Judge(stamped(clean), rules)
    by_rule: dict[str, int] = {}
    for place in range(learnt, len(clean)):
        for name in judged.round(place):
            by_rule[name] = by_rule.get(name, 0) + 1
    alerts, weeks = sum(by_rule.values()), (len(clean) - learnt) / drilling.ROUNDS_A_WEEK
    low, high = (end / weeks if weeks else math.nan for end in poisson_interval(alerts))
    return Clean(weeks, alerts, alerts / weeks if weeks else math.nan, low, high, None, by_rule)
