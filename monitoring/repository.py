"""Git, as the pipeline needs it: worktrees to prove things in, a commit per improvement, merges that can be undone.

Every call has a timeout, runs no hooks and reads no personal configuration, except that a remote is reached with the
operator's own keys. Branches move by compare-and-set, so a commit that somebody pushed meanwhile is never lost.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monitoring.models import Service

TIMEOUT_SECONDS = 60
_IDENTITY = {
    "GIT_AUTHOR_NAME": "RuneRogue",
    "GIT_AUTHOR_EMAIL": "runerogue@localhost",
    "GIT_COMMITTER_NAME": "RuneRogue",
    "GIT_COMMITTER_EMAIL": "runerogue@localhost",
}
# Whatever the repository's own configuration says. safe.directory: it may belong to the user whom the service runs as.
_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.attributesFile=/dev/null",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "protocol.ext.allow=never",
    "diff.suppressBlankEmpty=false",
    "core.quotePath=false",
    "safe.directory=*",
)
# What a private remote needs of our environment: keys, proxies, certificates. Never RuneRogue's own secrets.
_FOR_REMOTES = re.compile(
    r"HOME|USER|LOGNAME|XDG_\w+|SSH_\w+|GIT_SSH(_\w+)?|GIT_ASKPASS|GIT_SSL_\w+|SSL_CERT_\w+|(https?|all|no)_proxy",
    re.IGNORECASE,
)
REMOTE_SCHEMES = ("https", "ssh", "file")
# Settings of a repository that run programs or read other files, and that no option of ours switches off for good.
_RUNS_PROGRAMS = re.compile(
    r"filter\..+|merge\..+\.driver|diff\.(external|.+\.(command|textconv))|gpg\..*program|credential\..+|url\..+"
    r"|core\.(sshcommand|gitproxy|askpass|alternaterefscommand|worktree)|remote\..+\.(uploadpack|vcs)|include(if)?\..+"
    r"|extensions\.worktreeconfig",
    re.IGNORECASE | re.DOTALL,
)


# One text for one patch, whatever the repository's own configuration says.
PLAIN = (
    "--no-color", "--no-ext-diff", "--no-textconv", "--text", "--find-renames", "--full-index", "--unified=3",
    "--inter-hunk-context=0", "--diff-algorithm=myers", "--src-prefix=a/", "--dst-prefix=b/", "-O/dev/null",
)  # fmt: skip


class GitError(Exception):
    """A git command failed. The message holds the command and what git said."""


class BranchMoved(GitError):
    """The branch is no longer where it was when the work began."""


@dataclass(frozen=True)
class Repository:
    """A git repository on disk, and the branch its service runs from."""

    path: Path
    branch: str = "main"

    def git(
        self, *arguments: str, cwd: Path | None = None, remote: bool = False, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> str:
        """What git prints. `remote`: with the operator's own keys, proxies and configuration, to reach a remote."""
        command = ["git", *(word for setting in _SETTINGS for word in ("-c", setting)), *arguments]
        try:
            done = subprocess.run(
                command,
                cwd=cwd or self.path,
                env=_environment(remote=remote),
                capture_output=True,
                timeout=timeout_seconds,
            )
        except subprocess.TimeoutExpired as late:
            raise GitError(
                f"git {' '.join(arguments)} took more than {timeout_seconds} s in {cwd or self.path}"
            ) from late
        # Not Python's text mode: it turns every end of line into one kind, and what people sign must not.
        stdout, stderr = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
        if done.returncode:
            raise GitError(f"git {' '.join(arguments)} failed in {cwd or self.path}: {stderr.strip() or stdout}")
        return stdout

    def head(self) -> str:
        """The commit at the tip of the branch, 40 hex digits."""
        return self.git("rev-parse", "--verify", f"refs/heads/{self.branch}^{{commit}}").strip()

    def tree(self, commit: str) -> str:
        return self.git("rev-parse", "--verify", f"{commit}^{{tree}}").strip()

    def contains(self, commit: str) -> bool:
        """Is `commit` part of the branch's history?"""
        if not commit:
            return False
        found = self.git("for-each-ref", "--contains", commit, "--format=%(refname)", f"refs/heads/{self.branch}")
        return bool(found.strip())

    def programs_configured(self) -> list[str]:
        """The settings of this repository that make git run other programs or read other files."""
        names = self.git("config", "--list", "--local", "--no-includes", "--name-only", "-z").split("\0")
        return sorted({name for name in names if _RUNS_PROGRAMS.fullmatch(name)})

    def diff(self, old: str, new: str) -> str:
        """The whole difference as text: no attribute of the repository hides a file from the people who read it."""
        return readable(self.git("diff", *PLAIN, old, new, "--"))

    def text(self, commit: str, path: str) -> str:
        """A file of `commit`, as its lines are in `diff`. Raises GitError when there is none."""
        return readable(self.git("show", f"{commit}:{path}"))

    def changed_paths(self, old: str, new: str) -> list[str]:
        found = self.git("diff", "--no-ext-diff", "--no-renames", "--name-only", "-z", old, new, "--")
        return [path for path in found.split("\0") if path]

    @contextlib.contextmanager
    def worktree(self, folder: Path, commit: str) -> Iterator[Path]:
        """`commit` checked out under `folder`, removed afterwards. What a dead worker left there is cleared first."""
        self._remove_worktree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.git("worktree", "add", "--detach", "--force", str(folder), commit)
        try:
            yield folder
        finally:
            self._remove_worktree(folder)

    def _remove_worktree(self, folder: Path) -> None:
        if folder.exists():
            shutil.rmtree(folder)
        self.git("worktree", "prune")

    def commit_files(self, folder: Path, *, base: str, files: Mapping[str, str], message: str) -> str:
        """Write `files` (path to text) into a worktree of `base` and commit them; the commit. No branch moves."""
        for name, text in files.items():
            target = (folder / name).resolve()
            if not target.is_relative_to(folder.resolve()) or ".git" in target.parts[len(folder.resolve().parts) :]:
                raise GitError(f"A patch may not write outside the repository: {name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, newline="")  # as the author wrote it, CRLF included
        self.git("add", "--", *files, cwd=folder)
        tree = self.git("write-tree", cwd=folder).strip()
        if tree == self.tree(base):
            raise GitError("The patch changes nothing.")
        return self.git("commit-tree", tree, "-p", base, "-m", message, cwd=folder).strip()

    def commit_patch(self, folder: Path, *, base: str, diff: str, message: str) -> str:
        """Apply a unified diff in a worktree of `base` and commit it; the commit. No branch moves.

        Raises GitError when it does not fit, names a place outside of the repository, or changes nothing.
        """
        # Beside the worktree, so that it cannot become a part of the commit.
        file = folder.with_name(f"{folder.name}.patch")
        file.write_text(diff, encoding="utf-8", newline="")
        try:
            self.git("apply", "--index", "--whitespace=nowarn", str(file), cwd=folder)
        finally:
            file.unlink()
        tree = self.git("write-tree", cwd=folder).strip()
        if tree == self.tree(base):
            raise GitError("The patch changes nothing.")
        return self.git("commit-tree", tree, "-p", base, "-m", message, cwd=folder).strip()

    def keep(self, name: str, commit: str) -> None:
        """Point the branch `name` at `commit`, so that git does not collect it and people can look at it."""
        self.git("update-ref", f"refs/heads/{name}", commit)

    def fast_forward(self, *, expected: str, to: str) -> None:
        """Move the branch from `expected` to `to`. Raises BranchMoved when it is somewhere else.

        May be called again after it was killed half-way: the files of the checkout still follow then.
        """
        if self.head() != to:
            try:
                self.git("update-ref", f"refs/heads/{self.branch}", to, expected)
            except GitError as error:
                raise BranchMoved(f"{self.branch} is at {self.head()[:12]}, not at {expected[:12]}: {error}") from error
        self._follow_checkout(expected)

    def revert(self, commit: str, *, because: str, folder: Path) -> str:
        """A commit on the branch that undoes `commit`; other commits stay. Returns it. Conflicts raise GitError.

        `folder` is where the work is done; it is removed afterwards. Reverting twice returns the first revert. Raises
        BranchMoved when somebody pushed meanwhile; nothing is reverted then, and trying again is safe.
        """
        if done := self.revert_of(commit):
            if done == self.head():
                self._follow_checkout(f"{done}^")  # who made it may have been killed before that
            return done
        head = self.head()
        with self.worktree(folder, head):
            self.git("revert", "--no-commit", commit, cwd=folder)
            tree = self.git("write-tree", cwd=folder).strip()
        message = f"Revert {commit[:12]}\n\n{because}\n\nReverts: {commit}"
        reverting = self.git("commit-tree", tree, "-p", head, "-m", message).strip()
        self.fast_forward(expected=head, to=reverting)
        return reverting

    def revert_of(self, commit: str) -> str:
        """The commit on the branch that reverts `commit`, or an empty string."""
        # In full and with "--": a folder, a file or a tag may have the branch's name.
        where = (f"refs/heads/{self.branch}", "--")
        return self.git("log", "--format=%H", f"--grep=^Reverts: {commit}$", "-n", "1", *where).strip()

    def _follow_checkout(self, old: str) -> None:
        """When the branch is checked out in the repository itself, take its files along unless somebody edits them."""
        if self.git("rev-parse", "--is-bare-repository").strip() == "true":
            return
        if self.git("rev-parse", "--symbolic-full-name", "HEAD").strip() != f"refs/heads/{self.branch}":
            return
        if not self.git("diff", "--no-ext-diff", "--name-only", old, "--").strip():
            self.git("reset", "--hard", "--quiet", "HEAD")


def readable(text: str) -> str:
    """As PostgreSQL can hold it: without NUL."""
    return text.replace("\0", "␀")


def _environment(*, remote: bool) -> dict[str, str]:
    """The complete environment of a git command; of ours only what is named here."""
    common = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "LC_ALL": "C.UTF-8",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",  # a repository's own settings don't choose what is fetched, and from where
        **_IDENTITY,
    }
    if remote:
        ours = {name: value for name, value in os.environ.items() if _FOR_REMOTES.fullmatch(name)}
        return {**ours, **common, "GIT_ALLOW_PROTOCOL": ":".join(REMOTE_SCHEMES)}
    return {**common, "HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def repository_of(service: Service) -> Repository:
    """The repository that a service runs from, on its branch."""
    return Repository(service.checkout, service.branch)
