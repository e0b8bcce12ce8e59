"""Risk of one concrete patch: probability of harm times size of harm, from 0 to 1, with the drivers that make it up.

A prior, deliberately simple and readable: the probability grows with what is unusual about the patch, the size with how
many of the users' requests go through what it touches. Outcomes move the author's part of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from approvals.policy import Tier

# A patch of this many changed lines has used up about two thirds of what size alone can add.
_LINES_SCALE = 60.0
# Upper bounds of the tiers; whatever is above the last one is critical.
_BOUNDS = ((0.12, Tier.LOW), (0.40, Tier.MEDIUM), (0.70, Tier.HIGH))


@dataclass(frozen=True)
class PatchFacts:
    """What is known of a patch. `traffic_share` is the share (0–1) of requests through what it touches, None: unknown.
    `promoted` and `harmful` count how earlier patches of the same author ended."""

    lines_changed: int
    files_changed: int
    touches_migration: bool
    touches_dependencies: bool
    promoted: int
    harmful: int
    inconclusive_checks: int
    traffic_share: float | None


@dataclass(frozen=True)
class Driver:
    """One reason. `points` is what it adds to the probability or to the size, as named by `on`."""

    what: str
    points: float
    on: str


@dataclass(frozen=True)
class Risk:
    score: float
    tier: Tier
    probability: float
    size: float
    drivers: tuple[Driver, ...]

    @property
    def reason(self) -> str:
        parts = "; ".join(
            f"{driver.what} (+{driver.points:.2f} {driver.on})" for driver in self.drivers if driver.points
        )
        return f"risk {self.score:.2f} = probability {self.probability:.2f} × size {self.size:.2f}: {parts}"


def assess(facts: PatchFacts) -> Risk:
    """The risk of a patch. Monotone: more lines, files, traffic or doubt never lower it."""
    # Laplace's rule of succession: an author without a history is as likely to harm as not.
    history = (facts.harmful + 1) / (facts.promoted + facts.harmful + 2)
    drivers = (
        Driver("any change can harm", 0.05, "probability"),
        Driver(
            f"{facts.lines_changed} lines changed",
            0.30 * (1 - math.exp(-facts.lines_changed / _LINES_SCALE)),
            "probability",
        ),
        Driver(f"{facts.files_changed} files changed", 0.04 * max(0, min(facts.files_changed - 1, 5)), "probability"),
        Driver(
            f"its author: {facts.promoted} promoted, {facts.harmful} taken back or failed live",
            0.40 * history,
            "probability",
        ),
        Driver("changes the database schema", 0.35 if facts.touches_migration else 0.0, "probability"),
        Driver("changes dependencies", 0.20 if facts.touches_dependencies else 0.0, "probability"),
        Driver(
            f"{facts.inconclusive_checks} checks were inconclusive", 0.10 * facts.inconclusive_checks, "probability"
        ),
        Driver("it runs in production", 0.40, "size"),
        Driver(
            "its share of the traffic is unknown"
            if facts.traffic_share is None
            else f"{facts.traffic_share:.0%} of the requests go through it",
            0.60 * (0.5 if facts.traffic_share is None else facts.traffic_share),
            "size",
        ),
    )
    probability = min(1.0, sum(driver.points for driver in drivers if driver.on == "probability"))
    size = min(1.0, sum(driver.points for driver in drivers if driver.on == "size"))
    score = round(probability * size, 4)
    # A schema change outlives a rollback of the code: never below high.
    tier = Tier.HIGH if facts.touches_migration and tier_of(score) in (Tier.LOW, Tier.MEDIUM) else tier_of(score)
    return Risk(score, tier, round(probability, 4), round(size, 4), drivers)


def tier_of(score: float) -> Tier:
    """The tier of a risk score (0–1)."""
    for bound, tier in _BOUNDS:
        if score < bound:
            return tier
    return Tier.CRITICAL
