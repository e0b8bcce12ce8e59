"""The gate of a build: reports of a commit against those of the service's branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from monitoring import gate, quality
from monitoring.gate import Gate
from monitoring.models import QualityReport, Service

MOST_EARLIER = 20


def decide(
    service: Service,
    commit: str,
    bodies: Sequence[tuple[str | None, bytes]],
    *,
    at: datetime,
    source: str,
    branch: str = "",
    tolerance: float = gate.TOLERANCE,
) -> Gate:
    """Keep the given reports (kind or None, body) of `commit` and judge all that it has against earlier commits.

    Asked twice with the same reports it answers the same. Raises quality.WrongReport and reports.ReportError; then
    none of the reports is kept.
    """
    quality.keep_all(service, commit, bodies, at=at, source=source, branch=branch)
    return judged(service, commit, tolerance=tolerance)


def judged(service: Service, commit: str, *, tolerance: float = gate.TOLERANCE) -> Gate:
    """All reports that `commit` has against those of earlier commits."""
    mine: dict[str, Mapping[str, Any]] = {}
    for row in QualityReport.objects.filter(service=service, commit=commit).order_by("at", "pk"):
        mine[row.kind] = row.content
    return gate.judge(
        mine,
        {kind: _earlier(service, commit, kind) for kind in mine},
        tolerance=tolerance,
        higher_is_better=service.parsed.benchmark.higher_is_better,
    )


def _earlier(service: Service, commit: str, kind: str) -> list[Mapping[str, Any]]:
    """The newest report of each of the last commits on the service's branch, newest first, without `commit` itself."""
    first = (
        QualityReport.objects.filter(service=service, commit=commit, kind=kind)
        .order_by("at")
        .values_list("at", flat=True)[0]
    )
    # What came later than this commit's first report is not what it has to be as good as.
    rows = QualityReport.objects.filter(service=service, kind=kind, on_main=True, at__lte=first).exclude(commit=commit)
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows.order_by("-at", "-pk")[: MOST_EARLIER * 5]:
        found.setdefault(row.commit, row.content)
        if len(found) == MOST_EARLIER:
            break
    return list(found.values())


def as_json(found: Gate) -> dict[str, Any]:
    """The answer for machines."""
    return {
        "verdict": found.verdict,
        "reason": found.reason,
        "compared": [
            {name: _short(value) for name, value in one.__dict__.items() if value is not None} for one in found.compared
        ],
    }


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
