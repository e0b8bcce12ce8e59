"""manage.py rotate_audit_key: sign the audit log's checkpoints with a new key."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils.timezone import now

from approvals import checkpoints, statements


class Command(BaseCommand):
    help = "Make a new key for checkpoints. The old one introduces it in a signed statement, and is then forgotten."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--because", required=True, help="why; it goes into the audit log")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            key_id = checkpoints.rotate(now(), actor=None, because=options["because"])
        except statements.StatementsUnusable as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"Checkpoints are signed with key {key_id} from now on.")
