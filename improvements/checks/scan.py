"""What a patch may not contain: new security issues, secrets, changes to what guards it, destructive migrations."""

from __future__ import annotations

import ast
import difflib
import json
import re
import shutil
import stat
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from improvements.checks import shortened
from improvements.outcome import Evidence, Outcome, Verdict, combine
from monitoring import sandbox

TIMEOUT_SECONDS = 300.0
MOST_ISSUES = 50

# No improvement may touch what guards it. Pattern → why. Patterns are matched from the repository's root without
# regard to case; `**` stands for any number of folders, `*` for anything within a name.
PROTECTED: Mapping[str, str] = {
    "**/settings*.py": "settings hold security",
    "**/settings/**": "settings hold security",
    "**/permissions.py": "permissions",
    "**/permissions/**": "permissions",
    "**/policy.py": "the approval policy",
    "**/policies/**": "the approval policy",
    "**/authentication.py": "who may sign in",
    "approvals/**": "approvals and the audit log",
    "**/audit.py": "the audit log",
    "improvements/checks/**": "the checks themselves",
    "improvements/verdict.py": "the verdict on a rollout",
    "improvements/risk.py": "the risk of a patch",
    "improvements/categories.py": "the risk of a patch",
    "monitoring/sandbox*.py": "the sandbox",
    "runerogue.toml": "what is run, tested and protected",
    ".ci/**": "CI",
    ".github/**": "CI and code owners",
    ".gitlab/**": "CI",
    ".gitlab-ci.yml": "CI",
    ".circleci/**": "CI",
    ".travis.yml": "CI",
    ".woodpecker/**": "CI",
    ".woodpecker.y*ml": "CI",
    ".forgejo/**": "CI",
    "azure-pipelines*.yml": "CI",
    "bitbucket-pipelines.yml": "CI",
    "**/Jenkinsfile*": "CI",
    "**/CODEOWNERS": "who reviews",
    ".pre-commit-config.yaml": "CI",
    "**/Makefile": "how checks are run",
    "**/GNUmakefile": "how checks are run",
    "**/conftest.py": "how tests are run",
    "**/pytest.ini": "how tests are run",
    "**/.pytest.ini": "how tests are run",
    "**/pytest.toml": "how tests are run",
    "**/.pytest.toml": "how tests are run",
    "**/sitecustomize.py": "how Python starts",
    "**/usercustomize.py": "how Python starts",
    "**/tox.ini": "how tests are run",
    "**/tox.toml": "how tests are run",
    "**/noxfile.py": "how tests are run",
    "**/setup.cfg": "how tests are run",
    "**/Dockerfile*": "how it is deployed",
    "**/Containerfile*": "how it is deployed",
    "**/docker-compose*.y*ml": "how it is deployed",
    "**/compose*.y*ml": "how it is deployed",
    "**/.env*": "secrets",
    "**/*.pem": "secrets",
    "**/*.key": "secrets",
    "**/.gitattributes": "what git does with files",
    "**/.gitmodules": "what git does with files",
    "**/.git/**": "git itself",
}

# In pyproject.toml a patch may change what a service depends on. How it is built, checked and tested is protected: all
# of [tool], but for these.
DEPENDENCIES = (
    ("poetry", "dependencies"),
    ("poetry", "dev-dependencies"),
    ("poetry", "group"),
    ("pdm", "dev-dependencies"),
    ("uv", "dev-dependencies"),
    ("uv", "constraint-dependencies"),
    ("uv", "override-dependencies"),
)
# A service's tests are the proof of a patch. It may add tests, and leaves those that are there as they are.
TESTS = ("**/tests/**", "**/test/**", "**/test_*.py", "**/*_test.py", "**/tests.py")

# Operations that lose data, or that break the release which still runs beside the candidate.
DESTRUCTIVE = {
    "RemoveField": "drops a column that the running release reads",
    "DeleteModel": "drops a table that the running release reads",
    "RenameField": "renames a column that the running release reads",
    "RenameModel": "renames a table that the running release reads",
    "AlterModelTable": "renames a table that the running release reads",
}
REVERSIBLE = {"RunSQL": ("reverse_sql", "sql"), "RunPython": ("reverse_code", "code")}


def scan(base: Path, patched: Path, *, changed: Sequence[str], protected: Sequence[str] = ()) -> Outcome:
    """Everything at once, on two checkouts. `changed` names every path that differs, a rename as its two paths."""
    if not changed:
        return Outcome(Verdict.NO_DATA, "The patch changes no file, so there was nothing to scan.")
    paths = check_paths(base, patched, changed=changed, protected=protected)
    if paths.verdict is not Verdict.PASS:
        return paths  # don't even open files through odd paths
    return combine(
        [
            paths,
            check_migrations(base, patched, changed=changed),
            check_code(base, patched, changed=changed),
            check_secrets(base, patched, changed=changed),
        ]
    )


# ---- paths


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    """`glob` as a regular expression over whole paths. (PurePath.full_match would do this, but only from Python
    3.13.)
    """
    parts = []
    segments = glob.strip("/").split("/")
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        if segment == "**":
            parts.append(".+" if last else "(?:[^/]+/)*")
            continue
        words = re.split(r"(\*+|\?)", segment)
        parts.append("".join("[^/]*" if w.startswith("*") else "[^/]" if w == "?" else re.escape(w) for w in words))
        if not last:
            parts.append("/")
    return re.compile("".join(parts), re.IGNORECASE | re.DOTALL)


def matches(path: str, glob: str) -> bool:
    """Whether `path` matches `glob`. As in .gitignore, a pattern ending in "/" means everything below that folder."""
    return _pattern(f"{glob}**" if glob.endswith("/") else glob).fullmatch(path) is not None


def protected_reason(path: str, protected: Iterable[str] = ()) -> str:
    """Why `path` may not be touched, or an empty string."""
    for glob, why in PROTECTED.items():
        if matches(path, glob):
            return f"{why} ({glob})"
    for glob in protected:
        if matches(path, glob):
            return f"protected by runerogue.toml ({glob})"
    return ""


def check_paths(base: Path, patched: Path, *, changed: Sequence[str], protected: Sequence[str] = ()) -> Outcome:
    """Refuse protected paths, links, paths out of the repository, renames, changes of mode, and what is not a file."""
    refusals = [reason for path in changed if (reason := _refusal(base, patched, path, protected))]
    if not refusals:
        refusals = _renames(base, patched, changed)
    content = {"changed": list(changed)[:MOST_ISSUES], "refused": refusals[:MOST_ISSUES]}
    if refusals:
        return Outcome(
            Verdict.FAIL,
            f"The patch touches what it may not: {'; '.join(refusals[:3])}.",
            (Evidence("paths", f"{len(refusals)} of {len(changed)} paths refused", content),),
        )
    return Outcome(
        Verdict.PASS,
        f"None of the {len(changed)} changed paths is protected.",
        (Evidence("paths", f"{len(changed)} paths, none protected", content),),
    )


def _refusal(base: Path, patched: Path, path: str, protected: Sequence[str]) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or any(ord(sign) < 32 for sign in path) or not path:
        return f"{path!r} is not a plain path in the repository"
    if any(part.lower() == ".git" for part in pure.parts):
        return f"{path} is inside git's own folder"
    if reason := protected_reason(path, protected):
        return f"{path}: {reason}"
    if any(matches(path, glob) for glob in TESTS) and (base / pure).is_file():
        return f"{path} is a test that was there before; a patch may only add tests"
    modes: list[int | None] = []
    for root in (base, patched):
        for parent in reversed(pure.parents[:-1]):
            if (root / parent).is_symlink():
                return f"{path} lies behind the link {parent}"
        try:
            mode = (root / pure).lstat().st_mode
        except OSError:
            modes.append(None)
            continue
        if stat.S_ISLNK(mode):
            return f"{path} is a symbolic link"
        if not stat.S_ISREG(mode):
            return f"{path} is not a file"
        modes.append(mode & 0o111)
    before, after = modes
    if before is None and after is None:
        return f"{path} is in neither checkout"
    if before is not None and after is not None and bool(before) != bool(after):
        return f"{path} changes its mode"
    if before is None and after:
        return f"{path} is new and executable"
    if pure.name.lower() == "pyproject.toml":
        return _changed_tools(base / pure, patched / pure, path)
    return ""


def _changed_tools(base: Path, patched: Path, path: str) -> str:
    """Which guarding part of a pyproject.toml differs, as a refusal; empty when none does."""
    try:
        before, after = _guarded(base), _guarded(patched)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"{path} can't be parsed: {error}"
    different = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return f"{path} changes how it is built, checked or tested: [{'], ['.join(different)}]" if different else ""


def _guarded(file: Path) -> dict[str, Mapping[str, Any]]:
    """Every table of a pyproject.toml that a patch has to leave alone, by its name. Nothing where there is no file."""
    if not file.exists():
        return {}
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    tools = _table(content, "tool")
    found: dict[str, Mapping[str, Any]] = {
        f"tool.{name}": {key: value for key, value in _table(tools, name).items() if (name, key) not in DEPENDENCIES}
        for name in tools
    }
    found["build-system"] = {key: one for key, one in _table(content, "build-system").items() if key != "requires"}
    found["project.entry-points"] = _table(_table(content, "project"), "entry-points")
    return {name: table for name, table in found.items() if table}


def _table(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table of a TOML file; what should be one and is not is kept as its only value."""
    found = content.get(name, {})
    return found if isinstance(found, dict) else {"": found}


def _renames(base: Path, patched: Path, changed: Sequence[str]) -> list[str]:
    """Paths that went away with their content coming up elsewhere: a way around rules that go by path."""
    gone = [path for path in changed if not (patched / path).exists()]
    new = [path for path in changed if not (base / path).exists()]
    found = []
    for old in gone:
        before = (base / old).read_bytes().splitlines()
        for path in new:
            after = (patched / path).read_bytes().splitlines()
            if before and (before == after or difflib.SequenceMatcher(None, before, after).ratio() >= 0.5):
                found.append(f"{old} is renamed to {path}")
    return found


# ---- migrations


def check_migrations(base: Path, patched: Path, *, changed: Sequence[str]) -> Outcome:
    """A new migration raises the risk; one that destroys, can't be reversed or rewrites history is refused."""
    touched = [path for path in changed if _is_migration(path)]
    problems: list[str] = []
    for path in touched:
        if (base / path).exists():
            problems.append(f"{path} is an existing migration; it may have run already")
            continue
        try:
            problems += [f"{path}: {problem}" for problem in _destructive((patched / path).read_text(encoding="utf-8"))]
        except (SyntaxError, UnicodeDecodeError) as error:
            problems.append(f"{path} can't be parsed: {error}")
    content = {"migrations": touched, "problems": problems[:MOST_ISSUES], "risk_driver": bool(touched)}
    evidence = (Evidence("migrations", f"{len(touched)} migrations, {len(problems)} problems", content),)
    if problems:
        return Outcome(Verdict.FAIL, f"A migration is not safe: {'; '.join(problems[:3])}.", evidence)
    if touched:
        return Outcome(Verdict.PASS, f"{len(touched)} new migrations, none destructive.", evidence)
    return Outcome(Verdict.PASS, "No migration.", evidence)


def _is_migration(path: str) -> bool:
    pure = PurePosixPath(path)
    return pure.suffix == ".py" and pure.parent.name == "migrations" and pure.name != "__init__.py"


def _destructive(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in DESTRUCTIVE:
            found.append(f"line {node.lineno}: {name} {DESTRUCTIVE[name]}")
        elif name in REVERSIBLE:
            keyword, _ = REVERSIBLE[name]
            forward_is_keyword = any(word.arg == REVERSIBLE[name][1] for word in node.keywords)
            given = [word.value for word in node.keywords if word.arg == keyword]
            given += node.args[0 if forward_is_keyword else 1 :][:1]
            if not given or (isinstance(given[0], ast.Constant) and given[0].value is None):
                found.append(f"line {node.lineno}: {name} without {keyword} can't be taken back")
    return found


# ---- bandit


def check_code(base: Path, patched: Path, *, changed: Sequence[str]) -> Outcome:
    """Bandit on the changed Python files of both sides: a new issue of high or medium severity fails."""
    after_files = [path for path in changed if path.endswith(".py") and (patched / path).is_file()]
    before_files = [path for path in after_files if (base / path).is_file()]
    if not after_files:
        return Outcome(
            Verdict.PASS,
            "No Python file is left to scan for security issues.",
            (Evidence("bandit", "no Python file changed", {"files": []}),),
        )
    with tempfile.TemporaryDirectory(prefix="scan-") as folder:
        report = _bandit(_copied(Path(folder), {"base": (base, before_files), "patch": (patched, after_files)}))
    if problem := report.get("problem"):
        return Outcome(
            Verdict.NO_DATA,
            f"bandit could not run: {problem}",
            (Evidence("bandit", "could not run", {"problem": shortened(str(problem), 4000)}),),
        )
    before, after = report["base"], report["patch"]
    # "Nothing found" counts only for files that bandit says it has read.
    unread = [path for path in after_files if path not in after["read"]]
    if unread:
        # What it could read before, the patch has broken; what it never could is not known either way.
        broken = all(path in before["read"] or path not in before_files for path in unread)
        return Outcome(
            Verdict.FAIL if broken else Verdict.NO_DATA,
            f"bandit could not parse {', '.join(unread[:5])}.",
            (Evidence("bandit", "files could not be parsed", {"unread": unread[:MOST_ISSUES]}),),
        )
    new = _new_issues(before["issues"], after["issues"])
    grave = [issue for issue in new if issue["severity"] in ("HIGH", "MEDIUM")]
    content = {
        "files": after_files[:MOST_ISSUES],
        "new": new[:MOST_ISSUES],
        "known_before": len(before["issues"]),
    }
    evidence = (Evidence("bandit", f"{len(after_files)} files, {len(new)} new issues", content),)
    if grave:
        listed = "; ".join(f"{issue['file']}:{issue['line']} {issue['test']} {issue['text']}" for issue in grave[:3])
        return Outcome(Verdict.FAIL, f"{len(grave)} new security issues: {listed}", evidence)
    minor = f", {len(new)} new of low severity" if new else ""
    return Outcome(Verdict.PASS, f"bandit read {len(after_files)} files and found no new issue{minor}.", evidence)


def _copied(folder: Path, sides: Mapping[str, tuple[Path, Sequence[str]]]) -> Path:
    """Both sides alone in one folder, so that no configuration of the service switches a scanner off."""
    for side, (root, files) in sides.items():
        for path in files:
            target = folder / side / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, target)
    return folder


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _bandit(folder: Path) -> dict[str, Any]:
    # --ignore-nosec: a patch must not be able to wave itself through; old markers cancel out against base.
    command = [sys.executable, "-m", "bandit", "-q", "-f", "json", "--ignore-nosec", "--", *_files(folder)]
    try:
        done = sandbox.run(command, cwd=folder, environment={}, timeout_seconds=TIMEOUT_SECONDS)
    except sandbox.SandboxError as error:
        return {"problem": str(error)}
    try:
        report = json.loads(done.stdout)
        unreadable = {error["filename"].removeprefix("./") for error in report["errors"]}
        read = {name.removeprefix("./") for name in report["metrics"]} - unreadable
        issues = [
            {
                "path": one["filename"].removeprefix("./"),
                "line": one["line_number"],
                "severity": one["issue_severity"],
                "confidence": one["issue_confidence"],
                "test": one["test_id"],
                "text": one["issue_text"][:300],
                "source": _line(folder / one["filename"], one["line_number"]),
            }
            for one in report["results"]
        ]
    except (ValueError, KeyError, TypeError):
        return {"problem": f"exit code {done.exit_code}: {done.tail(1500)}"}
    return {
        side: {
            "read": {path.partition("/")[2] for path in read if path.startswith(f"{side}/")},
            "issues": [
                {"file": one.pop("path").partition("/")[2], **one}
                for one in issues
                if one.get("path", "").startswith(f"{side}/")
            ],
        }
        for side in ("base", "patch")
    }


def _line(path: Path, number: int) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[number - 1].strip()[:200] if 0 < number <= len(lines) else ""


def _new_issues(before: Sequence[Mapping[str, Any]], after: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Issues that base does not have. Line numbers move, so an issue is known by file, rule and the text of its
    line.
    """
    known = Counter((one["file"], one["test"], one["source"]) for one in before)
    new = []
    for one in after:
        key = (one["file"], one["test"], one["source"])
        if known[key] > 0:
            known[key] -= 1
        else:
            new.append(one)
    return new


# ---- detect-secrets

# A made-up key that the scanner must find in a file of ours beside the others: otherwise "clean" means nothing.
CONTROL_FILE = "runerogue-control.txt"
CONTROL_SECRET = "AKIA" + "QYLPMN5HHHFPZAM2"


def check_secrets(base: Path, patched: Path, *, changed: Sequence[str]) -> Outcome:
    """detect-secrets on the changed files of both sides: a new secret fails. Secrets are kept as hashes only."""
    after_files = [path for path in changed if (patched / path).is_file()]
    before_files = [path for path in after_files if (base / path).is_file()]
    if not after_files:
        return Outcome(
            Verdict.PASS,
            "No file is left to scan for secrets.",
            (Evidence("secrets", "no file left to scan", {"files": []}),),
        )
    with tempfile.TemporaryDirectory(prefix="scan-") as folder:
        report = _secrets(_copied(Path(folder), {"base": (base, before_files), "patch": (patched, after_files)}))
    if problem := report.get("problem"):
        return Outcome(
            Verdict.NO_DATA,
            f"detect-secrets could not run: {problem}",
            (Evidence("secrets", "could not run", {"problem": shortened(str(problem), 4000)}),),
        )
    known = {(one["file"], one["hash"]) for one in report["base"]}
    new = [one for one in report["patch"] if (one["file"], one["hash"]) not in known]
    content = {"files": after_files[:MOST_ISSUES], "new": new[:MOST_ISSUES], "known_before": len(known)}
    evidence = (Evidence("secrets", f"{len(after_files)} files, {len(new)} new secrets", content),)
    if new:
        listed = "; ".join(f"{one['file']}:{one['line']} {one['type']}" for one in new[:3])
        return Outcome(Verdict.FAIL, f"{len(new)} new secrets: {listed}.", evidence)
    return Outcome(Verdict.PASS, f"detect-secrets found nothing new in {len(after_files)} files.", evidence)


def _secrets(folder: Path) -> dict[str, Any]:
    (folder / CONTROL_FILE).write_text(f"{CONTROL_SECRET}\n", encoding="utf-8")
    # Two filters off: "pragma: allowlist secret" must not wave a patch through, and lock files hold secrets like
    # others.
    command = [
        sys.executable, "-m", "detect_secrets", "scan", "--no-verify", "--force-use-all-plugins",
        "--disable-filter", "detect_secrets.filters.allowlist.is_line_allowlisted", *_files(folder),
    ]  # fmt: skip
    try:
        done = sandbox.run(command, cwd=folder, environment={}, timeout_seconds=TIMEOUT_SECONDS)
    except sandbox.SandboxError as error:
        return {"problem": str(error)}
    try:
        results = json.loads(done.stdout)["results"]
        found = [
            {
                "file": name.removeprefix("./"),
                "line": one["line_number"],
                "type": one["type"],
                "hash": one["hashed_secret"],
            }
            for name, ones in results.items()
            for one in ones
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"problem": f"exit code {done.exit_code}: {done.tail(1500)}"}
    if not any(one["file"] == CONTROL_FILE for one in found):
        return {"problem": "it did not find the secret that was planted as a control"}
    return {
        side: [{**one, "file": one["file"].partition("/")[2]} for one in found if one["file"].startswith(f"{side}/")]
        for side in ("base", "patch")
    }
