"""How long a newcomer waits: from a fresh checkout with empty caches to a page that answers, and the second time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from runerogue.stack.home import PROJECT
from runerogue.stack.ports import next_free
from tests.bench.rows import Row

READY = "RuneRogue is ready"


def bench() -> Iterator[Row]:
    folder = Path(tempfile.mkdtemp(prefix="rr-start-", dir="/tmp"))
    try:
        checkout = folder / "checkout"
        _copy_tracked(checkout)
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RUNEROGUE_", "DATABASE_URL", "REDIS_URL", "VIRTUAL_ENV", "MAKE", "SECRET_KEY"))
        }
        environment |= {
            "UV_CACHE_DIR": str(folder / "uv-cache"),
            "PIP_NO_CACHE_DIR": "1",
            "RUNEROGUE_HOME": str(folder / "home"),
            "RUNEROGUE_PORT": str(next_free("127.0.0.1", 18700)),
        }
        yield Row("fresh clone to usable page, cold caches", _start(checkout, environment, 600), "s", target=120)
        yield Row("second start to ready", _start(checkout, environment, 120), "s", target=10)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_tracked(checkout: Path) -> None:
    """What a clone would hold, with the changes that are not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source = PROJECT / name
        if source.is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, checkout / name)


def _start(checkout: Path, environment: dict[str, str], limit_seconds: float) -> float:
    """Seconds from `make run` until it says that it is ready (its page has answered then); stops it again."""
    log = checkout.parent / "run.log"
    started = time.monotonic()
    with log.open("wb") as output:
        make = subprocess.Popen(
            ["make", "run"],
            cwd=checkout,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while READY not in log.read_text(errors="replace"):
            if make.poll() is not None or time.monotonic() - started > limit_seconds:
                raise RuntimeError(f"`make run` did not get ready: {log.read_text(errors='replace')[-1500:]}")
            time.sleep(0.05)
        return time.monotonic() - started
    finally:
        if make.poll() is None:
            os.killpg(make.pid, signal.SIGINT)
            make.wait(timeout=120)
