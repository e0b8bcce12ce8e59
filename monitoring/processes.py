"""CPU, memory and disk as the operating system sees them: of the host, and of who listens on a port."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from monitoring.prometheus import Labels


@dataclass(frozen=True)
class ProcessUse:
    """What all processes that listen on one port use together. CPU seconds are per process, see derive.

    `open_fds` and `max_fds` (how many files may be open) are None where the system does not tell.
    """

    cpu_seconds: dict[Labels, float]
    memory_bytes: float
    threads: int
    open_fds: int | None
    max_fds: int | None


@dataclass(frozen=True)
class HostUse:
    """Percent in use. CPU is over all cores since the last call in this process, None at the first."""

    cpu_percent: float | None
    memory_percent: float
    disk_percent: float


_busy_before: tuple[float, float] | None = None
_lock = threading.Lock()


def host(folder: Path) -> HostUse:
    """The host now; the disk is the one that holds `folder`."""
    global _busy_before  # psutil's own memory of this is per thread; the collector has several
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Guest time is part of user time already.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    with _lock:
        before, _busy_before = _busy_before, (total - idle, total)
    cpu = None
    if before is not None and total > before[1]:
        cpu = min(100.0, max(0.0, 100.0 * (total - idle - before[0]) / (total - before[1])))
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return HostUse(cpu, psutil.virtual_memory().percent, psutil.disk_usage(str(folder)).percent)


def listening(ports: Collection[int]) -> dict[int, ProcessUse]:
    """Who listens on each of `ports`, workers included; without those of other users where that isn't allowed."""
    if not ports:
        return {}
    owners: dict[int, set[int]] = defaultdict(set)
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return {}
    for connection in connections:
        port = connection.laddr.port if connection.laddr else None
        if connection.status == psutil.CONN_LISTEN and connection.pid and port is not None and port in ports:
            owners[port].add(connection.pid)
    used = {pid: _use(pid) for pid in set().union(*owners.values())}
    found = {}
    for port, pids in owners.items():
        parts = [part for pid in sorted(pids) if (part := used[pid])]
        if parts:
            found[port] = ProcessUse(
                cpu_seconds={labels: seconds for part in parts for labels, seconds in part.cpu_seconds.items()},
                memory_bytes=sum(part.memory_bytes for part in parts),
                threads=sum(part.threads for part in parts),
                open_fds=_sum(part.open_fds for part in parts),
                max_fds=_sum(part.max_fds for part in parts),
            )
    return found


def _use(pid: int) -> ProcessUse | None:
    """What one process uses; None when it ended meanwhile."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            labels = (("created", f"{process.create_time():.2f}"), ("pid", str(pid)))
            memory, threads = float(process.memory_info().rss), process.num_threads()
            try:
                open_fds = process.num_fds() if psutil.POSIX else None
                limit = process.rlimit(psutil.RLIMIT_NOFILE)[0] if psutil.LINUX else -1
            except psutil.AccessDenied:  # a process of another user
                open_fds, limit = None, -1
    except psutil.Error:
        return None
    max_fds = limit if 0 <= limit < 2**63 - 1 else None  # beyond is no limit
    return ProcessUse({labels: times.user + times.system}, memory, threads, open_fds, max_fds)


def _sum(values: Iterable[int | None]) -> int | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
