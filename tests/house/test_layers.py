"""The house rules of the code that a machine can check."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("runerogue", "improvements", "analysis", "monitoring", "approvals")
ARITHMETIC = [
    "analysis/costs.py",
    "approvals/chain.py",
    "approvals/circumstances.py",
    "approvals/diff.py",
    "approvals/fingerprint.py",
    "approvals/freezing.py",
    "approvals/withholding.py",
    "approvals/outline.py",
    "approvals/policy.py",
    "approvals/working_hours.py",
    "improvements/binding.py",
    "approvals/rulebook.py",
    "approvals/teams.py",
    "approvals/tiers.py",
    "improvements/categories.py",
    "approvals/recurrence.py",
    "improvements/cadence.py",
    "improvements/governance/facts.py",
    "improvements/governance/scorecard.py",
    "improvements/intervals.py",
    "improvements/digest/weeks.py",
    "improvements/outcome.py",
    "improvements/reliability.py",
    "improvements/risk.py",
    "improvements/verdict.py",
    "monitoring/alerts.py",
    "monitoring/baselines.py",
    "monitoring/blocks.py",
    "monitoring/burnrate.py",
    "monitoring/charting.py",
    "monitoring/copybinary.py",
    "monitoring/covering.py",
    "monitoring/derive.py",
    "monitoring/deviation.py",
    "monitoring/dialects.py",
    "monitoring/drilling.py",
    "monitoring/forecasting.py",
    "monitoring/health.py",
    "monitoring/manifest.py",
    "monitoring/otlp/decoding.py",
    "monitoring/otlp/exposition.py",
    "monitoring/otlp/fingerprints.py",
    "monitoring/otlp/folding.py",
    "monitoring/otlp/naming.py",
    "monitoring/otlp/streams.py",
    "monitoring/privacy.py",
    "monitoring/prometheus.py",
    "monitoring/routing.py",
    "monitoring/vitals.py",
]
ENTRY_POINTS = re.compile(r"(^|/)(admin|api(_\w+)?|views(_\w+)?|urls|tasks)(\.py$|/)|/management/")


def modules():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "migrations" not in path.parts:
                yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("name", ARITHMETIC)
def test_knows_no_django_in_arithmetic(name):
    tree = ast.parse((ROOT / name).read_text())
    assert [module for module in imported(tree) if module.split(".")[0] in ("django", "celery", "rest_framework")] == []


def test_enqueues_only_in_entry_points():
    wrong = []
    for name, tree in modules():
        if ENTRY_POINTS.search(name):
            continue
        wrong += [
            f"{name}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in ("delay", "apply_async", "delay_on_commit", "send_task")
        ]
    assert wrong == []


def test_imports_entry_points_from_nowhere():
    wrong = []
    for name, tree in modules():
        if ENTRY_POINTS.search(name):
            continue
        wrong += [
            f"{name}: {module}"
            for module in imported(tree)
            if module.split(".")[0] in PACKAGES and module.split(".")[-1] in ("admin", "views", "tasks", "api")
        ]
    assert wrong == []


def test_writes_the_state_of_improvements_in_one_place():
    wrong = []
    for name, tree in modules():
        if name == "improvements/models/lifecycle.py" or not name.startswith("improvements/"):
            continue
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "update"
                and "Improvement" in ast.unparse(node.func)
                and any(keyword.arg == "state" for keyword in node.keywords)
            ):
                wrong.append(f"{name}:{node.lineno}")
    assert wrong == []


def test_names_no_module_after_nothing():
    nothing = {"utils.py", "helpers.py", "services.py", "selectors.py", "common.py", "base.py", "core.py"}
    assert [name for name, _ in modules() if Path(name).name in nothing] == []


def test_reads_the_environment_in_settings_alone():
    allowed = ("runerogue/settings.py", "runerogue/stack/", "monitoring/sandbox", "analysis/nplusone_probe.py")
    setters = (
        "runerogue/wsgi.py",
        "runerogue/celery.py",
        "monitoring/routes_probe.py",
    )  # they name the settings module, and read nothing
    wrong = []
    for name, tree in modules():
        if name.startswith(allowed) or name in setters:
            continue
        for node in ast.walk(tree):
            text = ast.unparse(node) if isinstance(node, ast.Call | ast.Subscript) else ""
            if text.startswith(("os.environ.get(", "os.environ[", "os.getenv(")) and not any(
                name_of_others in text for name_of_others in ("PATH", "PROMETHEUS_MULTIPROC_DIR")
            ):
                wrong.append(f"{name}:{node.lineno}: {text}")
    assert wrong == []
