"""Git for the pipeline, on real repositories: nothing of anybody is lost, and everything may be done twice."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from monitoring.repository import BranchMoved, GitError, Repository

IDENTITY = ("-c", "user.name=alice", "-c", "user.email=alice@example.org")


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *IDENTITY, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder: Path, message: str = "Somebody's work", **files: str) -> str:
    """Somebody's commit on what is checked out; `app_py="…"` writes app.py."""
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_bytes(text.encode())
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with one commit, checked out on main."""
    folder = tmp_path / "shop"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main", "--template=")
    git(folder, "config", "core.autocrlf", "false")
    commit(folder, app_py="price = 1\n", README_md="A shop.\n")
    return folder


@pytest.fixture
def repository(folder: Path) -> Repository:
    return Repository(folder)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "home" / "worktrees" / "i1"


def write(repository: Repository, work: Path, files: dict[str, str], base: str | None = None) -> str:
    base = base or repository.head()
    with repository.worktree(work, base):
        return repository.commit_files(work, base=base, files=files, message="Fix")


def count(repository: Repository, since: str) -> int:
    return int(git(repository.path, "rev-list", "--count", f"{since}..refs/heads/main"))


# --- worktrees ----------------------------------------------------------------------------------------------------


def test_checks_a_commit_out_and_clears_it_away(repository: Repository, work: Path) -> None:
    with repository.worktree(work, repository.head()):
        assert (work / "app.py").read_text() == "price = 1\n"
    assert not work.exists()
    assert len(git(repository.path, "worktree", "list").splitlines()) == 1


def test_clears_away_what_failed(repository: Repository, work: Path) -> None:
    with pytest.raises(RuntimeError), repository.worktree(work, repository.head()):
        raise RuntimeError
    assert not work.exists()


@pytest.mark.parametrize("left", ["a worktree", "its registration", "a folder", "a lock"])
def test_clears_what_a_dead_worker_left(repository: Repository, work: Path, left: str) -> None:
    head = repository.head()
    work.parent.mkdir(parents=True)
    if left == "a folder":
        work.mkdir()
    else:
        git(repository.path, "worktree", "add", "--detach", str(work), head)
    if left == "its registration":
        for path in sorted(work.rglob("*"), reverse=True):
            path.unlink()
        work.rmdir()
    elif left == "a lock":
        (repository.path / ".git" / "worktrees" / work.name / "index.lock").touch()
    if work.exists():
        (work / "half.py").write_text("half of a patch")
    with repository.worktree(work, head):
        assert sorted(path.name for path in work.iterdir()) == [".git", "README.md", "app.py"]


def test_moves_no_branch_while_it_works(repository: Repository, work: Path) -> None:
    head = repository.head()
    made = write(repository, work, {"app.py": "price = 2\n"})
    assert repository.head() == head != made
    assert git(repository.path, "status", "--porcelain") == ""


# --- commits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../outside.py",
        "/tmp/outside.py",
        "a/../../outside.py",
        ".git/config",
        "a/../.git/hooks/pre-commit",
        "link/x.py",
    ],
)
def test_refuses_to_write_outside_of_the_repository(
    repository: Repository, work: Path, tmp_path: Path, name: str
) -> None:
    (repository.path / "link").symlink_to(tmp_path)
    head = commit(repository.path)
    before = {path for path in tmp_path.rglob("*.py") if work not in path.parents}
    with repository.worktree(work, head), pytest.raises(GitError, match="outside"):
        repository.commit_files(work, base=head, files={name: "stolen = True\n"}, message="Fix")
    assert {path for path in tmp_path.rglob("*.py") if work not in path.parents} == before
    assert not Path("/tmp/outside.py").exists()


@pytest.mark.parametrize("name", [".GIT/config", "vendored/.git/config", "link"])
def test_refuses_what_git_would_run_or_follow_elsewhere(
    repository: Repository, work: Path, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("theirs")
    (repository.path / "link").symlink_to(outside)
    head = commit(repository.path)
    with repository.worktree(work, head), pytest.raises(GitError):
        repository.commit_files(work, base=head, files={name: "[core]\n"}, message="Fix")
    assert outside.read_text() == "theirs"


def test_commits_nothing_when_nothing_changes(repository: Repository, work: Path) -> None:
    with pytest.raises(GitError, match="changes nothing"):
        write(repository, work, {"app.py": "price = 1\n"})


@pytest.mark.parametrize("text", ["price = 2\r\nstock = 1\r\n", "price = 2\n", "price = '☃ \u2028'\r\n"])
def test_keeps_every_byte_of_what_the_author_wrote(repository: Repository, work: Path, text: str) -> None:
    made = write(repository, work, {"app.py": text})
    raw = subprocess.run(["git", "show", f"{made}:app.py"], cwd=repository.path, check=True, capture_output=True)
    assert raw.stdout == text.encode()


def test_makes_the_folders_that_a_new_file_needs(repository: Repository, work: Path) -> None:
    base = repository.head()
    made = write(repository, work, {"a/b/new.py": "x = 1\n", "app.py": "price = 2\n"})
    assert repository.changed_paths(base, made) == ["a/b/new.py", "app.py"]


def test_commits_a_file_that_the_repository_ignores_or_says_why_not(repository: Repository, work: Path) -> None:
    commit(repository.path, **{"_gitignore": "*.log\n"})
    with pytest.raises(GitError, match="ignored"):
        write(repository, work, {"notes.log": "x\n"})


# --- moving the branch --------------------------------------------------------------------------------------------


def test_moves_the_branch_and_what_is_checked_out(repository: Repository, work: Path) -> None:
    base = repository.head()
    made = write(repository, work, {"app.py": "price = 2\n"})
    for _ in range(2):
        repository.fast_forward(expected=base, to=made)
    assert repository.head() == made
    assert (repository.path / "app.py").read_text() == "price = 2\n"
    assert git(repository.path, "status", "--porcelain") == ""


def test_loses_nothing_that_somebody_pushed_meanwhile(repository: Repository, work: Path) -> None:
    base = repository.head()
    made = write(repository, work, {"app.py": "price = 2\n"})
    theirs = commit(repository.path, other_py="stock = 1\n")
    with pytest.raises(BranchMoved, match=theirs[:12]):
        repository.fast_forward(expected=base, to=made)
    assert repository.head() == theirs
    assert (repository.path / "app.py").read_text() == "price = 1\n"


def test_leaves_what_somebody_edits_alone(repository: Repository, work: Path) -> None:
    base = repository.head()
    made = write(repository, work, {"app.py": "price = 2\n"})
    (repository.path / "README.md").write_text("I am writing this.\n")
    repository.fast_forward(expected=base, to=made)
    assert repository.head() == made
    assert (repository.path / "README.md").read_text() == "I am writing this.\n"


def test_leaves_a_checkout_of_another_branch_alone(repository: Repository, work: Path) -> None:
    base = repository.head()
    made = write(repository, work, {"app.py": "price = 2\n"})
    git(repository.path, "switch", "--quiet", "--create", "feature")
    repository.fast_forward(expected=base, to=made)
    assert (repository.path / "app.py").read_text() == "price = 1\n"
    assert git(repository.path, "rev-parse", "main") == made


def test_takes_the_checkout_along_although_it_was_killed_before(repository: Repository, work: Path) -> None:
    base = repository.head()
    made = write(repository, work, {"app.py": "price = 2\n"})
    git(repository.path, "update-ref", "refs/heads/main", made, base)
    repository.fast_forward(expected=base, to=made)
    assert (repository.path / "app.py").read_text() == "price = 2\n"


def test_needs_no_checkout(repository: Repository, work: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--bare", str(repository.path), "bare.git")
    bare = Repository(tmp_path / "bare.git")
    base = bare.head()
    made = write(bare, work, {"app.py": "price = 2\n"})
    bare.fast_forward(expected=base, to=made)
    assert bare.head() == made


def test_runs_no_hook_of_the_repository(repository: Repository, work: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for name in ("post-checkout", "pre-commit", "post-commit", "reference-transaction"):
        hook = repository.path / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\necho {name} >> {ran}\n")
        hook.chmod(0o755)
    base = repository.head()
    made = write(repository, work, {"app.py": "price = 2\n"})
    repository.fast_forward(expected=base, to=made)
    repository.revert(made, because="The test says so.", folder=work)
    assert not ran.exists()


# --- reverting ----------------------------------------------------------------------------------------------------


@pytest.fixture
def merged(repository: Repository, work: Path) -> str:
    """A commit that changed the price, on the branch."""
    base = repository.head()
    made = write(repository, work, {"app.py": "price = 2\n"})
    repository.fast_forward(expected=base, to=made)
    return made


def test_reverts_one_commit_and_keeps_those_of_others(repository: Repository, work: Path, merged: str) -> None:
    theirs = commit(repository.path, other_py="stock = 1\n")
    reverting = repository.revert(merged, because="It was slow.", folder=work)
    assert repository.head() == reverting
    assert git(repository.path, "rev-parse", f"{reverting}^") == theirs
    assert (repository.path / "app.py").read_text() == "price = 1\n"
    assert (repository.path / "other.py").read_text() == "stock = 1\n"
    assert "It was slow." in git(repository.path, "log", "-1", "--format=%B")
    assert not work.exists()


@pytest.mark.parametrize("meanwhile", [False, True], ids=["at once", "after somebody's commit"])
def test_reverts_once_what_it_reverts_twice(repository: Repository, work: Path, merged: str, meanwhile: bool) -> None:
    first = repository.revert(merged, because="It was slow.", folder=work)
    if meanwhile:
        commit(repository.path, other_py="stock = 1\n")
    assert repository.revert(merged, because="It was slow.", folder=work) == first
    assert count(repository, merged) == 1 + meanwhile
    assert repository.revert_of(merged) == first


def test_takes_the_checkout_along_although_it_was_killed_before_reverting_ended(
    repository: Repository, work: Path, merged: str
) -> None:
    reverting = repository.revert(merged, because="It was slow.", folder=work)
    git(repository.path, "reset", "--quiet", "--hard", merged)  # the files as they were …
    git(repository.path, "update-ref", "refs/heads/main", reverting)  # … and the branch as it is
    repository.revert(merged, because="It was slow.", folder=work)
    assert (repository.path / "app.py").read_text() == "price = 1\n"
    assert git(repository.path, "status", "--porcelain") == ""


def test_reverts_nothing_when_others_changed_the_same_lines(repository: Repository, work: Path, merged: str) -> None:
    theirs = commit(repository.path, app_py="price = 7\n")
    with pytest.raises(GitError):
        repository.revert(merged, because="It was slow.", folder=work)
    assert repository.head() == theirs
    assert (repository.path / "app.py").read_text() == "price = 7\n"
    assert not work.exists()
    assert git(repository.path, "status", "--porcelain") == ""


@pytest.mark.parametrize("namesake", ["a folder", "a tag"])
def test_is_not_confused_by_something_named_like_the_branch(repository: Repository, work: Path, namesake: str) -> None:
    if namesake == "a tag":
        git(repository.path, "tag", "main")
    else:
        (repository.path / "main").mkdir()
        (repository.path / "main" / "x.py").write_text("x = 1\n")
    base = commit(repository.path)
    made = write(repository, work, {"app.py": "price = 2\n"}, base)
    repository.fast_forward(expected=base, to=made)
    assert repository.contains(made)
    assert repository.revert_of(made) == ""
    first = repository.revert(made, because="It was slow.", folder=work)
    assert repository.revert(made, because="It was slow.", folder=work) == first == repository.head()
    assert (repository.path / "app.py").read_text() == "price = 1\n"
    assert git(repository.path, "status", "--porcelain") == ""


def test_knows_what_is_in_the_branch(repository: Repository, work: Path) -> None:
    base = repository.head()
    made = write(repository, work, {"app.py": "price = 2\n"})
    assert [repository.contains(one) for one in (base, made, "")] == [True, False, False]
    repository.keep("runerogue/improvement-1", made)
    assert git(repository.path, "rev-parse", "runerogue/improvement-1") == made
    assert not repository.contains(made)
