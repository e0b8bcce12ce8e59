"""Settings, tasks and the schedule are documented and agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from improvements import documenting
from runerogue import celery as frame
from runerogue import settings as module

ROOT = Path(__file__).resolve().parents[2]
# Read by the stack before there are any settings.
OF_THE_STACK = {"RUNEROGUE_HOME", "HAPROXY_BINARY", "WEB_CONCURRENCY"}


def in_the_code():
    return set(re.findall(r'\bread\(\s*"([A-Z_]+)"', (ROOT / "runerogue/settings.py").read_text())) | OF_THE_STACK


def test_lists_every_setting_in_the_example():
    example = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert example == in_the_code()


def test_explains_every_setting_on_its_page():
    page = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE))
    assert page == in_the_code()


def test_gives_the_true_defaults_in_the_example():
    example = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    for name in ("SELF_BUILD_RISK_THRESHOLD", "ROLLOUT_STEP_SECONDS", "LEASE_SECONDS", "WATCH_SECONDS"):
        text = example[name]
        assert str(getattr(settings, name)) == text, name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SELF_BUILD_RISK_THRESHOLD", "critical"),
        ("SELF_BUILD_APPROVAL_REQUIRED", "nobody"),
        ("METRICS_COLLECTION_INTERVAL", "0"),
        ("ROLLOUT_STEPS", "50,10,100"),
        ("ROLLOUT_STEPS", "10,50"),
        ("DATABASE_URL", "sqlite:///db.sqlite3"),
        ("MONITORING_ALLOWED_NETWORKS", "everywhere"),
        ("SELF_BUILD_ENABLED", "perhaps"),
        ("RUNEROGUE_PORT", "99999"),
    ],
)
def test_refuses_a_wrong_value_with_a_hint(name, text, monkeypatch):
    parsers = {
        "SELF_BUILD_RISK_THRESHOLD": module.one_of("low", "medium", "high"),
        "SELF_BUILD_APPROVAL_REQUIRED": module.one_of("low", "medium", "high"),
        "METRICS_COLLECTION_INTERVAL": module.whole(1, 3600),
        "ROLLOUT_STEPS": module.as_steps,
        "DATABASE_URL": module.as_database,
        "MONITORING_ALLOWED_NETWORKS": module.as_networks,
        "SELF_BUILD_ENABLED": module.as_bool,
        "RUNEROGUE_PORT": module.whole(1, 65535),
    }
    monkeypatch.setenv(name, text)
    with pytest.raises(ImproperlyConfigured, match=rf"{name}='{re.escape(text)}' is not valid\. Hint: the hint"):
        module.read(name, None, parsers[name], "the hint")


def test_schedules_only_tasks_that_exist():
    frame.app.loader.import_default_modules()
    for name, entry in frame.app.conf.beat_schedule.items():
        assert entry["task"] in frame.app.tasks, name


def test_has_the_tables_of_the_lifecycle_as_the_code_has_them():
    page = (ROOT / "docs/architecture.md").read_text()
    assert documenting.rewritten(page) == page, "run `manage.py document_lifecycle`"


def test_has_no_links_into_nowhere_in_the_documentation():
    broken = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_names_only_make_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set()
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        named |= set(re.findall(r"`make ([a-z-]+)", page.read_text()))
    assert named <= targets
