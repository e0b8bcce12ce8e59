"""`manage.py drill`: how soon the default rules find what goes wrong, in simulated services or in a real Realm."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from monitoring import drilling
from monitoring.drilling import Clean, Report
from runerogue import realm_drill


class Command(BaseCommand):
    help = (
        "Inject faults, in accelerated time, and print how many collection intervals the default alert rules take to "
        "find them, and how often they fire on clean traffic. Exit code 1: a target missed."
    )
    requires_system_checks: list[str] = []  # without --realm nothing of this installation is asked

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
        parser.add_argument("--weeks", type=_at_least_one, default=100, help="clean service-weeks to watch (100)")
        parser.add_argument("--runs", type=_at_least_one, help="injections of each fault (100; with --realm 2)")
        parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same numbers (1)")
        parser.add_argument("--plain", action="store_true", help="services without jobs and deploys, only a rhythm")
        realm = parser.add_argument_group("--realm: a real Realm under load instead of simulated services")
        realm.add_argument("--realm", action="store_true", help="start one, hurt it, remove it; needs the database")
        realm.add_argument("--interval", type=float, default=1.0, help="seconds that stand for an interval (1)")
        realm.add_argument("--rate", type=float, default=60.0, help="requests per second (60)")
        realm.add_argument("--seconds", type=float, default=270.0, help="begin no injection after so long (270)")

    def handle(self, *args: Any, **options: Any) -> None:
        report = self._realm(options) if options["realm"] else self._simulated(options)
        self.stdout.write(json.dumps(report.plain(), indent=2) if options["json"] else table(report))
        if not report.met:
            sys.exit(1)

    def _simulated(self, options: dict[str, Any]) -> Report:
        return drilling.drill(
            seed=options["seed"],
            runs=options["runs"] or 100,
            weeks=options["weeks"],
            is_disturbed=not options["plain"],
        )

    def _realm(self, options: dict[str, Any]) -> Report:
        try:
            return realm_drill.drill(
                settings.HOME.scratch,
                runs=options["runs"] or 2,
                interval_seconds=options["interval"],
                rate=options["rate"],
                most_seconds=options["seconds"],
                seed=options["seed"],
                tell=self.stderr.write,
            )
        except realm_drill.DrillFailed as failed:
            raise CommandError(str(failed)) from failed


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
    heading = (
        f"Time to detect in {report.subject}, in collection intervals of {report.interval_seconds:g} s, "
        f"seed {report.seed}:"
    )
    return "\n".join([heading, *lines, _false_alerts(report.clean)])


def _false_alerts(clean: Clean) -> str:
    by_rule = ", ".join(f"{name} {count}" for name, count in clean.by_rule.items())
    found = f"{clean.alerts}{f' ({by_rule})' if by_rule else ''}"
    if clean.target is None:
        return f"False alerts in {clean.weeks * drilling.ROUNDS_A_WEEK:.0f} clean rounds: {found}."
    return (
        f"False alerts on {clean.weeks:g} clean service-weeks: {found}, "
        f"{clean.per_week:.3f} a week (95 % interval {clean.low:.3f} to {clean.high:.3f}), "
        f"target ≤ {clean.target:g}: {'met' if clean.met else 'NOT met'}."
    )
