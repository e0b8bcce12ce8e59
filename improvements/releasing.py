"""Releases: which one serves, how a first one comes up, and how those that nobody needs are put away."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Iterator

from django.db import connection, transaction

from approvals import audit
from improvements.deployers import DeployError, deployer_for
from improvements.models import Improvement, Release, Rollout
from monitoring.models import Service
from monitoring.repository import repository_of

READY_TIMEOUT_SECONDS = 60


class NotReady(Exception):
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


def deploy(service: Service) -> Release:
    """Make sure that the service serves: bring up the head of its branch if nothing does. Idempotent."""
    release = current_release(service)
    if release is None:
        release = release_of(service, repository_of(service).head())
        bring_up(release)
        with transaction.atomic():
            Release.objects.filter(pk=release.pk).update(share=100)
            audit.record(
                "release.deployed", release, because="first release of the service", data={"commit": release.commit}
            )
    else:
        bring_up(release)
    agree(service)
    release.refresh_from_db()
    return release


def shift(service: Service, shares: dict[int, int], *, because: str, improvement: Improvement | None = None) -> float:
    """Give each release its share of the traffic (release id → percent): first the rows, then the proxy.

    Returns the milliseconds until the proxy agreed. Idempotent; raises DeployError when the proxy does not agree.
    """
    began = time.monotonic()
    with transaction.atomic():
        rows = {release.pk: release for release in Release.objects.select_for_update().filter(service=service)}
        was = {rows[pk].short: rows[pk].share for pk in shares}
        changed = {pk: share for pk, share in shares.items() if rows[pk].share != share}
        for pk, share in changed.items():
            Release.objects.filter(pk=pk).update(share=share)
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
    with _one_at_a_time(service):
        deployer_for(service).apply(service)


def sweep() -> list[str]:
    """Stop releases that serve nothing and that no improvement or rollout needs any more. Returns what was stopped."""
    needed = set(Improvement.objects.unfinished().exclude(head_commit="").values_list("service_id", "head_commit"))
    live = Rollout.objects.filter(state=Rollout.State.LIVE)
    kept = {pk for pair in live.values_list("current_id", "candidate_id") for pk in pair}
    stopped = []
    # A service that serves nothing yet is being deployed: its first release has no share before it is ready.
    served = Release.objects.filter(share__gt=0).values("service")
    idle = Release.objects.filter(share=0, state=Release.State.RUNNING, service__in=served).select_related("service")
    for release in idle:
        if release.pk in kept or (release.service_id, release.commit) in needed:
            continue
        deployer_for(release.service).stop(release)
        stopped.append(str(release))
    return stopped


def reconcile() -> list[str]:
    """After a restart of the proxy: bring everything back that should serve. Returns complaints."""
    complaints = []
    for service in Service.objects.active().filter(releases__share__gt=0).distinct():
        try:
            agree(service)
        except DeployError as error:
            complaints.append(f"{service.name}: {error}")
    return complaints


@contextlib.contextmanager
def _one_at_a_time(service: Service) -> Iterator[None]:
    """A session lock per service: the proxy is changed by one process at a time, each reading the newest shares."""
    key = zlib.crc32(f"deploy:{service.pk}".encode())
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [key])
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [key])
