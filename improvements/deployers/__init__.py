"""Running releases and moving traffic between them, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from improvements.deployers.haproxy import HaproxyDeployer
from improvements.deployers.memory import MemoryDeployer
from improvements.deployers.seam import Deployer, DeployError, Readiness, ServersDown
from monitoring.models import Service

__all__ = [
    "DEPLOYERS",
    "DeployError",
    "Deployer",
    "HaproxyDeployer",
    "MemoryDeployer",
    "Readiness",
    "ServersDown",
    "base_url",
    "deployer_for",
]

# The known ones. Others come as entry points of the group below: a callable without arguments that gives a Deployer.
DEPLOYERS: dict[str, Callable[[], Deployer]] = {"haproxy": HaproxyDeployer, "memory": MemoryDeployer}
GROUP = "runerogue.deployers"

_made: dict[str, Deployer] = {}


def deployer_for(service: Service) -> Deployer:
    """The deployer that runs `service`: the one that the setting DEPLOYER names."""
    name = settings.DEPLOYER
    if name == "haproxy":
        return HaproxyDeployer()  # it holds nothing but paths
    if name not in _made:
        _made[name] = _find(name)()
    return _made[name]


def base_url(service: Service) -> str:
    """The stable base URL at which people reach the service, whichever of its releases serve."""
    return deployer_for(service).base_url(service)


def _find(name: str) -> Callable[[], Deployer]:
    if name in DEPLOYERS:
        return DEPLOYERS[name]
    for point in entry_points(group=GROUP, name=name):
        loaded: Callable[[], Deployer] = point.load()
        return loaded
    raise ImproperlyConfigured(
        f"DEPLOYER={name!r} is not known. Hint: one of {', '.join(DEPLOYERS)}, or install its package."
    )
