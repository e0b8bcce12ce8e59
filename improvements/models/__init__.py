"""The rows of improvement: the law of the lifecycle, and the releases that carry traffic."""

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

__all__ = [
    "ENDED",
    "LIVE",
    "MOVES",
    "EvidenceRecord",
    "IllegalMove",
    "Improvement",
    "LostRace",
    "Release",
    "Rollout",
    "State",
    "StepRun",
    "TrafficSlice",
]
