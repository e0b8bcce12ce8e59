"""Reports of commits: kept once, turned into signals, gated, and measured in the sandbox."""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command

from monitoring import gating, quality, reading
from monitoring.manifest import parse
from monitoring.models import QualityReport
from monitoring.reports import ReportError
from tests.monitoring.factories import MANIFEST, T0, ServiceFactory

pytestmark = pytest.mark.django_db
COMMIT = "a" * 40
JUNIT = b'<testsuites><testsuite><testcase classname="t" name="%s"/></testsuite></testsuites>'


def keep(service, *bodies, commit=COMMIT, at=T0, branch=""):
    return quality.keep_all(service, commit, [(None, body) for body in bodies], at=at, source="test", branch=branch)


def test_a_report_of_the_branch_becomes_a_signal():
    service = ServiceFactory()
    keep(service, JUNIT % b"a", b'<coverage line-rate="0.5"/>')
    assert reading.latest(service, "test_success_ratio") == 1.0
    assert reading.latest(service, "test_coverage_percent") == 50.0


def test_a_report_of_another_branch_is_kept_for_comparison_alone():
    service = ServiceFactory()
    [row] = keep(service, JUNIT % b"a", branch="try-something")
    assert not row.on_main
    assert reading.latest(service, "test_success_ratio") is None
    assert quality.newest(service) == {}


def test_the_same_report_again_changes_nothing():
    service = ServiceFactory()
    assert len(keep(service, JUNIT % b"a")) == 1
    assert keep(service, JUNIT % b"a", at=T0 + timedelta(hours=1)) == []
    assert QualityReport.objects.get().at == T0


def test_keeps_all_or_none():
    service = ServiceFactory()
    with pytest.raises(ReportError):
        keep(service, JUNIT % b"a", b"nonsense")
    with pytest.raises(quality.WrongReport, match="hexadecimal"):
        keep(service, JUNIT % b"a", commit="main; rm -rf /")
    assert not QualityReport.objects.exists()


def test_the_gate_compares_with_the_branch_and_answers_the_same_again():
    service = ServiceFactory()
    for day in range(10):
        keep(service, json.dumps({"ms": 100 + day % 3}).encode(), commit=f"{day:07x}", at=T0 + timedelta(days=day))
    # A slow commit of another branch is no measure for anybody.
    keep(service, b'{"ms": 500}', commit="b" * 40, at=T0 + timedelta(days=11), branch="slow")
    at = T0 + timedelta(days=12)
    slow = gating.decide(service, COMMIT, [(None, b'{"ms": 140}')], at=at, source="test", branch="slow")
    assert slow.verdict == "fail"
    later = at + timedelta(days=1)
    again = gating.decide(service, COMMIT, [(None, b'{"ms": 140}')], at=later, source="test", branch="slow")
    assert again == slow
    fine = gating.decide(service, "c" * 40, [(None, b'{"ms": 100}')], at=at, source="test")
    assert fine.verdict == "pass"
    answer = gating.as_json(slow)
    assert answer["compared"][0]["was"] == 101.0
    assert json.loads(json.dumps(answer)) == answer


def test_commands_report_and_gate(tmp_path, capsys):
    service = ServiceFactory(name="realm")
    (tmp_path / "junit.xml").write_bytes(JUNIT % b"a")
    call_command("report", "realm", "--commit", COMMIT, str(tmp_path / "junit.xml"))
    assert "test_success_ratio 1" in capsys.readouterr().out
    (tmp_path / "now.xml").write_bytes(b'<testsuite><testcase classname="t" name="a"><failure/></testcase></testsuite>')
    with pytest.raises(SystemExit) as ended:
        call_command("ci-gate", "realm", "--commit", "c" * 40, "--json", f"junit={tmp_path / 'now.xml'}")
    assert ended.value.code == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "fail"
    with pytest.raises(CommandError, match="No such file"):
        call_command("report", "realm", str(tmp_path / "none.xml"), "--commit", COMMIT)
    with pytest.raises(CommandError, match="Watched: realm"):
        call_command("report", "other", str(tmp_path / "junit.xml"), "--commit", COMMIT)
    assert QualityReport.objects.filter(service=service).count() == 2


def test_measures_a_service_in_the_sandbox(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "shop.py").write_text("import os\n\n\ndef run(text):\n    return eval(text)\n")
    (folder / "test_shop.py").write_text("def test_adds():\n    assert 1 + 1 == 2\n")
    git = ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "First."], check=True)
    manifest = parse(
        MANIFEST.replace('command = "pytest -q', 'command = "python -m pytest -q -p no:cacheprovider')
        + '[quality]\npaths = ["shop.py"]\n'
    )
    service = ServiceFactory(repository=str(folder), manifest=manifest.model_dump(mode="json"))
    [measured] = quality.measure_due(T0)
    assert set(measured.kept) == {"junit", "ruff", "sarif"}, measured
    assert set(measured.missing) == {"coverage"}
    found = {
        name: reading.latest(service, name) for name in ("test_success_ratio", "lint_violations", "vulnerabilities")
    }
    # The unused import, and eval.
    assert found == {"test_success_ratio": 1.0, "lint_violations": 1.0, "vulnerabilities": 1.0}
    assert reading.latest(service, "debt_ratio") == pytest.approx(5 / (30 * 3))
    assert quality.measure_due(T0 + timedelta(minutes=1)) == []


def test_a_repository_that_is_gone_is_a_reason_and_not_an_error():
    ServiceFactory(repository="/nowhere/at/all")
    [measured] = quality.measure_due(T0)
    assert measured.kept == ()
    assert "repository" in measured.missing
