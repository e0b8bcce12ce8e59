"""What the operating system says about this very process."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from monitoring import processes


def test_finds_who_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = processes.listening({port, 1})
    assert set(found) == {port}
    ((labels, seconds),) = found[port].cpu_seconds.items()
    assert dict(labels)["pid"] == str(os.getpid())
    assert seconds > 0
    assert found[port].memory_bytes > 1e6
    assert found[port].threads >= 1
    files = found[port].open_fds
    assert files is not None
    assert files >= 3
    limit = found[port].max_fds
    assert limit is None or limit >= files


def test_a_process_that_listens_twice_is_looked_at_once_and_told_twice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = {server.getsockname()[1] for server in (one, two)}
        found = processes.listening(ports)
    assert set(found) == ports
    assert len({use.memory_bytes for use in found.values()}) == 1


def test_asks_nothing_for_no_ports() -> None:
    assert processes.listening(()) == {}


def test_the_host_is_measured_even_before_the_folder_exists(tmp_path: Path) -> None:
    processes.host(tmp_path)
    use = processes.host(tmp_path / "not" / "yet")
    assert 0 < use.memory_percent <= 100
    assert 0 < use.disk_percent <= 100
    assert use.cpu_percent is None or 0 <= use.cpu_percent <= 100
