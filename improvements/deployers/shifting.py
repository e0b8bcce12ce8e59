"""In which order servers get and lose traffic. Arithmetic: it knows shares and states, and nobody to talk to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Wanted:
    """What a server should be: where its release listens, and its percentage of the traffic (0–100)."""

    port: int
    share: int


@dataclass(frozen=True)
class Seen:
    """What a server is."""

    port: int
    weight: int
    takes_traffic: bool  # up, ready and with a weight
    is_healthy: bool  # its health check passes
    is_off: bool  # in maintenance: not even checked


def weights(wanted: Mapping[str, Wanted]) -> dict[str, int]:
    """The weight (0–100) of each server. Weights are relative, so shares are exact weights whatever they add up to.

    They are as small as they can be: after a change HAProxy's round robin first ends its old cycle, which is as long as
    the weights are large: with 90 and 10 instead of 9 and 1, five hundred requests went to one server alone.
    """
    if wrong := [want.share for want in wanted.values() if not 0 <= want.share <= 100]:
        raise ValueError(f"A share is from 0 to 100, not {wrong[0]}")
    divisor = math.gcd(*(want.share for want in wanted.values())) or 1
    return {name: want.share // divisor for name, want in wanted.items()}


def to_introduce(seen: Mapping[str, Seen], wanted: Mapping[str, Wanted]) -> list[str]:
    """Servers that must be given their address and pass a health check before they may get traffic."""
    return sorted(
        name for name, want in wanted.items() if want.share and (seen[name].is_off or seen[name].port != want.port)
    )


def to_raise(seen: Mapping[str, Seen], wanted: Mapping[str, Wanted]) -> list[str]:
    """Servers that get their weight now: first of all, so that somebody is there when others go."""
    return sorted(name for name, want in wanted.items() if want.share and seen[name].is_healthy)


def to_drain(seen: Mapping[str, Seen], wanted: Mapping[str, Wanted]) -> list[str]:
    """Servers that finish what they have and get nothing new: all that are on and not wanted."""
    return sorted(
        name for name, server in seen.items() if not server.is_off and not (name in wanted and wanted[name].share)
    )


def unserved(seen: Mapping[str, Seen], wanted: Mapping[str, Wanted]) -> list[str]:
    """Servers that should take traffic and do not."""
    return sorted(name for name, want in wanted.items() if want.share and not seen[name].takes_traffic)
