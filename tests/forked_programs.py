"""RuneRogue's programs as `make run` starts them, forked from one process that has imported everything once.

On two cores three starts of Python and Django take longer than most stories about them. Run as
`python -m tests.forked_programs NAME…`; it starts again what ends, and ends them all when its standard input ends.
"""

from __future__ import annotations

import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from runerogue.stack import foreground, supervisor
from runerogue.stack.home import PROJECT, Home, current


class ForkedPrograms:
    """The programs `names` of `home`, whose logs are where they always are."""

    def __init__(self, home: Home, names: Sequence[str], environment: Mapping[str, str]) -> None:
        with (home.logs / "programs.log").open("ab") as log:
            self.parent = subprocess.Popen(
                [sys.executable, "-m", "tests.forked_programs", *names],
                cwd=PROJECT,
                env={**environment, "RUNEROGUE_HOME": str(home.folder), "DJANGO_SETTINGS_MODULE": "runerogue.settings"},
                stdin=subprocess.PIPE,
                stderr=log,
            )
        self.log = home.logs / "programs.log"

    def ended(self) -> list[str]:
        """What ended and was started again, in order: `collector: exit code 1`."""
        return [line for line in self.log.read_text().splitlines() if ": exit code " in line]

    def stop(self) -> None:
        self.parent.communicate()


def _become(command: Sequence[str], log: str) -> None:
    """What `python -m MODULE …` would be, in this process."""
    supervisor.end_with_parent()
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(written, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _, dash_m, module, *arguments = command
    assert dash_m == "-m", command
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        os._exit(1)


def main() -> None:
    home = current()
    import_module("runerogue.wsgi")
    for module in (
        "runerogue.urls",
        "runerogue.celery",
        "celery.bin.worker",
        "celery.bin.beat",
        "gunicorn.app.wsgiapp",
    ):
        import_module(module)
    import_module("runerogue.celery").app.loader.import_default_modules()
    commands = {program.name: program.command for program in foreground.product_programs(home)}
    names: dict[int, str] = {}

    def start(name: str) -> None:
        pid = os.fork()
        if pid == 0:
            _become(commands[name], str(home.logs / f"{name}.log"))
        names[pid] = name

    for name in sys.argv[1:]:
        start(name)
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            sys.stderr.write(f"{names[pid]}: exit code {os.waitstatus_to_exitcode(status)}\n")
            sys.stderr.flush()
            start(names.pop(pid))  # as supervisord does
    for pid in names:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
