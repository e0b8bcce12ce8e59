"""A deployer whose processes and proxy are dictionaries: the same rules and the same rows, with nothing outside.

For tests of what drives a deployer. What goes wrong in the world is set by hand: `broken` releases do not come up,
`down` releases fail their health check while they run, `altered` ones have other files than their commit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from django.utils import timezone

from improvements.deployers import shifting, slots
from improvements.deployers.seam import DeployError, Readiness, ServersDown
from improvements.models import Release
from monitoring.models import Service

FIRST_PORT = 40000


@dataclass
class MemoryServer:
    """A server of the pretended proxy."""

    port: int = 0
    weight: int = 0
    is_off: bool = True


@dataclass
class MemoryDeployer:
    """`installed` and `running` hold commits; `servers` is the proxy: (slot, server name) → server."""

    installed: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    down: set[str] = field(default_factory=set)
    altered: set[str] = field(default_factory=set)
    servers: dict[tuple[int, str], MemoryServer] = field(default_factory=dict)
    not_answered: dict[int, int] = field(default_factory=dict)

    def install(self, release: Release) -> None:
        self.installed.add(release.commit)
        release.folder = f"/nowhere/{release.service.name}/{release.short}"
        if release.state == Release.State.WANTED:
            release.state = Release.State.INSTALLED
        release.save(update_fields=["folder", "state"])

    def intact(self, release: Release) -> str:
        if release.commit not in self.installed:
            raise DeployError(f"{release} is not installed; install it before it is looked at")
        return f"{release} is not what was proven: app.py" if release.commit in self.altered else ""

    def start(self, release: Release) -> None:
        if release.commit not in self.installed:
            raise DeployError(f"{release} is not installed; install it before it is started")
        if release.port is None:
            release.port = FIRST_PORT + release.pk
            release.save(update_fields=["port"])
        self.running.add(release.commit)
        url = release.service.parsed.metrics.url_at(self.address(release))
        slots.mark_started(release, at=release.started_at or timezone.now(), url=url)

    def ready(self, release: Release) -> Readiness:
        if release.commit not in self.running:
            return Readiness(False, "it was not started")
        if release.commit in self.broken | self.down:
            return Readiness(False, "its process is fatal")
        return Readiness(True, "answered 200")

    def apply(self, service: Service) -> None:
        slot, placed = slots.claim_slot(service), slots.claim_servers(service)
        wanted = {name: shifting.Wanted(r.port or 0, r.share) for name, r in placed.items() if r.share}
        if not wanted:
            raise DeployError(
                f"No release of {service.name} has a share of its traffic; nothing was changed in the proxy"
            )
        for name in shifting.to_introduce(self._seen(slot), wanted):
            self.servers[slot, name] = MemoryServer(wanted[name].port, 0, is_off=False)
        seen = self._seen(slot)
        rising = shifting.to_raise(seen, wanted)
        if not rising:
            raise ServersDown(f"No release of {service.name} with a share is up; traffic was left where it is")
        weights = shifting.weights(wanted)
        for name in rising:
            self.servers[slot, name].weight = weights[name]
        for name in shifting.to_drain(seen, wanted):
            self.servers[slot, name].weight = 0
        if missing := shifting.unserved(self._seen(slot), wanted):
            raise ServersDown(f"Not every release of {service.name} takes its share: {', '.join(missing)} is down")

    def stop(self, release: Release) -> None:
        release.refresh_from_db()
        if release.share:
            raise DeployError(
                f"{release} has {release.share} % of the traffic; give it to another release before it is stopped"
            )
        if release.server and release.service.slot is not None:
            self.servers.pop((release.service.slot, release.server), None)
        self.running.discard(release.commit)
        slots.mark_stopped(release)

    def address(self, release: Release) -> str:
        if release.port is None:
            raise DeployError(f"{release} has no address before it was started")
        return f"http://127.0.0.1:{release.port}"

    def unanswered(self, service: Service) -> dict[int, int]:
        return dict(self.not_answered)

    def base_url(self, service: Service) -> str:
        return f"http://127.0.0.1:{FIRST_PORT - 1 - slots.claim_slot(service)}"

    def restart_proxy(self) -> None:
        """The proxy comes back empty, as if its state had been lost too."""
        self.servers.clear()

    def traffic(self, service: Service) -> dict[str, float]:
        """What the proxy would do with traffic now: short commit → share (0–1) of those that take any."""
        placed = {r.server: r for r in Release.objects.filter(service=service).exclude(server="")}
        seen = self._seen(slots.claim_slot(service))
        weights = {placed[name].short: server.weight for name, server in seen.items() if server.takes_traffic}
        return {short: weight / sum(weights.values()) for short, weight in weights.items()}

    def _seen(self, slot: int) -> dict[str, shifting.Seen]:
        healthy = {r.port for r in Release.objects.filter(commit__in=self.running - self.down - self.broken)}
        seen = {}
        for name in slots.SERVERS:
            server = self.servers.get((slot, name), MemoryServer())
            is_healthy = not server.is_off and server.port in healthy
            seen[name] = shifting.Seen(
                server.port, server.weight, is_healthy and server.weight > 0, is_healthy, server.is_off
            )
        return seen
