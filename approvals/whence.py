"""Where a request comes from, as far as that may be kept: a keyed hash of the address."""

from __future__ import annotations

import ipaddress

from django.conf import settings
from django.http import HttpRequest
from django.utils.crypto import salted_hmac


def address_of(request: HttpRequest) -> str:
    """The address of whoever asks; "" when it is not known (a unix socket, a program).

    Only a proxy in TRUSTED_PROXIES is believed about whom it asks for, and of the addresses it names only the last that
    is no such proxy: whatever stands before it the caller may have written. IPv6 counts by /64, which is one household.
    """
    near = _parsed(request.META.get("REMOTE_ADDR", ""))
    named = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")
    while near is not None and named and any(near in network for network in settings.TRUSTED_PROXIES):
        further = _parsed(named.pop())
        if further is None:
            break
        near = further
    if near is None:
        return ""
    return str(ipaddress.ip_network((near, 64), strict=False)) if near.version == 6 else str(near)


def origin_of(request: HttpRequest) -> str:
    """The address as the audit log may keep it: 16 hexadecimal digits that nobody without SECRET_KEY can undo."""
    address = address_of(request)
    return keyed("origin", address)[:16] if address else ""


def keyed(*parts: str) -> str:
    """A hash of these texts, of no use to who lacks SECRET_KEY. 64 hexadecimal digits."""
    return salted_hmac("approvals.whence", "\0".join(parts), algorithm="sha256").hexdigest()


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
