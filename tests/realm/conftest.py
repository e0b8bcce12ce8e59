"""Realm as others get it: copied to a folder of its own, run as separate processes with an environment of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

SOURCE = Path(__file__).parents[2] / "deploy" / "realm"


@dataclass(frozen=True)
class Realm:
    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command with this interpreter in Realm's folder, 120 s at most."""
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def must_run(self, *command: str) -> str:
        finished = self.run(*command)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout


@pytest.fixture
def realm(tmp_path: Path) -> Iterator[Realm]:
    """A copy of Realm, with a name of its own for its database, which is dropped in the end."""
    folder = tmp_path / "realm"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__", "faults.json"))
    # As a URL and as keywords: libpq, and so Realm's settings, read both.
    server = conninfo_to_dict(os.environ["DATABASE_URL"])
    name = f"realm_{uuid.uuid4().hex[:12]}"
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DATABASE_URL": make_conninfo("", **{**server, "dbname": name}),
        "SECRET_KEY": "only-for-tests",
        "TEST_DATABASE_SUFFIX": "suite",
    }
    yield Realm(folder, environment)
    with psycopg.connect(os.environ["DATABASE_URL"], dbname="postgres", autocommit=True) as connection:
        for database in (name, f"test_{name}_suite"):
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))


@pytest.fixture
def living_realm(realm: Realm) -> Realm:
    """Realm with a small world in its database."""
    name = conninfo_to_dict(realm.environment["DATABASE_URL"])["dbname"]
    assert isinstance(name, str)
    with psycopg.connect(os.environ["DATABASE_URL"], dbname="postgres", autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    realm.must_run("manage.py", "migrate", "--verbosity=0")
    realm.must_run("manage.py", "seed", "--players=200", "--guilds=10", "--items=500", "--trades=50")
    return realm
