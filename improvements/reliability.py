"""Which improvements are reliability fixes: with the error budget gone, nothing else rolls out. Arithmetic."""

from __future__ import annotations

from collections.abc import Mapping

# Kind of finding → whether acting on it makes errors, outages or crashes fewer. Being faster or tidier is not that.
FIXES_RELIABILITY: Mapping[str, bool] = {
    "n-plus-one": False,
}


def is_fix(kind: str) -> bool:
    """Whether an improvement for a finding of this kind is a reliability fix. A kind that nobody judged is none."""
    return FIXES_RELIABILITY.get(kind, False)
