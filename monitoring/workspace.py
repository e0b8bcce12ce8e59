"""Where the pipeline works: one folder for each service and purpose, under RUNEROGUE_HOME."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings


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
