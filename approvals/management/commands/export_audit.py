"""manage.py export_audit: a part of the audit log with everything that proves it."""

from __future__ import annotations

import datetime as dt
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from django.utils.timezone import now

from approvals import bundling, statements


def moment(text: str) -> dt.datetime:
    """A time as people type it; UTC where none is said."""
    at = dt.datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=dt.UTC)


class Command(BaseCommand):
    help = (
        "Write entries (JSONL and CSV), checkpoints, public keys, a signed manifest and a program that verifies all "
        "of it without RuneRogue into a new folder. It is audited."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
        parser.add_argument("--first", type=int, help="the first entry's number")
        parser.add_argument("--last", type=int, help="the last entry's number")
        parser.add_argument("--since", type=moment, help="such as 2026-01-31 or 2026-01-31T12:00+01:00 (included)")
        parser.add_argument("--until", type=moment, help="a time, not included")
        parser.add_argument("--by", help="the user name of whom it is for")
        parser.add_argument("--because", default="", help="why; it goes into the audit log")

    def handle(self, *args: Any, **options: Any) -> None:
        actor = User.objects.filter(username=options["by"]).first() if options["by"] else None
        if options["by"] and actor is None:
            raise CommandError(f"Nobody is called {options['by']!r}.")
        try:
            manifest = bundling.export(
                options["folder"],
                at=now(),
                **{name: options[name] for name in ("first", "last", "since", "until", "because")},
                actor=actor,
            )
        except (bundling.CannotExport, statements.StatementsUnusable) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"Entries {manifest['first']} to {manifest['last']} are in {options['folder']}. Verify with:")
        self.stdout.write(f"  python3 {options['folder'] / bundling.PROGRAM} {options['folder']}")
