"""`manage.py drill [--json] [--weeks N] [--runs N] [--seed N]`: how soon the default rules find what goes wrong."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from monitoring import drilling
from monitoring.drilling import Report


class Command(BaseCommand):
    help = (
        "Inject faults into simulated services, in accelerated time, and print how many collection intervals the "
        "default alert rules take to find them, and how often they fire on clean traffic. Exit code 1: a target missed."
    )
    requires_system_checks: list[str] = []  # nothing of this installation is asked, not even the database

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
        parser.add_argument("--weeks", type=_at_least_one, default=20, help="clean service-weeks to watch (20)")
        parser.add_argument("--runs", type=_at_least_one, default=100, help="injections of each fault (100)")
        parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same numbers (1)")

    def handle(self, *args: Any, **options: Any) -> None:
        report = drilling.drill(seed=options["seed"], runs=options["runs"], weeks=options["weeks"])
        self.stdout.write(json.dumps(report.plain(), indent=2) if options["json"] else table(report))
        if not report.met:
            sys.exit(1)


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(f"{text} is below 1")
    return number


def table(report: Report) -> str:
    """The report for a person."""
    rows = [("fault", "found", "mean", "target", "p95", "target", "met", "found first by")]
    for found in report.detections:
        first = ", ".join(f"{name} {count}" for name, count in list(found.first_rules.items())[:3])
        rows.append(
            (
                found.fault,
                f"{found.found} of {found.runs}",
                f"{found.mean_intervals:.2f}",
                "" if found.mean_target is None else f"≤ {found.mean_target:g}",
                f"{found.p95_intervals:.2f}",
                "" if found.p95_target is None else f"≤ {found.p95_target:g}",
                "yes" if found.met else "NO",
                first,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    clean = report.clean
    by_rule = ", ".join(f"{name} {count}" for name, count in clean.by_rule.items())
    return "\n".join(
        [
            f"Time to detect in collection intervals of {report.interval_seconds:g} s, seed {report.seed}:",
            *lines,
            f"False alerts on {clean.weeks} clean service-weeks: {clean.alerts}{f' ({by_rule})' if by_rule else ''}, "
            f"{clean.per_week:.3f} a week (95 % interval {clean.low:.3f} to {clean.high:.3f}), "
            f"target ≤ {clean.target:g}: {'met' if clean.met else 'NOT met'}.",
        ]
    )
