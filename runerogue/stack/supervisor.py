"""supervisord: its configuration, its XML-RPC socket, and the process itself."""

from __future__ import annotations

import ctypes
import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import xmlrpc.client
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runerogue.stack.home import Home

# Every process of a stack carries this in its environment: that is how one is recognised when its parent is gone.
MARK = "RUNEROGUE_STACK"

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Program:
    """One program under supervisord. `user` only when started by root. Signals go to the whole process group unless
    `whole_group` is False (PostgreSQL's children must hear them from their parent)."""

    name: str
    command: Sequence[str]
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    autostart: bool = False
    priority: int = 500
    stop_signal: str = "TERM"
    stop_seconds: int = 10
    whole_group: bool = True

    def ini(self, logs: Path) -> str:
        """The `[program:…]` section, as supervisord reads it."""
        lines = [
            f"[program:{self.name}]",
            f"command={_escaped(shlex.join(self.command))}",
            f"directory={_escaped(str(self.folder))}",
            f"autostart={_word(self.autostart)}",
            # Back after any end, however often: a program that can't start yet (its database is coming back) tries on.
            "autorestart=true",
            "startsecs=1",
            "startretries=20",
            f"priority={self.priority}",
            f"stopsignal={self.stop_signal}",
            f"stopwaitsecs={self.stop_seconds}",
            f"stopasgroup={_word(self.whole_group)}",
            f"killasgroup={_word(self.whole_group)}",
            "redirect_stderr=true",
            f"stdout_logfile={_escaped(str(logs / f'{self.name}.log'))}",
            "stdout_logfile_maxbytes=10MB",
            "stdout_logfile_backups=2",
        ]
        if self.environment:
            pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in self.environment.items())
            lines.append(f"environment={pairs}")
        if self.user:
            lines.append(f"user={self.user}")
        return "\n".join(lines) + "\n"


def configuration(home: Home, programs: Sequence[Program]) -> str:
    """supervisord.conf for these programs and for everything in `home.programs`."""
    head = f"""\
; Written at each start; changes are lost.
[supervisord]
nodaemon=true
logfile={_escaped(str(home.logs / "supervisord.log"))}
logfile_maxbytes=10MB
logfile_backups=2
pidfile={_escaped(str(home.run / "supervisord.pid"))}
childlogdir={_escaped(str(home.logs))}
identifier=runerogue
minfds=1024
umask=022
{"user=root" if os.geteuid() == 0 else ""}

[unix_http_server]
file={_escaped(str(home.supervisor_socket))}
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{_escaped(str(home.supervisor_socket))}

[include]
files = programs/*.ini
"""
    return "\n".join([head, *(program.ini(home.logs) for program in programs)])


def start(home: Home, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start supervisord as a child that ends, in order, when this process ends in whatever way (on Linux)."""
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(home.supervisor_config)]
    with (home.logs / "supervisord.out").open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=home.folder,
            env={**environment, MARK: str(home.folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Its own session: Ctrl-C in the terminal is for the foreground process alone, which stops things in order.
            start_new_session=True,
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )


def end_with_parent() -> None:
    """Ask the kernel to send SIGTERM to this process when its parent ends. For `preexec_fn`."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def client(socket_path: Path | str) -> Iterator[Any]:
    """The `supervisor` namespace of supervisord's XML-RPC interface; its calls raise OSError when nobody answers."""
    with xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(socket_path), allow_none=True) as proxy:
        yield proxy.supervisor


def processes(home: Home) -> list[dict[str, Any]]:
    """What supervisord says of each program: name, statename, pid, start … Empty when it does not answer."""
    try:
        with client(home.supervisor_socket) as control:
            answer: list[dict[str, Any]] = control.getAllProcessInfo()
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return []
    return answer


class _Transport(xmlrpc.client.Transport):
    """XML-RPC over a unix socket. supervisor's own one leaves sockets open and waits for ever."""

    def __init__(self, socket_path: Path | str) -> None:
        super().__init__()
        self._socket_path = str(socket_path)
        self._open: _Connection | None = None

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        if self._open is None:
            self._open = _Connection(self._socket_path)
        return self._open

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


class _Connection(http.client.HTTPConnection):
    def __init__(self, socket_path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._socket_path = socket_path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)


def answers(socket_path: Path) -> bool:
    """True when somebody accepts connections on this unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(socket_path))
        except OSError:
            return False
    return True


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _word(value: bool) -> str:
    return "true" if value else "false"
