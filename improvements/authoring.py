"""The step AUTHORING: the author's patch becomes one commit on a branch of its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from approvals.fingerprint import places
from improvements.authors import AUTHORS, CannotWrite, Patch
from improvements.models import Improvement
from improvements.outcome import Evidence, Outcome, Verdict
from monitoring.repository import GitError, repository_of
from monitoring.workspace import worktree_folder


def write(improvement: Improvement) -> Outcome:
    """Let the author write, or take what a person wrote in its place; commit it on top of the service's branch, and
    remember base, commit and diff.
    """
    repository = repository_of(improvement.service)
    base = repository.head()
    folder = worktree_folder(improvement.service.name, f"i{improvement.pk}-author")
    with repository.worktree(folder, base):
        try:
            patch = edited(improvement) if improvement.edited_diff else authored(improvement, folder)
            message = f"{patch.summary}\n\n{patch.explanation}\n\nRuneRogue-Improvement: {improvement.pk}"
            if improvement.edited_diff:
                commit = repository.commit_patch(folder, base=base, diff=improvement.edited_diff, message=message)
            else:
                commit = repository.commit_files(folder, base=base, files=patch.files, message=message)
        except CannotWrite as refusal:
            return Outcome(Verdict.FAIL, f"the author {improvement.author} cannot write this: {refusal}")
        except GitError as error:
            return Outcome(Verdict.FAIL, str(error))
    repository.keep(improvement.branch, commit)
    diff = repository.diff(base, commit)
    files = sorted(repository.changed_paths(base, commit))
    changed = sum(1 for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---"))
    Improvement.objects.filter(pk=improvement.pk).update(
        base_commit=base, head_commit=commit, diff=diff, risk=None, tier=""
    )
    improvement.refresh_from_db(fields=["base_commit", "head_commit", "diff", "risk", "tier"])
    return Outcome(
        Verdict.PASS,
        f"{patch.summary} ({changed} lines in {len(files)} files)",
        (
            Evidence(
                "patch",
                patch.summary,
                {
                    "summary": patch.summary,
                    "explanation": patch.explanation,
                    "files": files,
                    "lines_changed": changed,
                    "places": places(diff, partial(repository.text, base)),
                    "base_tree": repository.tree(base),
                    "tree": repository.tree(commit),
                    "service": improvement.service.name,
                },
            ),
        ),
    )


def authored(improvement: Improvement, folder: Path) -> Patch:
    author = AUTHORS.get(improvement.author)
    if author is None or improvement.finding is None:
        raise CannotWrite(f"there is no author named {improvement.author!r} for this")
    return author.write(folder, improvement.finding.evidence)


def edited(improvement: Improvement) -> Patch:
    """What a person wrote; its files are in the diff."""
    people = ", ".join(user.username for user in improvement.edited_by.order_by("username"))
    return Patch({}, f"{improvement.title}, edited by {people}", improvement.edited_because)
