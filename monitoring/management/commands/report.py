"""`manage.py report SERVICE --commit C FILE…`: what a build found out about a commit."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils.timezone import now

from monitoring import quality, reports
from monitoring.models import Service


def add_report_arguments(parser: ArgumentParser) -> None:
    """What `report` and `ci-gate` have in common."""
    # Left alone, argparse takes the files to be none as soon as an option comes before them.
    parser.parse_args = parser.parse_intermixed_args  # type: ignore[method-assign]
    parser.add_argument("service", help="the service's name")
    parser.add_argument(
        "files", nargs="*", metavar="[KIND=]FILE", help=f"reports; kinds, when not seen: {', '.join(reports.READERS)}"
    )
    parser.add_argument("--commit", default="", help="the commit that was built, 7 to 40 hexadecimal digits")
    parser.add_argument("--branch", default="", help="its branch, when it is not the service's own")


def read_files(names: list[str]) -> list[tuple[str | None, bytes]]:
    """(kind or None, body) of each [KIND=]FILE. CommandError for what can't be read."""
    bodies = []
    for name in names:
        kind, sign, path = name.partition("=")
        if not sign or kind not in reports.READERS:
            kind, path = "", name
        try:
            if Path(path).stat().st_size > reports.LARGEST_BYTES:
                raise CommandError(f"{path} is larger than {reports.LARGEST_BYTES:,} bytes.")
            bodies.append((kind or None, Path(path).read_bytes()))
        except OSError as error:
            raise CommandError(f"{path} can't be read: {error.strerror}.") from error
    return bodies


def named_service(name: str) -> Service:
    """The watched service of that name; CommandError with the known ones otherwise."""
    found = Service.objects.active().filter(name=name).first()
    if found is None:
        known = ", ".join(Service.objects.active().values_list("name", flat=True)) or "none yet"
        raise CommandError(f"No service named {name!r} is watched. Watched: {known}.")
    return found


class Command(BaseCommand):
    help = "Keep what a build reported of a commit: JUnit, Cobertura, SARIF, ruff's JSON, benchmark numbers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_report_arguments(parser)
        parser.add_argument("--measure", action="store_true", help="have RuneRogue measure the branch's head itself")

    def handle(self, *args: Any, **options: Any) -> None:
        service = named_service(options["service"])
        if options["measure"]:
            measured = quality.measure(service, at=now())
            self.stdout.write(f"{service} {measured.commit[:12]}: measured {', '.join(measured.kept) or 'nothing'}.")
            for name, why in measured.missing.items():
                self.stdout.write(f"  no {name}: {why}")
            return
        if not options["files"]:
            raise CommandError("Name at least one report, or give --measure.")
        bodies = read_files(options["files"])
        try:
            kept = quality.keep_all(
                service, options["commit"], bodies, at=now(), source="manage.py report", branch=options["branch"]
            )
        except (quality.WrongReport, reports.ReportError) as error:
            raise CommandError(str(error)) from error
        for row in kept:
            numbers = ", ".join(f"{name} {value:g}" for name, value in sorted(row.signals.items()))
            self.stdout.write(f"{row}: {numbers or 'kept for comparison'}")
        if len(kept) < len(bodies):
            self.stdout.write(f"{len(bodies) - len(kept)} of {len(bodies)} were known already.")
