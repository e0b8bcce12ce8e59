"""One line of the benchmark table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was measured. `target` and `peer_value` are in the unit of `value`; `peer` names what it is compared with.

    A measurement that could not be made carries the reason in `error` and counts as a target missed.
    """

    what: str
    value: float
    unit: str
    target: float | None = None
    better: str = "lower"
    peer: str | None = None
    peer_value: float | None = None
    error: str = ""

    def __post_init__(self) -> None:
        if self.better not in ("lower", "higher"):
            raise ValueError(f"better={self.better!r}: give 'lower' or 'higher'")

    @property
    def met(self) -> bool | None:
        """True when the target is met; None when there is none."""
        if self.error:
            return False
        if self.target is None:
            return None
        return self.value <= self.target if self.better == "lower" else self.value >= self.target

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer (above 1: better); None without a peer."""
        if self.error or not self.peer_value or not self.value:
            return None
        return self.peer_value / self.value if self.better == "lower" else self.value / self.peer_value
