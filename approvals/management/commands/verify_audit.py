"""manage.py verify_audit: is the audit log what was written?"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from approvals import statements, verifying


class Command(BaseCommand):
    help = (
        "Re-hash every entry of the audit log, follow every link, and compare with every signed checkpoint and with "
        "the head row. Exit code 0: all is as it was written; 1: something is not, and what; 2: the checkpoints "
        "can't be read, so that nothing is proved."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        started = time.monotonic()
        try:
            found = verifying.verify()
        except statements.StatementsUnusable as error:
            self.stderr.write(str(error))
            sys.exit(2)
        seconds = time.monotonic() - started
        if options["json"]:
            self.stdout.write(json.dumps({**found.as_json(), "seconds": round(seconds, 3)}))
        elif found.fault:
            self.stdout.write(f"{found.count} entries are as written. Then entry {found.fault.sequence} is wrong:")
            self.stdout.write(found.fault.what)
            self.stdout.write("Everything from there on is without proof. Compare with a backup from before.")
        else:
            self.stdout.write(f"All {found.count} entries are as written ({seconds:.1f} s). Head {found.hash}")
            self.stdout.write(found.covered_in_words())
        if found.fault:
            sys.exit(1)
