"""`/metrics` when several processes serve it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from monitoring import exporting

WORKER = """
import sys
from prometheus_client import Counter
counter = Counter("jobs", "Jobs.")
counter.inc(int(sys.argv[1]))
"""


@pytest.mark.django_db
def test_the_sum_of_all_processes_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for amount in ("2", "3"):
        subprocess.run([sys.executable, "-c", WORKER, amount], env=environment, check=True, timeout=30)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    text = exporting.exposition().decode()
    assert "\njobs_total 5.0\n" in text
    assert "\nrunerogue_database_up 1.0\n" in text
