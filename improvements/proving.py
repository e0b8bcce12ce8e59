"""The steps TESTING, SCANNING and STAGING: what the machine must have proven before anybody is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from improvements.checks import scan as scanning
from improvements.checks import staging, tests
from improvements.deployers import DeployError, deployer_for
from improvements.models import Improvement
from improvements.outcome import Evidence, Outcome, Verdict, combine
from improvements.releasing import bring_up, current_release, release_of
from monitoring.manifest import Manifest, ManifestError
from monitoring.registry import CannotRegister, environment_for_tests, read_manifest
from monitoring.repository import repository_of
from monitoring.workspace import scratch_folder, worktree_folder


def test(improvement: Improvement) -> Outcome:
    """The service's own tests on base and on patch: nothing that passed may fail, nothing may go missing."""
    manifest = _manifest(improvement)
    if isinstance(manifest, Outcome):
        return manifest
    environment = {**environment_for_tests(improvement.service), "TEST_DATABASE_SUFFIX": f"i{improvement.pk}"}
    with _both_sides(improvement, "test") as (base, patched), scratch_folder(f"i{improvement.pk}-test") as scratch:
        return tests.compare_tests(base, patched, manifest, environment, scratch)


def scan(improvement: Improvement) -> Outcome:
    """Security scan, secrets, protected paths, migration safety: of what the patch adds."""
    repository = repository_of(improvement.service)
    manifest = _manifest(improvement)
    if isinstance(manifest, Outcome):
        return manifest
    with _both_sides(improvement, "scan") as (base, patched):
        return scanning.scan(
            base,
            patched,
            changed=repository.changed_paths(improvement.base_commit, improvement.head_commit),
            protected=manifest.protected.paths,
        )


def stage(improvement: Improvement) -> Outcome:
    """The candidate started privately beside the current release: it answers, and it is not slower."""
    service = improvement.service
    manifest = _manifest(improvement)
    if isinstance(manifest, Outcome):
        return manifest
    current = current_release(service)
    if current is None:
        return Outcome(Verdict.NO_DATA, f"{service.name} serves no traffic here, so there is nothing to compare with")
    candidate = release_of(service, improvement.head_commit)
    try:
        seconds = bring_up(candidate)
    except DeployError as error:
        return Outcome(Verdict.FAIL, str(error))
    started = Outcome(
        Verdict.PASS,
        f"started in {seconds:.1f} s",
        (
            Evidence(
                "start", f"ready after {seconds:.1f} s", {"seconds": round(seconds, 3), "commit": candidate.commit}
            ),
        ),
    )
    smoke = staging.smoke(
        deployer_for(service).address(candidate),
        [service.parsed.run.health, *manifest.smoke.paths],  # health as the deployer asks for it
        timeout_seconds=10,
    )
    if smoke.verdict is not Verdict.PASS:
        return combine([started, smoke])
    benchmark = staging.compare_benchmarks(
        Path(current.folder), Path(candidate.folder), manifest, environment_for_tests(service), rounds=5
    )
    return combine([started, smoke, benchmark])


def _manifest(improvement: Improvement) -> Manifest | Outcome:
    """What the service says of itself in the very commit that the patch was made for, not what was registered once."""
    try:
        return read_manifest(repository_of(improvement.service), improvement.base_commit)
    except (CannotRegister, ManifestError) as error:
        return Outcome(Verdict.NO_DATA, f"what may be changed and how it is tested is not known: {error}")


@contextlib.contextmanager
def _both_sides(improvement: Improvement, purpose: str) -> Iterator[tuple[Path, Path]]:
    repository = repository_of(improvement.service)
    name = improvement.service.name
    with (
        repository.worktree(
            worktree_folder(name, f"i{improvement.pk}-{purpose}-base"), improvement.base_commit
        ) as base,
        repository.worktree(
            worktree_folder(name, f"i{improvement.pk}-{purpose}-patch"), improvement.head_commit
        ) as patch,
    ):
        yield base, patch
