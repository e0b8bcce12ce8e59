"""Reports of commits: kept, turned into signals, and measured by RuneRogue itself where nobody sends them."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from django.db import transaction

from monitoring import privacy, registry, reports, sandbox
from monitoring.claiming import claim
from monitoring.derive import Reading
from monitoring.models import QualityReport, Service
from monitoring.reports import Parsed, ReportError
from monitoring.repository import GitError, repository_of
from monitoring.storing import store
from monitoring.workspace import exclusive, scratch_folder

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{7,40}")
KEEP_DAYS = 400
MEASURED = "RuneRogue"
TIMEOUT_SECONDS = 900.0


class WrongReport(ValueError):
    """What was sent can't be kept; the message says why."""


@dataclass(frozen=True)
class Measured:
    """What RuneRogue found out by itself: which kinds, and why not the others."""

    commit: str
    kept: tuple[str, ...]
    missing: Mapping[str, str]


def keep_all(
    service: Service,
    commit: str,
    bodies: Sequence[tuple[str | None, bytes]],
    *,
    at: datetime,
    source: str,
    branch: str = "",
) -> list[QualityReport]:
    """Keep reports (kind or None, body) of `commit`, all or none; those that are new.

    Their signals are stored when the commit is of the service's own branch, or names none. The same report again
    changes nothing. Raises WrongReport and reports.ReportError.
    """
    if not COMMIT.fullmatch(commit):
        raise WrongReport(f"commit={commit[:60]!r} is not a commit: 7 to 40 small hexadecimal digits.")
    if len(branch) > 200 or not branch.isprintable():
        raise WrongReport("The name of the branch is longer than 200 characters or can't be printed.")
    parsed = [reports.parse(body, kind=kind) for kind, body in bodies]
    with transaction.atomic():
        rows = [_keep(service, commit, one, at=at, source=source, branch=branch) for one in parsed]
    return [row for row, is_new in rows if is_new]


def _keep(
    service: Service, commit: str, parsed: Parsed, *, at: datetime, source: str, branch: str = ""
) -> tuple[QualityReport, bool]:
    on_main = branch in ("", service.branch)
    content = {"kind": parsed.kind, "content": parsed.content}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    with transaction.atomic():
        row, created = QualityReport.objects.get_or_create(
            service=service,
            commit=commit,
            kind=parsed.kind,
            sha256=digest,
            defaults={
                "branch": privacy.scrub(branch, own_addresses=False),
                "on_main": on_main,
                "at": at,
                "source": source[:100],
                "signals": dict(parsed.signals),
                "content": dict(parsed.content),
            },
        )
        if created and on_main:
            store([(service, Reading(name, (), value)) for name, value in parsed.signals.items()], at=at)
    return row, created


def newest(service: Service) -> dict[str, QualityReport]:
    """Kind → the newest report of the service's own branch."""
    rows = QualityReport.objects.filter(service=service, on_main=True).order_by("kind", "-at").distinct("kind")
    return {row.kind: row for row in rows}


def measure_due(at: datetime) -> list[Measured]:
    """Measure each service whose time has come; doubled messages find it claimed."""
    if claim("forget reports", at=at, interval_seconds=86400):
        forget_old(at)
    done = []
    for service in Service.objects.active():
        wanted = service.parsed.quality
        interval = timedelta(hours=wanted.every_hours).total_seconds()
        if wanted.measure and claim(f"quality {service.pk}", at=at, interval_seconds=interval):
            done.append(measure(service, at=at))
    return done


def measure(service: Service, *, at: datetime) -> Measured:
    """Run the tests, the linter and the security scanner on the head of the service's branch, in the sandbox."""
    kept: list[str] = []
    missing: dict[str, str] = {}
    try:
        repository = repository_of(service)
        commit = repository.head()
    except (GitError, OSError) as error:
        return Measured("", (), {"repository": str(error)[:300]})
    with exclusive(f"quality {service.pk}", wait=False) as ours:
        if not ours:
            return Measured(commit, (), {"all": "it is being measured already"})
        with (
            scratch_folder(f"quality-{service.name}") as scratch,
            repository.worktree(scratch / "checkout", commit) as folder,
        ):
            left = scratch / "reports"
            left.mkdir()
            for name, take in MEASUREMENTS.items():
                try:
                    parsed = take(service, folder, left)
                except (ReportError, sandbox.SandboxError, CantMeasure) as error:
                    missing[name] = str(error)[:300]
                    continue
                _keep(service, commit, parsed, at=at, source=MEASURED)
                kept.append(parsed.kind)
    for name, why in missing.items():
        log.info("The %s of %s was not measured: %s", name, service, why)
    return Measured(commit, tuple(kept), missing)


class CantMeasure(Exception):
    """A measurement that this service has no means for; the message says what would give it one."""


def _run(service: Service, command: str, folder: Path, scratch: Path, report: Path) -> None:
    """Run one of the service's own commands so that it leaves `report`."""
    report.unlink(missing_ok=True)
    manifest = service.parsed
    environment = {"PYTHONDONTWRITEBYTECODE": "1", **registry.environment_for_tests(service)}
    needs = sandbox.reach(environment)
    if manifest.setup.command:
        ready = sandbox.run(
            manifest.setup.command, cwd=folder, environment=environment, timeout_seconds=TIMEOUT_SECONDS, network=True
        )
        if not ready.succeeded:
            raise CantMeasure(f"[setup] failed: {ready.tail(300)}")
    ended = sandbox.run(
        command.replace("{report}", str(report)),
        cwd=folder,
        environment=environment,
        timeout_seconds=TIMEOUT_SECONDS,
        network=needs.network,
        readable=needs.socket_folders,
        writable=(report.parent,),
    )
    if ended.timed_out:
        raise CantMeasure(f"it was stopped after {TIMEOUT_SECONDS:.0f} s")
    if not report.is_file():
        raise CantMeasure(f"the command left no report: {ended.tail(300)}")


def _tests(service: Service, folder: Path, scratch: Path) -> Parsed:
    command = service.parsed.test.command
    if "{report}" not in command:
        raise CantMeasure("[test] command in runerogue.toml has no {report}")
    report = scratch / "junit.xml"
    _run(service, command, folder, scratch, report)
    return reports.parse(report.read_bytes(), kind="junit")


def _coverage(service: Service, folder: Path, scratch: Path) -> Parsed:
    command = service.parsed.quality.coverage
    if not command:
        raise CantMeasure("[quality] coverage in runerogue.toml names no command; CI may send it instead")
    report = scratch / "coverage.xml"
    _run(service, command, folder, scratch, report)
    return reports.parse(report.read_bytes(), kind="coverage")


def _lint(service: Service, folder: Path, scratch: Path) -> Parsed:
    """ruff, by the service's own rules where its configuration names some. It reads the code and runs none of it."""
    found = _code(folder, service.parsed.quality.paths)
    if not found:
        raise CantMeasure("there is no Python code; CI may send SARIF or ruff's JSON")
    report = scratch / "ruff.json"
    what = [str(path.relative_to(folder)) for path in found] if service.parsed.quality.paths else ["."]
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--exit-zero", "--output-format", "json"]
    ended = sandbox.run(
        [*command, "--output-file", str(report), "--", *what],
        cwd=folder,
        environment={},
        timeout_seconds=TIMEOUT_SECONDS,
        writable=(report.parent,),
    )
    if not ended.succeeded or not report.is_file():
        raise CantMeasure(f"ruff failed: {ended.tail(300)}")
    parsed = reports.parse(report.read_bytes(), kind="ruff")
    lines = lines_of_code(found)
    ratio = reports.debt_ratio(parsed.content["rules"], lines)
    signals = dict(parsed.signals) if ratio is None else {**parsed.signals, "debt_ratio": ratio}
    return Parsed("ruff", signals, {**parsed.content, "lines": lines})


def _security(service: Service, folder: Path, scratch: Path) -> Parsed:
    """bandit's findings of medium and high severity. What it can't know are flaws of dependencies: CI sends those."""
    found = _code(folder, service.parsed.quality.paths)
    if not found:
        raise CantMeasure("there is no Python code; CI may send SARIF")
    report = scratch / "bandit.json"
    command = [sys.executable, "-m", "bandit", "-q", "-ll", "-f", "json", "-o", str(report), "--exit-zero", "--"]
    ended = sandbox.run(
        [*command, *(str(path.relative_to(folder)) for path in found)],
        cwd=folder,
        environment={},
        timeout_seconds=TIMEOUT_SECONDS,
        writable=(report.parent,),
    )
    if not ended.succeeded or not report.is_file():
        raise CantMeasure(f"bandit failed: {ended.tail(300)}")
    try:
        rules = Counter(str(one["test_id"]) for one in json.loads(report.read_bytes())["results"])
    except (ValueError, KeyError, TypeError) as error:
        raise CantMeasure(f"bandit's report can't be read: {error}") from error
    count = rules.total()
    content = {"tools": ["bandit"], "results": count, "vulnerabilities": count, "rules": dict(rules)}
    return Parsed("sarif", {"vulnerabilities": float(count)}, content)


def lines_of_code(paths: Sequence[Path]) -> int:
    """Lines that are neither empty nor only a comment."""
    total = 0
    for path in paths:
        for line in path.read_bytes().splitlines():
            text = line.strip()
            total += bool(text) and not text.startswith(b"#")
    return total


def _code(folder: Path, patterns: Sequence[str]) -> list[Path]:
    found = {path for pattern in patterns or ("**/*.py",) for path in folder.glob(pattern)}
    return sorted(path for path in found if path.suffix == ".py" and path.is_file() and not path.is_symlink())


MEASUREMENTS = {"tests": _tests, "coverage": _coverage, "lint": _lint, "security": _security}


def forget_old(at: datetime) -> int:
    """Delete reports that no comparison will ask for. Returns how many went."""
    gone, _ = QualityReport.objects.filter(at__lt=at - timedelta(days=KEEP_DAYS)).delete()
    return gone
