"""What a deployer is: the smallest interface through which releases are run and traffic is moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from improvements.models import Release
from monitoring.models import Service


class DeployError(Exception):
    """A release could not be installed, run or given traffic. The message says what happened to what, and what next."""


class ServersDown(DeployError):
    """Not every release with a share takes traffic. What could be applied was; nobody who serves was sent away for
    somebody who does not."""


@dataclass(frozen=True)
class Readiness:
    """Whether a release would serve now, and why not."""

    ok: bool
    reason: str


class Deployer(Protocol):
    """Every method may be called again after it failed, or after it succeeded, and from another process."""

    def install(self, release: Release) -> None:
        """Put the release's commit into a folder of its own and run its setup command. Raises DeployError."""

    def intact(self, release: Release) -> str:
        """Empty while the installed release is what its commit and its setup made it, else what was altered since, as
        a sentence. What was only added (logs, caches) does not count. Raises DeployError."""

    def start(self, release: Release) -> None:
        """Run the release privately, without traffic. Raises DeployError."""

    def ready(self, release: Release) -> Readiness:
        """Ask the release's health address."""

    def apply(self, service: Service) -> None:
        """Make the proxy agree with the shares of the service's releases. Raises ServersDown, DeployError."""

    def stop(self, release: Release) -> None:
        """Let it finish its requests, end it, and free its server. DeployError while it has a share of the traffic."""

    def address(self, release: Release) -> str:
        """The release's own base URL, for private checks. DeployError before it was started."""

    def unanswered(self, service: Service) -> dict[int, int]:
        """Release id → requests it left unanswered since the proxy began to count, also those retried elsewhere
        that never failed for a user. Empty when nobody counts. Raises DeployError."""

    def base_url(self, service: Service) -> str:
        """The stable base URL at which people reach the service, whichever releases serve."""
