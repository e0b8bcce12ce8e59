"""`manage.py approve_host HOST[:PORT] --because …`: let RuneRogue reach a host, from the machine's command line."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from monitoring import hosts


class Command(BaseCommand):
    help = "Approve a host that RuneRogue may reach: for its metrics, as a webhook, as a Prometheus."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("host", help="a name or an address, with its port or without one (any port), or a URL")
        parser.add_argument("--because", required=True, help="why; it goes into the audit log")
        parser.add_argument("--purpose", default="", help="what it is asked for")
        parser.add_argument("--private", action="store_true", help="its address may be private, such as 10.0.0.7")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            row = hosts.request(
                options["host"],
                purpose=options["purpose"] or options["because"],
                actor=None,
                because=options["because"],
                allows_private=options["private"],
            )
            for one in [row, *hosts.waiting_within(row)]:
                hosts.approve(one, actor=None, because=options["because"])
        except (ValueError, hosts.NotAllowed) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{row} may be reached" + (", at private addresses too." if row.allows_private else "."))
