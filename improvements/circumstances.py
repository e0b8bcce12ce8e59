"""What is true around an improvement while people decide: of its service, and of its commits."""

from __future__ import annotations

import datetime as dt

import numpy as np

from approvals.circumstances import Circumstances
from improvements.models import Improvement
from monitoring import gate, gating, reading
from monitoring.models import QualityReport, Service

BUDGET_DAYS = 30  # what an objective's error budget is for
STEP_SECONDS = 3600  # of this size are the rollups that reach further back than samples


def read(improvement: Improvement, at: dt.datetime) -> Circumstances:
    """Known vulnerabilities, the error budget, and failing checks, as the database has them now."""
    commits = {"the branch": improvement.base_commit, "the patch": improvement.head_commit}
    return Circumstances(
        vulnerabilities=vulnerabilities(improvement.service, improvement.head_commit),
        budget_left=budget_left(improvement.service, at),
        failing_checks=frozenset(
            f"{compared.what} of {whose}"
            for whose, commit in commits.items()
            for compared in gating.judged(improvement.service, commit).compared
            if compared.verdict == gate.FAIL
        ),
    )


def vulnerabilities(service: Service, commit: str) -> frozenset[str]:
    """The rules that hit in the newest security reports of the service's branch and of `commit`."""
    reports = QualityReport.objects.filter(service=service, kind="sarif").order_by("-at", "-pk")
    newest = (reports.filter(on_main=True).first(), reports.filter(commit=commit).first())
    return frozenset(rule for report in newest if report for rule in report.content.get("vulnerable", ()))


def budget_left(service: Service, at: dt.datetime) -> float | None:
    """The share of the error budget of the last 30 days that is left, negative when overspent; None without traffic.

    The budget is the share of requests that the service's objective for availability allows to fail.
    """
    since = at - dt.timedelta(days=BUDGET_DAYS)
    rate, ratio = (
        [
            found
            for found in reading.steps(service, signal, since=since, until=at, step_seconds=STEP_SECONDS)
            if not found.labels
        ]
        for signal in ("requests_per_second", "error_ratio")
    )
    if not rate or not ratio:
        return None
    _, mine, theirs = np.intersect1d(rate[0].at, ratio[0].at, return_indices=True)
    requests = (rate[0].mean * rate[0].count)[mine]
    if not requests.sum() > 0:
        return None
    bad = float((requests * ratio[0].mean[theirs]).sum())
    spent = bad / float(requests.sum()) / (1.0 - service.parsed.slo.availability)
    return round(1.0 - spent, 6)  # what is spent to the last request is not left by a rounding error
