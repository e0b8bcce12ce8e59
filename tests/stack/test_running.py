"""The whole stack, started and stopped as a person does it."""

from __future__ import annotations

import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from runerogue.stack import lock, ports, postgres, processes, supervisor
from runerogue.stack.home import ADMIN_PASSWORD, PROJECT, Home

PROGRAMS = ("postgres", "valkey", "haproxy", "web", "worker", "prover", "collector", "beat", "proxylog")
FOREIGN = ("DATABASE_URL", "REDIS_URL", "HAPROXY_SOCKET", "SECRET_KEY", "RUNEROGUE_TEST_HOME", "DJANGO_SETTINGS_MODULE")


class Runner:
    """`python -m runerogue.stack …` on a home of its own."""

    def __init__(self, home: Home, *, user: str | None = None, **environment: str) -> None:
        self.home = home
        self.user = user
        self.port = ports.next_free("127.0.0.1", 20000 + os.getpid() % 5000)
        self.environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        self.environment |= {"RUNEROGUE_HOME": str(home.folder), "RUNEROGUE_PORT": str(self.port), **environment}
        self.log = home.folder.parent / "output.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Start it and wait until it is ready; what it printed."""
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "runerogue.stack", "run"],
                cwd=PROJECT,
                env=self.environment,
                user=self.user,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = self.process
        eventually(lambda: "RuneRogue is ready" in self.output() or process.poll() is not None, "ready", seconds=180)
        assert process.poll() is None, self.output()
        return self.output()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "runerogue.stack", *words],
            cwd=PROJECT,
            env=self.environment,
            user=self.user,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )

    def finish(self) -> None:
        self.command("stop")
        if self.process:
            self.process.wait(timeout=60)

    def page(self) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/live", timeout=5) as answer:
                return int(answer.status)
        except OSError:
            return 0

    def running(self) -> dict[str, int]:
        """Program → pid, of those that run."""
        return {p["name"]: p["pid"] for p in supervisor.processes(self.home) if p["statename"] == "RUNNING"}


def eventually(test: Callable[[], object], what: str, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def nothing_is_left(home: Home) -> None:
    assert processes.of_home(home) == []
    assert lock.holder_of(home.lock) is None
    assert [path for path in home.folder.rglob("*") if path.is_socket()] == []
    assert list(home.run.iterdir()) == []
    assert not (home.postgres_data / "postmaster.pid").exists()


@pytest.fixture
def folder() -> Iterator[Path]:
    # pytest's own temporary folders are closed to other users and too long for some sockets.
    with tempfile.TemporaryDirectory(prefix="rr-stack-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def runner(folder: Path) -> Iterator[Runner]:
    runner = Runner(Home(folder / "home"))
    yield runner
    runner.finish()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_says_so_stops_runs_again_and_outlives_what_is_killed(runner: Runner, subtests: pytest.Subtests) -> None:
    screen = runner.start()
    assert f"http://127.0.0.1:{runner.port}/" in screen
    assert "Password" in screen
    assert "Ctrl-C" in screen
    eventually(lambda: runner.page() == 200, "the page answers")
    assert runner.home.secret(ADMIN_PASSWORD) == ""

    eventually(lambda: set(runner.running()) == set(PROGRAMS), "every program runs")
    before = runner.running()
    second = runner.command("run")
    assert (second.returncode, second.stderr) == (0, "")
    assert f"already running at http://127.0.0.1:{runner.port}" in second.stdout
    assert runner.running() == before

    stopped = runner.command("stop")
    assert stopped.returncode == 0
    nothing_is_left(runner.home)
    assert runner.process
    assert runner.process.wait(timeout=10) == 0
    assert "not running" in runner.command("stop").stdout

    assert "Password" not in runner.start()
    come_back(runner, subtests)
    ends_with_the_one_in_the_foreground(runner)


def come_back(runner: Runner, subtests: pytest.Subtests) -> None:
    """Every program is killed in turn and comes back; nothing that was written is lost."""
    url = runner.home.database_url()
    keys = redis.Redis.from_url(runner.home.redis_url(), decode_responses=True)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept (name text)")
    for name in PROGRAMS:
        with subtests.test(program=name):
            eventually(lambda name=name: name in runner.running(), f"{name} runs")  # type: ignore[misc]
            eventually(lambda: postgres.is_ready(runner.home), "postgres answers")
            with psycopg.connect(url) as connection:
                connection.execute("INSERT INTO kept VALUES (%s)", [name])
            keys.rpush("kept", name)
            killed = runner.running()[name]
            os.kill(killed, signal.SIGKILL)
            eventually(lambda name=name, killed=killed: runner.running().get(name, killed) != killed, f"{name} is back")  # type: ignore[misc]
    with subtests.test(program="supervisord"):
        killed = int((runner.home.run / "supervisord.pid").read_text())
        engines = {runner.running()[name] for name in ("postgres", "valkey", "haproxy")}
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: set(runner.running()) >= set(PROGRAMS), "everything is back")
        assert not engines & {process.pid for process in processes.of_home(runner.home)}, "an engine runs twice"
    eventually(lambda: runner.page() == 200, "the page answers")
    with psycopg.connect(url) as connection:
        assert [name for (name,) in connection.execute("SELECT name FROM kept")] == list(PROGRAMS)
    assert keys.lrange("kept", 0, -1) == list(PROGRAMS)
    keys.close()


def ends_with_the_one_in_the_foreground(runner: Runner) -> None:
    """Killed itself, it can't tidy up; its processes end all the same."""
    assert runner.process
    runner.process.kill()
    eventually(lambda: processes.of_home(runner.home) == [], "all processes end with the one in the foreground")
    assert lock.holder_of(runner.home.lock) is None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_runs_as_a_plain_user(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the other tests run as a plain user already")
    user = pwd.getpwnam("nobody")
    try:
        subprocess.run([sys.executable, "-c", "import django"], user="nobody", cwd=PROJECT, env={}, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"a plain user can't read this interpreter ({sys.executable})")
    home = Home(folder / "home")
    home.folder.mkdir()
    os.chown(home.folder, user.pw_uid, user.pw_gid)
    runner = Runner(home, user="nobody", HOME=str(home.folder))
    try:
        runner.start()
        eventually(lambda: runner.page() == 200, "the page answers")
        assert {process.username() for process in processes.of_home(home)} == {"nobody"}
    finally:
        runner.finish()
    nothing_is_left(home)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        ("version", "was made by PostgreSQL 9; this version of RuneRogue runs PostgreSQL 18"),
        ("port", "in use by .*Stop that process, or set RUNEROGUE_PORT"),
        ("path", "too long by .*Set RUNEROGUE_HOME to a shorter path"),
        ("file", "can't be used.*Set RUNEROGUE_HOME"),
    ],
)
def test_says_in_a_sentence_why_it_cannot_start(break_it: str, says: str, folder: Path) -> None:
    runner = Runner(Home(folder / "home"))
    with socket.socket() as listener:
        match break_it:
            case "version":
                runner.home.postgres_data.mkdir(parents=True)
                (runner.home.postgres_data / "PG_VERSION").write_text("9\n")
                if os.geteuid() == 0:
                    os.chown(runner.home.postgres_data, pwd.getpwnam("nobody").pw_uid, -1)
            case "port":
                listener.bind(("127.0.0.1", 0))
                listener.listen()
                runner.environment["RUNEROGUE_PORT"] = str(listener.getsockname()[1])
            case "path":
                runner.environment["RUNEROGUE_HOME"] = str(folder / ("x" * 90))
            case "file":
                runner.home.folder.write_text("")
        result = runner.command("run")
    assert result.returncode == 1
    assert result.stderr.startswith("runerogue: ")
    assert "Traceback" not in result.stderr
    assert re.search(says, result.stderr, re.DOTALL), result.stderr
    if runner.home.run.is_dir():
        nothing_is_left(runner.home)
