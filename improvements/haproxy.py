"""HAProxy's runtime API over its unix socket: read its servers, and move traffic between them without a reload.

A reload drops requests and run-time weights, so nothing here ever asks for one.
"""

from __future__ import annotations

import csv
import fcntl
import io
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

WEIGHTS = range(257)
CHANGED = "by 'stats socket command'"


class ProxyError(Exception):
    """HAProxy could not be reached or refused. The message names the command and the answer."""


class Mode(StrEnum):
    """What the operator wants of a server. DRAIN is checked and finishes its requests, but gets no new ones."""

    READY = "ready"
    DRAIN = "drain"
    MAINT = "maint"


@dataclass(frozen=True)
class Server:
    """One server of a backend as `show stat` and `show servers state` tell it. Counters count since HAProxy started."""

    backend: str
    name: str
    address: str
    port: int
    weight: int
    mode: Mode
    status: str  # UP, DOWN, DRAIN, MAINT, NOLB, or on the way there, such as "UP 1/2"
    check: str  # L4OK, L7STS, INI …; empty while it is not checked
    sessions: int
    requests: int
    connect_errors: int
    response_errors: int
    retries: int

    @property
    def is_checked(self) -> bool:
        """True when its latest health check was fine. "DRAIN 1/2" is on the way: that result may be of another time."""
        return self.check.lstrip("* ").endswith("OK") and self.status in ("UP", "DRAIN")

    @property
    def is_up(self) -> bool:
        """True when it would get traffic now, had it a weight."""
        return self.mode is Mode.READY and self.status.startswith("UP")

    @property
    def takes_traffic(self) -> bool:
        return self.is_up and self.weight > 0


@dataclass(frozen=True)
class RuntimeApi:
    """The socket that HAProxy answers on. Each command is a connection of its own; every one has a timeout."""

    path: Path
    timeout_seconds: float = 5.0

    def ask(self, command: str) -> str:
        """The answer to `command` (several joined by ";" are run at once). ProxyError when there is none."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self.timeout_seconds)
                connection.connect(str(self.path))
                connection.sendall(command.encode() + b"\n")
                parts = []
                while part := connection.recv(65536):
                    parts.append(part)
        except OSError as error:
            raise ProxyError(
                f"HAProxy did not answer {command!r} on {self.path}: {error}. Does it run, and is HAPROXY_SOCKET right?"
            ) from error
        return b"".join(parts).decode(errors="replace")

    def change(self, *commands: str) -> None:
        """Run `commands`, in order, in one go. ProxyError unless HAProxy accepted all of them."""
        if not commands:
            return
        answer = self.ask(";".join(commands))
        refused = [line for line in answer.splitlines() if line.strip() and CHANGED not in line]
        if refused:
            raise ProxyError(f"HAProxy refused {'; '.join(commands)!r}: {' '.join(refused)}")

    def servers(self, backend: str) -> dict[str, Server]:
        """The servers of `backend` by name. ProxyError when there is no such backend."""
        states = {row["srv_name"]: row for row in table(self.ask(f"show servers state {backend}"))}
        figures = {row["svname"]: row for row in csv.DictReader(io.StringIO(self.ask(f"show stat {backend} 4 -1")[2:]))}
        if not states or states.keys() != figures.keys():
            raise ProxyError(f"HAProxy has no backend {backend!r} with servers. Its configuration is not RuneRogue's.")
        return {name: _server(state, figures[name]) for name, state in states.items()}

    def save(self, file: Path) -> None:
        """Write what HAProxy needs to come back with the same servers and weights. Atomic; savers take turns."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with (file.parent / f"{file.name}.lock").open("w") as turn:
            # Without turns an older answer could replace a newer one.
            fcntl.flock(turn, fcntl.LOCK_EX)
            state = self.ask("show servers state")
            if "srv_name" not in state:
                raise ProxyError(f"HAProxy answered 'show servers state' with {state[:200]!r}")
            draft = file.with_name(f"{file.name}.new")
            with draft.open("w") as out:
                out.write(state)
                out.flush()
                os.fsync(out.fileno())
            draft.replace(file)

    def wait_until_checked(
        self, backend: str, names: Iterable[str], *, timeout_seconds: float, every_seconds: float = 0.05
    ) -> dict[str, Server]:
        """The servers of `backend`, once a health check has passed for all of `names` or time is up."""
        wanted, deadline = set(names), time.monotonic() + timeout_seconds
        while True:
            servers = self.servers(backend)
            if all(servers[name].is_checked for name in wanted) or time.monotonic() >= deadline:
                return servers
            time.sleep(every_seconds)


def set_address(backend: str, server: str, address: str, port: int) -> str:
    return f"set server {backend}/{server} addr {address} port {port}"


def set_weight(backend: str, server: str, weight: int) -> str:
    if weight not in WEIGHTS:
        raise ValueError(f"A weight is from 0 to 256, not {weight}")
    return f"set server {backend}/{server} weight {weight}"


def set_mode(backend: str, server: str, mode: Mode) -> str:
    return f"set server {backend}/{server} state {mode}"


def table(answer: str) -> list[dict[str, str]]:
    """The rows of a `show servers state` answer or file: a version line, a header that begins with "# ", rows."""
    names: list[str] = []
    rows = []
    for line in answer.splitlines():
        if line.startswith("# "):
            names = line[2:].split()
        elif names and line.strip():
            rows.append(dict(zip(names, line.split(), strict=False)))
    return rows


# Bits of srv_admin_state. A server that the configuration disables keeps 0x04 for ever, so that one says nothing.
FORCED_MAINT, INHERITED_MAINT, FORCED_DRAIN, INHERITED_DRAIN = 0x01, 0x02, 0x08, 0x10


def _server(state: dict[str, str], figures: dict[str, str]) -> Server:
    admin = int(state["srv_admin_state"])
    if admin & (FORCED_MAINT | INHERITED_MAINT):
        mode = Mode.MAINT
    elif admin & (FORCED_DRAIN | INHERITED_DRAIN):
        mode = Mode.DRAIN
    else:
        mode = Mode.READY

    def count(name: str) -> int:
        return int(figures.get(name) or 0)

    return Server(
        backend=state["be_name"],
        name=state["srv_name"],
        address=state["srv_addr"],
        port=int(state["srv_port"]),
        weight=int(state["srv_uweight"]),
        mode=mode,
        status=figures["status"],
        check=figures.get("check_status") or "",
        sessions=count("scur"),
        requests=count("stot"),
        connect_errors=count("econ"),
        response_errors=count("eresp"),
        retries=count("wretr"),
    )
