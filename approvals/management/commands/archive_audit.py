"""manage.py archive_audit: put the oldest entries of the audit log away, provably."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError
from django.utils.timezone import now

from approvals import archiving, bundling, statements
from approvals.management.commands.export_audit import moment


class Command(BaseCommand):
    help = (
        "Export the entries up to the last checkpoint before a time, verify the archive, write a signed tombstone, "
        "and only then remove these entries. Keep the folder: without it they are gone."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
        parser.add_argument("--before", type=moment, required=True, help="such as 2026-01-01")
        parser.add_argument("--by", required=True, help="the user name of the CTO or a superuser who decided it")
        parser.add_argument("--because", required=True, help="why; it goes into the audit log")

    def handle(self, *args: Any, **options: Any) -> None:
        by = User.objects.filter(username=options["by"]).first()
        if by is None:
            raise CommandError(f"Nobody is called {options['by']!r}.")
        try:
            manifest = archiving.archive(
                options["folder"],
                before=options["before"],
                by=by,
                because=options["because"],
                at=now(),
                pinned=settings.AUDIT_PUBLIC_KEY,
            )
        except (archiving.CannotArchive, bundling.CannotExport, statements.StatementsUnusable) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(
            f"Entries {manifest['first']} to {manifest['last']} are in {options['folder']} and no longer in the log."
        )
