"""The launcher that puts a service's own command in its cage: `python -I sandboxed.py --spec-fd N [--status-fd M]`.

A program of its own, so that whoever starts it needs no `preexec_fn` (which is unsafe in a threaded worker), and so
that it outlives its caller by just long enough to clear up. Standard library only: it runs before any environment is
trusted.

    caller -> launcher -> bubblewrap -> command                 where bubblewrap works
    caller -> launcher -> second launcher -> command            elsewhere: each of the two survives the other and ends
    the tree

The launcher is told of its caller's death by the kernel (PR_SET_PDEATHSIG), and every orphan of the command is handed
to it (PR_SET_CHILD_SUBREAPER), so no double fork and no new session escapes it.
"""

# os.path rather than pathlib: descriptors, link texts and literal paths, in a child that must do little.
# ruff: noqa: PTH111, PTH112, PTH114, PTH115, PTH116, PTH117, PTH118, PTH119, PTH120, PTH123, PTH208, SIM105, S108, S606

from __future__ import annotations

import ctypes
import json
import os
import pwd
import resource
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
PR_CAPBSET_DROP, PR_SET_SECUREBITS = 24, 28
# User 0 is nobody special, for good: SECBIT_NOROOT, _NO_SETUID_FIXUP and _NO_CAP_AMBIENT_RAISE, and all four locked.
ROOT_IS_NOBODY = 0b11101111
EXIT_CANNOT_START = 127
EXIT_TIMED_OUT = 124
EXIT_TOO_MANY_PROCESSES = 125
# What a program of this machine's distribution needs of /etc to start, resolve users and speak TLS; nothing with
# secrets.
ETC = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "passwd", "group", "nsswitch.conf", "localtime", "timezone",
    "mime.types", "hosts", "ssl/certs", "ssl/openssl.cnf", "ca-certificates", "alternatives", "pki/tls",
)  # fmt: skip
ETC_NETWORK = ("resolv.conf", "host.conf", "gai.conf", "services", "protocols")


class CannotStart(Exception):
    """The command can't be started; the message names what is missing."""


def prctl(option: int, value: int) -> None:
    """Set one process attribute; silently nothing where the kernel has no prctl (macOS)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """Every living process below `root`, from /proc (an empty list where there is none)."""
    children: dict[int, list[int]] = {}
    try:
        entries = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return []
    for entry in entries:
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as source:
                state, parent = source.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            children.setdefault(int(parent), []).append(int(entry))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def signal_quietly(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_tree(first: int) -> None:
    """Kill every descendant and reap it; loops because a dying tree may still be forking."""
    for _ in range(2000):
        living = descendants(os.getpid())
        for pid in living or [first]:
            signal_quietly(pid, signal.SIGKILL)
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                return
        time.sleep(0.002)


def _nothing(number: int, frame: object) -> None:
    """A handler that only wakes the supervisor up."""


class Supervisor:
    """Wait for one child; stop it and everything below it on time-out, on a signal, or when there are too many
    processes.
    """

    def __init__(self) -> None:
        self.stop_asked = False
        self.read_end, self.write_end = os.pipe()
        for end in (self.read_end, self.write_end):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.write_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask_to_stop)
        signal.signal(signal.SIGCHLD, _nothing)

    def _ask_to_stop(self, number: int, frame: object) -> None:
        self.stop_asked = True

    def in_child(self) -> None:
        """Undo the supervisor's own arrangements in a freshly forked child."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.close(self.read_end)
        os.close(self.write_end)

    def wait(
        self, child: int, *, timeout_seconds: float | None, grace_seconds: float, processes: int | None
    ) -> tuple[int, str]:
        """Return (exit code, how it ended: exited | stopped | timeout | processes); afterwards no descendant is
        left.
        """
        started = time.monotonic()
        kill_at: float | None = None
        ended = "exited"
        code = 0
        while True:
            now = time.monotonic()
            reaped = self._reap(child)
            if reaped is not None:
                code = reaped
                break
            if self.stop_asked and kill_at is None:
                ended, kill_at = "stopped", now + grace_seconds
                if grace_seconds > 0:
                    signal_quietly(leader(child), signal.SIGTERM)
            if timeout_seconds is not None and now - started >= timeout_seconds:
                ended, code = "timeout", EXIT_TIMED_OUT
                break
            if kill_at is not None and now >= kill_at:
                code = 128 + signal.SIGKILL
                break
            if processes is not None and len(descendants(os.getpid())) > processes:
                ended, code = "processes", EXIT_TOO_MANY_PROCESSES
                break
            wake_at = [now + 0.5]
            if timeout_seconds is not None:
                wake_at.append(started + timeout_seconds)
            if kill_at is not None:
                wake_at.append(kill_at)
            self._sleep(max(0.0, min(wake_at) - now))
        kill_tree(child)
        return code, ended

    def _sleep(self, seconds: float) -> None:
        select.select([self.read_end], [], [], seconds)
        try:
            while os.read(self.read_end, 512):
                pass
        except BlockingIOError:
            pass

    @staticmethod
    def _reap(child: int) -> int | None:
        """Reap whatever has died; the exit code of `child` if it is among them."""
        code = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0 if code is None else code
            if pid == 0:
                return code
            if pid == child:
                plain = os.waitstatus_to_exitcode(status)
                code = plain if plain >= 0 else 128 - plain


def leader(child: int) -> int:
    """The process that should get a polite SIGTERM: inside bubblewrap that is the command, not its two wrappers."""
    current = child
    for _ in range(2):
        try:
            name = Path(f"/proc/{current}/comm").read_text(encoding="utf-8").strip()
        except OSError:
            return current
        below = [pid for pid in descendants(current) if parent_of(pid) == current]
        if name != "bwrap" or not below:
            return current
        current = min(below)
    return current


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def prefixes() -> list[str]:
    """The folders this interpreter lives in, as named and as they really are: the virtual environment and its base."""
    named = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]
    link = sys.executable
    while os.path.islink(link):  # a chain of links may pass through folders that are neither prefix
        link = os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)))
        named.append(os.path.dirname(os.path.dirname(link)))
    return unique(named + [os.path.realpath(path) for path in named])


def environment_base(folder: str) -> list[str]:
    """The base interpreter of a virtual environment in `folder`/.venv, or nothing.

    The command itself may have written that file, so nothing but an interpreter's own folder is believed.
    """
    try:
        lines = Path(folder, ".venv", "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    homes = [line.partition("=")[2].strip() for line in lines if line.partition("=")[0].strip() == "home"]
    found = [os.path.dirname(home) for home in homes if os.path.isabs(home) and is_interpreter(home, folder)]
    return unique(found + [os.path.realpath(path) for path in found])


def is_interpreter(programs: str, folder: str) -> bool:
    """Whether `programs` is the bin/ of an installed Python, and what lies beside it is that Python and no more."""
    real = os.path.realpath(programs)
    base = os.path.dirname(real)
    if os.path.basename(real) != "bin" or not os.access(os.path.join(real, "python3"), os.X_OK):
        return False
    # Every Python comes with its library; a home folder with a link called bin/python3 does not.
    if base != os.path.realpath(os.path.dirname(programs)) or not any(Path(base).glob("lib*/py*3*/os.py")):
        return False
    inside = os.path.realpath(folder)
    private = [inside, os.path.realpath(os.path.expanduser("~"))]
    return not any(f"{path}/".startswith(f"{base}/") for path in private) and not f"{base}/".startswith(f"{inside}/")


def unique(paths: list[str]) -> list[str]:
    return list(dict.fromkeys(path for path in paths if path and path != "/"))


def apply_limits(limits: dict[str, int | None], uid: int) -> None:
    """Set the resource limits, never above what the caller itself may have."""
    table = {
        resource.RLIMIT_AS: limits.get("memory_bytes"),
        resource.RLIMIT_CPU: limits.get("cpu_seconds"),
        resource.RLIMIT_FSIZE: limits.get("file_bytes"),
        resource.RLIMIT_NOFILE: limits.get("open_files"),
        resource.RLIMIT_CORE: 0,
    }
    processes = limits.get("processes")
    if processes is not None:
        # The kernel counts all of the user's processes and threads, not only ours. (For root it counts none: there the
        # supervisor's own count is the limit.)
        table[resource.RLIMIT_NPROC] = processes * 4 + tasks_of(uid)
    for number, wanted in table.items():
        if wanted is None:
            continue
        hard = resource.getrlimit(number)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(number, (value, value))
        except (ValueError, OSError):
            if sys.platform == "linux":
                raise


def tasks_of(uid: int) -> int:
    """How many threads of this user live on the machine now."""
    total = 0
    try:
        entries = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return 1024
    for entry in entries:
        try:
            if os.stat(f"/proc/{entry}").st_uid == uid:
                total += len(os.listdir(f"/proc/{entry}/task"))
        except OSError:
            continue
    return total


def bubblewrap_arguments(binary: str, spec: dict[str, Any]) -> list[str]:
    """The cage: nothing of the machine but programs, the interpreter and the named folders; no network unless asked
    for.
    """
    arguments = [
        binary, "--die-with-parent", "--new-session", "--unshare-user-try", "--unshare-ipc", "--unshare-pid",
        "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox", "--cap-drop", "ALL",
        "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--dir", "/tmp/home", "--tmpfs", "/run",
        "--ro-bind", "/usr", "/usr",
    ]  # fmt: skip
    if not spec["network"]:
        arguments.append("--unshare-net")
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
        if os.path.islink(name):
            arguments += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            arguments += ["--ro-bind", name, name]
    for name in ETC + (ETC_NETWORK if spec["network"] else ()):
        arguments += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    already = ("/usr/", "/bin/", "/lib/", "/lib64/")
    wanted = dict.fromkeys(prefixes() + environment_base(spec["cwd"]) + unique(spec["readable"]), "--ro-bind")
    wanted |= dict.fromkeys(unique([*spec["writable"], spec["cwd"]]), "--bind")
    # Outer folders first: a later bind on an outer folder would hide an earlier one below it.
    for path, how in sorted(wanted.items(), key=lambda item: item[0].count("/")):
        if how == "--bind" or not f"{path}/".startswith(already):
            arguments += [how, path, path]
    return [*arguments, "--chdir", spec["cwd"], "--", *spec["argv"]]


def why_not_bubblewrap(binary: str | None) -> str:
    """Empty where bubblewrap can make its namespaces here, else the reason it can't."""
    if not binary:
        return "bubblewrap is not installed"
    probe = [
        binary,
        "--unshare-user-try",
        "--unshare-pid",
        "--unshare-net",
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "true",
    ]
    try:
        done = subprocess.run(
            probe, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"bubblewrap does not work here ({error})"
    if done.returncode == 0:
        return ""
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return f"bubblewrap does not work here ({' '.join(last) or f'exit code {done.returncode}'})"


def other_user(name: str | None) -> pwd.struct_passwd | None:
    """The user to become, or None when we aren't root or there is no such user."""
    if not name or os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


@dataclass(frozen=True)
class Identity:
    """Whom the command runs as: another user, or who we are with or without root's powers."""

    user: pwd.struct_passwd | None
    groups: tuple[int, ...] = ()
    powerless: bool = False

    def become(self) -> None:
        if self.user:
            os.setgroups(self.groups)
            os.setgid(self.user.pw_gid)
            os.setuid(self.user.pw_uid)
        elif self.powerless:
            drop_capabilities()


def drop_capabilities() -> None:
    """User 0 keeps the files it owns and nothing else of root, also after it starts another program."""
    prctl(PR_SET_SECUREBITS, ROOT_IS_NOBODY)
    for number in range(64):
        prctl(PR_CAPBSET_DROP, number)
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    if libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "the capabilities could not be dropped")


def socket_groups(spec: dict[str, Any]) -> tuple[int, ...]:
    """The groups that another user needs for the folders of sockets that its environment names."""
    states = [os.stat(path) for path in spec["readable"]]
    return tuple({one.st_gid for one in states if one.st_mode & stat.S_IXGRP and not one.st_mode & stat.S_IXOTH})


def unreachable(identity: Identity, needs: list[tuple[str, int]]) -> str:
    """The first path that `identity` can't use, asked as such in a child; empty when all are fine."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = "its own identity"
            identity.become()
            answer = next((path for path, mode in needs if not os.access(path, mode)), "")
        finally:
            os.write(write_end, answer.encode(errors="replace")[:4000])
            os._exit(0)
    os.close(write_end)
    answer = os.read(read_end, 4096).decode(errors="replace")
    os.close(read_end)
    os.waitpid(child, 0)
    return answer


def give(folder: str, user: pwd.struct_passwd, *, of: int) -> None:
    """Make what `of` owns in `folder` the property of `user`, following no link.

    Files with a second name stay as they are: that name may be outside (a package installer's cache, /etc/shadow).
    """
    for _, _, files, descriptor in os.fwalk(folder, follow_symlinks=False):
        if os.fstat(descriptor).st_uid == of:
            os.fchown(descriptor, user.pw_uid, user.pw_gid)
        for name in files:
            try:
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=descriptor)
            except OSError:
                continue  # a link, a socket, or gone
            try:
                state = os.fstat(file)
                if stat.S_ISREG(state.st_mode) and state.st_nlink == 1 and state.st_uid == of:
                    os.fchown(file, user.pw_uid, user.pw_gid)
            finally:
                os.close(file)


def choose_identity(spec: dict[str, Any], program: str) -> tuple[Identity, str]:
    """As whom to run without bubblewrap, as harmless as this machine lets it be; and why it is not another user.

    Root gives the folders that may be written to that user, and takes them back where it must run as itself.
    """
    ours = list(dict.fromkeys([*spec["writable"], spec["cwd"]]))
    if os.geteuid() != 0:
        return Identity(None), ""
    known = [(path, os.X_OK) for path in spec["readable"]]
    known += [(path, os.R_OK | os.X_OK) for path in prefixes()]
    known += [(os.path.dirname(path), os.X_OK) for path in ours]
    full = [(path, os.R_OK | os.W_OK | os.X_OK) for path in ours] + [(program, os.X_OK)]
    user, why = other_user(spec["user"]), ""
    if user:
        identity = Identity(user, socket_groups(spec))
        why = unreachable(identity, known)
        if not why:
            for folder in ours:
                give(folder, user, of=0)
            why = unreachable(identity, full)
            if not why:
                return identity, ""
        why = f"user {user.pw_name} can't use {why}"
    take_back(spec)
    powerless = Identity(None, powerless=sys.platform == "linux")
    return (Identity(None) if unreachable(powerless, known + full) else powerless), why


def take_back(spec: dict[str, Any]) -> None:
    """What was given to the other user is root's again: without its powers root could not write there."""
    user = other_user(spec["user"])
    if user is None:
        return
    for folder in dict.fromkeys([*spec["writable"], spec["cwd"]]):
        if os.stat(folder).st_uid == user.pw_uid:
            give(folder, pwd.getpwuid(0), of=user.pw_uid)


def described(identity: Identity, reason: str, why: str, *, installed: bool) -> str:
    """What isolates the command where bubblewrap can't, in words for a person who will rely on it."""
    if identity.user:
        return f"user {identity.user.pw_name}: what everybody may read and the network are open, because {reason}"
    name = "root" if os.geteuid() == 0 else "RuneRogue's own user"
    if os.geteuid() == 0:
        name += " without its capabilities" if identity.powerless else " with all its powers"
    advice = "let bubblewrap make user namespaces" if installed else "install bubblewrap"
    because = f"{reason}, and {why}" if why else reason
    return f"limits only: runs as {name}; files and network are open, because {because}; {advice}"


def find_program(spec: dict[str, Any]) -> str:
    """The absolute path of the program to run."""
    name: str = spec["argv"][0]
    if "/" in name:
        path: str = os.path.normpath(os.path.join(spec["cwd"], name))
        if os.access(path, os.X_OK):
            return path
        raise CannotStart(f"{path} does not exist or is not executable")
    search: str = spec["environment"].get("PATH", os.defpath)
    found = shutil.which(name, path=search)
    if found is None:
        raise CannotStart(f"no program {name!r} on PATH {search}; install it or write its full path in runerogue.toml")
    return found


def close_above_stderr() -> None:
    """Nothing the launcher has open may leak into the command."""
    for entry in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else map(str, range(3, 256)):
        if int(entry) > 2:
            try:
                os.close(int(entry))
            except OSError:
                pass


def execute(argv: list[str], program: str, environment: dict[str, str], cwd: str) -> NoReturn:
    try:
        os.chdir(cwd)
        os.execve(program, argv, environment)
    except OSError as error:
        os.write(2, f"sandbox: can't start {program}: {error.strerror}\n".encode())
    os._exit(EXIT_CANNOT_START)


def start_in_bubblewrap(spec: dict[str, Any], binary: str, supervisor: Supervisor) -> int:
    arguments = bubblewrap_arguments(binary, spec)
    environment = {"HOME": "/tmp/home", "TMPDIR": "/tmp", **spec["environment"]}
    child = os.fork()
    if child == 0:
        supervisor.in_child()
        close_above_stderr()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        apply_limits(spec["limits"], os.getuid())
        execute(arguments, binary, environment, "/")
    return child


def start_with_limits(
    spec: dict[str, Any], program: str, identity: Identity, scratch: str, supervisor: Supervisor
) -> int:
    """Fork a second supervisor and, below it, the command: each supervisor ends the tree if the other is killed."""
    environment = {"HOME": scratch, "TMPDIR": scratch, **spec["environment"]}
    first = os.getpid()
    second = os.fork()
    if second:
        return second
    supervisor.in_child()
    close_above_stderr()
    inner = Supervisor()
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != first:
        os._exit(EXIT_CANNOT_START)
    command = os.fork()
    if command == 0:
        inner.in_child()
        os.setsid()
        apply_limits(spec["limits"], identity.user.pw_uid if identity.user else os.getuid())
        try:
            identity.become()
        except OSError as error:
            os.write(2, f"sandbox: {error.strerror}\n".encode())
            os._exit(EXIT_CANNOT_START)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # last: a change of user clears it
        execute(spec["argv"], program, environment, spec["cwd"])
    code, _ = inner.wait(command, timeout_seconds=None, grace_seconds=spec["grace_seconds"], processes=None)
    if os.getppid() != first:
        shutil.rmtree(scratch, ignore_errors=True)  # the first launcher was killed and can't do it any more
    os._exit(code)


def launch(spec: dict[str, Any], supervisor: Supervisor) -> dict[str, Any]:
    """Run the command of `spec` to its end; returns its exit code, how it ended and what isolated it."""
    program = find_program(spec)
    binary = spec["bubblewrap"]
    reason = why_not_bubblewrap(binary)
    scratch = tempfile.mkdtemp(prefix="sandbox-") if reason else ""
    # Two wrappers of ours or bubblewrap's are below us beside the command's own processes.
    processes = spec["limits"].get("processes")
    try:
        if not reason:
            isolation = "bubblewrap"
            take_back(spec)
            child = start_in_bubblewrap(spec, binary, supervisor)
        else:
            identity, why = choose_identity(spec, program)
            isolation = described(identity, reason, why, installed=bool(binary))
            if identity.user:
                os.chown(scratch, identity.user.pw_uid, identity.user.pw_gid)
            child = start_with_limits(spec, program, identity, scratch, supervisor)
        code, ended = supervisor.wait(
            child,
            timeout_seconds=spec["timeout_seconds"],
            grace_seconds=spec["grace_seconds"],
            processes=None if processes is None else processes + 2,
        )
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
    return {"exit_code": code, "ended": ended, "isolation": isolation}


def main(arguments: list[str]) -> int:
    """Read the specification (JSON) from a file or an inherited descriptor, run it, report on the status descriptor."""
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    if "--spec-fd" in given:
        with os.fdopen(int(given["--spec-fd"]), encoding="utf-8") as source:
            spec = json.load(source)
    else:
        spec = json.loads(Path(given["--spec-file"]).read_text(encoding="utf-8"))
    supervisor = Supervisor()
    if spec["parent"] is not None or "--spec-file" in given:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if spec["parent"] is not None and os.getppid() != spec["parent"]:
        return EXIT_CANNOT_START  # the caller died before we could ask to be told
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        report = launch(spec, supervisor)
    except (CannotStart, OSError, ValueError) as error:
        sys.stderr.write(f"sandbox: {error}\n")
        report = {"exit_code": EXIT_CANNOT_START, "ended": "not started", "isolation": "", "error": str(error)}
    if "--status-fd" in given:
        with os.fdopen(int(given["--status-fd"]), "w", encoding="utf-8") as sink:
            json.dump(report, sink)
    return int(report["exit_code"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
