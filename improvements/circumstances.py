"""What is true around an improvement while people decide: of its service, and of its commits."""

from __future__ import annotations

import datetime as dt

from approvals.circumstances import Circumstances
from improvements.models import Improvement
from monitoring import budgeting, gate, gating
from monitoring.models import QualityReport, Service


def read(improvement: Improvement, at: dt.datetime) -> Circumstances:
    """Known vulnerabilities, the error budget, and failing checks, as the database has them now."""
    commits = {"the branch": improvement.base_commit, "the patch": improvement.head_commit}
    return Circumstances(
        vulnerabilities=vulnerabilities(improvement.service, improvement.head_commit),
        budget_left=budgeting.left(improvement.service, at),
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
