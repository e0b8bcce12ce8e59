"""Programs that come and go while supervisord runs: each release of a service is one.

Spoken over supervisord's unix socket. Every call is idempotent, has a timeout, and says what was wanted when it fails.
"""

from __future__ import annotations

import http.client
import os
import shlex
import socket
import time
import xmlrpc.client
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STOP_WAIT_SECONDS = 15
ALIVE = frozenset({"STARTING", "RUNNING", "BACKOFF"})

# supervisor.xmlrpc.Faults
BAD_NAME, ALREADY_STARTED, NOT_RUNNING, ALREADY_ADDED, STILL_RUNNING = 10, 60, 70, 90, 91


class SupervisionError(Exception):
    """supervisord could not be reached or refused. The message says what was asked of it."""


@dataclass(frozen=True)
class Program:
    """One program: `command` is run in `folder`, and what it prints goes to `log`, which is rotated.

    It has no environment of its own here: supervisord's syntax for one cannot hold every value (a quote, " ;", a line
    break), so programs get theirs from a launcher.
    """

    name: str
    command: Sequence[str]
    folder: Path
    log: Path

    def ini(self) -> str:
        """The section that supervisord reads. ValueError when a value cannot be written so that it reads it back."""
        return "\n".join(
            [
                f"[program:{_plain(self.name)}]",
                f"command={_plain(shlex.join(self.command))}",
                f"directory={_plain(str(self.folder))}",
                "autostart=true",
                "autorestart=true",
                "startsecs=1",
                "startretries=10",
                "stopsignal=TERM",
                f"stopwaitsecs={STOP_WAIT_SECONDS}",
                "stopasgroup=true",
                "killasgroup=true",
                "redirect_stderr=true",
                f"stdout_logfile={_plain(str(self.log))}",
                "stdout_logfile_maxbytes=10MB",
                "stdout_logfile_backups=2",
                "",
            ]
        )


@dataclass(frozen=True)
class Process:
    """What supervisord knows of a program. `pid` is 0 while there is no process."""

    state: str  # STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL, UNKNOWN
    pid: int
    exit_code: int
    error: str

    @property
    def is_alive(self) -> bool:
        """True when it runs, or when supervisord keeps trying to start it."""
        return self.state in ALIVE


@dataclass(frozen=True)
class Supervisor:
    """supervisord behind `socket`, which includes every `*.ini` of the folder `programs`."""

    socket: Path
    programs: Path
    timeout_seconds: float = STOP_WAIT_SECONDS + 10.0

    def process(self, name: str) -> Process | None:
        """The program's process; None when supervisord does not know the program."""
        try:
            known = self._call("getProcessInfo", name)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == BAD_NAME:
                return None
            raise _refused(f"getProcessInfo {name}", fault) from fault
        return Process(known["statename"], int(known["pid"]), int(known["exitstatus"]), known["spawnerr"])

    def run(self, program: Program) -> None:
        """Make `program` known as it is written here, and started. One that runs already is left alone."""
        file, text = self.programs / f"{program.name}.ini", program.ini()
        if not file.exists() or file.read_text() != text:
            self.remove(program.name)
            self.programs.mkdir(parents=True, exist_ok=True)
            # Whole or not at all: supervisord reads every file of the folder whenever anybody asks it to.
            draft = file.with_suffix(f".{os.getpid()}.new")
            draft.write_text(text)
            draft.replace(file)
        if self.process(program.name) is None:
            self._tolerating((), "reloadConfig")
            self._tolerating((ALREADY_ADDED,), "addProcessGroup", program.name)
        self._tolerating((ALREADY_STARTED,), "startProcess", program.name, False)

    def stop(self, name: str) -> None:
        """End the program's process, by force after `STOP_WAIT_SECONDS`. It stays known."""
        self._tolerating((NOT_RUNNING, BAD_NAME), "stopProcess", name, False)
        deadline = time.monotonic() + self.timeout_seconds
        while (process := self.process(name)) and (process.is_alive or process.state == "STOPPING"):
            if time.monotonic() > deadline:
                raise SupervisionError(
                    f"{name} is still {process.state} after {self.timeout_seconds:.0f} s (pid {process.pid})"
                )
            time.sleep(0.05)

    def remove(self, name: str) -> None:
        """End the program and forget it."""
        if self.process(name) is not None:
            self.stop(name)
            self._tolerating((BAD_NAME,), "removeProcessGroup", name)
        (self.programs / f"{name}.ini").unlink(missing_ok=True)

    def _tolerating(self, codes: Sequence[int], method: str, *arguments: Any) -> None:
        try:
            self._call(method, *arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in codes:
                raise _refused(f"{method} {' '.join(map(str, arguments))}".strip(), fault) from fault

    def _call(self, method: str, *arguments: Any) -> Any:
        transport = _UnixTransport(self.socket, self.timeout_seconds)
        try:
            with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise SupervisionError(
                f"supervisord did not answer {method} on {self.socket}: {error}. Is the stack running?"
            ) from error


class _UnixTransport(xmlrpc.client.Transport):
    """XML-RPC over a unix socket, with a timeout."""

    def __init__(self, path: Path, timeout_seconds: float) -> None:
        super().__init__()
        self._path, self._timeout_seconds = path, timeout_seconds

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=self._timeout_seconds)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(self._timeout_seconds)
        try:
            connection.sock.connect(str(self._path))
        except OSError:
            connection.close()
            raise
        # The base class closes what is remembered here.
        self._connection = host, connection
        return connection


def _plain(value: str) -> str:
    """`value` for supervisord's configuration: % expands there, and a space before ; or # begins a comment."""
    if any(line_break in value for line_break in "\r\n") or " ;" in value or " #" in value:
        raise ValueError(f"supervisord cannot read back {value!r}: it has a line break, or a space before ; or #")
    return value.replace("%", "%%")


def _refused(what: str, fault: xmlrpc.client.Fault) -> SupervisionError:
    return SupervisionError(f"supervisord refused {what!r}: {fault.faultString}")
