"""Record the traffic that the proxy logs, until stopped. Started by the stack; there is one per proxy."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from improvements.proxylog import Recorder


class Command(BaseCommand):
    help = "Record each request's release, status and time from the proxy's log (a unix socket that it connects to)."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--socket", type=Path, default=Path(settings.RUNEROGUE_HOME) / "run" / "proxylog.sock")

    def handle(self, *args: Any, **options: Any) -> None:
        recorder = Recorder(options["socket"])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: recorder.stop())
        recorder.run()
