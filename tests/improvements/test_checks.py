"""The checks run the real tools on real folders."""

import socket
import textwrap
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from improvements.checks import scan, staging
from improvements.checks.tests import compare_tests
from improvements.outcome import Outcome, Verdict
from monitoring import manifest as manifests
from monitoring import sandbox

Files = Mapping[str, str]


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "base", tmp_path / "patch"


def fill(folder: Path, files: Files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")
    return folder


def manifest(**tables: str) -> manifests.Manifest:
    text = '[service]\nname = "shop"\n[run]\ncommand = "x {port}"\nhealth = "/up"\n'
    text += f'[test]\ncommand = "{tables.pop("test", "pytest -q -p no:randomly --junitxml={report}")}"\n'
    for name, body in tables.items():
        text += f"[{name}]\n{body}\n"
    return manifests.parse(text)


def evidence(outcome: Outcome, kind: str) -> dict[str, object]:
    return next(one.content for one in outcome.evidence if one.kind == kind)


# ---- tests

GOOD = {"pytest.ini": "[pytest]\n", "test_it.py": "def test_a():\n    pass\n\ndef test_b():\n    pass\n"}
BAD = {"pytest.ini": "[pytest]\n", "test_it.py": "def test_a():\n    pass\n\ndef test_b():\n    assert 1 == 2\n"}
NONE = {"pytest.ini": "[pytest]\n", "test_it.py": ""}
BROKEN = {"pytest.ini": "[pytest]\n", "test_it.py": "import nothing_like_it\n"}


@pytest.mark.parametrize(
    ("base", "patch", "verdict", "words"),
    [
        (GOOD, GOOD, Verdict.PASS, "All 2 tests"),
        (GOOD, BAD, Verdict.FAIL, "test_it::test_b"),
        (BAD, GOOD, Verdict.PASS, "All 1 tests"),
        (NONE, NONE, Verdict.NO_DATA, "No test was executed"),
        (GOOD, BROKEN, Verdict.FAIL, "test_it"),
    ],
)
def test_compares_two_runs(
    sides: tuple[Path, Path], tmp_path: Path, base: Files, patch: Files, verdict: Verdict, words: str
) -> None:
    outcome = compare_tests(fill(sides[0], base), fill(sides[1], patch), manifest(), {}, tmp_path / "scratch")
    assert outcome.verdict is verdict, outcome
    assert words in outcome.reason
    numbers = evidence(outcome, "tests")["patch"]
    assert isinstance(numbers, dict)
    assert numbers["isolation"]


def test_a_suite_that_hangs_with_the_patch_fails(sides: tuple[Path, Path], tmp_path: Path) -> None:
    hanging = {**GOOD, "test_it.py": "import time\n\ndef test_a():\n    time.sleep(60)\n"}
    outcome = compare_tests(
        fill(sides[0], GOOD), fill(sides[1], hanging), manifest(), {}, tmp_path / "s", timeout_seconds=12
    )
    assert outcome.verdict is Verdict.FAIL
    assert "do not end in time" in outcome.reason


def test_a_command_that_is_missing_is_inconclusive(sides: tuple[Path, Path], tmp_path: Path) -> None:
    command = manifest(test="no-such-runner {report}")
    outcome = compare_tests(fill(sides[0], GOOD), fill(sides[1], GOOD), command, {}, tmp_path / "s")
    assert outcome.verdict is Verdict.INCONCLUSIVE
    assert "no-such-runner" in outcome.reason


def test_setup_runs_first_in_each_checkout(sides: tuple[Path, Path], tmp_path: Path) -> None:
    files = {**GOOD, "test_it.py": "import pathlib\n\ndef test_a():\n    assert pathlib.Path('ready').exists()\n"}
    outcome = compare_tests(
        fill(sides[0], files),
        fill(sides[1], files),
        manifest(setup='command = "touch ready"'),
        {},
        tmp_path / "s",
    )
    assert outcome.verdict is Verdict.PASS, outcome


# ---- scan


def scanned(sides: tuple[Path, Path], before: Files, after: Files, **rest: list[str]) -> Outcome:
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return scan.scan(fill(sides[0], before), fill(sides[1], after), changed=changed, **rest)


OLD = {"app/views.py": "import subprocess\n\ndef f(x):\n    subprocess.call(x, shell=True)\n"}


def test_a_clean_patch_passes_with_proof(sides: tuple[Path, Path]) -> None:
    outcome = scanned(sides, OLD, {"app/views.py": "# moved down\n" + OLD["app/views.py"]})
    assert outcome.verdict is Verdict.PASS, outcome
    assert evidence(outcome, "bandit")["files"] == ["app/views.py"]
    assert evidence(outcome, "bandit")["known_before"] == 2
    assert evidence(outcome, "bandit")["new"] == []


@pytest.mark.parametrize("marker", ["", "  # nosec"])
def test_a_new_security_issue_fails_even_when_it_waves_itself_through(sides: tuple[Path, Path], marker: str) -> None:
    after = OLD["app/views.py"] + f"\ndef g(x):\n    subprocess.call('rm ' + x, shell=True){marker}\n"
    outcome = scanned(sides, OLD, {"app/views.py": after})
    assert outcome.verdict is Verdict.FAIL
    assert "app/views.py:7 B602" in outcome.reason


def test_an_issue_of_low_severity_is_told_but_passes(sides: tuple[Path, Path]) -> None:
    outcome = scanned(sides, {"app/a.py": "x = 1\n"}, {"app/a.py": "x = 1\nassert x\n"})
    assert outcome.verdict is Verdict.PASS
    assert "1 new of low severity" in outcome.reason


def test_a_file_that_can_no_longer_be_parsed_fails(sides: tuple[Path, Path]) -> None:
    outcome = scanned(sides, OLD, {"app/views.py": "def f(:\n"})
    assert outcome.verdict is Verdict.FAIL
    assert "could not parse" in outcome.reason


@pytest.mark.parametrize("marker", ["", "  # pragma: allowlist secret"])
def test_a_new_secret_fails_and_is_not_repeated(sides: tuple[Path, Path], marker: str) -> None:
    secret = "AKIA" + "R4ND0MXYZ7QPLM2W"
    outcome = scanned(sides, {"notes.txt": "nothing\n"}, {"notes.txt": f'key = "{secret}"{marker}\n'})
    assert outcome.verdict is Verdict.FAIL
    assert "notes.txt:1 AWS Access Key" in outcome.reason
    assert secret not in str(outcome)


def test_a_secret_that_was_there_before_is_not_new(sides: tuple[Path, Path]) -> None:
    line = 'key = "AKIA' + 'R4ND0MXYZ7QPLM2W"\n'
    outcome = scanned(sides, {"notes.txt": line}, {"notes.txt": "moved\n" + line})
    assert outcome.verdict is Verdict.PASS


@pytest.mark.parametrize("tool", ["bandit", "detect_secrets"])
def test_a_scanner_that_could_not_run_is_never_a_pass(
    sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    real = sandbox.run

    def broken(command: list[str], **options: object) -> sandbox.Finished:
        if tool in command:
            return sandbox.Finished(0, "", "No module named it", 0.1, False, "test")
        return real(command, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(scan.sandbox, "run", broken)
    outcome = scanned(sides, OLD, {"app/views.py": OLD["app/views.py"] + "x = 1\n"})
    assert outcome.verdict is Verdict.NO_DATA
    assert "could not run" in outcome.reason


def test_a_secret_scanner_that_finds_nothing_at_all_is_no_data(
    sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "CONTROL_SECRET", "nothing to see")
    outcome = scanned(sides, OLD, {"app/views.py": OLD["app/views.py"] + "x = 1\n"})
    assert outcome.verdict is Verdict.NO_DATA
    assert "planted as a control" in outcome.reason


def test_nothing_changed_is_no_data(sides: tuple[Path, Path]) -> None:
    assert scanned(sides, OLD, OLD).verdict is Verdict.NO_DATA


def test_protected_paths_of_the_manifest_are_refused(sides: tuple[Path, Path]) -> None:
    outcome = scanned(sides, {"app/auth/x.py": "a = 1\n"}, {"app/auth/x.py": "a = 2\n"}, protected=["app/auth/**"])
    assert outcome.verdict is Verdict.FAIL
    assert "app/auth/x.py: protected by runerogue.toml (app/auth/**)" in outcome.reason


def refused(sides: tuple[Path, Path], *changed: str) -> str:
    outcome = scan.check_paths(*sides, changed=changed)
    assert outcome.verdict is Verdict.FAIL, outcome
    return outcome.reason


def test_links_escapes_modes_and_renames_are_refused(sides: tuple[Path, Path]) -> None:
    base, patch = (fill(side, {"a.py": "x = 1\ny = 2\nz = 3\n", "run": "#!/bin/sh\n", "d/e.py": ""}) for side in sides)
    (patch / "link.py").symlink_to("/etc/passwd")
    (patch / "folder").symlink_to("/etc")
    (patch / "run").chmod(0o755)
    (patch / "new.sh").write_text("#!/bin/sh\n", encoding="utf-8")
    (patch / "new.sh").chmod(0o755)
    (patch / "a.py").rename(patch / "b.py")
    (patch / "sub").mkdir()
    assert "symbolic link" in refused(sides, "link.py")
    assert "behind the link folder" in refused(sides, "folder/passwd")
    assert "changes its mode" in refused(sides, "run")
    assert "new and executable" in refused(sides, "new.sh")
    assert "a.py is renamed to b.py" in refused(sides, "a.py", "b.py")
    assert "not a plain path" in refused(sides, "../outside.py")
    assert "not a plain path" in refused(sides, "/etc/passwd")
    assert "not a plain path" in refused(sides, "a\\b.py")
    assert "git's own folder" in refused(sides, "d/.git/hooks/post-commit")
    assert "is not a file" in refused(sides, "sub")
    assert "in neither checkout" in refused(sides, "nothing.py")
    assert base.is_dir()


def test_a_new_migration_raises_the_risk_and_a_changed_one_is_refused(sides: tuple[Path, Path]) -> None:
    safe = "class Migration:\n    operations = [AddIndex('p', i)]\n"
    outcome = scanned(sides, {}, {"app/migrations/0002_index.py": safe})
    assert outcome.verdict is Verdict.PASS
    assert evidence(outcome, "migrations")["risk_driver"] is True
    outcome = scanned(sides, {"app/migrations/0001_x.py": safe}, {"app/migrations/0001_x.py": safe + "# more\n"})
    assert outcome.verdict is Verdict.FAIL
    assert "existing migration" in outcome.reason


# ---- staging


def bench(numbers: str) -> Files:
    return {"bench.py": f"import json\nprint(json.dumps({numbers}))\n"}


@pytest.mark.parametrize(
    ("candidate", "verdict"),
    [
        ("{'ms': 50}", Verdict.PASS),
        ("{'ms': 150}", Verdict.FAIL),
        ("[]", Verdict.NO_DATA),
        ("1/0", Verdict.FAIL),
    ],
)
def test_benchmarks_are_run_on_both_sides(sides: tuple[Path, Path], candidate: str, verdict: Verdict) -> None:
    current, other = fill(sides[0], bench("{'ms': 100}")), fill(sides[1], bench(candidate))
    outcome = staging.compare_benchmarks(
        current, other, manifest(benchmark='command = "python bench.py"'), {}, rounds=3
    )
    assert outcome.verdict is verdict, outcome


def test_what_looks_worse_once_and_not_again_does_not_fail(sides: tuple[Path, Path]) -> None:
    counted = """
import pathlib
runs = pathlib.Path("runs.txt")
runs.write_text((runs.read_text() if runs.exists() else "") + "x")
print('{"ms": %d}' % (150 if len(runs.read_text()) <= 3 else 100))
"""
    current, other = fill(sides[0], bench("{'ms': 100}")), fill(sides[1], {"bench.py": counted})
    outcome = staging.compare_benchmarks(
        current, other, manifest(benchmark='command = "python bench.py"'), {}, rounds=3
    )
    assert outcome.verdict is Verdict.PASS, outcome
    assert "ms looked worse" in outcome.reason


def test_a_current_release_without_numbers_is_no_data(sides: tuple[Path, Path]) -> None:
    current, other = fill(sides[0], bench("1/0")), fill(sides[1], bench("{'ms': 1}"))
    outcome = staging.compare_benchmarks(current, other, manifest(benchmark='command = "python bench.py"'), {})
    assert outcome.verdict is Verdict.NO_DATA
    assert "ZeroDivisionError" in str(evidence(outcome, "benchmark"))


def test_a_service_without_a_benchmark_is_left_to_people(sides: tuple[Path, Path]) -> None:
    outcome = staging.compare_benchmarks(sides[0], sides[1], manifest(), {})
    assert outcome.verdict is Verdict.INCONCLUSIVE


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response({"/up": 200, "/moved": 302, "/gone": 404}.get(self.path, 500))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("paths", "verdict"),
    [
        (["/up", "/moved", "/up"], Verdict.PASS),
        (["/up", "/gone"], Verdict.FAIL),
        (["/up", "/broken"], Verdict.FAIL),
        ([], Verdict.NO_DATA),
    ],
)
def test_smoke_asks_for_every_path(address: str, paths: list[str], verdict: Verdict) -> None:
    assert staging.smoke(address, paths).verdict is verdict


def test_smoke_says_when_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    outcome = staging.smoke(f"http://127.0.0.1:{port}", ["/up"], timeout_seconds=2)
    assert outcome.verdict is Verdict.FAIL
    assert "ConnectError" in outcome.reason
