"""Which TCP ports to listen on: the wanted one when it is free, else the next free one."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

import psutil

from runerogue.stack.errors import StackError

ATTEMPTS = 200


def is_free(host: str, port: int) -> bool:
    """True when a server could listen on `host`:`port` now. StackError when `host` is no address of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise StackError(f"RUNEROGUE_HOST={host!r} is not an address: {error.strerror}. Try 127.0.0.1.") from error
    with socket.socket(family, kind, protocol) as probe:
        # Servers set this too: without it a port stays "busy" for a minute after its last connection closed.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError as error:
            raise StackError(
                f"Port {port} needs more rights than this user has. Set RUNEROGUE_PORT to a port above 1023."
            ) from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise StackError(
                    f"RUNEROGUE_HOST={host!r} is not an address of this machine. Try 127.0.0.1, or 0.0.0.0 for all."
                ) from error
            return False
    return True


def holder(port: int) -> str:
    """Who listens on `port`, for an error message: "nginx (pid 4711)", or words for not being allowed to know."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                if connection.pid is None:
                    break
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return "another process (of a user that this one can't see)"


def demand(host: str, port: int) -> int:
    """`port`, which was asked for by name; StackError naming its holder when it is busy."""
    if not is_free(host, port):
        raise StackError(
            f"Port {port} on {host} is in use by {holder(port)}. "
            "Stop that process, or set RUNEROGUE_PORT to another port (unset, the next free one is taken)."
        )
    return port


def next_free(host: str, start: int, *, taken: Iterable[int] = ()) -> int:
    """The first port from `start` on that is free and not in `taken`."""
    avoid = set(taken)
    for port in range(start, min(start + ATTEMPTS, 65536)):
        if port not in avoid and is_free(host, port):
            return port
    raise StackError(f"No free port on {host} from {start} to {start + ATTEMPTS - 1}. Set RUNEROGUE_PORT.")
