"""`run`, `stop` and `status`: bring the whole stack up, watch over it, take it down."""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import xmlrpc.client
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from runerogue.stack import haproxy, lock, ports, postgres, processes, supervisor, valkey
from runerogue.stack.errors import StackError
from runerogue.stack.home import (
    ADMIN_PASSWORD,
    DEFAULT_PORT,
    PROJECT,
    SERVICE_SLOTS,
    SIGNER_KEY,
    SIGNER_PASSWORD,
    Home,
)
from runerogue.stack.supervisor import Program

# A unix socket's path may have 107 bytes on Linux and 103 on macOS; HAProxy first binds a longer, temporary name.
LONGEST_SOCKET = len("/run/haproxy.sock.1234567.tmp")
LONGEST_PATH = 103
LEAST_FREE_BYTES = 300 * 1024 * 1024

ENGINES = ("haproxy", "valkey", "postgres")  # in the order in which they stop, after everything else

DEMO_PACE: Mapping[str, str] = {
    "METRICS_COLLECTION_INTERVAL": "5",
    "TICK_SECONDS": "1",
    "ROLLOUT_STEP_SECONDS": "10",
    "ROLLOUT_STEP_REQUESTS": "30",
    "BAKE_SECONDS": "10",
    "WATCH_SECONDS": "20",
    "ANALYSIS_INTERVAL": "20",
    "SELF_BUILD_APPROVAL_REQUIRED": "medium",
}


class Stopped(BaseException):
    """A signal asked this process to end. Not an Exception: nothing but `run` may catch it."""


def say(text: str) -> None:
    print(f"· {text}", flush=True)


@dataclass(frozen=True)
class Stack:
    """One stack as it was decided on at its start."""

    home: Home
    host: str
    port: int
    environment: Mapping[str, str]
    engines: tuple[Program, ...]
    programs: tuple[Program, ...]
    # Names and tests of what must answer before the product's own processes may start.
    ready: Mapping[str, Callable[[Home], bool]]

    @property
    def address(self) -> str:
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104 (told, not bound)
        return f"http://{f'[{shown}]' if ':' in shown and '[' not in shown else shown}:{self.port}"


# -- run -------------------------------------------------------------------------------------------------------------


def run(home: Home, *, demo: bool = False, quick: bool = False) -> int:
    """Start everything, stay until a signal comes, stop everything. The exit code; StackError says why it can't."""
    _check_path(home)
    home.create()
    _check_space(home)
    try:
        with lock.hold(home.lock) as held:
            held.tell(lock.Holder(os.getpid()))
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, _stop_requested)
            return _run(home, held, demo=demo, quick=quick or demo)
    except lock.LockHeldError:
        holder = lock.holder_of(home.lock)
        where = f" at {holder.address}" if holder and holder.address else " (still starting)"
        who = f" (pid {holder.pid})" if holder and holder.pid else ""
        print(f"RuneRogue is already running{where}{who}. Nothing was done. `make stop` stops it.", flush=True)
        return 0


def _run(home: Home, held: lock.Lock, *, demo: bool, quick: bool) -> int:
    daemon: subprocess.Popen[bytes] | None = None
    try:
        if processes.of_home(home):
            say("Stopping what a former run left behind")
            processes.stop_all(home)
        home.ensure_secrets()
        stack = _decide(home, demo=demo, quick=quick)
        held.tell(lock.Holder(os.getpid(), stack.address))
        daemon = _launch(stack)
        _prepare_product(stack, demo=demo)
        _start_programs(stack, daemon)
        _tell(stack, demo=demo)
        while True:
            daemon = _watch(stack, daemon)
            time.sleep(1)
    except Stopped:
        print(flush=True)
        say("Stopping")
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StackError(_full(home)) from error
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _take_down(home, daemon)
        say("Stopped")


def _stop_requested(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped


def _check_path(home: Home) -> None:
    length = len(os.fsencode(home.folder)) + LONGEST_SOCKET
    if length > LONGEST_PATH:
        raise StackError(
            f"The path {home.folder} is too long by {length - LONGEST_PATH} characters: the operating system allows "
            f"{LONGEST_PATH} for a unix socket below it. Set RUNEROGUE_HOME to a shorter path, such as ~/runerogue."
        )


def _check_space(home: Home) -> None:
    if shutil.disk_usage(home.folder).free < LEAST_FREE_BYTES:
        raise StackError(_full(home))


def _full(home: Home) -> str:
    free = shutil.disk_usage(home.folder).free // 2**20
    return (
        f"The disk that holds {home.folder} is full ({free} MB free, {LEAST_FREE_BYTES // 2**20} MB needed). "
        "Free some space, or set RUNEROGUE_HOME to a folder on another disk."
    )


def _decide(home: Home, *, demo: bool, quick: bool) -> Stack:
    """Which engines are ours, which ports, which programs; writes their configuration. Starts nothing."""
    given = {name: os.environ.get(name, "").strip() for name in ("DATABASE_URL", "REDIS_URL", "HAPROXY_SOCKET")}
    host = os.environ.get("RUNEROGUE_HOST", "").strip() or "127.0.0.1"
    port, slots = _choose_ports(home, host)
    engines: list[Program] = []
    ready: dict[str, Callable[[Home], bool]] = {}
    if given["DATABASE_URL"]:
        say("Using the PostgreSQL of DATABASE_URL")
    else:
        postgres.prepare(home, say)
        engines.append(postgres.program(home))
        ready["postgres"] = postgres.is_ready
    if given["REDIS_URL"]:
        say("Using the Redis of REDIS_URL")
    else:
        valkey.prepare(home)
        engines.append(valkey.program(home))
        ready["valkey"] = valkey.is_ready
    if given["HAPROXY_SOCKET"]:
        say("Using the HAProxy of HAPROXY_SOCKET")
    elif executable := haproxy.binary():
        haproxy.prepare(home, slots)
        engines.append(haproxy.program(home, executable))
        ready["haproxy"] = haproxy.is_ready
    else:
        say(haproxy.absence())
    pace = {name: value for name, value in DEMO_PACE.items() if quick and not os.environ.get(name)}
    home.tell_running_settings(pace)
    environment = {
        **os.environ,
        **pace,
        "RUNEROGUE_HOME": str(home.folder),
        "RUNEROGUE_HOST": host,
        "RUNEROGUE_PORT": str(port),
        "DJANGO_SETTINGS_MODULE": "runerogue.settings",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }
    programs = product_programs(home, demo=demo)
    home.supervisor_config.write_text(supervisor.configuration(home, [*engines, *programs]))
    shutil.rmtree(home.metrics, ignore_errors=True)
    home.metrics.mkdir()
    return Stack(home, host, port, environment, tuple(engines), tuple(programs), ready)


def _choose_ports(home: Home, host: str) -> tuple[int, tuple[int, ...]]:
    named = os.environ.get("RUNEROGUE_PORT", "").strip()
    if named:
        if not named.isdecimal() or not 0 < int(named) < 65536:
            raise StackError(f"RUNEROGUE_PORT={named!r} is not a port. Give a number from 1 to 65535, such as 8000.")
        port = ports.demand(host, int(named))
    else:
        wanted = home.port()
        port = ports.next_free(host, wanted)
        if port != wanted:
            say(f"Port {wanted} is in use by {ports.holder(wanted)}; taking {port} (RUNEROGUE_PORT chooses another)")
    slots: list[int] = []
    remembered = home.service_ports()
    for slot in range(SERVICE_SLOTS):
        start = remembered[slot] if slot < len(remembered) else max(port, DEFAULT_PORT) + 100 + slot
        slots.append(ports.next_free("127.0.0.1", start, taken=[port, *slots, *remembered[slot + 1 :]]))
    home.remember_ports(http=home.port() if named else port, services=tuple(slots))
    return port, tuple(slots)


def product_programs(home: Home, *, demo: bool = False) -> list[Program]:
    """RuneRogue's own processes: the same commands that docs/operations.md gives for systemd and Kubernetes."""
    python = sys.executable
    celery = [python, "-m", "celery", "-A", "runerogue.celery:app"]
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(home.metrics)}

    def queue(name: str, queues: str, threads: int) -> list[str]:
        pool = ["--pool", "threads", "-c", str(threads)]
        return [*celery, "worker", "-Q", queues, *pool, "-n", f"{name}@%h", "-l", "INFO"]

    commands: dict[str, Sequence[str]] = {
        "web": [python, "-m", "gunicorn", "-c", str(PROJECT / "runerogue/stack/gunicorn_conf.py"), "runerogue.wsgi"],
        # Rollouts have workers of their own: a rollback must not stand behind somebody's test suite.
        "worker": queue("worker", "rollout", 4),
        "prover": queue("prover", "analysis,celery", 3),
        "collector": queue("collector", "collect", 4),
        "beat": [*celery, "beat", "--pidfile=", "-l", "WARNING"],
        "proxylog": [python, "manage.py", "proxylog"],
    }
    if demo:
        commands["demo"] = [python, "manage.py", "demo", "--serve"]
    return [Program(name, command, folder=PROJECT, environment=environment) for name, command in commands.items()]


def _launch(stack: Stack) -> subprocess.Popen[bytes]:
    """Start supervisord with the engines and wait until they answer."""
    say("Starting " + ", ".join(program.name for program in stack.engines) if stack.engines else "Starting")
    daemon = supervisor.start(stack.home, stack.environment)
    _await("supervisord", lambda: supervisor.answers(stack.home.supervisor_socket), stack, daemon, seconds=20)
    for name, test in stack.ready.items():
        _await(name, lambda test=test: test(stack.home), stack, daemon, seconds=60)  # type: ignore[misc]
    if "postgres" in stack.ready:
        postgres.ensure_roles(stack.home)
    return daemon


def _prepare_product(stack: Stack, *, demo: bool) -> None:
    say("Preparing the database and the static files")
    command = [sys.executable, "-m", "runerogue.stack.prepare", *(["--demo"] if demo else [])]
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        env={**stack.environment, supervisor.MARK: str(stack.home.folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as work:
        try:
            output, _ = work.communicate()
        except BaseException:
            work.kill()
            raise
    (stack.home.logs / "prepare.log").write_text(output)
    if work.returncode != 0:
        shown = "\n".join(output.strip().splitlines()[-15:])
        raise StackError(f"The database or the static files could not be prepared:\n{shown}")
    for line in output.splitlines():
        say(line)


def _start_programs(stack: Stack, daemon: subprocess.Popen[bytes]) -> None:
    """Start the page first, alone: on a small machine it answers seconds sooner that way. Then the others."""
    say("Starting " + ", ".join(program.name for program in stack.programs))
    for program in stack.programs:
        try:
            with supervisor.client(stack.home.supervisor_socket) as control:
                control.startProcess(program.name, False)
        except xmlrpc.client.Fault as fault:
            if "ALREADY_STARTED" not in fault.faultString:
                raise StackError(f"{program.name} could not be started: {fault.faultString}") from fault
        if program.name == "web":
            _await("web", lambda: _page_answers(stack.address), stack, daemon, seconds=120)


def _page_answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health/live", timeout=5):  # noqa: S310 (our own address)
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, http.client.HTTPException):
        return False


def _await(
    name: str, test: Callable[[], bool], stack: Stack, daemon: subprocess.Popen[bytes], *, seconds: float
) -> None:
    """Wait until `test` is true. StackError with the end of the log when it never is."""
    deadline = time.monotonic() + seconds
    while not test():
        failed = any(p["name"] == name and p["statename"] == "FATAL" for p in supervisor.processes(stack.home))
        if failed or daemon.poll() is not None or time.monotonic() > deadline:
            log = stack.home.logs / ("supervisord.log" if name == "supervisord" else f"{name}.log")
            end = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else "(no log)"
            if "No space left on device" in end:
                raise StackError(_full(stack.home))
            raise StackError(f"{name} did not start. The end of {log}:\n{end}")
        time.sleep(0.05)


def _tell(stack: Stack, *, demo: bool) -> None:
    password = stack.home.secret(ADMIN_PASSWORD)
    rows = [("Open", f"{stack.address}/")]
    if password:
        rows += [("User", "admin"), ("Password", f"{password}   (shown this once; change it after signing in)")]
    else:
        rows += [("Sign in", "as before (`python manage.py changepassword admin` if it was forgotten)")]
    if demo:
        signer = stack.home.secret(SIGNER_PASSWORD)
        shown = f"bob, password {signer}   (shown this once)" if signer else "bob, as before"
        rows += [
            ("Demo", "Realm and its load are starting; the first improvement asks for a signature within minutes"),
            ("Sign as", f"{shown}, under Approval requests"),
        ]
        if key := stack.home.secret(SIGNER_KEY):
            rows += [("", f"with codes of an authenticator app that has the key {key}   (shown this once)")]
    rows += [("Logs", str(stack.home.logs)), ("Stop", "Ctrl-C here, or `make stop` anywhere")]
    width = max(len(text) for _, text in rows) + 12
    lines = ["", "─" * width, " RuneRogue is ready", ""]
    lines += [f" {name:<9}{text}" for name, text in rows]
    lines += ["─" * width, ""]
    print("\n".join(lines), flush=True)
    for shown_once in (ADMIN_PASSWORD, *([SIGNER_PASSWORD, SIGNER_KEY] if demo else [])):
        if stack.home.secret(shown_once):
            stack.home.set_secret(shown_once, None)


# -- watch -----------------------------------------------------------------------------------------------------------


def _watch(stack: Stack, daemon: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """One look: supervisord itself, and the programs it has given up on. The supervisord that is running after it."""
    if daemon.poll() is not None:
        say(f"supervisord ended unexpectedly (exit code {daemon.returncode}); starting everything again")
        # Its children live on without it, and a new one would start each of them a second time.
        processes.stop_all(stack.home, patience_seconds=5)
        daemon = _launch(stack)
        _start_programs(stack, daemon)
        say("Everything is running again")
    ours = {program.name for program in (*stack.engines, *stack.programs)}
    for process in supervisor.processes(stack.home):
        if process["statename"] == "FATAL" and process["name"] in ours:
            say(f"{process['name']} keeps ending; trying again. See {process['stdout_logfile']}")
            try:
                with supervisor.client(stack.home.supervisor_socket) as control:
                    control.startProcess(process["name"], False)
            except (OSError, xmlrpc.client.Error):
                continue
    return daemon


# -- stop ------------------------------------------------------------------------------------------------------------


def _take_down(home: Home, daemon: subprocess.Popen[bytes] | None) -> None:
    """Stop everything: what uses the engines first, all at once; then the engines; then whatever is left."""
    if daemon is not None and daemon.poll() is None:
        running = {p["group"] for p in supervisor.processes(home)}
        _stop_groups(home, running - set(ENGINES), seconds=20)
        for engine in ENGINES:
            _stop_groups(home, running & {engine}, seconds=70)
        daemon.terminate()
        try:
            daemon.wait(timeout=30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    processes.stop_all(home)
    pid_file, settings_file = home.run / "supervisord.pid", home.running_settings_file
    for leftover in (*home.run.glob("*.sock*"), pid_file, settings_file, home.postgres_socket):
        leftover.unlink(missing_ok=True)


def _stop_groups(home: Home, groups: set[str], *, seconds: float) -> None:
    try:
        with supervisor.client(home.supervisor_socket) as control:
            for group in groups:
                control.stopProcessGroup(group, False)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                states = {p["statename"] for p in control.getAllProcessInfo() if p["group"] in groups}
                if states <= {"STOPPED", "EXITED", "FATAL"}:
                    return
                time.sleep(0.05)
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return  # supervisord is gone or going: what is left is stopped by its pid


def stop(home: Home) -> int:
    """Stop the stack of this home and wait until it is gone. Doing it again does nothing."""
    holder = lock.holder_of(home.lock)
    if holder is None:
        if home.folder.exists() and (found := processes.stop_all(home)):
            say(f"Stopped {found} processes that a former run left behind")
        else:
            say("RuneRogue is not running")
        return 0
    say(f"Stopping RuneRogue (pid {holder.pid})")
    deadline = time.monotonic() + 120
    asked = 0
    while (holder := lock.holder_of(home.lock)) is not None:
        if holder.pid and holder.pid != asked:
            asked = holder.pid
            try:
                os.kill(holder.pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
            except PermissionError as error:
                raise StackError(
                    f"RuneRogue was started by another user (pid {holder.pid}). Stop it as that user, or as root."
                ) from error
        if time.monotonic() > deadline:
            raise StackError(f"RuneRogue (pid {asked}) did not stop within two minutes. See {home.logs}.")
        time.sleep(0.1)
    say("Stopped")
    return 0


def status(home: Home) -> int:
    """Print what runs. 0 when the stack runs, 3 when it does not (as LSB scripts have it)."""
    holder = lock.holder_of(home.lock)
    if holder is None:
        print(f"RuneRogue is not running ({home.folder})")
        return 3
    print(f"RuneRogue runs at {holder.address or '(still starting)'} (pid {holder.pid}, home {home.folder})")
    for process in supervisor.processes(home):
        print(f"  {process['name']:<30} {process['statename']:<10}{process['description']}")
    return 0
