"""Which addresses of the network may be connected to. Hosts are compared in one spelling; see `normalised`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_](?:[a-z0-9_-]{0,62}\.?)*[a-z0-9_]|[a-z0-9_]")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Clouds hand out credentials at these to whatever asks from the inside: never, whoever approved what.
_METADATA = frozenset({ipaddress.ip_address("169.254.169.254"), ipaddress.ip_address("fd00:ec2::254")})

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Approval:
    """One host that may be reached, at one port or (None) at any."""

    host: str
    port: int | None = None
    allows_private: bool = False


@dataclass(frozen=True)
class Approved:
    """Every host that may be reached."""

    approvals: frozenset[Approval] = frozenset()

    @classmethod
    def of(cls, *approvals: Approval | Iterable[Approval]) -> Approved:
        found: set[Approval] = set()
        for one in approvals:
            found |= {one} if isinstance(one, Approval) else set(one)
        return cls(frozenset(found))

    def find(self, host: str, port: int) -> Approval | None:
        """The approval under which `host` may be reached at `port`; of several the one that allows most."""
        try:
            host = normalised(host)
        except ValueError:
            return None
        fitting = [one for one in self.approvals if one.host == host and one.port in (None, port)]
        return max(fitting, key=lambda one: one.allows_private, default=None)


def normalised(host: str) -> str:
    """One spelling of a host: small letters, ASCII, no last dot, no brackets. Raises ValueError for what is no host."""
    host = host.strip().strip("[]").rstrip(".").lower()
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not host.isascii():
        host = host.encode("idna").decode()  # UnicodeError is a ValueError
    if not _NAME.fullmatch(host):
        raise ValueError(f"{host[:100]!r} is not the name or address of a host.")
    return host


def split(text: str) -> tuple[str, int | None]:
    """(host, port) of a URL, `host`, `host:port` or `[v6]:port`. The port of a URL without one is that of its scheme.

    Raises ValueError.
    """
    text = text.strip()
    if "://" not in text:
        if text.count(":") > 1 and not text.startswith("["):
            return normalised(text), None  # a bare IPv6 address
        parts = urlsplit(f"//{text}")
        if parts.netloc != text or "@" in text:
            raise ValueError(f"{text[:100]!r} is not the name or address of a host.")
        return normalised(parts.hostname or ""), parts.port
    parts = urlsplit(text)
    if parts.scheme not in PORTS:
        raise ValueError(f"{parts.scheme}:// is not http:// or https://.")
    return normalised(parts.hostname or ""), parts.port or PORTS[parts.scheme]


def is_loopback(host: str) -> bool:
    """Whether a host, as it is written, is this machine's own loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refused(text: str, *, allows_private: bool) -> str | None:
    """Why the IP address `text` may not be connected to; None when it may.

    An IPv4 address inside an IPv6 one (mapped, 6to4, Teredo, NAT64) counts as itself.
    """
    try:
        address = _innermost(ipaddress.ip_address(text))
    except ValueError:
        return f"{text[:60]!r} is not an IP address"
    if address in _METADATA:
        return f"{address} is where clouds keep credentials"
    for holds, kind in (
        (address.is_unspecified, "no particular address"),
        (address.is_link_local, "link-local"),
        (address.is_multicast, "multicast"),
        # Python counts the IPv6 loopback among the reserved ones.
        (address.is_reserved and not address.is_loopback, "reserved"),
    ):
        if holds:
            return f"{address} is {kind}"
    if allows_private or address.is_global:
        return None
    return f"{address} is {'loopback' if address.is_loopback else 'private'}"


def _innermost(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
    if inner is None and address in _NAT64:
        inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return inner if inner is not None else ipaddress.IPv6Address(int(address))  # without a zone
