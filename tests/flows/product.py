"""A whole running product for one story: its own home, quick pace, removed afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from runerogue.stack import lock, processes
from runerogue.stack.home import PROJECT, Home

READY_SECONDS = 180
ENGINES_OF_THE_TESTS = ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "RUNEROGUE_HOME", "DJANGO_SETTINGS_MODULE")


@dataclass(frozen=True)
class Product:
    home: Home
    environment: Mapping[str, str]

    def python(self, *arguments: str, timeout_seconds: float) -> subprocess.CompletedProcess[str]:
        """Run Python beside the product, as a person would in another terminal."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=PROJECT,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
        )


@contextmanager
def running(**settings: str) -> Iterator[Product]:
    """The product with these settings and the demonstration's pace, stopped and removed at the end.

    Raises AssertionError when it does not get ready, or leaves a process behind.
    """
    folder = Path(tempfile.mkdtemp(prefix="rr-", dir="/tmp"))
    folder.chmod(0o711)
    home = Home(folder / "h")
    clean = {name: value for name, value in os.environ.items() if name not in ENGINES_OF_THE_TESTS}
    environment = {**clean, **settings, "RUNEROGUE_HOME": str(home.folder)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    with (folder / "run.log").open("wb") as log:
        stack = subprocess.Popen(
            [sys.executable, "-m", "runerogue.stack", "run", "--quick"],
            cwd=PROJECT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _is_ready(home):
            assert stack.poll() is None, (folder / "run.log").read_text()
            assert time.monotonic() < deadline, (folder / "run.log").read_text()
            time.sleep(0.2)
        yield Product(home, environment)
    finally:
        stack.send_signal(signal.SIGINT)  # Ctrl-C
        code = stack.wait(timeout=120)
        left = processes.of_home(home)
        processes.stop_all(home)
        shutil.rmtree(folder, ignore_errors=True)
    assert (code, left) == (0, []), [process.cmdline() for process in left]


def _is_ready(home: Home) -> bool:
    holder = lock.holder_of(home.lock)
    if holder is None or not holder.address:
        return False
    try:
        return httpx.get(f"{holder.address}/health/ready", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
