"""Realm, the demonstration service, brought up afresh: its repository, its database, its release and its load."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone
from psycopg import sql

from approvals import audit
from improvements import stopping
from improvements.deployers import base_url, deployer_for
from improvements.models import IllegalMove, Improvement, LostRace, Release, State
from improvements.releasing import deploy
from monitoring import registry
from monitoring.models import Service, Target
from monitoring.repository import Repository

SOURCE = settings.BASE_DIR / "deploy" / "realm"
NAME = "realm"
ROLE = "realm"
COMMAND_TIMEOUT_SECONDS = 180
RETIRE_SECONDS = 120


class DemoFailed(Exception):
    """The demonstration cannot go on. The message says what happened and where to look."""


def bring_up_afresh() -> Service:
    """A new Realm with all its flaws, serving. An earlier one is retired: its history stays, its processes end."""
    for old in Service.objects.active().filter(name__startswith=NAME):
        retire(old)
    name = _free_name()
    folder = Path(settings.RUNEROGUE_HOME) / "services" / name / "repository"
    _make_repository(folder)
    environment = {
        "DATABASE_URL": _ensure_database(),
        "SECRET_KEY": secrets.token_urlsafe(40),
        **_tracing(name),
    }
    _manage(folder, environment, "migrate", "--no-input")
    _manage(folder, environment, "seed")
    service = registry.register(name, str(folder), environment=environment, actor=None)
    deploy(service)
    return service


def current() -> Service | None:
    """The Realm that is up, if any."""
    return Service.objects.active().filter(name__startswith=NAME).order_by("-pk").first()


def retire(service: Service) -> None:
    """End a service for good: stop what is under way and its processes, free its place in the proxy. History stays."""
    for improvement in Improvement.objects.unfinished().filter(service=service):
        if improvement.state not in (State.ROLLING_BACK, State.STUCK):
            # A step or the end may come first; then it is looked at again below.
            with contextlib.suppress(IllegalMove, LostRace):
                stopping.stop(improvement, actor=None, because="the service is retired")
    deadline = time.monotonic() + RETIRE_SECONDS
    unfinished = Improvement.objects.unfinished().filter(service=service).exclude(state=State.STUCK)
    while unfinished.exclude(state=State.SUGGESTED).exists():
        if time.monotonic() > deadline:
            raise DemoFailed(f"{service.name} could not be retired: {unfinished.first()} is still under way.")
        time.sleep(0.2)
    for release in Release.objects.filter(service=service):
        Release.objects.filter(pk=release.pk).update(share=0)
        release.refresh_from_db()
        deployer_for(service).stop(release)
    with transaction.atomic():
        Target.objects.filter(service=service).update(active=False)
        Service.objects.filter(pk=service.pk).update(archived_at=timezone.now(), slot=None)
        audit.record("service.retired", service, because="a fresh one takes its place")


class Load:
    """The load generator as a process of its own; `report()` reads its running totals."""

    def __init__(self, service: Service, *, rate: float, report_file: Path) -> None:
        report_file.parent.mkdir(parents=True, exist_ok=True)
        report_file.unlink(missing_ok=True)
        self._file = report_file
        self._process = subprocess.Popen(
            [
                sys.executable, str(SOURCE / "load.py"), "--url", base_url(service),
                "--rate", str(rate), "--seconds", "0", "--report", str(report_file),
            ],
            stdout=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", "")},
        )  # fmt: skip

    def report(self) -> dict[str, Any]:
        """The totals so far; empty until the first request was answered."""
        try:
            return dict(json.loads(self._file.read_text()))
        except FileNotFoundError:
            return {}

    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> dict[str, Any]:
        """End it; the final totals."""
        if self.is_running():
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=5)
        return self.report()


def set_faults(release: Release, faults: dict[str, Any]) -> None:
    """Switch faults on in one release only: Realm reads them from its own folder."""
    target = Path(release.folder) / "faults.json"
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(faults))
    partial.replace(target)


def _free_name() -> str:
    taken = set(Service.objects.filter(name__startswith=NAME).values_list("name", flat=True))
    return next(name for name in (NAME, *(f"{NAME}-{n}" for n in range(2, 10_000))) if name not in taken)


def _make_repository(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(
        SOURCE,
        folder,
        ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".pytest_cache", ".ruff_cache", "faults.json"),
    )
    repository = Repository(folder)
    repository.git("init", "--quiet", "--initial-branch=main")
    repository.git("add", "--all")
    repository.git("commit", "--quiet", "--message", "Realm, as it was handed over.")


def _tracing(name: str) -> dict[str, str]:
    """Settings that have Realm send its spans here. Nothing where RuneRogue does not listen on this machine's loopback.

    Its metrics are scraped, so they are not sent too. Tests and benchmarks send nothing, and so get no network.
    """
    if settings.RUNEROGUE_HOST not in ("127.0.0.1", "localhost", "0.0.0.0"):  # noqa: S104
        return {}
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{settings.RUNEROGUE_PORT}",
        "TESTING__OTEL_EXPORTER_OTLP_ENDPOINT": "",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_SERVICE_NAME": name,
    }


def _ensure_database() -> str:
    """A role and a database of Realm's own in the same PostgreSQL. Returns its URL. Needs CREATEROLE and CREATEDB."""
    home = settings.HOME
    password = home.secret("postgres_realm")
    if not password:
        password = secrets.token_urlsafe(24)
        home.set_secret("postgres_realm", password)
    role = sql.Identifier(ROLE)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE])
        verb = sql.SQL("ALTER" if cursor.fetchone() else "CREATE")
        statement = sql.SQL("{} ROLE {} LOGIN CREATEDB PASSWORD {}").format(verb, role, sql.Literal(password))
        cursor.execute(statement.as_string(cursor.connection))
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [ROLE])
        if not cursor.fetchone():
            cursor.execute(sql.SQL("GRANT {} TO CURRENT_USER WITH SET TRUE").format(role).as_string(cursor.connection))
            cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role).as_string(cursor.connection))
    options = connection.settings_dict.get("OPTIONS", {})
    host = str(options.get("host") or connection.settings_dict["HOST"] or "localhost")
    login = f"{ROLE}:{quote(password, safe='')}"
    if host.startswith("/"):
        return f"postgresql://{login}@/{ROLE}?host={quote(host)}"
    return f"postgresql://{login}@{host}:{connection.settings_dict['PORT'] or 5432}/{ROLE}"


def _manage(folder: Path, environment: dict[str, str], *arguments: str) -> None:
    """Run Realm's own manage.py with nothing of ours in its environment."""
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=folder,
        env={"PATH": os.environ.get("PATH", ""), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_SECONDS,
    )
    if done.returncode:
        raise DemoFailed(
            f"Realm's `manage.py {' '.join(arguments)}` failed: {done.stderr[-1500:] or done.stdout[-1500:]}"
        )
