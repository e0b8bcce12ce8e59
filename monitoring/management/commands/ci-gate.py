"""`manage.py ci-gate SERVICE --commit C FILE…`: is this commit at least as good as the branch was?"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils.timezone import now

from monitoring import gate, gating, quality, reports
from monitoring.management.commands.report import add_report_arguments, named_service, read_files

EXIT_CODES = {gate.PASS: 0, gate.FAIL: 1, gate.INCONCLUSIVE: 0}


class Command(BaseCommand):
    help = "Keep a commit's reports and compare them with those of the branch. Exit code 1 when something is worse."

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_report_arguments(parser)
        parser.add_argument("--tolerance", type=float, default=gate.TOLERANCE, help="0.05 lets 5 %% pass")
        parser.add_argument("--strict", action="store_true", help="exit code 2 when the numbers do not say")
        shape = parser.add_mutually_exclusive_group()
        shape.add_argument("--json", action="store_true")
        shape.add_argument("--markdown", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        service = named_service(options["service"])
        if not 0 <= options["tolerance"] <= 1:
            raise CommandError(f"--tolerance {options['tolerance']:g} is not from 0 to 1; 0.05 is five percent.")
        try:
            found = gating.decide(
                service,
                options["commit"],
                read_files(options["files"]),
                at=now(),
                source="manage.py ci-gate",
                branch=options["branch"],
                tolerance=options["tolerance"],
            )
        except (quality.WrongReport, reports.ReportError) as error:
            raise CommandError(str(error)) from error
        if options["json"]:
            self.stdout.write(json.dumps(gating.as_json(found), indent=2))
        elif options["markdown"]:
            self.stdout.write(gate.markdown(found, title=f"{service} {options['commit'][:12]}"), ending="")
        else:
            self.stdout.write(f"{found.verdict.upper()}: {found.reason}")
            for one in found.compared:
                self.stdout.write(f"  {one.verdict:<12} {one.reason}")
        code = 2 if options["strict"] and found.verdict == gate.INCONCLUSIVE else EXIT_CODES[found.verdict]
        if code:
            raise SystemExit(code)
