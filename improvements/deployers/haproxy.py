"""Releases as processes under supervisord on loopback ports, traffic through HAProxy's runtime API."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import psutil
from django.conf import settings
from django.utils import timezone

from improvements import haproxy
from improvements.deployers import shifting, slots
from improvements.deployers.seam import DeployError, Readiness, ServersDown
from improvements.haproxy import Mode, ProxyError, RuntimeApi, Server
from improvements.models import Release
from improvements.supervision import Process, Program, SupervisionError, Supervisor
from monitoring import sandbox
from monitoring.models import Service
from monitoring.registry import running_environment
from monitoring.repository import GitError, Repository

LOOPBACK = "127.0.0.1"
SETUP_SECONDS = 900
LISTEN_SECONDS = 20
HEALTH_SECONDS = 3
CHECKED_SECONDS = 3
DRAIN_SECONDS = 10
# A server that is down for less than this is no reason to call a rollout off.
HICCUP_SECONDS = 1
PROXY_BACK_SECONDS = 5
PORT_ATTEMPTS = 3
# supervisord waits longer than this before it kills, so the launcher's own order comes first.
GRACE_SECONDS = 10
# A release lives as long as it lives: no limit of time, nor on what its log or its files may grow to.
LIMITS = sandbox.Limits(cpu_seconds=None, file_bytes=None, open_files=65536)


class HaproxyDeployer:
    """The deployer of the embedded stack."""

    def __init__(self) -> None:
        self.home = Path(settings.RUNEROGUE_HOME)
        self.proxy = RuntimeApi(Path(settings.HAPROXY_SOCKET))
        self.supervisor = Supervisor(Path(settings.SUPERVISOR_SOCKET), self.home / "supervisor" / "programs")

    # -- installing --------------------------------------------------------------------------------------------------

    def install(self, release: Release) -> None:
        folder = self._folder(release)
        done = _mark(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _as_deploy_error(f"{release} was not installed"), _turn(folder.with_name(f"{folder.name}.lock")):
            if not done.exists():
                # What is there without the mark was left by a setup that did not finish.
                shutil.rmtree(folder, ignore_errors=True)
                _check_out(release, folder)
                self._set_up(release, folder)
                # A setup may write into files of the commit (a lock file): that is how they have to stay.
                has_setup = release.service.parsed.setup.command is not None
                done.write_text(json.dumps(_altered(release, folder) if has_setup else {}))
        fields = {"folder": str(folder)}
        if release.state == Release.State.WANTED:
            fields["state"] = Release.State.INSTALLED
        Release.objects.filter(pk=release.pk).update(**fields)
        release.refresh_from_db(fields=["folder", "state"])

    def _folder(self, release: Release) -> Path:
        return self.home / "services" / release.service.name / "releases" / release.short

    def intact(self, release: Release) -> str:
        folder = self._folder(release)
        with _as_deploy_error(f"{release} could not be compared with its commit"):
            if not _mark(folder).exists():
                raise DeployError(f"{release} is not installed; install it before it is looked at")
            with _turn(folder.with_name(f"{folder.name}.lock")):
                after_setup = json.loads(_mark(folder).read_text() or "{}")
                now = _altered(release, folder)
        different = sorted(path for path in {*after_setup, *now} if after_setup.get(path) != now.get(path))
        if not different:
            return ""
        more = f" and {len(different) - 5} more" if len(different) > 5 else ""
        return f"{release} is not what was proven, its files were changed since: {', '.join(different[:5])}{more}"

    def _set_up(self, release: Release, folder: Path) -> None:
        command = release.service.parsed.setup.command
        if command is None:
            return
        # Here and not in a draft folder: what a setup writes (a virtual environment) knows its own path.
        done = sandbox.run(
            command,
            cwd=folder,
            environment=running_environment(release.service),
            timeout_seconds=SETUP_SECONDS,
            network=True,
        )
        if not done.succeeded:
            ending = f"timed out after {SETUP_SECONDS} s" if done.timed_out else f"ended with {done.exit_code}"
            raise DeployError(f"{release} was not installed: its setup {command!r} {ending}: {done.tail(2000)}")

    # -- running -----------------------------------------------------------------------------------------------------

    def start(self, release: Release) -> None:
        if not release.folder:
            raise DeployError(f"{release} is not installed; install it before it is started")
        with _as_deploy_error(f"{release} was not started"):
            for _ in range(PORT_ATTEMPTS):
                process = self.supervisor.process(release.program)
                if release.port is None or (not _listens(process, release.port) and not _is_free(release.port)):
                    # Never had one, or somebody else took it while the release was down.
                    self.supervisor.remove(release.program)
                    release.port = _free_port()
                    release.save(update_fields=["port"])
                self._run(release)
                if self._came_up(release):
                    break
            else:
                raise DeployError(
                    f"{release} was not started: {PORT_ATTEMPTS} ports in a row were taken by others meanwhile"
                )
        if release.started_at is None or release.state != Release.State.RUNNING:
            release.started_at = timezone.now()
        url = release.service.parsed.metrics.url_at(self.address(release))
        slots.mark_started(release, at=release.started_at, url=url)

    def _run(self, release: Release) -> None:
        assert release.port is not None
        folder, environment = Path(release.folder), running_environment(release.service)
        needs = sandbox.reach(environment)
        specification = sandbox.specification(
            release.service.parsed.run.command.replace("{port}", str(release.port)),
            cwd=folder,
            environment={**environment, **_telling_its_release(environment, release), "PORT": str(release.port)},
            grace_seconds=GRACE_SECONDS,
            readable=[path for path in needs.socket_folders if path.exists()],
            network=True,
            limits=LIMITS,
        )
        # The environment (with the service's passwords) is in this file, which nobody else may read.
        file = self.supervisor.programs / f"{release.program}.json"
        command = sandbox.write_specification(file, specification)
        log = self.home / "logs" / f"{release.program}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.supervisor.run(Program(release.program, command, folder, log))

    def _came_up(self, release: Release) -> bool:
        """Wait until the release listens, or clearly will not. False when its port is somebody else's: try again."""
        assert release.port is not None
        deadline = time.monotonic() + LISTEN_SECONDS
        while time.monotonic() < deadline:
            process = self.supervisor.process(release.program)
            if _listens(process, release.port):
                return True
            if not _is_free(release.port) and not _listens(self.supervisor.process(release.program), release.port):
                return False
            if process is None or process.state not in ("STARTING", "RUNNING"):
                return True  # it ended by itself; ready() says so, with its last words
            time.sleep(0.05)
        return True  # slow to start; ready() tells

    def ready(self, release: Release) -> Readiness:
        if release.port is None:
            return Readiness(False, "it was not started")
        try:
            process = self.supervisor.process(release.program)
        except SupervisionError as error:
            return Readiness(False, str(error))
        if process is None or process.state not in ("STARTING", "RUNNING"):
            state = "unknown to supervisord" if process is None else process.state.lower()
            return Readiness(False, f"its process is {state}; it last said: {self.last_words(release)}")
        if not _listens(process, release.port):
            return Readiness(False, f"it does not listen on port {release.port} yet")
        url = f"{self.address(release)}{release.service.parsed.run.health}"
        try:
            with httpx.Client(trust_env=False, timeout=HEALTH_SECONDS) as client:
                status = client.get(url).status_code
        except httpx.HTTPError as error:
            return Readiness(False, f"{url} did not answer: {error or type(error).__name__}")
        return Readiness(status == 200, f"{url} answered {status}")

    def last_words(self, release: Release, characters: int = 600) -> str:
        """The end of what the release printed."""
        try:
            with (self.home / "logs" / f"{release.program}.log").open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - characters))
                return log.read().decode(errors="replace").strip() or "nothing"
        except FileNotFoundError:
            return "nothing"

    # -- traffic -----------------------------------------------------------------------------------------------------

    def apply(self, service: Service) -> None:
        deadline = time.monotonic() + PROXY_BACK_SECONDS
        with _as_deploy_error(f"The proxy does not agree with the shares of {service.name}"):
            backend = f"svc{slots.claim_slot(service)}"
            placed = slots.claim_servers(service)
            while True:
                try:
                    return self._apply(service, backend, placed)
                except ProxyError:
                    # It was killed and is coming back: a rollout should not fail for that.
                    if time.monotonic() > deadline:
                        raise
                time.sleep(0.1)

    def _apply(self, service: Service, backend: str, placed: Mapping[str, Release]) -> None:
        unstarted = [str(release) for release in placed.values() if release.share and release.port is None]
        if unstarted:
            raise DeployError(f"{', '.join(unstarted)} has a share of the traffic but was never started")
        wanted = {
            name: shifting.Wanted(release.port or 0, release.share) for name, release in placed.items() if release.share
        }
        if not wanted:
            raise DeployError(f"No release of {service.name} has a share of its traffic; the proxy was left as it is")
        servers, introduced = self._introduce(backend, wanted)
        seen = {name: _seen(server) for name, server in servers.items()}
        weights = shifting.weights(wanted)
        targets = {name: (weights[name], Mode.READY) for name in shifting.to_raise(seen, wanted)}
        if targets:
            for name in shifting.to_drain(seen, wanted):
                # Those that belong to nobody and are done are put away; the others finish what they have.
                forgotten = name not in placed and servers[name].mode is Mode.DRAIN and not servers[name].sessions
                targets[name] = (0, Mode.MAINT if forgotten else Mode.DRAIN)
        commands = []
        for name, (weight, mode) in targets.items():
            if servers[name].weight != weight:
                commands.append(haproxy.set_weight(backend, name, weight))
            if servers[name].mode is not mode:
                commands.append(haproxy.set_mode(backend, name, mode))
        self.proxy.change(*commands)
        if commands or introduced or not self.state_file.exists():
            self.proxy.save(self.state_file)
        self._demand_all_serve(service, backend, wanted, anybody=bool(targets))

    def _introduce(self, backend: str, wanted: Mapping[str, shifting.Wanted]) -> tuple[dict[str, Server], bool]:
        """Give new servers their address and let health checks begin, while they get no traffic.

        Returns the servers as they are then, and whether anything was changed.
        """
        servers = self.proxy.servers(backend)
        new = shifting.to_introduce({name: _seen(server) for name, server in servers.items()}, wanted)
        for name in new:
            # Through maintenance, so that the check's old result does not speak for the new address; and not straight
            # to ready, because HAProxy takes such a server for up until its first check has failed.
            self.proxy.change(haproxy.set_mode(backend, name, Mode.MAINT))
            self.proxy.change(haproxy.set_address(backend, name, LOOPBACK, wanted[name].port))
            self.proxy.change(haproxy.set_mode(backend, name, Mode.DRAIN))
        # Also those that an earlier, interrupted call introduced.
        waiting = [name for name in wanted if name in new or (servers[name].mode is Mode.DRAIN)]
        if waiting:
            servers = self.proxy.wait_until_checked(backend, waiting, timeout_seconds=CHECKED_SECONDS)
        return servers, bool(new)

    def _demand_all_serve(
        self, service: Service, backend: str, wanted: Mapping[str, shifting.Wanted], *, anybody: bool
    ) -> None:
        """Raise ServersDown unless every wanted server takes its traffic, now or after a moment's hiccup."""
        deadline = time.monotonic() + HICCUP_SECONDS
        while True:
            servers = self.proxy.servers(backend)
            if not shifting.unserved({name: _seen(server) for name, server in servers.items()}, wanted):
                return
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        said = ", ".join(
            f"{name} (port {want.port}, {want.share} %) is {servers[name].status} {servers[name].check}".strip()
            for name, want in sorted(wanted.items())
        )
        if anybody:
            raise ServersDown(f"Not every release of {service.name} takes its share: {said}")
        raise ServersDown(
            f"No release of {service.name} that has a share is up; the traffic was left where it is: {said}"
        )

    def stop(self, release: Release) -> None:
        release.refresh_from_db()
        if release.share:
            raise DeployError(
                f"{release} has {release.share} % of the traffic; give it to another release before it is stopped"
            )
        with _as_deploy_error(f"{release} was not stopped"):
            if release.server and release.service.slot is not None:
                self._put_away(f"svc{release.service.slot}", release)
            self.supervisor.remove(release.program)
            (self.supervisor.programs / f"{release.program}.json").unlink(missing_ok=True)
            slots.mark_stopped(release)

    def _put_away(self, backend: str, release: Release) -> None:
        """Drain the release's server until it has no request left or time is up, and take it out."""
        name = release.server
        server = self.proxy.servers(backend)[name]
        if server.mode is Mode.MAINT:
            return
        self.proxy.change(haproxy.set_weight(backend, name, 0), haproxy.set_mode(backend, name, Mode.DRAIN))
        deadline = time.monotonic() + DRAIN_SECONDS
        while self.proxy.servers(backend)[name].sessions and time.monotonic() < deadline:
            time.sleep(0.05)
        self.proxy.change(haproxy.set_mode(backend, name, Mode.MAINT))
        self.proxy.save(self.state_file)

    # -- addresses ---------------------------------------------------------------------------------------------------

    def address(self, release: Release) -> str:
        if release.port is None:
            raise DeployError(f"{release} has no address before it was started")
        return f"http://{LOOPBACK}:{release.port}"

    def base_url(self, service: Service) -> str:
        return f"http://{LOOPBACK}:{settings.SERVICE_PORTS[slots.claim_slot(service)]}"

    def unanswered(self, service: Service) -> dict[int, int]:
        if service.slot is None:
            return {}
        with _as_deploy_error(f"The proxy did not say what the releases of {service.name} left unanswered"):
            servers = self.proxy.servers(f"svc{service.slot}")
        return {
            release.pk: servers[name].connect_errors + servers[name].response_errors
            for name, release in slots.claim_servers(service).items()
            if name in servers
        }

    @property
    def state_file(self) -> Path:
        """Read by HAProxy when it starts."""
        return self.home / "haproxy" / "servers.state"


def _mark(folder: Path) -> Path:
    """Beside the folder of an installed release, where the release itself can't write."""
    return folder.with_name(f"{folder.name}.installed")


def _altered(release: Release, folder: Path) -> dict[str, str]:
    """The files of the release's commit that are different in `folder`, and what they are there instead.

    Compared with a fresh check-out rather than with git's hashes: line endings are as git makes them here.
    """
    fresh = folder.with_name(f".{folder.name}.compared")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _check_out(release, fresh)
        found = {}
        for parent, folders, files in os.walk(fresh):
            for name in [*files, *(one for one in folders if Path(parent, one).is_symlink())]:
                path = Path(parent, name).relative_to(fresh)
                if (there := _what_is(folder, path)) != _what_is(fresh, path):
                    found[str(path)] = there
        return found
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _what_is(folder: Path, path: Path) -> str:
    """One word for what lies at `path` in `folder`: "link to …", "missing", or the hash of its mode and content."""
    try:
        if any((folder / parent).is_symlink() for parent in path.parents):
            return "behind a link"
        mode = (folder / path).lstat().st_mode
        if stat.S_ISLNK(mode):
            return f"link to {(folder / path).readlink()}"
        if not stat.S_ISREG(mode):
            return "not a file"
        kind = "x" if mode & stat.S_IXUSR else "-"
        return kind + hashlib.sha256((folder / path).read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return "missing"


def _check_out(release: Release, folder: Path) -> None:
    """The files of the release's commit as `folder`, all at once and without git's own."""
    repository = Repository(release.service.checkout, release.service.branch)
    draft = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    # A shared clone reaches commits that no branch holds yet, and leaves nothing behind in the repository.
    repository.git("clone", "--quiet", "--shared", "--no-checkout", str(repository.path), str(draft))
    repository.git("checkout", "--quiet", "--detach", release.commit, cwd=draft)
    shutil.rmtree(draft / ".git")
    draft.rename(folder)


def _seen(server: Server) -> shifting.Seen:
    return shifting.Seen(
        port=server.port,
        weight=server.weight,
        takes_traffic=server.takes_traffic,
        is_healthy=server.is_checked or server.is_up,
        is_off=server.mode is Mode.MAINT,
    )


def _listens(process: Process | None, port: int) -> bool:
    """Does this process, or one below it, listen on `port`? A health check alone could be answered by a stranger."""
    if process is None or not process.pid:
        return False
    try:
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return False
    for member in family:
        # A process that ended meanwhile, or one whose sockets this user may not see.
        with contextlib.suppress(psutil.Error):
            if any(
                connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
                for connection in member.net_connections(kind="tcp")
            ):
                return True
    return False


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Servers set this too: without it a port stays "busy" for a minute after its last connection closed.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    """A port that nobody listens on and that no other release remembers as its own."""
    known = set(Release.objects.exclude(port=None).values_list("port", flat=True))
    for _ in range(100):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((LOOPBACK, 0))
            port: int = probe.getsockname()[1]
        if port not in known:
            return port
    raise DeployError(f"No free port on {LOOPBACK}: 100 in a row belong to other releases")


@contextlib.contextmanager
def _turn(file: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _telling_its_release(environment: Mapping[str, str], release: Release) -> dict[str, str]:
    """Spans say which release sent them, so that one that is tried in private is not taken for the service."""
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in environment:
        return {}
    given = environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return {"OTEL_RESOURCE_ATTRIBUTES": ",".join(filter(None, [given, f"service.version={release.short}"]))}


@contextlib.contextmanager
def _as_deploy_error(what: str) -> Iterator[None]:
    """What goes wrong outside is one kind of error to callers, and says what could not be done because of it."""
    try:
        yield
    except (ProxyError, SupervisionError, sandbox.SandboxError, GitError, OSError) as error:
        raise DeployError(f"{what}: {error}") from error
