"""One set of engines for the whole run, shared by its workers; a database and a Valkey number for each worker.

With DATABASE_URL and REDIS_URL in the environment those are used instead. Django is set up here and not by a setting in
pyproject.toml, because that would be read before this file could say where the engines are.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import django
import pytest

from runerogue.stack.home import Home
from tests import engines as test_engines

pytest_plugins = ["tests.people", "tests.audit_log", "tests.monitoring.prometheus"]

PRIVATE = "RUNEROGUE_TEST_HOME"  # the home of this run's own engines; workers inherit it
PURE, FLOWS = Path(__file__).parent / "pure", Path(__file__).parent / "flows"

_owner: subprocess.Popen[bytes] | None = None
_stands_back = False


def _name_engines() -> None:
    global _owner
    if PRIVATE not in os.environ and not (os.environ.get("DATABASE_URL") and os.environ.get("REDIS_URL")):
        home, _owner = test_engines.spawn()
        os.environ[PRIVATE] = str(home.folder)
        os.environ["DATABASE_URL"] = home.database_url()
        os.environ["REDIS_URL"] = home.redis_url()
        os.environ["RUNEROGUE_HOME"] = str(home.folder)
        os.environ["SECRET_KEY"] = home.secret("secret_key")
    worker = re.fullmatch(r"gw(\d+)", os.environ.get("PYTEST_XDIST_WORKER", ""))
    if worker and PRIVATE in os.environ:
        # Valkey is set up with 64 databases.
        os.environ["REDIS_URL"] = Home(Path(os.environ[PRIVATE])).redis_url(database=1 + int(worker[1]) % 63)


_name_engines()
os.environ["DJANGO_SETTINGS_MODULE"] = "runerogue.settings"
django.setup()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    # A worker that inherits this reads the settings before its own copy of this file chose its Valkey number.
    os.environ.pop("DJANGO_SETTINGS_MODULE", None)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _owner is not None:
        test_engines.dismiss(_owner)


@pytest.fixture(scope="session")
def engines() -> None:
    """PostgreSQL and Valkey answer. Tests outside of tests/pure/ have it without asking."""
    if PRIVATE in os.environ:
        test_engines.demand(Home(Path(os.environ[PRIVATE])))


@pytest.fixture(scope="session")
def django_db_modify_db_settings(engines: None, django_db_modify_db_settings_parallel_suffix: None) -> None:
    """The database is made by pytest-django after the engines are there."""


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> None:
    """Tests that commit are cleaned up by flushing, which the audit log's triggers forbid everybody else."""
    from tests.audit_log import let_tests_flush

    with django_db_blocker.unblock():
        let_tests_flush()


@pytest.fixture(scope="session")
def _nothing_collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One empty folder for all tests: making one for each costs more than most of them take."""
    return tmp_path_factory.mktemp("static")


@pytest.fixture(autouse=True)
def _quick_settings(settings: Any, _nothing_collected: Path) -> None:
    """Pages without collecting static files first, sign-in without seconds of hashing, and the ordinary pace."""
    settings.STATIC_ROOT = _nothing_collected
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    }
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    settings.METRICS_COLLECTION_INTERVAL = 60


@pytest.fixture(autouse=True)
def _engines_unless_pure(request: pytest.FixtureRequest) -> None:
    if PURE not in request.path.parents:
        request.getfixturevalue("engines")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where several workers share the cores, the stories go first: they are the longest, and measure latencies."""
    global _stands_back
    if not _stands_back and "PYTEST_XDIST_WORKER" in os.environ and FLOWS not in item.path.parents:
        os.nice(5)
        _stands_back = True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long stories begin first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: (FLOWS not in item.path.parents, item.get_closest_marker("slow") is None))
