"""A person's patch in place of the author's: the way forward when somebody asks for changes.

The edited patch goes the whole way again: tests, scan, staging, and another request, which nobody signs who edited it.
"""

from __future__ import annotations

from django.contrib.auth.models import User
from django.db import transaction

from approvals import audit, requests
from approvals.fingerprint import LOSSY, content, digest
from approvals.models import ApprovalRequest
from improvements.approving import discard_prepared
from improvements.checks import scan
from improvements.models import Improvement, LostRace, State
from improvements.outcome import Verdict
from monitoring.manifest import ManifestError
from monitoring.registry import CannotRegister, read_manifest
from monitoring.repository import GitError, repository_of
from monitoring.workspace import worktree_folder

LONGEST_DIFF = 400_000  # characters: nobody reads and signs more
LONGEST_REASON = 4_000


class CannotEdit(Exception):
    """The patch cannot be replaced by this one; the text says why, for people."""


def edit(improvement: Improvement, *, diff: str, actor: User, because: str) -> State:
    """Replace the patch by `diff`, a unified diff against the improvement's base commit, and prove it from the start.

    What was asked about the old patch is void, and who signed it is told. Returns the new state. Raises CannotEdit
    with a sentence for people, LostRace when it moved at the same moment.
    """
    because = because.strip()
    refuse(improvement, diff, actor, because)
    edited = tried(improvement, diff)
    if content(edited) == content(improvement.diff):
        raise CannotEdit("This is the patch as it is already.")
    with transaction.atomic():
        # Locks in the order of everybody else: the improvement, its request, and the audit log last.
        row = Improvement.objects.select_for_update().get(pk=improvement.pk)
        if (row.state, row.head_commit) != (State.AWAITING_APPROVAL, improvement.head_commit):
            raise LostRace(row, State.AWAITING_APPROVAL, State.AUTHORING)
        discard_prepared(row)
        for request in ApprovalRequest.objects.about("improvement", row.pk):
            requests.void(request, f"{actor.username} edited the patch: {because}", tell_signers=True)
        Improvement.objects.filter(pk=row.pk).update(edited_diff=edited, edited_because=because)
        row.edited_by.add(actor)
        audit.record(
            "improvement.edited",
            row,
            actor=actor,
            because=because,
            was={"patch": digest(row.diff)},
            became={"patch": digest(edited)},
        )
        row.move_to(State.AUTHORING, actor=actor, because=f"{actor.username} edited the patch: {because}")
    improvement.refresh_from_db()
    return State.AUTHORING


def refuse(improvement: Improvement, diff: str, actor: User, because: str) -> None:
    """The rules that need no look at the files."""
    if improvement.state != State.AWAITING_APPROVAL:
        raise CannotEdit(f"A patch is edited while it awaits approval, and this is {State(improvement.state).label}.")
    if not User.objects.get(pk=actor.pk).has_perm("improvements.change_improvement"):
        raise CannotEdit(f"{actor.username} may not change improvements.")
    if not because or len(because) > LONGEST_REASON:
        raise CannotEdit(f"Say what you changed and why, in at most {LONGEST_REASON} characters.")
    if not diff.strip() or len(diff) > LONGEST_DIFF:
        raise CannotEdit(
            f"Give a unified diff of at most {LONGEST_DIFF:,} characters against {improvement.base_commit[:12]}."
        )


def tried(improvement: Improvement, diff: str) -> str:
    """The diff as git writes it, after it was applied to the base. Raises CannotEdit where it may not or cannot be."""
    repository = repository_of(improvement.service)
    base, name = improvement.base_commit, improvement.service.name
    try:
        protected = read_manifest(repository, base).protected.paths
        with (
            repository.worktree(worktree_folder(name, f"i{improvement.pk}-edit-base"), base) as before,
            repository.worktree(worktree_folder(name, f"i{improvement.pk}-edit"), base) as after,
        ):
            commit = repository.commit_patch(after, base=base, diff=diff, message="Edited")
            changed = repository.changed_paths(base, commit)
            checked = scan.check_paths(before, after, changed=changed, protected=protected)
    except (GitError, CannotRegister, ManifestError) as error:
        raise CannotEdit(f"The patch can't be applied to {base[:12]}: {error}") from error
    if checked.verdict is not Verdict.PASS:
        raise CannotEdit(checked.reason)
    edited = repository.diff(base, commit)
    if any(sign in edited for sign in LOSSY):
        raise CannotEdit("The patch holds bytes that are no text.")
    return edited
