"""manage.py verify_audit: is the audit log what was written?"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from approvals import audit


class Command(BaseCommand):
    help = (
        "Re-hash every entry of the audit log, follow every link and compare the end with the head row. "
        "Exit code 1 when anything is not as it was written."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *args: Any, **options: Any) -> None:
        started = time.monotonic()
        checked = audit.verify()
        seconds = time.monotonic() - started
        if options["json"]:
            bad = {"sequence": checked.fault.sequence, "what": checked.fault.what} if checked.fault else None
            report = {
                "ok": checked.fault is None,
                "entries": checked.count,
                "head": {"sequence": checked.sequence, "hash": checked.hash},
                "first_bad_entry": bad,
                "seconds": round(seconds, 3),
            }
            self.stdout.write(json.dumps(report))
        elif checked.fault:
            self.stdout.write(f"{checked.count} entries are as written. Then entry {checked.fault.sequence} is wrong:")
            self.stdout.write(checked.fault.what)
            self.stdout.write("Everything from there on is without proof. Compare with a backup from before.")
        else:
            self.stdout.write(f"All {checked.count} entries are as written ({seconds:.1f} s). Head {checked.hash}")
        if checked.fault:
            sys.exit(1)
