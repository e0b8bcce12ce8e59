"""Which hosts outside may be reached: requested, approved by another person, revoked.

RuneRogue's own address and the releases and slots that it runs itself on loopback need no approval: it made them.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.utils.timezone import now

from approvals import audit, roles
from approvals.policy import Role
from monitoring import addresses
from monitoring.addresses import Approval, Approved
from monitoring.models import Access, ExternalService, Target

APPROVERS = (Role.LEAD, Role.ARCHITECTURE, Role.CTO)
REVOKERS = (*APPROVERS, Role.ON_CALL)
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 (asked, not bound)


class NotAllowed(Exception):
    """This person may not decide this; the message says who may."""


def own_address() -> tuple[str, int]:
    """(host, port) where RuneRogue itself is asked; an address that means all interfaces is asked on loopback."""
    host = settings.RUNEROGUE_HOST.strip("[]")
    return _EVERYWHERE.get(host, host), settings.RUNEROGUE_PORT


def approved() -> Approved:
    """Every host that may be reached now. Two queries."""
    return Approved.of(
        (row.approval for row in ExternalService.objects.approved()),
        _own(),
    )


def _own() -> set[Approval]:
    """What RuneRogue runs itself. Only its deployer makes targets with a release, and only loopback counts."""
    host, port = own_address()
    found = {Approval(addresses.normalised(host), port, allows_private=True)}
    found |= {Approval("127.0.0.1", slot, allows_private=True) for slot in settings.SERVICE_PORTS}
    urls = Target.objects.active().exclude(release="").values_list("url", flat=True)
    for url in urls:
        parts = urlsplit(url)
        if parts.port and parts.hostname and addresses.is_loopback(parts.hostname):
            found.add(Approval(addresses.normalised(parts.hostname), parts.port, allows_private=True))
    return found


def may_be_reached(url: str) -> bool:
    """Whether the host of `url` is approved. Its address is checked only when it is connected to."""
    host, port = addresses.split(url)
    return port is not None and approved().find(host, port) is not None


def request(
    address: str, *, purpose: str, actor: User | None, because: str = "", allows_private: bool = False
) -> ExternalService:
    """Ask that a host (`host`, `host:port` or a URL) may be reached. One that is asked for or approved stays as it is;
    one that was revoked waits again.

    Raises ValueError for what is no address.
    """
    host, port = addresses.split(address)
    with transaction.atomic():
        row, is_new = ExternalService.objects.select_for_update(of=("self",)).get_or_create(
            host=host,
            port=port,
            allows_private=allows_private,
            defaults={"purpose": purpose[:200], "requested_by": actor, "request_reason": because[:500]},
        )
        if not is_new and row.access is not Access.REVOKED:
            return row
        if not is_new:
            row.purpose, row.request_reason = purpose[:200], because[:500]
            row.requested_by, row.requested_at = actor, now()
            row.approved_by = row.approved_at = row.revoked_by = row.revoked_at = None
            row.approve_reason = row.revoke_reason = ""
            row.save()
        audit.record("external_service.requested", row, actor=actor, because=because, became=_told(row))
    return row


def waiting_within(row: ExternalService) -> list[ExternalService]:
    """The requests that approving `row` answers too: the same address without private ones."""
    return list(ExternalService.objects.waiting().filter(host=row.host, port=row.port, allows_private=False))


def approve(row: ExternalService, *, actor: User | None, because: str) -> ExternalService:
    """Let the host be reached. `actor` None is somebody at the machine's own command line.

    A lead developer, an architect or the CTO who did not ask for it; a superuser only as long as nobody else could.
    Raises NotAllowed, ValueError without a reason.
    """
    return _decide(row, Access.APPROVED, actor=actor, because=because)


def revoke(row: ExternalService, *, actor: User | None, because: str) -> ExternalService:
    """Let the host be reached no longer, from the next client that is opened on. Raises NotAllowed, ValueError."""
    return _decide(row, Access.REVOKED, actor=actor, because=because)


def _decide(row: ExternalService, target: Access, *, actor: User | None, because: str) -> ExternalService:
    because = because.strip()[:500]
    if not because:
        raise ValueError(f"Say why {row} is {target}.")
    with transaction.atomic():
        row = ExternalService.objects.select_for_update().get(pk=row.pk)
        if row.access is target:
            return row
        if row.access is Access.REVOKED:
            raise NotAllowed(f"{row} was revoked. Ask for it again first.")
        if actor is not None:
            _demand_right(row, target, actor)
        was = row.access
        if target is Access.APPROVED:
            row.approved_by, row.approved_at, row.approve_reason = actor, now(), because
        else:
            row.revoked_by, row.revoked_at, row.revoke_reason = actor, now(), because
        row.save()
        audit.record(
            f"external_service.{target}",
            row,
            actor=actor,
            because=because,
            was=was,
            became=target,
            data={**_told(row), "from": "the command line" if actor is None else "a person"},
        )
    return row


def _demand_right(row: ExternalService, target: Access, actor: User) -> None:
    held = roles.facts_of(actor, lock=True)
    if target is Access.REVOKED:
        if held.active and (actor.is_superuser or held.roles & set(REVOKERS)):
            return
        raise NotAllowed("Only leads, architects, the CTO, on-call engineers and superusers may revoke a host.")
    others = roles.holders(APPROVERS, without=[actor.pk])
    if actor.is_superuser and held.active and not others:
        return  # the first person of an installation has nobody to ask
    if not held.active or not held.roles & set(APPROVERS):
        raise NotAllowed("Only lead developers, architects and the CTO may approve a host.")
    if row.requested_by_id == actor.pk:
        able = ", ".join(others[:5]) or "nobody yet"
        raise NotAllowed(f"You asked for {row} yourself; another person approves it ({able}).")


def _told(row: ExternalService) -> dict[str, object]:
    return {"host": row.host, "port": row.port, "purpose": row.purpose, "allows_private": row.allows_private}
