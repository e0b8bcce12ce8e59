"""Where the pipeline works: one folder for each service and purpose, under RUNEROGUE_HOME; and one worker at a time."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection


def worktree_folder(service: str, purpose: str) -> Path:
    return Path(settings.RUNEROGUE_HOME) / "services" / service / "worktrees" / purpose


@contextlib.contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """An empty folder for one run, removed afterwards. What a dead worker left there is cleared first."""
    folder = Path(settings.RUNEROGUE_HOME) / "scratch" / purpose
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def exclusive(key: str, *, wait: bool) -> Iterator[bool]:
    """Hold the lock `key` as long as the block runs. Without `wait` it is False when somebody else holds it.

    A session lock of PostgreSQL: it never runs out under slow work, and a worker that dies lets go of it.
    """
    function = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {function}(hashtextextended(%s, 0))", [key])
        held = wait or bool(cursor.fetchone()[0])
    try:
        yield held
    finally:
        if held:
            # A connection that died has let go already.
            with contextlib.suppress(OperationalError, InterfaceError), connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [key])
