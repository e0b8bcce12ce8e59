"""Where everything that RuneRogue keeps lives: one folder, `RUNEROGUE_HOME`. The one place that knows its layout.

Importing this module and asking it for paths, URLs and secrets creates nothing. Only `create()`, `ensure_secrets()` and
the writers do, and only the stack calls them.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

PROJECT = Path(__file__).resolve().parents[2]
SERVICE_SLOTS = 4
SERVERS_PER_SLOT = 4
DEFAULT_PORT = 8000

GENERATED_SECRETS = ("secret_key", "postgres_superuser", "postgres_runerogue")
ADMIN_PASSWORD = "first_admin_password"  # noqa: S105 (the name of an entry, not a password)
SIGNER_PASSWORD = "first_signer_password"  # noqa: S105 (likewise)
SIGNER_KEY = "first_signer_authenticator_key"


class HomeError(Exception):
    """Something about the home folder makes it unusable; the text says what, and what to do."""


@dataclass(frozen=True)
class Home:
    """The folder `RUNEROGUE_HOME` and the names of what is in it. Absolute; need not exist."""

    folder: Path

    # -- files and folders -------------------------------------------------------------------------------------------

    @property
    def postgres(self) -> Path:
        """PostgreSQL's configuration and `data/`. Only the user that PostgreSQL runs as may look inside."""
        return self.folder / "postgres"

    @property
    def postgres_data(self) -> Path:
        return self.postgres / "data"

    @property
    def postgres_sockets(self) -> Path:
        """The folder of PostgreSQL's socket, and of nothing else: a service that uses the database may see it."""
        return self.folder / "pg"

    @property
    def postgres_socket(self) -> Path:
        return self.postgres_sockets / ".s.PGSQL.5432"

    @property
    def valkey(self) -> Path:
        """Valkey's configuration and its append-only files."""
        return self.folder / "valkey"

    @property
    def run(self) -> Path:
        """Sockets and the lock; nobody but the owner may look inside."""
        return self.folder / "run"

    @property
    def valkey_socket(self) -> Path:
        return self.run / "valkey.sock"

    @property
    def haproxy_socket(self) -> Path:
        return self.run / "haproxy.sock"

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "supervisor.sock"

    @property
    def proxylog_socket(self) -> Path:
        return self.run / "proxylog.sock"

    @property
    def lock(self) -> Path:
        """Held with flock by the running stack; holds its pid and address as JSON."""
        return self.run / "stack.lock"

    @property
    def running_settings_file(self) -> Path:
        """Settings that the running stack chose for its processes; gone when it stops."""
        return self.run / "settings.json"

    def running_settings(self) -> dict[str, str]:
        """The same as name → text, so that a command typed beside the running stack decides as its processes do."""
        return {name: str(value) for name, value in _read_json(self.running_settings_file).items()}

    def tell_running_settings(self, chosen: dict[str, str]) -> None:
        _write_json(self.running_settings_file, chosen)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def supervisor_config(self) -> Path:
        return self.folder / "supervisor" / "supervisord.conf"

    @property
    def programs(self) -> Path:
        """One `<name>.ini` for each program that is added while the stack runs (releases of services)."""
        return self.folder / "supervisor" / "programs"

    @property
    def haproxy_config(self) -> Path:
        return self.folder / "haproxy" / "haproxy.cfg"

    @property
    def haproxy_state(self) -> Path:
        """`show servers state`, written after every change, read by HAProxy when it starts."""
        return self.folder / "haproxy" / "servers.state"

    @property
    def metrics(self) -> Path:
        """prometheus_client's files of the processes that are running now (`PROMETHEUS_MULTIPROC_DIR`)."""
        return self.folder / "metrics"

    @property
    def static(self) -> Path:
        return self.folder / "static"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def services(self) -> Path:
        return self.folder / "services"

    def service(self, name: str) -> Path:
        return self.services / name

    def repository(self, service: str) -> Path:
        """The git repository of a service that the pipeline commits to."""
        return self.service(service) / "repository"

    def release(self, service: str, commit: str) -> Path:
        """Where one release is installed, named by the first 12 digits of its commit."""
        return self.service(service) / "releases" / commit[:12]

    def worktree(self, service: str, purpose: str) -> Path:
        return self.service(service) / "worktrees" / purpose

    # -- making it ---------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the missing folders. Only the owner gets in; root's PostgreSQL user may pass through the top."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
            for folder in (
                self.run,
                self.logs,
                self.programs,
                self.haproxy_config.parent,
                self.valkey,
                self.metrics,
                self.static,
                self.scratch,
                self.services,
            ):
                folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.run, self.logs, self.programs.parent, self.haproxy_config.parent, self.valkey):
                folder.chmod(0o700)
        except OSError as error:
            raise HomeError(
                f"The folder {self.folder} can't be used: {error.strerror or error} ({error.filename}). "
                "Set RUNEROGUE_HOME to a folder that you may write to."
            ) from error

    # -- secrets -----------------------------------------------------------------------------------------------------

    @property
    def secrets_file(self) -> Path:
        return self.folder / "secrets.json"

    def secret(self, name: str) -> str:
        """The secret `name`; empty while it does not exist. HomeError when the file can't be read."""
        return str(_read_json(self.secrets_file).get(name, ""))

    def set_secret(self, name: str, value: str | None) -> None:
        """Keep `value` as the secret `name`; None removes it."""
        known = _read_json(self.secrets_file)
        if value is None:
            known.pop(name, None)
        else:
            known[name] = value
        _write_json(self.secrets_file, known)

    def ensure_secrets(self) -> None:
        """Generate the secrets that are missing; those that exist stay."""
        known = _read_json(self.secrets_file)
        missing = {name: secrets.token_urlsafe(48) for name in GENERATED_SECRETS if name not in known}
        if missing:
            _write_json(self.secrets_file, known | missing)

    # -- ports -------------------------------------------------------------------------------------------------------

    @property
    def ports_file(self) -> Path:
        return self.folder / "ports.json"

    def port(self) -> int:
        """The port that people open, as last chosen; 8000 before the first start."""
        return int(_read_json(self.ports_file).get("http", DEFAULT_PORT))

    def service_ports(self) -> tuple[int, ...]:
        """The port of each HAProxy slot, in slot order; empty before the first start."""
        return tuple(int(port) for port in _read_json(self.ports_file).get("services", ()))

    def remember_ports(self, *, http: int, services: tuple[int, ...]) -> None:
        _write_json(self.ports_file, {"http": http, "services": list(services)})

    # -- how to reach the embedded engines ---------------------------------------------------------------------------

    def database_url(self, *, role: str = "runerogue", password: str | None = None, database: str | None = None) -> str:
        """The URL of a database of the embedded PostgreSQL; by default RuneRogue's own."""
        if password is None:
            password = self.secret("postgres_superuser" if role == "postgres" else f"postgres_{role}")
        login = quote(role, safe="") + (f":{quote(password, safe='')}" if password else "")
        return f"postgresql://{login}@/{quote(database or role, safe='')}?host={quote(str(self.postgres_sockets))}"

    def redis_url(self, *, database: int = 0) -> str:
        """The URL of the embedded Valkey, as redis-py reads it."""
        return f"unix://{quote(str(self.valkey_socket))}?db={database}"

    def broker_url(self, *, database: int = 0) -> str:
        """The same as Celery spells it."""
        return f"redis+socket://{quote(str(self.valkey_socket))}?virtual_host={database}"


def current() -> Home:
    """The home named by `RUNEROGUE_HOME`, or `var/` in the project's folder."""
    named = os.environ.get("RUNEROGUE_HOME", "").strip()
    return Home(Path(named).expanduser().absolute() if named else PROJECT / "var")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError as error:
        raise HomeError(
            f"{path} can't be read by this user. Run as the user who owns {path.parent}, "
            "or set RUNEROGUE_HOME to a folder of your own."
        ) from error
    except ValueError as error:
        raise HomeError(
            f"{path} is damaged ({error}). Restore it from a backup, or remove it together with its home."
        ) from error
    if not isinstance(content, dict):
        raise HomeError(f"{path} is damaged (not a JSON object). Restore it from a backup.")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write owner-only and all at once: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
