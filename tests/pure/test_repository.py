"""Git as the pipeline uses it, on real repositories that mean no good."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from monitoring.repository import BranchMoved, GitError, Repository
from tests.monitoring.factories import commit, git, repository


@pytest.fixture
def where(tmp_path: Path) -> Repository:
    return Repository(repository(tmp_path / "realm"))


def patched(where: Repository, name: str, text: str, tmp_path: Path) -> str:
    """A commit on top of the branch, which does not move."""
    with where.worktree(tmp_path / "work", where.head()) as folder:
        return where.commit_files(folder, base=where.head(), files={name: text}, message=f"Change {name}")


def test_nothing_in_the_repository_hides_a_change_from_the_people_who_read_it(
    where: Repository, tmp_path: Path
) -> None:
    (where.path / ".gitattributes").write_text("*.py -diff\n*.txt diff=shout\n")
    (where.path / ".git" / "info" / "attributes").write_text("*.py binary\n")
    commit(where.path, "attributes")
    git(where.path, "config", "diff.shout.textconv", f"touch {tmp_path}/ran; cat")
    git(where.path, "config", "diff.external", f"touch {tmp_path}/ran")
    git(where.path, "config", "core.fsmonitor", f"touch {tmp_path}/ran")
    base = where.head()
    change = patched(where, "evil.py", "import os\0\xff\n", tmp_path)
    assert "+import os␀" in where.diff(base, change)
    where.fast_forward(expected=base, to=change)
    where.diff(change, patched(where, "a.txt", "b\n", tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("filter.evil.smudge", "filter.evil.smudge"),
        ("filter.a b.process", "filter.a b.process"),
        ("merge.mine.driver", "merge.mine.driver"),
        ("diff.x.command", "diff.x.command"),
        ("core.sshCommand", "core.sshcommand"),
        ("credential.https://x.helper", "credential.https://x.helper"),
        ("includeIf.onbranch:main.path", "includeif.onbranch:main.path"),
        ("remote.origin.uploadpack", "remote.origin.uploadpack"),
        ("core.editor", ""),
        ("diff.algorithm", ""),
        ("remote.origin.url", ""),
        ("core.hooksPath", ""),
    ],
)
def test_knows_settings_that_would_run_programs(where: Repository, key: str, told: str) -> None:
    git(where.path, "config", key, "/bin/evil")
    assert where.programs_configured() == ([told] if told else [])


def test_a_folder_with_the_name_of_the_branch_confuses_nothing(tmp_path: Path) -> None:
    where = Repository(repository(tmp_path / "realm", branch="realm"), "realm")
    (where.path / "realm").mkdir()
    (where.path / "realm" / "app.py").write_text("")
    commit(where.path, "a folder called like the branch")
    git(where.path, "tag", "realm", "HEAD^")
    base = where.head()
    change = patched(where, "realm/app.py", "x = 1\n", tmp_path)
    where.fast_forward(expected=base, to=change)
    assert (where.path / "realm" / "app.py").read_text() == "x = 1\n"
    reverting = where.revert(change, because="It was wrong.", folder=tmp_path / "work")
    assert where.revert_of(change) == reverting == where.head()
    assert where.tree(reverting) == where.tree(base)
    assert (where.path / "realm" / "app.py").read_text() == ""


def test_the_checkout_follows_after_it_was_killed_half_way(
    where: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, file = where.head(), where.path / "a.txt"
    change = patched(where, "a.txt", "new\n", tmp_path)

    def killed(self: Repository, old: str) -> None:
        raise KeyboardInterrupt

    follow = Repository._follow_checkout
    monkeypatch.setattr(Repository, "_follow_checkout", killed)
    with pytest.raises(KeyboardInterrupt):
        where.fast_forward(expected=base, to=change)
    monkeypatch.setattr(Repository, "_follow_checkout", follow)
    assert (where.head(), file.exists()) == (change, False)
    where.fast_forward(expected=base, to=change)
    assert file.read_text() == "new\n"
    file.write_text("somebody edits it\n")
    where.fast_forward(expected=base, to=change)
    assert file.read_text() == "somebody edits it\n"
    file.write_text("new\n")
    monkeypatch.setattr(Repository, "_follow_checkout", killed)
    with pytest.raises(KeyboardInterrupt):
        where.revert(change, because="It was wrong.", folder=tmp_path / "work")
    monkeypatch.setattr(Repository, "_follow_checkout", follow)
    where.revert(change, because="It was wrong.", folder=tmp_path / "work")
    assert not file.exists()


def test_a_branch_that_moved_is_left_where_it_is(where: Repository, tmp_path: Path) -> None:
    base = where.head()
    change = patched(where, "a.txt", "new\n", tmp_path)
    (where.path / "b.txt").write_text("pushed meanwhile\n")
    commit(where.path, "pushed")
    head = where.head()
    with pytest.raises(BranchMoved):
        where.fast_forward(expected=base, to=change)
    assert where.head() == head


@pytest.mark.parametrize("remote", [True, False])
def test_tells_git_none_of_our_secrets(
    where: Repository, tmp_path: Path, remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"SECRET_KEY": "s", "DATABASE_URL": "s", "SSH_AUTH_SOCK": "/a", "https_proxy": "p", "GIT_DIR": "/d"}
    for name, value in {**ours, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    # git's own way of showing what a helper of it gets
    git_told = where.git("-c", "alias.told=!env", "told", remote=remote)
    told = dict(line.split("=", 1) for line in git_told.splitlines() if "=" in line)
    assert not {"SECRET_KEY", "DATABASE_URL"} & told.keys()
    assert told.get("GIT_DIR") != "/d"
    kept = {name: told.get(name) for name in ("SSH_AUTH_SOCK", "https_proxy", "HOME")}
    if remote:
        assert kept == {"SSH_AUTH_SOCK": "/a", "https_proxy": "p", "HOME": str(tmp_path)}
        assert told["GIT_ALLOW_PROTOCOL"] == "https:ssh:file"
    else:
        assert kept == {"SSH_AUTH_SOCK": None, "https_proxy": None, "HOME": "/nonexistent"}


def test_refuses_remotes_that_are_commands(where: Repository, tmp_path: Path) -> None:
    for remote in (True, False):
        with pytest.raises(GitError, match="not allowed"):
            where.git("fetch", f"ext::sh -c 'touch {tmp_path}/ran'", remote=remote)
    assert not (tmp_path / "ran").exists()
    assert subprocess.run(["git", "-C", str(where.path), "fsck"], capture_output=True, check=False).returncode == 0
