"""What holds without running the product: types, layers, settings for production, migrations.

Beside the other tests, and not before them: the stories on the real engines leave a part of the machine unused.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from runerogue.stack.home import PROJECT

BIN = Path(sys.executable).parent
PRODUCTION = {"HTTPS": "true", "ALLOWED_HOSTS": "runerogue.example.org,127.0.0.1"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("command", "environment"),
    [
        pytest.param(["mypy"], {}, id="types"),
        pytest.param(["lint-imports"], {}, id="layers"),
        pytest.param(
            ["python", "manage.py", "check", "--deploy", "--fail-level", "WARNING"], PRODUCTION, id="production"
        ),
        pytest.param(["python", "manage.py", "makemigrations", "--check", "--dry-run"], {}, id="migrations"),
    ],
)
def test_finds_nothing_in(command: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        [BIN / command[0], *command[1:]],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": ".", **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
