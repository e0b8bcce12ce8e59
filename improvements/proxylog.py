"""From the proxy's log lines to traffic slices: read datagrams, fold them per server and second, write them out.

Two threads: one reads, because the kernel keeps only a few datagrams waiting and HAProxy drops what does not fit; the
other writes to the database, which may be slow or away for a while. Between them is a buffer with a limit.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import socket
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
RECEIVE_BYTES = 4 * 1024 * 1024
# Socket option of Linux that, unlike SO_RCVBUF, may exceed the system's limit; root only.
SO_RCVBUFFORCE = 33
LONGEST_LINE = 8192
# Small, so that the kernel's short queue (10 datagrams on many systems) is not left alone while a batch is parsed.
BATCH = 16
NO_SERVER = "<NOSRV>"

# First letter of HAProxy's termination state. "C" and "c": the client went away or was too slow. "S", "s": the server
# did. "R", "I", "D", "K": the proxy ran out of something, failed, or was told to cut the session.
_CLIENT_FAULT = frozenset("Cc")
_BROKEN = frozenset("SsRIDK")


@dataclass(frozen=True, slots=True)
class Line:
    """One request as the proxy logged it. `latency_ms` is NaN when it never came to a time."""

    backend: str
    server: str
    status: int
    latency_ms: float
    method: str


def parse(datagram: bytes) -> Line | None:
    """A log line `%b %s %ST %Ta %Tr %HM %Tc %ts` behind its syslog header; None for what is no request."""
    header, mark, text = datagram.partition(b"]: ")
    if not mark or not header.startswith(b"<"):
        return None
    words = text.split()
    if len(words) < 8:
        return None
    try:
        status, latency_ms = int(words[2]), float(words[3].lstrip(b"+"))
    except ValueError:
        return None
    ended = chr(words[7][0])
    if ended in _CLIENT_FAULT:
        status = CLIENT_LEFT
    elif ended in _BROKEN and status < 500:
        # The answer had begun well and was cut off: the status is the server's, the failure is not in it.
        status = NO_ANSWER
    return Line(
        words[0].decode("ascii", "replace"),
        words[1].decode("ascii", "replace"),
        max(NO_ANSWER, min(status, 999)),
        latency_ms if latency_ms >= 0 else math.nan,
        words[5].decode("ascii", "replace")[:8],
    )


@dataclass(slots=True)
class Fold:
    """The requests of one server in one second."""

    latencies_ms: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)


Key = tuple[int, str, str]  # second, backend, server


class Buffer:
    """Folds that wait to be written, oldest first. Beyond `limit` requests the oldest are dropped, and counted."""

    def __init__(self, limit: int = BUFFERED_REQUESTS) -> None:
        self.limit = limit
        self.received = 0
        self.dropped = 0
        self._size = 0
        self._folds: OrderedDict[Key, Fold] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, lines: Iterable[Line], second: int) -> None:
        with self._lock:
            for line in lines:
                fold = self._folds.setdefault((second, line.backend, line.server), Fold())
                fold.latencies_ms.append(line.latency_ms)
                fold.statuses.append(line.status)
                fold.methods.append(line.method)
                self._size += 1
                self.received += 1
            while self._size > self.limit and self._folds:
                _, fold = self._folds.popitem(last=False)
                self._size -= len(fold.statuses)
                self.dropped += len(fold.statuses)

    def take(self) -> OrderedDict[Key, Fold]:
        """Everything that waits; the buffer is empty afterwards."""
        with self._lock:
            taken, self._folds, self._size = self._folds, OrderedDict(), 0
        return taken

    def put_back(self, folds: OrderedDict[Key, Fold]) -> None:
        """What could not be written goes in front again."""
        with self._lock:
            for key, fold in reversed(folds.items()):
                if newer := self._folds.get(key):
                    for name in ("latencies_ms", "statuses", "methods"):
                        getattr(newer, name)[:0] = getattr(fold, name)
                else:
                    self._folds[key] = fold
                self._folds.move_to_end(key, last=False)
                self._size += len(fold.statuses)
            while self._size > self.limit and self._folds:
                _, fold = self._folds.popitem(last=False)
                self._size -= len(fold.statuses)
                self.dropped += len(fold.statuses)


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


def slices(folds: Mapping[Key, Fold], places: Map) -> list[Slice]:
    """The folds that belong to a service, as rows to write. Several servers of one release become one slice."""
    together: dict[tuple[int, int | None, int], Fold] = {}
    for (second, backend, server), fold in folds.items():
        place = places.place(backend, server)
        if place is None:
            continue
        target = together.setdefault((*place, second), Fold())
        target.latencies_ms += fold.latencies_ms
        target.statuses += fold.statuses
        target.methods += fold.methods
    return [
        Slice(service, release, second, tuple(fold.latencies_ms), tuple(fold.statuses), tuple(fold.methods))
        for (service, release, second), fold in together.items()
    ]


def write(buffer: Buffer, places: Map) -> int:
    """Write what the buffer holds. Returns the number of requests; raises the database's errors and keeps it all."""
    folds = buffer.take()
    try:
        places.refresh()
        rows = slices(folds, places)
        traffic.store(rows)
    except BaseException:
        buffer.put_back(folds)
        raise
    return sum(len(row.statuses) for row in rows)


def bind(path: Path) -> socket.socket:
    """The socket that HAProxy logs to, owner-only. One that an earlier process left is replaced; OSError if `path` is
    something else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} is not a socket; move it away")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
    except OSError:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    listener.setblocking(False)
    return listener


def read(listener: socket.socket, buffer: Buffer, *, clock: Callable[[], float] = time.time) -> int:
    """Take the datagrams that are there (at most a batch) into the buffer. Returns how many."""
    datagrams = []
    receive = listener.recv
    try:
        for _ in range(BATCH):
            datagrams.append(receive(LONGEST_LINE))
    except BlockingIOError:
        pass
    if datagrams:
        buffer.add(filter(None, map(parse, datagrams)), int(clock()))
    return len(datagrams)


class Recorder:
    """The whole of it: `run` reads until `stop`, and writes beside it every `FLUSH_SECONDS`."""

    def __init__(self, path: Path, *, limit: int = BUFFERED_REQUESTS) -> None:
        self.path = path
        self.buffer = Buffer(limit)
        self._places = Map()
        self._stopping = threading.Event()
        self._drained = threading.Event()  # after stopping, and only when everything was read: then the last write
        self._complained = False
        self._dropped = 0

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        """Read and write until told to stop; what was read by then is written."""
        listener = bind(self.path)
        inode = self.path.stat().st_ino
        writer = threading.Thread(target=self._write_until_stopped, name="proxylog-writer")
        writer.start()
        try:
            poll = select.poll()
            poll.register(listener, select.POLLIN)
            while not self._stopping.is_set():
                if poll.poll(200):
                    read(listener, self.buffer)
            while read(listener, self.buffer):
                pass
        finally:
            self._drained.set()
            writer.join()
            with contextlib.suppress(FileNotFoundError):
                # Not when a successor has its own socket there already.
                if self.path.stat().st_ino == inode:
                    self.path.unlink()
            listener.close()

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
            write(self.buffer, self._places)
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
        if self.buffer.dropped > self._dropped:
            logger.error("%d requests were not recorded: too many were waiting", self.buffer.dropped - self._dropped)
            self._dropped = self.buffer.dropped
        return True
