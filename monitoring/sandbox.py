"""Run a service's own command where it can do little harm.

Target code is not ours: it gets a scrubbed environment, limits, no network unless asked for, and only the folders
named. How strong that is depends on the machine, so every result says what isolated it. The work is done by
`sandboxed.py`, a program of its own; this module is how the product calls it.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

from monitoring import sandboxed

LAUNCHER = Path(sandboxed.__file__)
OUTPUT_BYTES = 1024 * 1024
# The launcher keeps the time itself; if it has not answered by then, something holds it and it is killed from here.
LAUNCHER_SLACK_SECONDS = 15.0


class SandboxError(Exception):
    """The command could not be started at all; the message says why and what to do."""


@dataclass(frozen=True)
class Limits:
    """What one command may use. None lifts a limit. Memory is address space per process, so it is generous."""

    memory_bytes: int | None = 4 * 1024**3
    cpu_seconds: int | None = 3600
    file_bytes: int | None = 1024**3
    open_files: int | None = 4096
    processes: int | None = 256


@dataclass(frozen=True)
class Finished:
    """How a command ended. Output is the last MiB of each stream; a signal n gives exit code 128 + n."""

    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool
    isolation: str
    ended: str = "exited"

    @property
    def succeeded(self) -> bool:
        return self.exit_code == 0 and not self.timed_out

    def tail(self, characters: int = 4000) -> str:
        """The end of what it printed, for a person to read."""
        return "\n".join(part for part in (self.stdout[-characters:], self.stderr[-characters:]) if part.strip())


@dataclass(frozen=True)
class Reach:
    """What a command must be able to reach because its environment names it."""

    socket_folders: tuple[Path, ...]
    network: bool


def reach(environment: Mapping[str, str]) -> Reach:
    """Which socket folders, and whether the network, the database and queue addresses in `environment` need.

    Understands `postgresql://…?host=/folder`, `postgresql://%2Ffolder/…`, `unix:///folder/file`, `redis+socket://` and
    PGHOST.
    """
    folders: list[Path] = []
    network = False
    for name, value in environment.items():
        if name == "PGHOST":
            if value.startswith("/"):
                folders.append(Path(value))
            else:
                network = True
        if "://" not in value or "\n" in value:
            continue
        try:
            address = urlsplit(value)
            hosts = parse_qs(address.query).get("host", [])
        except ValueError:
            continue
        netloc = address.netloc.rpartition("@")[2]
        if address.scheme in ("unix", "redis+socket", "unix+redis"):
            folders.append(Path(address.path).parent)
        elif address.scheme.startswith(("postgres", "pgsql")) and (hosts or netloc.lower().startswith("%2f")):
            host = hosts[0] if hosts else netloc.lower().replace("%2f", "/")
            if host.startswith("/"):
                folders.append(Path(host))
            else:
                network = True
        elif netloc and name.endswith(("_URL", "_URI", "_DSN", "_ENDPOINT", "_HOST")):
            network = True
    return Reach(tuple(dict.fromkeys(folders)), network)


def environment_for(environment: Mapping[str, str], cwd: Path) -> dict[str, str]:
    """The complete environment of a sandboxed command: what every program needs, then what was passed. Nothing is
    inherited.
    """
    own = cwd / ".venv" / "bin"
    folders = [str(own)] if own.is_dir() else []
    folders += [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]
    return {
        "PATH": os.pathsep.join(folders),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        **{str(name): str(value) for name, value in environment.items()},
    }


def weakness() -> str:
    """Why code of services would run as root on this machine; empty where it doesn't, or where we aren't root."""
    if os.geteuid() != 0 or not (reason := sandboxed.why_not_bubblewrap(shutil.which("bwrap"))):
        return ""
    user = sandboxed.other_user("nobody")
    if user is None:
        return f"{reason}, and there is no user nobody"
    asked = [sys.executable, "-I", "-c", ""]
    try:
        done = subprocess.run(
            asked,
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            cwd="/",
            env={},
            capture_output=True,
            check=False,
        )
    except OSError:
        return f"{reason}, and user nobody can't run {sys.executable}"
    return f"{reason}, and user nobody can't run {sys.executable}" if done.returncode else ""


def specification(
    command: str | Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    timeout_seconds: float | None = None,
    grace_seconds: float = 0.0,
    readable: Sequence[Path] = (),
    writable: Sequence[Path] = (),
    network: bool = False,
    limits: Limits | None = None,
    user: str | None = "nobody",
    bubblewrap: bool = True,
    parent: int | None = None,
) -> dict[str, Any]:
    """What the launcher is told. A command given as text is split like a shell would, without running a shell."""
    argv = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    if not argv:
        raise SandboxError("the command is empty; write one in runerogue.toml")
    if not cwd.is_dir():
        raise SandboxError(f"the folder {cwd} to run {argv[0]!r} in does not exist")
    missing = [str(path) for path in (*readable, *writable) if not path.exists()]
    if missing:
        raise SandboxError(f"{argv[0]!r} needs {', '.join(missing)}, which does not exist")
    return {
        "argv": argv,
        "cwd": str(cwd.resolve()),
        "environment": environment_for(environment, cwd),
        "readable": [str(path.absolute()) for path in readable],
        "writable": [str(path.resolve()) for path in writable],
        "network": network,
        "limits": asdict(limits or Limits()),
        "timeout_seconds": timeout_seconds,
        "grace_seconds": grace_seconds,
        "user": user,
        "bubblewrap": shutil.which("bwrap") if bubblewrap else None,
        "parent": parent,
    }


def write_specification(path: Path, spec: Mapping[str, Any]) -> list[str]:
    """Keep a specification in an owner-only file and return the argv that runs it, for a process manager.

    The launcher then ends with whoever started it, and passes a SIGTERM on to the command before it kills.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as sink:
        json.dump(dict(spec), sink)
    return [sys.executable, "-I", str(LAUNCHER), "--spec-file", str(path)]


def run(
    command: str | Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    timeout_seconds: float,
    readable: Sequence[Path] = (),
    writable: Sequence[Path] = (),
    network: bool = False,
    limits: Limits | None = None,
    user: str | None = "nobody",
    bubblewrap: bool = True,
) -> Finished:
    """Run one command to its end and return what it did. No process of it outlives this call, nor the caller.

    `cwd` and `writable` may be written, `readable` (which may name folders of sockets) only read. Raises SandboxError
    when the command can't be started; a command that fails or is stopped for time is a result, not an error.
    """
    spec = specification(
        command,
        cwd=cwd,
        environment=environment,
        timeout_seconds=timeout_seconds,
        readable=readable,
        writable=writable,
        network=network,
        limits=limits,
        user=user,
        bubblewrap=bubblewrap,
        parent=os.getpid(),
    )
    started = time.monotonic()
    # The specification holds passwords: it travels through a pipe, never through argv or the environment of the
    # launcher.
    spec_read, spec_write = os.pipe()
    status_read, status_write = os.pipe()
    try:
        launcher = subprocess.Popen(
            [sys.executable, "-I", str(LAUNCHER), "--spec-fd", str(spec_read), "--status-fd", str(status_write)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(spec_read, status_write),
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
    except BaseException:
        os.close(spec_write)
        os.close(status_read)
        raise
    finally:
        os.close(spec_read)
        os.close(status_write)
    assert launcher.stdout is not None
    assert launcher.stderr is not None
    tails = [Tail(launcher.stdout), Tail(launcher.stderr)]
    try:
        with os.fdopen(spec_write, "w", encoding="utf-8") as sink:
            json.dump(spec, sink)
        launcher.wait(timeout_seconds + LAUNCHER_SLACK_SECONDS)
    except BrokenPipeError:
        launcher.wait()
    except subprocess.TimeoutExpired:
        pass
    finally:
        if launcher.poll() is None:
            # It ends the tree on SIGTERM; after a SIGKILL the second launcher or the kernel does.
            launcher.terminate()
            try:
                launcher.wait(5)
            except subprocess.TimeoutExpired:
                launcher.kill()
                launcher.wait()
        with os.fdopen(status_read, encoding="utf-8") as source:
            text = source.read()
    stdout, stderr = (tail.text() for tail in tails)
    report: dict[str, Any] = json.loads(text) if text else {}
    if report.get("ended") == "not started":
        raise SandboxError(str(report["error"]))
    seconds = time.monotonic() - started
    timed_out = report.get("ended") == "timeout" or (not report and seconds >= timeout_seconds)
    if not report and not timed_out:
        raise SandboxError(f"the sandbox launcher ended with code {launcher.returncode}: {stderr.strip()[-500:]}")
    return Finished(
        exit_code=int(report.get("exit_code", 124)),
        stdout=stdout,
        stderr=stderr,
        seconds=seconds,
        timed_out=timed_out,
        isolation=str(report.get("isolation", "unknown")),
        ended=str(report.get("ended", "timeout")),
    )


class Tail:
    """Reads a stream to its end in a thread and keeps the last `OUTPUT_BYTES` of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            while chunk := self._stream.read1(65536) if hasattr(self._stream, "read1") else self._stream.read(65536):
                self._kept += chunk
                if len(self._kept) > 2 * OUTPUT_BYTES:
                    del self._kept[:-OUTPUT_BYTES]

    def text(self) -> str:
        # The tree is dead by now, so the pipe is closed; the limit is for a process that got away from the sandbox.
        self._thread.join(5)
        return bytes(self._kept[-OUTPUT_BYTES:]).decode("utf-8", errors="replace")
