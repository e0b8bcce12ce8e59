"""A PostgreSQL, on a small disk of its own, and a Valkey for one test alone, which may kill, empty and fill them up."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runerogue.stack import postgres, supervisor, valkey
from runerogue.stack.home import Home

DISK_BYTES = 160 * 2**20
# As users have it, but small: the log of changes is used anew instead of growing.
SETTINGS = {**postgres.SETTINGS, "max_wal_size": "64MB", "min_wal_size": "32MB", "shared_buffers": "16MB"}
NEEDED = ("unshare", "nsenter", "setpriv")


def eventually(test: Callable[[], bool], what: str, *, seconds: float = 30) -> None:
    """Wait until `test` is true. AssertionError with `what` when it never is."""
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)


class SmallDisk:
    """A file system of a few MB in memory that only processes started through `entered` see, at `home`'s data."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.mount = home.folder / "disk"
        self.mount.mkdir()
        script = f'mount -t tmpfs -o size={DISK_BYTES},mode=0711 none "$0" && cd "$0"'
        # The database's data alone: a queue that takes no message would begin no round that could fail.
        script += f' && cp -a "{home.folder}/postgres" . && mount --bind postgres "{home.folder}/postgres"'
        self.keeper = subprocess.Popen(
            ["unshare", *self._user(), "--mount", "--propagation=private", "sh", "-ec", f"{script} && echo && cat",
             str(self.mount)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self.keeper.stdout is not None
        if not self.keeper.stdout.readline():
            said = self.keeper.communicate()[1].decode(errors="replace").strip()
            raise OSError(f"no small disk can be had here: {said}")

    @staticmethod
    def _user() -> list[str]:
        return [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]

    def entered(self) -> list[str]:
        """The words before a command that make it see this disk."""
        own = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self.keeper.pid}", *own, "--mount", "--"]

    def inside(self, path: Path) -> Path:
        """What is at `path` for those who see this disk."""
        return Path(f"/proc/{self.keeper.pid}/root{path}")

    @property
    def _filler(self) -> Path:
        return self.inside(self.mount / "filler")

    def fill(self) -> None:
        """Take everything that is free, to the last byte."""
        # Others write at the same time, so what is free can't be asked for and taken at once.
        with self._filler.open("wb", buffering=0) as filler:
            for size in (2**20, 2**12):
                with contextlib.suppress(OSError):
                    while filler.write(bytes(size)):
                        pass

    def free(self) -> None:
        self._filler.unlink()

    def remove(self) -> None:
        self.keeper.communicate()


class OwnEngines:
    """`disk` is None where this machine does not let us have one; `why_no_disk` says why not."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder)
        self.home.create()
        self.home.ensure_secrets()
        postgres.prepare(self.home, lambda text: None, settings=SETTINGS)
        valkey.prepare(self.home)
        self.user = postgres.system_user(self.home)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.disk: SmallDisk | None = None
        missing = [name for name in NEEDED if shutil.which(name) is None]
        self.why_no_disk = f"no {', '.join(missing)} here" if missing else ""
        try:
            self.disk = None if missing else SmallDisk(self.home)
        except OSError as error:
            self.why_no_disk = str(error)

    def start_postgres(self) -> None:
        """Return when it takes connections, having recovered if it was killed."""
        user = self.user
        become = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"] if user else []
        self._start("postgres", postgres.command(self.home), become)
        eventually(lambda: postgres.is_ready(self.home), "PostgreSQL takes connections")

    def start_valkey(self) -> None:
        self._start("valkey", valkey.command(self.home), [])
        eventually(lambda: valkey.is_ready(self.home), "Valkey answers")

    def _start(self, name: str, command: list[str], become: list[str]) -> None:
        if self.disk is not None:
            # With us, even when this test is killed: setpriv asks the kernel for it after it became somebody else.
            command = [*self.disk.entered(), "setpriv", "--pdeathsig=KILL", *become, *command]
        with (self.home.logs / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.home.folder,
                user=None if self.disk is not None or self.user is None else self.user.pw_name,
                group=None if self.disk is not None or self.user is None else self.user.pw_gid,
                extra_groups=None if self.disk is not None or self.user is None else [],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=supervisor.end_with_parent if sys.platform == "linux" else None,
            )

    def kill(self, name: str) -> None:
        """`kill -9`. PostgreSQL's other processes find their parent gone and end by themselves."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def empty_valkey(self) -> None:
        """Remove what it kept, while it does not run."""
        folder = self.home.valkey / "appendonlydir"
        for kept in folder.iterdir():
            kept.unlink()

    def log(self, name: str) -> str:
        return (self.home.logs / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        for name, number in (("valkey", signal.SIGKILL), ("postgres", signal.SIGINT)):
            if process := self.processes.pop(name, None):
                process.send_signal(number)
                process.wait()
        if self.disk is not None:
            self.disk.remove()


@contextmanager
def own_engines() -> Iterator[OwnEngines]:
    """Both started, with the roles; stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="rr-own-", dir="/tmp"))
    folder.chmod(0o711)
    engines = OwnEngines(folder / "h")
    try:
        engines.start_valkey()
        engines.start_postgres()
        postgres.ensure_roles(engines.home)
        yield engines
    finally:
        engines.stop()
        shutil.rmtree(folder, ignore_errors=True)
