"""What a patch may touch and how it is tested is what its own base commit says."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from improvements import proving
from improvements.models import Improvement, State
from improvements.outcome import Verdict
from monitoring.registry import register
from monitoring.repository import repository_of
from tests.improvements.factories import FindingFactory, in_state
from tests.monitoring.factories import MANIFEST, commit, repository

pytestmark = pytest.mark.django_db


@pytest.fixture
def improvement(settings: Settings, tmp_path: Path) -> Improvement:
    settings.RUNEROGUE_HOME = tmp_path / "home"
    folder = repository(tmp_path / "realm", MANIFEST)
    (folder / "app.py").write_text("a = 1\n")
    commit(folder, "app")
    given = {"NAME": "live", "TESTING__NAME": "throwaway"}
    service = register("realm", str(folder), environment=given, actor=None)
    return in_state(State.TESTING, finding=FindingFactory(service=service))


def patched(improvement: Improvement, tmp_path: Path) -> None:
    where = repository_of(improvement.service)
    base = where.head()
    with where.worktree(tmp_path / "work", base) as folder:
        head = where.commit_files(folder, base=base, files={"app.py": "a = 2\n"}, message="Change app.py")
    where.keep("improvement", head)
    improvement.base_commit, improvement.head_commit = base, head
    improvement.save()


def test_protects_what_the_base_commit_protects(improvement: Improvement, tmp_path: Path) -> None:
    folder = improvement.service.checkout
    (folder / "runerogue.toml").write_text(MANIFEST + '[protected]\npaths = ["app.py"]\n')
    commit(folder, "protect it")
    patched(improvement, tmp_path)
    assert not improvement.service.parsed.protected.paths, "the row still holds what was registered"
    outcome = proving.scan(improvement)
    assert outcome.verdict is Verdict.FAIL
    assert "app.py: protected by runerogue.toml (app.py)" in outcome.reason


def test_tests_with_the_command_of_the_base_commit_in_the_environment_for_tests(
    improvement: Improvement, tmp_path: Path
) -> None:
    folder = improvement.service.checkout
    (folder / "check.py").write_text(
        "import os, sys\n"
        "case = '<testcase classname=\"it\" name=\"' + os.environ['NAME'] + '\"/>'\n"
        "open(sys.argv[1], 'w').write('<testsuite>' + case + '</testsuite>')\n"
        "print(sorted(name for name in os.environ if 'NAME' in name))\n"
    )
    (folder / "runerogue.toml").write_text(
        MANIFEST.replace("pytest -q --junitxml={report}", "python check.py {report}")
    )
    commit(folder, "another way of testing")
    patched(improvement, tmp_path)
    outcome = proving.test(improvement)
    assert outcome.verdict is Verdict.PASS, outcome.reason
    content = outcome.evidence[0].content
    assert content["patch"]["passed"] == 1
    assert "['NAME']" in content["output_tail"]


def test_a_base_without_a_manifest_is_no_data(improvement: Improvement, tmp_path: Path) -> None:
    folder = improvement.service.checkout
    (folder / "runerogue.toml").unlink()
    commit(folder, "gone")
    patched(improvement, tmp_path)
    for step in (proving.test, proving.scan, proving.stage):
        outcome = step(improvement)
        assert outcome.verdict is Verdict.NO_DATA
        assert "has no runerogue.toml in the commit" in outcome.reason
