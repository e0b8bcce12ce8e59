"""The judgements of the checks: tables of numbers in, one verdict out."""

import random
from pathlib import Path

import pytest

from improvements.checks import scan, shortened, staging
from improvements.checks.tests import Suite
from improvements.checks.tests import judge as judge_tests
from improvements.outcome import Verdict


def suite(passed: str = "", failed: str = "", skipped: str = "", **rest: object) -> Suite:
    return Suite(frozenset(passed.split()), frozenset(failed.split()), frozenset(skipped.split()), **rest)  # type: ignore[arg-type]


TESTS = {
    "all pass": (suite("a b"), suite("a b"), Verdict.PASS),
    "a new test passes": (suite("a b"), suite("a b c"), Verdict.PASS),
    "one that failed before still fails": (suite("a", "b"), suite("a", "b"), Verdict.PASS),
    "one that failed before passes": (suite("a", "b"), suite("a b"), Verdict.PASS),
    "one that passed fails": (suite("a b"), suite("a", "b"), Verdict.FAIL),
    "a new test fails": (suite("a"), suite("a", "b"), Verdict.FAIL),
    "one that passed is skipped": (suite("a b"), suite("a", "", "b"), Verdict.FAIL),
    "one that passed is gone": (suite("a b"), suite("a c"), Verdict.FAIL),
    "fewer are executed": (suite("a", "b"), suite("a"), Verdict.FAIL),
    "nothing is executed": (suite(), suite(), Verdict.NO_DATA),
    "everything is skipped": (suite("", "", "a"), suite("", "", "a"), Verdict.NO_DATA),
    "nothing is executed any more": (suite("a"), suite(), Verdict.FAIL),
    "everything fails on both": (suite("", "a"), suite("", "a"), Verdict.FAIL),
    "base has no report": (suite(problem="no report"), suite("a"), Verdict.INCONCLUSIVE),
    "patch has no report": (suite("a"), suite(problem="no report"), Verdict.FAIL),
    "base hangs": (suite(timed_out=True), suite("a"), Verdict.INCONCLUSIVE),
    "patch hangs": (suite("a"), suite(timed_out=True), Verdict.FAIL),
    "both hang": (suite(timed_out=True), suite(timed_out=True), Verdict.INCONCLUSIVE),
    "only the exit code got worse": (suite("a"), suite("a", exit_code=1), Verdict.FAIL),
    "the exit code is bad on both": (suite("a", exit_code=1), suite("a", exit_code=1), Verdict.PASS),
}


@pytest.mark.parametrize("case", TESTS)
def test_judges_two_runs_of_the_tests(case: str) -> None:
    before, after, verdict = TESTS[case]
    outcome = judge_tests(before, after)
    assert outcome.verdict is verdict, outcome.reason
    assert outcome.reason
    assert outcome.evidence[0].content["patch"]["executed"] == after.executed


def rounds(**columns: list[float]) -> list[dict[str, float]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


STEADY = [100.0, 101.0, 99.0, 100.0, 100.5]
BENCHMARKS = {
    "the same": (STEADY, STEADY, Verdict.PASS),
    "much better": (STEADY, [50.0, 51.0, 49.0, 50.0, 50.0], Verdict.PASS),
    "a little worse": (STEADY, [value * 1.05 for value in STEADY], Verdict.PASS),
    "clearly worse": (STEADY, [value * 1.3 for value in STEADY], Verdict.FAIL),
    "worse by an exact count": ([10.0] * 5, [12.0] * 5, Verdict.FAIL),
    "one outlier": (STEADY, [100.0, 400.0, 100.0, 99.0, 101.0], Verdict.PASS),
    "too noisy to tell": ([100, 300, 50, 200, 90], [120, 40, 310, 190, 100], Verdict.INCONCLUSIVE),
    "noisy but far better": ([100, 140, 80, 120, 90], [10, 14, 8, 12, 9], Verdict.PASS),
    "worse, yet the values overlap": (STEADY, [99.5, 125, 126, 125, 126], Verdict.INCONCLUSIVE),
    "from nothing to something": ([0.0] * 5, [1.0] * 5, Verdict.FAIL),
    "nothing and nothing": ([0.0] * 5, [0.0] * 5, Verdict.PASS),
}


@pytest.mark.parametrize("case", BENCHMARKS)
def test_judges_a_benchmark(case: str) -> None:
    current, candidate, verdict = BENCHMARKS[case]
    outcome = staging.judge(rounds(list_ms=current), rounds(list_ms=candidate))
    assert outcome.verdict is verdict, outcome.reason


def test_higher_is_better_where_the_manifest_says_so() -> None:
    current, candidate = rounds(rps=STEADY), rounds(rps=[value * 2 for value in STEADY])
    assert staging.judge(current, candidate).verdict is Verdict.FAIL
    assert staging.judge(current, candidate, ["rps"]).verdict is Verdict.PASS


def test_one_worse_number_is_enough() -> None:
    current = rounds(a=STEADY, b=STEADY)
    outcome = staging.judge(current, rounds(a=[value / 2 for value in STEADY], b=[value * 2 for value in STEADY]))
    assert outcome.verdict is Verdict.FAIL
    assert "b 100 → 200 (100% worse" in outcome.reason


def test_a_number_that_vanished_fails_and_no_number_is_no_data() -> None:
    assert staging.judge(rounds(a=STEADY, b=STEADY), rounds(a=STEADY)).verdict is Verdict.FAIL
    assert staging.judge(rounds(a=STEADY), rounds(b=STEADY)).verdict is Verdict.NO_DATA
    assert staging.judge([], []).verdict is Verdict.NO_DATA


def test_rarely_fails_a_candidate_that_is_no_slower() -> None:
    """Six numbers, five rounds, 15 % lognormal noise: what a busy machine of two cores gives."""
    chance = random.Random(7)

    def noisy() -> list[dict[str, float]]:
        return [{str(name): 100 * chance.lognormvariate(0, 0.15) for name in range(6)} for _ in range(5)]

    failed = sum(staging.judge(noisy(), noisy()).verdict is Verdict.FAIL for _ in range(300))
    assert failed / 300 <= 0.05


@pytest.mark.parametrize(
    ("stdout", "numbers"),
    [
        ('{"a": 1, "b": 2.5}', {"a": 1.0, "b": 2.5}),
        ('warming up {not json}\n{"a": 1}\n', {"a": 1.0}),
        ('{"a": 1}\n{"a": 2}\n', {"a": 2.0}),
        ('{"a": true, "b": "x", "c": NaN, "d": 3}', {"d": 3.0}),
        ('{\n  "a": 1\n}\n', {"a": 1.0}),
        ("", {}),
        ("[1, 2]", {}),
        ('{"a": 1} and more', {}),
    ],
)
def test_reads_the_numbers_a_benchmark_prints_last(stdout: str, numbers: dict[str, float]) -> None:
    assert staging.read_numbers(stdout) == numbers


@pytest.mark.parametrize(
    ("path", "glob", "matching"),
    [
        ("settings.py", "**/settings*.py", True),
        ("realm/settings.py", "**/settings*.py", True),
        ("a/b/c/settings_production.py", "**/settings*.py", True),
        ("realm/mysettings.py", "**/settings*.py", False),
        ("realm/SETTINGS.py", "**/settings*.py", True),
        ("approvals/models.py", "approvals/**", True),
        ("approvals/a/b.py", "approvals/**", True),
        ("approvals", "approvals/**", False),
        ("x/approvals/models.py", "approvals/**", False),
        ("realm/auth/login.py", "realm/auth/**", True),
        ("realm/auth/deep/er/login.py", "realm/auth/**", True),
        ("realm/auth.py", "realm/auth/**", False),
        ("realm/auth/login.py", "realm/auth/", True),
        ("realm/auth/login.py", "realm/*/login.py", True),
        ("realm/a/b/login.py", "realm/*/login.py", False),
        ("realm/a/b/login.py", "realm/**/login.py", True),
        ("realm/login.py", "realm/**/login.py", True),
        ("a.py", "?.py", True),
        ("ab.py", "?.py", False),
        ("a+b.py", "a+b.py", True),
        ("Dockerfile.prod", "**/Dockerfile*", True),
        ("deploy/Dockerfile", "**/Dockerfile*", True),
    ],
)
def test_matches_paths_like_gitignore(path: str, glob: str, matching: bool) -> None:
    assert scan.matches(path, glob) is matching


@pytest.mark.parametrize(
    "path",
    [
        "runerogue/settings.py",
        "app/settings/production.py",
        "app/permissions.py",
        "approvals/policy.py",
        "approvals/models.py",
        ".github/workflows/ci.yml",
        ".ci/run",
        ".gitlab-ci.yml",
        "runerogue.toml",
        "deploy/Dockerfile",
        "Dockerfile",
        ".env",
        "conf/.env.production",
        "tests/conftest.py",
        "certs/server.pem",
        "improvements/checks/scan.py",
        "monitoring/sandboxed.py",
        ".gitmodules",
        "GNUmakefile",
        "sub/GNUmakefile",
        "pytest.toml",
        "src/sitecustomize.py",
    ],
)
def test_protects_what_guards_it(path: str) -> None:
    assert scan.protected_reason(path)


@pytest.mark.parametrize("path", ["game/views.py", "game/models.py", "README.md", "docs/policy.md", "game/tests/x.py"])
def test_leaves_the_rest_open(path: str) -> None:
    assert scan.protected_reason(path) == ""
    assert scan.protected_reason(path, [path])


PYPROJECT = """
[project]
dependencies = ["django"]
[build-system]
requires = ["setuptools"]
[tool.pytest.ini_options]
testpaths = ["tests"]
[tool.poetry.dependencies]
python = "3"
"""
PYPROJECTS = {
    "a dependency": (PYPROJECT.replace("django", "django>=5"), ""),
    "what is needed to build": (PYPROJECT.replace('"setuptools"', '"setuptools>=80"'), ""),
    "a dependency of poetry": (PYPROJECT + 'django = "5"\n', ""),
    "what pytest does": (PYPROJECT.replace("testpaths", "norecursedirs"), "[tool.pytest]"),
    "a tool that is new": (PYPROJECT + "[tool.ruff]\nselect = []\n", "[tool.ruff]"),
    "who builds": (PYPROJECT.replace("requires =", 'build-backend = "evil"\nrequires ='), "[build-system]"),
    "a plugin": (PYPROJECT + '[project.entry-points.pytest11]\nx = "evil"\n', "[project.entry-points]"),
    "tool is no table": ("tool = 3\n", "[tool."),
    "all gone": (None, "[tool.pytest]"),
    "no TOML": ("[", "can't be parsed"),
}


@pytest.mark.parametrize("case", PYPROJECTS)
def test_a_patch_may_change_dependencies_and_not_how_they_are_tested(case: str, tmp_path: Path) -> None:
    text, told = PYPROJECTS[case]
    for name, content in (("base", PYPROJECT), ("patch", text)):
        (tmp_path / name / "lib").mkdir(parents=True)
        if content is not None:
            (tmp_path / name / "lib" / "pyproject.toml").write_text(content, encoding="utf-8")
    outcome = scan.check_paths(tmp_path / "base", tmp_path / "patch", changed=["lib/pyproject.toml"])
    assert outcome.verdict is (Verdict.FAIL if told else Verdict.PASS), outcome.reason
    assert told in outcome.reason


@pytest.mark.parametrize(
    "path", ["tests/test_a.py", "app/tests.py", "test_a.py", "a_test.py", "tests/data/golden.json"]
)
def test_a_patch_may_add_tests_and_change_none(path: str, tmp_path: Path) -> None:
    base, patch = tmp_path / "base", tmp_path / "patch"
    for side in (base, patch):
        (side / path).parent.mkdir(parents=True, exist_ok=True)
    (patch / path).write_text("assert True\n", encoding="utf-8")
    assert scan.check_paths(base, patch, changed=[path]).verdict is Verdict.PASS
    (base / path).write_text("assert 1 == 1\n", encoding="utf-8")
    assert "a patch may only add tests" in scan.check_paths(base, patch, changed=[path]).reason
    (patch / path).unlink()
    assert "a patch may only add tests" in scan.check_paths(base, patch, changed=[path]).reason


MIGRATIONS = {
    "AddIndex": ("migrations.AddIndex('p', models.Index(fields=['a'], name='i'))", True),
    "AddField": ("migrations.AddField('p', 'f', models.IntegerField(null=True))", True),
    "RemoveField": ("migrations.RemoveField('p', 'f')", False),
    "DeleteModel": ("migrations.DeleteModel('p')", False),
    "RenameField": ("migrations.RenameField('p', 'a', 'b')", False),
    "RunSQL without reverse": ("migrations.RunSQL('DROP TABLE x')", False),
    "RunSQL with None": ("migrations.RunSQL('CREATE INDEX', None)", False),
    "RunSQL with reverse": ("migrations.RunSQL('CREATE INDEX', 'DROP INDEX')", True),
    "RunSQL with reverse by name": ("migrations.RunSQL(sql='CREATE', reverse_sql='DROP')", True),
    "RunSQL by name without reverse": ("migrations.RunSQL(sql='CREATE')", False),
    "RunSQL with noop": ("migrations.RunSQL('VACUUM', migrations.RunSQL.noop)", True),
    "RunPython without reverse": ("RunPython(forwards)", False),
    "RunPython with reverse": ("RunPython(forwards, RunPython.noop)", True),
    "RunPython by name": ("RunPython(code=forwards, reverse_code=backwards)", True),
}


@pytest.mark.parametrize("case", MIGRATIONS)
def test_knows_a_destructive_migration(case: str) -> None:
    operation, safe = MIGRATIONS[case]
    assert (scan._destructive(f"class Migration:\n    operations = [{operation}]\n") == []) is safe


def test_text_in_evidence_is_cut_from_the_front() -> None:
    assert shortened("short") == "short"
    assert shortened("a" * 30 + "end", 10).endswith("aaaaaaaend")
