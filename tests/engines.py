"""The engines of one test run: a private PostgreSQL and Valkey, started by the first test that needs them.

A small process of its own (`python -m tests.engines HOME`) owns them. It starts them when it is first asked to. When
its standard input ends, because the test run ended or was killed, it stops them and removes their home.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from runerogue.stack import postgres, supervisor, valkey
from runerogue.stack.home import PROJECT, Home


def socket_path(home: Home) -> Path:
    return home.run / "engines.sock"


def spawn() -> tuple[Home, subprocess.Popen[bytes]]:
    """A new home with secrets, and the process that will run its engines. Nothing is started yet."""
    home = Home(Path(tempfile.mkdtemp(prefix="rr-test-", dir="/tmp")))
    home.create()
    home.ensure_secrets()
    owner = subprocess.Popen(
        [sys.executable, "-m", "tests.engines", str(home.folder)],
        cwd=PROJECT,
        env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(PROJECT)},
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    return home, owner


def demand(home: Home) -> None:
    """Return when the engines of `home` answer, having started them if nobody did before."""
    deadline = time.monotonic() + 60
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.connect(str(socket_path(home)))
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
                continue
            answer = connection.makefile().read()
        if answer != "ready":
            raise RuntimeError(f"The engines for the tests did not start: {answer}")
        return


def dismiss(owner: subprocess.Popen[bytes]) -> None:
    """Stop the engines and wait until their home is gone."""
    if owner.stdin:
        owner.stdin.close()
    owner.wait(timeout=30)


class Engines:
    def __init__(self, home: Home) -> None:
        self.home = home
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> str:
        """Start both unless they run. What to answer: "ready", or what went wrong."""
        if self.processes:
            return "ready"
        try:
            postgres.prepare(self.home, lambda text: None, settings={**postgres.SETTINGS, **postgres.THROWAWAY})
            valkey.prepare(self.home)
            user = postgres.system_user(self.home)
            with (self.home.logs / "postgres.log").open("wb") as log:
                self._start(postgres.command(self.home), self.home.postgres, log, user.pw_name if user else None)
            with (self.home.logs / "valkey.log").open("wb") as log:
                self._start(valkey.command(self.home), self.home.valkey, log)
            deadline = time.monotonic() + 40
            while not (valkey.is_ready(self.home) and postgres.is_ready(self.home)):
                if time.monotonic() > deadline or any(process.poll() is not None for process in self.processes):
                    return (self.home.logs / "postgres.log").read_text() + (self.home.logs / "valkey.log").read_text()
                time.sleep(0.02)
            postgres.ensure_roles(self.home)
        except Exception as error:  # noqa: BLE001 (told to whoever asked, in another process)
            return f"{type(error).__name__}: {error}"
        return "ready"

    def _start(self, command: list[str], folder: Path, log: IO[bytes], user: str | None = None) -> None:
        process = subprocess.Popen(
            command,
            cwd=folder,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=supervisor.end_with_parent if sys.platform == "linux" else None,
        )
        self.processes.append(process)

    def stop(self) -> None:
        for process, number in zip(self.processes, (signal.SIGQUIT, signal.SIGKILL), strict=False):
            process.send_signal(number)
        for process in self.processes:
            process.wait()
        shutil.rmtree(self.home.folder, ignore_errors=True)


def main() -> None:
    home = Home(Path(sys.argv[1]))
    engines = Engines(home)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(socket_path(home)))
            listener.listen(64)
            while True:
                readable, _, _ = select.select([listener, sys.stdin], [], [])
                if sys.stdin in readable:
                    return
                with listener.accept()[0] as connection:
                    connection.sendall(engines.start().encode())
    finally:
        engines.stop()


if __name__ == "__main__":
    main()
