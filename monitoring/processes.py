"""CPU, memory and disk as the operating system sees them: of the host, and of who listens on a port."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from monitoring.prometheus import Labels


@dataclass(frozen=True)
class ProcessUse:
    """What all processes that listen on one port use together. CPU seconds are per process, see derive."""

    cpu_seconds: dict[Labels, float]
    memory_bytes: float


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
    found = {}
    for port, pids in owners.items():
        seconds: dict[Labels, float] = {}
        memory = 0.0
        for pid in pids:
            try:
                process = psutil.Process(pid)
                with process.oneshot():
                    times = process.cpu_times()
                    memory += process.memory_info().rss
                    key = (("created", f"{process.create_time():.2f}"), ("pid", str(pid)))
            except psutil.Error:
                continue  # it ended meanwhile
            seconds[key] = times.user + times.system
        if seconds:
            found[port] = ProcessUse(seconds, memory)
    return found
