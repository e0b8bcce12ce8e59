"""From the proxy's log lines to traffic slices: read them, fold them per server and second, write them out.

HAProxy keeps its lines in a ring until they are read, and numbers them, so that it is known how many are lost all the
same. Two threads: one reads; the other writes to the database, which may be slow or away for a while. Between them is
a buffer with a limit.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import selectors
import socket
import stat
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from django.db import DatabaseError, InterfaceError, connection

from improvements import traffic
from improvements.models import Release
from improvements.traffic import CLIENT_LEFT, NO_ANSWER, Slice
from monitoring.models import Service

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.5
BUFFERED_REQUESTS = 500_000
# How long a stopping recorder tries to write what it still has. Whoever stops it kills it some seconds later.
LAST_WRITE_SECONDS = 4
RECEIVE_BYTES = 256 * 1024
# HAProxy cuts its lines at 1024 bytes; who sends longer ones is not HAProxy.
LONGEST_LINE = 8192
# Each HAProxy process has one connection, and an old process and its successor overlap.
MOST_CONNECTIONS = 16
# Frontends of processes whose line numbers are remembered: those of a handful of processes.
MOST_NUMBERED = 256
FURTHEST_SECOND = 2**33
COUNTER_SIZE = 2**32  # HAProxy's line numbers begin again at 0 then
MOST_LOST = 2**31 - 1  # what a row can hold
NO_SERVER = "<NOSRV>"

# First letter of HAProxy's termination state. "C" and "c": the client went away or was too slow. "S", "s": the server
# did. "R", "I", "D", "K": the proxy ran out of something, failed, or was told to cut the session.
_CLIENT_FAULT = frozenset("Cc")
_BROKEN = frozenset("SsRIDK")


class Line(NamedTuple):  # not a frozen dataclass, which takes much longer to make; there are thousands a second
    """One request as the proxy logged it. `latency_ms` is NaN when it never came to a time.

    `process` is the HAProxy process, and `number` the place of the line among those of this process and frontend.
    """

    process: str
    number: int
    second: int
    frontend: str
    backend: str
    server: str
    status: int
    latency_ms: float
    method: str


def parse(text: bytes) -> Line | None:
    """A log line `%pid-%[var(proc.born)] %lc %[date] %f %b %s %ST %Ta %ts %HM`; None for what is no request."""
    words = text.split()
    if len(words) < 10 or b"\0" in text:  # which PostgreSQL does not store; HAProxy writes it otherwise
        return None
    try:
        number, second, status, latency_ms = int(words[1]), int(words[2]), int(words[6]), float(words[7].lstrip(b"+"))
    except ValueError:
        return None
    if not 0 <= number < COUNTER_SIZE or not 0 <= second < FURTHEST_SECOND:
        return None
    ended = chr(words[8][0])
    if ended in _CLIENT_FAULT:
        status = CLIENT_LEFT
    elif ended in _BROKEN and status < 500:
        # The answer had begun well and was cut off: the status is the server's, the failure is not in it.
        status = NO_ANSWER
    process, frontend, backend, server, method = (words[at].decode("ascii", "replace") for at in (0, 3, 4, 5, 9))
    return Line(
        process,
        number,
        second,
        frontend,
        backend,
        server,
        max(NO_ANSWER, min(status, 999)),
        latency_ms if latency_ms >= 0 else math.nan,
        method[:8],
    )


class Numbers:
    """Which lines never came, from the numbers of those that did.

    Threads of HAProxy may take the same number, or hand their lines over in another order; each number that is left out
    by the one is made good by the other, so only what is still missing when asked a second time counts as lost.
    """

    def __init__(self, known: Mapping[str, int] | None = None) -> None:
        self._next: OrderedDict[str, int] = OrderedDict(known or {})  # "process frontend" → the number to come
        self._missing: dict[str, int] = {}
        self._missing_before: dict[str, int] = {}

    def see(self, line: Line) -> None:
        key = f"{line.process} {line.frontend}"
        ahead = (line.number - self._next.get(key, 0)) % COUNTER_SIZE
        if not ahead:
            self._next[key] = (line.number + 1) % COUNTER_SIZE
        elif ahead < COUNTER_SIZE / 2:
            self._missing[key] = self._missing.get(key, 0) + ahead
            self._next[key] = (line.number + 1) % COUNTER_SIZE
        else:
            self._missing[key] = self._missing.get(key, 0) - 1
        self._next.move_to_end(key)
        if len(self._next) > MOST_NUMBERED:
            old, _ = self._next.popitem(last=False)
            self._missing.pop(old, None)

    def lost(self) -> Counter[str]:
        """Frontend → lines found lost since this was last asked."""
        found: Counter[str] = Counter()
        for key, missing in self._missing.items():
            settled = min(missing, self._missing_before.get(key, 0))
            if settled > 0:
                found[key.split(" ", 1)[1]] += settled
                self._missing[key] -= settled
        self._missing_before = dict(self._missing)
        return found

    def plain(self) -> dict[str, int]:
        """To go on with in another process. What is missing and not told yet is missing there."""
        return {key: (number - self._missing.get(key, 0)) % COUNTER_SIZE for key, number in self._next.items()}


@dataclass(slots=True)
class Fold:
    """The requests of one server in one second."""

    latencies_ms: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)


Key = tuple[int, str, str]  # second, backend, server


@dataclass(frozen=True, slots=True)
class Taken:
    """What waited: folds, frontend or backend → lines lost, and the line numbers up to here."""

    folds: OrderedDict[Key, Fold]
    lost: Counter[str]
    numbers: dict[str, int]


class Buffer:
    """Folds that wait to be written, oldest first. Beyond `limit` requests the oldest are dropped and count as lost."""

    def __init__(self, limit: int = BUFFERED_REQUESTS, *, numbers: Mapping[str, int] | None = None) -> None:
        self.limit = limit
        self.received = 0
        self._size = 0
        self._folds: OrderedDict[Key, Fold] = OrderedDict()
        self._lost: Counter[str] = Counter()
        self._numbers = Numbers(numbers)
        self._lock = threading.Lock()

    def add(self, lines: Iterable[Line]) -> None:
        with self._lock:
            for line in lines:
                self._numbers.see(line)
                fold = self._folds.setdefault((line.second, line.backend, line.server), Fold())
                fold.latencies_ms.append(line.latency_ms)
                fold.statuses.append(line.status)
                fold.methods.append(line.method)
                self._size += 1
                self.received += 1
            self._keep_limit()

    def take(self) -> Taken:
        """Everything that waits; the buffer is empty afterwards."""
        with self._lock:
            taken = Taken(self._folds, self._lost + self._numbers.lost(), self._numbers.plain())
            self._folds, self._lost, self._size = OrderedDict(), Counter(), 0
        return taken

    def put_back(self, taken: Taken) -> None:
        """What could not be written goes in front again."""
        with self._lock:
            self._lost += taken.lost
            for key, fold in reversed(taken.folds.items()):
                if newer := self._folds.get(key):
                    for name in ("latencies_ms", "statuses", "methods"):
                        getattr(newer, name)[:0] = getattr(fold, name)
                else:
                    self._folds[key] = fold
                self._folds.move_to_end(key, last=False)
                self._size += len(fold.statuses)
            self._keep_limit()

    def _keep_limit(self) -> None:
        while self._size > self.limit and self._folds:
            (_, backend, _), fold = self._folds.popitem(last=False)
            self._size -= len(fold.statuses)
            self._lost[backend] += len(fold.statuses)


class Map:
    """Which release stands behind which server of which backend.

    A server that was just freed keeps its last release: the last lines of a drained release come after it was put away.
    """

    def __init__(self) -> None:
        self._services: dict[str, int] = {}
        self._releases: dict[tuple[str, str], tuple[int, int]] = {}  # (backend, server) → (service, release)

    def refresh(self) -> None:
        slots = dict(Service.objects.exclude(slot=None).values_list("pk", "slot"))
        self._services = {f"svc{slot}": service for service, slot in slots.items()}
        placed = Release.objects.exclude(server="").values_list("pk", "service_id", "server")
        for release, service, server in placed:
            if service in slots:
                self._releases[f"svc{slots[service]}", server] = (service, release)

    def place(self, backend: str, server: str) -> tuple[int, int | None] | None:
        """(service id, release id or None); None when the line belongs to no service that is known."""
        service = self._services.get(backend.removeprefix("in_"))
        if service is None:
            return None
        owner, release = self._releases.get((backend, server), (service, None))
        # The slot may have gone to another service since its servers were last seen.
        return service, release if owner == service else None


def slices(taken: Taken, places: Map, *, second: int) -> list[Slice]:
    """What belongs to a service, as rows to write. Several servers of one release become one slice.

    Lost lines belong to no release, and to the `second` in which they were missed.
    """
    together: dict[tuple[int, int | None, int], Fold] = {}
    for (ended, backend, server), fold in taken.folds.items():
        place = places.place(backend, server)
        if place is None:
            continue
        target = together.setdefault((*place, ended), Fold())
        target.latencies_ms += fold.latencies_ms
        target.statuses += fold.statuses
        target.methods += fold.methods
    rows = [
        Slice(service, release, ended, tuple(fold.latencies_ms), tuple(fold.statuses), tuple(fold.methods))
        for (service, release, ended), fold in together.items()
    ]
    for name, lost in taken.lost.items():
        if place := places.place(name, NO_SERVER):
            rows.append(Slice(place[0], None, second, (), (), (), min(lost, MOST_LOST)))
    return rows


def write(buffer: Buffer, places: Map) -> Taken:
    """Write what the buffer holds, and return it. Raises the database's errors, and keeps it all then."""
    taken = buffer.take()
    try:
        places.refresh()
        traffic.store(slices(taken, places, second=int(time.time())))
    except BaseException:
        buffer.put_back(taken)
        raise
    return taken


def bind(path: Path) -> socket.socket:
    """The socket that HAProxy connects to, owner-only. One that an earlier process left is replaced; OSError if `path`
    is something else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} is not a socket; move it away")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(MOST_CONNECTIONS)
    listener.setblocking(False)
    return listener


class Connection:
    """One HAProxy process that sends its lines."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self._rest = b""

    @classmethod
    def accepted(cls, listener: socket.socket) -> Connection | None:
        """The next one that waits; None when it is gone already."""
        try:
            peer, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return None
        peer.setblocking(False)
        return cls(peer)

    def read(self, buffer: Buffer) -> bool:
        """Take the lines that are there (at most `RECEIVE_BYTES`) into the buffer. False when there will be no more."""
        try:
            received = self.peer.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        *texts, self._rest = (self._rest + received).split(b"\n")
        buffer.add(filter(None, map(parse, texts)))
        if len(self._rest) > LONGEST_LINE:
            logger.error("Something that is not HAProxy writes to the proxy log's socket; it is sent away")
            return False
        return bool(received)

    def finish(self, buffer: Buffer) -> None:
        """Take no more, but what was sent already. HAProxy keeps the rest of its lines for the next process."""
        with contextlib.suppress(OSError):
            self.peer.shutdown(socket.SHUT_RD)
            while self.read(buffer):
                pass
        self.peer.close()


def read_numbers(path: Path) -> dict[str, int]:
    """What an earlier process kept there; nothing when there is none or it is no such file."""
    try:
        known = json.loads(path.read_text())
        return {str(key): int(number) for key, number in known.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def keep_numbers(path: Path, numbers: Mapping[str, int]) -> None:
    """Where it can't be written (a full disk) the next process counts lines as lost that were seen."""
    draft = path.with_name(f"{path.name}.new")
    with contextlib.suppress(OSError):
        draft.write_text(json.dumps(numbers))
        draft.replace(path)


class Recorder:
    """The whole of it: `run` reads until `stop`, and writes beside it every `FLUSH_SECONDS`."""

    def __init__(self, path: Path, *, limit: int = BUFFERED_REQUESTS) -> None:
        self.path = path
        # Beside the socket, so that a successor knows which lines were written.
        self._numbers_file = path.with_name(f"{path.name}.numbers")
        self.buffer = Buffer(limit, numbers=read_numbers(self._numbers_file))
        self._numbers: dict[str, int] = {}
        self._places = Map()
        self._stopping = threading.Event()
        self._drained = threading.Event()  # after stopping, and only when everything was read: then the last write
        self._complained = False

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        """Read and write until told to stop; what was read by then is written."""
        listener = bind(self.path)
        inode = self.path.stat().st_ino
        writer = threading.Thread(target=self._write_until_stopped, name="proxylog-writer")
        writer.start()
        try:
            self._read_until_stopped(listener)
        finally:
            self._drained.set()
            writer.join()
            with contextlib.suppress(FileNotFoundError):
                # Not when a successor has its own socket there already.
                if self.path.stat().st_ino == inode:
                    self.path.unlink()
            listener.close()

    def _read_until_stopped(self, listener: socket.socket) -> None:
        connections: set[Connection] = set()
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while not self._stopping.is_set():
                for key, _ in selector.select(0.2):
                    if key.data is None:
                        if (accepted := Connection.accepted(listener)) is None:
                            continue
                        if len(connections) == MOST_CONNECTIONS:
                            accepted.peer.close()
                            continue
                        connections.add(accepted)
                        selector.register(accepted.peer, selectors.EVENT_READ, accepted)
                    elif not key.data.read(self.buffer):
                        selector.unregister(key.data.peer)
                        connections.remove(key.data)
                        key.data.peer.close()
        # Who connected in the last moment has sent something already.
        while accepted := Connection.accepted(listener):
            connections.add(accepted)
        for connected in connections:
            connected.finish(self.buffer)

    def _write_until_stopped(self) -> None:
        try:
            while not self._drained.wait(FLUSH_SECONDS):
                self._write()
            deadline = time.monotonic() + LAST_WRITE_SECONDS
            while not self._write() and time.monotonic() < deadline:
                time.sleep(0.2)
        finally:
            connection.close()

    def _write(self) -> bool:
        """Write what waits. False when the database did not take it; it is kept then."""
        try:
            written = write(self.buffer, self._places)
        except (DatabaseError, InterfaceError) as error:
            # A connection that broke never works again; the next attempt opens a new one.
            connection.close()
            if not self._complained:
                logger.warning("Traffic is kept in memory, the database does not take it: %s", error)
            self._complained = True
            return False
        if self._complained:
            logger.info("The database takes traffic again")
            self._complained = False
        if written.lost:
            logger.error("%d requests were not recorded: their lines were lost", written.lost.total())
        if written.numbers != self._numbers:
            # After the lines: who dies in between has them counted as lost by the next process, never as seen.
            keep_numbers(self._numbers_file, written.numbers)
            self._numbers = written.numbers
        return True
