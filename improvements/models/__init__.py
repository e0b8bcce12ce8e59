"""The rows of improvement: the law of the lifecycle, the releases that carry traffic, and the reviews."""

from improvements.models.digest import DigestSent, DigestState
from improvements.models.lifecycle import (
    ENDED,
    LIVE,
    MOVES,
    EvidenceRecord,
    IllegalMove,
    Improvement,
    LostRace,
    State,
    StepRun,
)
from improvements.models.releases import Release, Rollout, TrafficSlice
from improvements.models.review import Review, RollbackDrill, RolloutTraffic

__all__ = [
    "ENDED",
    "LIVE",
    "MOVES",
    "DigestSent",
    "DigestState",
    "EvidenceRecord",
    "IllegalMove",
    "Improvement",
    "LostRace",
    "Release",
    "Review",
    "RollbackDrill",
    "Rollout",
    "RolloutTraffic",
    "State",
    "StepRun",
    "TrafficSlice",
]
