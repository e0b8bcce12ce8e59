"""What a service may see of the embedded PostgreSQL: its socket, and nothing of its files."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitoring import sandbox
from runerogue.stack.home import Home
from tests.engines import Engines
from tests.pure.test_sandbox import needs_bubblewrap


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home(Path(tempfile.mkdtemp(prefix="rr-pg-", dir="/tmp")))
    home.create()
    home.ensure_secrets()
    engines = Engines(home)
    try:
        assert engines.start() == "ready"
        yield home
    finally:
        engines.stop()


@pytest.mark.parametrize(
    "bubblewrap",
    [
        pytest.param(True, marks=needs_bubblewrap),
        pytest.param(False, marks=pytest.mark.skipif(os.geteuid() != 0, reason="without it, only root can hide files")),
    ],
)
def test_a_service_reaches_the_socket_and_not_the_data(home: Home, tmp_path: Path, bubblewrap: bool) -> None:
    assert [path.name for path in home.postgres_sockets.iterdir() if path.is_socket()] == [home.postgres_socket.name]
    environment = {"DATABASE_URL": home.database_url()}
    needs = sandbox.reach(environment)
    assert needs.socket_folders == (home.postgres_sockets,)
    code = f"""
import os, psycopg
print(psycopg.connect(os.environ["DATABASE_URL"]).execute("SELECT current_user").fetchone()[0])
try:
    print(os.listdir({str(home.postgres)!r}))
except OSError as error:
    print(type(error).__name__)
"""
    done = sandbox.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        environment=environment,
        timeout_seconds=30,
        readable=needs.socket_folders,
        bubblewrap=bubblewrap,
    )
    assert done.stdout.split() == ["runerogue", "FileNotFoundError" if bubblewrap else "PermissionError"], (
        done.isolation + done.stderr
    )
