"""Which endpoint costs the users most: the time they spend waiting for it, all of them together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """One series of one endpoint over a window: requests per second, and mean and p95 time in milliseconds."""

    endpoint: str
    requests_per_second: float
    mean_ms: float
    p95_ms: float | None = None


@dataclass(frozen=True)
class EndpointCost:
    """`waiting_per_second` is how many seconds users wait for this endpoint in each second (Little's law: the mean
    number of requests in flight). The shares (0–1) are of the whole service."""

    endpoint: str
    requests_per_second: float
    mean_ms: float
    p95_ms: float | None
    waiting_per_second: float
    waiting_share: float
    traffic_share: float


def averaged(
    endpoint: str,
    *,
    rounds: int,
    rates: Mapping[float, float],
    means_ms: Mapping[float, float],
    p95s_ms: Mapping[float, float],
) -> Measured | None:
    """One series over a window of `rounds`; its values are by the time of the round. None when its time is unknown.

    In a round without a sample it had no traffic: two releases that take turns are together one service, not two.
    Times count as much as the requests of their round, so a quiet round does not speak for a busy one.
    """

    def weighted(values: Mapping[float, float]) -> float | None:
        weights = {at: rates.get(at, 0.0) for at in values}
        total = sum(weights.values())
        return sum(values[at] * weight for at, weight in weights.items()) / total if total else None

    mean_ms = weighted(means_ms)
    if mean_ms is None:
        return None
    return Measured(endpoint, sum(rates.values()) / rounds, mean_ms, weighted(p95s_ms))


def rank(measured: Iterable[Measured]) -> list[EndpointCost]:
    """The endpoints by what they cost users, the dearest first. Several series of one endpoint (methods, releases)
    count together; p95 is then the largest of theirs. Endpoints without traffic cost nothing and are left out."""
    by_endpoint: dict[str, list[Measured]] = {}
    for one in measured:
        if one.requests_per_second > 0:
            by_endpoint.setdefault(one.endpoint, []).append(one)
    all_requests = sum(one.requests_per_second for rows in by_endpoint.values() for one in rows)
    all_waiting = sum(one.requests_per_second * one.mean_ms / 1000 for rows in by_endpoint.values() for one in rows)
    costs = []
    for endpoint, rows in by_endpoint.items():
        rate = sum(one.requests_per_second for one in rows)
        waiting = sum(one.requests_per_second * one.mean_ms / 1000 for one in rows)
        tails = [one.p95_ms for one in rows if one.p95_ms is not None]
        costs.append(
            EndpointCost(
                endpoint=endpoint,
                requests_per_second=rate,
                mean_ms=1000 * waiting / rate,
                p95_ms=max(tails) if tails else None,
                waiting_per_second=waiting,
                waiting_share=waiting / all_waiting if all_waiting else 0.0,
                traffic_share=rate / all_requests,
            )
        )
    return sorted(costs, key=lambda cost: (-cost.waiting_per_second, cost.endpoint))
