"""Who has which place in the proxy. A service has a slot; each of its releases with traffic has a server there."""

from __future__ import annotations

from django.conf import settings
from django.db import IntegrityError, transaction

from improvements.deployers.seam import DeployError
from improvements.models import Release
from monitoring.models import Service, Target

SERVERS = ("r0", "r1", "r2", "r3")


def claim_slot(service: Service) -> int:
    """The service's slot, assigned for good if it has none. Of two services that race for one, one wins."""
    for _ in range(len(settings.SERVICE_PORTS) + 1):
        service.refresh_from_db(fields=["slot"])
        if service.slot is not None:
            return service.slot
        taken = set(Service.objects.exclude(slot=None).values_list("slot", flat=True))
        free = [slot for slot in range(len(settings.SERVICE_PORTS)) if slot not in taken]
        if not free:
            break
        try:
            with transaction.atomic():
                Service.objects.filter(pk=service.pk, slot=None).update(slot=free[0])
        except IntegrityError:
            continue
    raise DeployError(
        f"{service.name} gets no place in the proxy: all {len(settings.SERVICE_PORTS)} are taken; archive a service."
    )


def claim_servers(service: Service) -> dict[str, Release]:
    """Give a server to each release that has a share and none. Returns all releases of the service that have one.

    Under a lock of the service's row, so that two processes never give one server to two releases.
    """
    with transaction.atomic():
        Service.objects.select_for_update().get(pk=service.pk)
        placed = {release.server: release for release in Release.objects.filter(service=service).exclude(server="")}
        for release in Release.objects.filter(service=service, server="", share__gt=0):
            free = [name for name in SERVERS if name not in placed]
            if not free:
                raise DeployError(
                    f"{release} gets no server: all {len(SERVERS)} of {service.name} are taken. Stop a release."
                )
            release.server = free[0]
            release.save(update_fields=["server"])
            placed[release.server] = release
    return placed


def mark_started(release: Release, *, at: object, url: str) -> None:
    """Record that the release runs, and have it scraped at `url`."""
    with transaction.atomic():
        Release.objects.filter(pk=release.pk).update(state=Release.State.RUNNING, started_at=at)
        others = Target.objects.filter(service=release.service, release=release.short).exclude(url=url)
        others.update(active=False)
        serves = Release.objects.filter(pk=release.pk, share__gt=0).exists()
        Target.objects.update_or_create(
            service=release.service, release=release.short, url=url, defaults={"active": True, "serving": serves}
        )
    release.refresh_from_db(fields=["state", "started_at"])


def mark_stopped(release: Release) -> None:
    """Record that the release is down: its server is free, nobody scrapes it."""
    with transaction.atomic():
        Release.objects.filter(pk=release.pk).update(state=Release.State.STOPPED, server="", started_at=None)
        Target.objects.filter(service=release.service, release=release.short).update(active=False)
    release.refresh_from_db(fields=["state", "server", "started_at"])
