"""Releases: which one serves, how a first one comes up, and how those that nobody needs are put away."""

from __future__ import annotations

import logging
import shutil
import time

from django.db import transaction
from django.db.models import Q

from approvals import audit
from improvements.deployers import DeployError, deployer_for
from improvements.models import Improvement, Release, Rollout
from monitoring.models import Service, Target
from monitoring.repository import repository_of
from monitoring.workspace import exclusive

log = logging.getLogger(__name__)

READY_TIMEOUT_SECONDS = 60


class NotReady(DeployError):
    """A release was started and did not become ready in time."""


def current_release(service: Service) -> Release | None:
    """The release that serves most of the traffic; None when the service is not deployed here."""
    return Release.objects.filter(service=service, share__gt=0).order_by("-share", "pk").first()


def release_of(service: Service, commit: str) -> Release:
    release, _ = Release.objects.get_or_create(service=service, commit=commit)
    return release


def bring_up(release: Release) -> float:
    """Install and start a release privately, and wait until it is ready. Returns seconds. NotReady, DeployError."""
    deployer = deployer_for(release.service)
    began = time.monotonic()
    deployer.install(release)
    deployer.start(release)
    deadline = began + READY_TIMEOUT_SECONDS
    while True:
        readiness = deployer.ready(release)
        if readiness.ok:
            return time.monotonic() - began
        if time.monotonic() > deadline:
            raise NotReady(f"{release} was not ready after {READY_TIMEOUT_SECONDS} s: {readiness.reason}")
        time.sleep(0.1)


def deploy(service: Service, *, newest: bool = False) -> Release:
    """Make sure that the service serves: bring up the head of its branch if nothing does. Idempotent.

    With `newest` the head takes over from whatever serves, at once: a person's decision, not an improvement. Raises
    DeployError, also while a rollout is live.
    """
    serving = current_release(service)
    head = repository_of(service).head() if newest or serving is None else serving.commit
    release = release_of(service, head)
    if (
        serving is not None
        and release.pk != serving.pk
        and Rollout.objects.filter(service=service, state="live").exists()
    ):
        raise DeployError(f"A rollout of {service.name} is live; stop it or let it end first.")
    bring_up(release)
    others = Release.objects.filter(service=service, share__gt=0).exclude(pk=release.pk)
    shift(service, {release.pk: 100, **dict.fromkeys(others.values_list("pk", flat=True), 0)}, because="deployed")
    release.refresh_from_db()
    return release


def shift(service: Service, shares: dict[int, int], *, because: str, improvement: Improvement | None = None) -> float:
    """Give each release its share of the traffic (release id → percent): first the rows, then the proxy.

    Returns the milliseconds until the proxy agreed. Idempotent; raises DeployError when the proxy does not agree.
    """
    began = time.monotonic()
    with transaction.atomic():
        if improvement is not None:
            improvement.hold()
        rows = {release.pk: release for release in Release.objects.select_for_update().filter(service=service)}
        was = {rows[pk].short: rows[pk].share for pk in shares}
        changed = {pk: share for pk, share in shares.items() if rows[pk].share != share}
        for pk, share in changed.items():
            Release.objects.filter(pk=pk).update(share=share)
        for pk, share in shares.items():
            # What serves nobody is measured, but says nothing about how the service is.
            Target.objects.filter(service=service, release=rows[pk].short).update(serving=share > 0)
        if changed:
            audit.record(
                "rollout.traffic",
                improvement or service,
                because=because,
                was=was,
                became={rows[pk].short: share for pk, share in shares.items()},
            )
    agree(service)
    return (time.monotonic() - began) * 1000


def agree(service: Service) -> None:
    """Make the proxy agree with the wanted shares. Needed after every change, and after the proxy was restarted."""
    # By one process at a time, each reading the newest shares.
    with exclusive(f"deploy:{service.pk}", wait=True):
        deployer_for(service).apply(service)


def sweep() -> list[str]:
    """Stop releases that serve nothing and that no improvement or rollout needs any more. Returns what was stopped."""
    unfinished = Improvement.objects.unfinished()
    needed = set(unfinished.exclude(head_commit="").values_list("service_id", "head_commit"))
    rollouts = Rollout.objects.filter(Q(state=Rollout.State.LIVE) | Q(improvement__in=unfinished))
    kept = {pk for pair in rollouts.values_list("current_id", "candidate_id") for pk in pair}
    # A service that serves nothing yet is being deployed: its first release has no share before it is ready.
    served = Release.objects.filter(share__gt=0).values("service")
    idle = Release.objects.filter(share=0, state=Release.State.RUNNING, service__in=served).select_related("service")
    stopped = []
    for release in idle:
        if release.pk in kept or (release.service_id, release.commit) in needed:
            continue
        try:
            deployer_for(release.service).stop(release)
        except DeployError as error:
            log.error("%s could not be stopped and will be tried again: %s", release, error)
        else:
            stopped.append(str(release))
    return stopped


def clear_folders(*, keep: int = 5) -> int:
    """Remove the folders of stopped releases but the newest few of each service. Returns how many were removed."""
    removed = 0
    for service in (
        Service.objects.filter(releases__state=Release.State.STOPPED).exclude(releases__folder="").distinct()
    ):
        stopped = Release.objects.filter(service=service, state=Release.State.STOPPED).exclude(folder="")
        for release in stopped.order_by("-pk")[keep:]:
            shutil.rmtree(release.folder, ignore_errors=True)
            Release.objects.filter(pk=release.pk, state=Release.State.STOPPED).update(folder="")
            removed += 1
    return removed


def reconcile() -> list[str]:
    """After a restart of the proxy: bring everything back that should serve. Returns complaints."""
    complaints = []
    for service in Service.objects.active().filter(releases__share__gt=0).distinct():
        try:
            agree(service)
        except DeployError as error:
            complaints.append(f"{service.name}: {error}")
    return complaints
