"""The step AUTHORING: the author's patch becomes one commit on a branch of its own."""

from __future__ import annotations

from functools import partial

from approvals.fingerprint import places
from improvements.authors import AUTHORS, CannotWrite
from improvements.models import Improvement
from improvements.outcome import Evidence, Outcome, Verdict
from monitoring.repository import GitError, repository_of
from monitoring.workspace import worktree_folder


def write(improvement: Improvement) -> Outcome:
    """Let the author write, commit it on top of the service's branch, and remember base, commit and diff."""
    finding = improvement.finding
    author = AUTHORS.get(improvement.author)
    if author is None or finding is None:
        return Outcome(Verdict.FAIL, f"there is no author named {improvement.author!r} for this")
    repository = repository_of(improvement.service)
    base = repository.head()
    folder = worktree_folder(improvement.service.name, f"i{improvement.pk}-author")
    with repository.worktree(folder, base):
        try:
            patch = author.write(folder, finding.evidence)
        except CannotWrite as refusal:
            return Outcome(Verdict.FAIL, f"the author {improvement.author} cannot write this: {refusal}")
        message = f"{patch.summary}\n\n{patch.explanation}\n\nRuneRogue-Improvement: {improvement.pk}"
        try:
            commit = repository.commit_files(folder, base=base, files=patch.files, message=message)
        except GitError as error:
            return Outcome(Verdict.FAIL, str(error))
    repository.keep(improvement.branch, commit)
    diff = repository.diff(base, commit)
    changed = sum(1 for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---"))
    Improvement.objects.filter(pk=improvement.pk).update(
        base_commit=base, head_commit=commit, diff=diff, risk=None, tier=""
    )
    improvement.refresh_from_db(fields=["base_commit", "head_commit", "diff", "risk", "tier"])
    return Outcome(
        Verdict.PASS,
        f"{patch.summary} ({changed} lines in {len(patch.files)} files)",
        (
            Evidence(
                "patch",
                patch.summary,
                {
                    "summary": patch.summary,
                    "explanation": patch.explanation,
                    "files": sorted(patch.files),
                    "lines_changed": changed,
                    "places": places(diff, partial(repository.text, base)),
                    "base_tree": repository.tree(base),
                    "tree": repository.tree(commit),
                    "service": improvement.service.name,
                },
            ),
        ),
    )
