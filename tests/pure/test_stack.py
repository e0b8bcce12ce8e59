"""What the stack decides and writes before it starts anything."""

from __future__ import annotations

import configparser
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from runerogue.stack import foreground, haproxy, lock, ports, postgres, reach, supervisor, valkey
from runerogue.stack.errors import StackError
from runerogue.stack.home import PROJECT, Home
from runerogue.stack.supervisor import Program
from tests.bench.rows import Row
from tests.bench.run import table


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "h")
    home.create()
    return home


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


# -- ports -----------------------------------------------------------------------------------------------------------


def test_takes_the_next_free_port(busy: int) -> None:
    assert not ports.is_free("127.0.0.1", busy)
    assert ports.next_free("127.0.0.1", busy) > busy
    free = ports.next_free("127.0.0.1", busy)
    assert ports.next_free("127.0.0.1", busy, taken=[free]) > free


def test_names_the_process_that_has_a_port_asked_for(busy: int) -> None:
    with pytest.raises(StackError, match=rf"Port {busy} on 127.0.0.1 is in use by .*pid {os.getpid()}.*RUNEROGUE_PORT"):
        ports.demand("127.0.0.1", busy)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_refuses_a_host_that_is_not_this_machine(host: str) -> None:
    with pytest.raises(StackError, match=r"RUNEROGUE_HOST=.* not an address"):
        ports.is_free(host, 8000)


@pytest.mark.parametrize("text", ["web", "0", "65536", "-1"])
def test_refuses_what_is_not_a_port(text: str, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNEROGUE_PORT", text)
    with pytest.raises(StackError, match="is not a port"):
        foreground._choose_ports(home, "127.0.0.1")


def test_remembers_its_ports_and_leaves_a_busy_one(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNEROGUE_PORT", raising=False)
    home.remember_ports(http=ports.next_free("127.0.0.1", 28000), services=())
    port, slots = foreground._choose_ports(home, "127.0.0.1")
    assert len({port, *slots}) == 5
    assert foreground._choose_ports(home, "127.0.0.1") == (port, slots)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", slots[1]))
        listener.listen()
        _, moved = foreground._choose_ports(home, "127.0.0.1")
    assert moved[1] != slots[1]
    assert len(set(moved)) == 4


# -- the lock --------------------------------------------------------------------------------------------------------


def test_only_one_holds_the_lock(home: Home) -> None:
    assert lock.holder_of(home.lock) is None
    with lock.hold(home.lock) as held:
        held.tell(lock.Holder(4711, "http://127.0.0.1:8000"))
        assert lock.holder_of(home.lock) == lock.Holder(4711, "http://127.0.0.1:8000")
        with pytest.raises(lock.LockHeldError), lock.hold(home.lock):
            pass
    assert lock.holder_of(home.lock) is None
    assert not home.lock.exists()


def test_a_killed_holder_leaves_no_lock(home: Home) -> None:
    code = (
        "import sys, time; from pathlib import Path; from runerogue.stack import lock\n"
        "with lock.hold(Path(sys.argv[1])) as held:\n"
        "    held.tell(lock.Holder(1)); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(home.lock)], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        assert lock.holder_of(home.lock) == lock.Holder(1)
        holder.send_signal(signal.SIGKILL)
    assert home.lock.exists()
    assert lock.holder_of(home.lock) is None
    with lock.hold(home.lock):
        pass


# -- what is written -------------------------------------------------------------------------------------------------


def test_supervisord_reads_back_what_was_meant(home: Home) -> None:
    command = ["python", "-m", "x y", "100%"]
    program = Program("web", command, folder=PROJECT, environment={"A": "1 %"}, whole_group=False)
    parser = configparser.RawConfigParser()
    parser.read_string(supervisor.configuration(home, [program]))
    section = dict(parser["program:web"])
    assert shlex.split(section["command"].replace("%%", "%")) == command
    assert section["environment"] == 'A="1 %%"'
    assert (section["autorestart"], section["stopasgroup"], section["killasgroup"]) == ("true", "false", "false")
    assert parser["unix_http_server"]["chmod"] == "0700"
    assert parser["include"]["files"] == "programs/*.ini"


def test_the_product_has_the_programs_that_the_manual_names(home: Home) -> None:
    names = {program.name for program in foreground.product_programs(home)}
    assert names == {"web", "worker", "prover", "collector", "beat", "proxylog"}
    manual = (PROJECT / "docs" / "operations.md").read_text()
    for program in foreground.product_programs(home):
        told = "python " + shlex.join(program.command[1:]).replace(str(PROJECT) + "/", "")
        assert told in manual, f"docs/operations.md does not give the command of {program.name}: {told}"


def test_the_unit_files_run_the_same_commands(home: Home) -> None:
    for program in foreground.product_programs(home):
        told = "python " + shlex.join(program.command[1:]).replace(str(PROJECT) + "/", "")
        unit = (PROJECT / "deploy" / "systemd" / f"runerogue-{program.name}.service").read_text()
        assert told.replace("%", "%%") in unit
        procfile = (PROJECT / "deploy" / "Procfile").read_text()
        assert f"{program.name}: {told}\n" in procfile


@pytest.mark.skipif(haproxy.binary() is None, reason="no HAProxy for this platform")
def test_haproxy_accepts_its_configuration(home: Home) -> None:
    haproxy.prepare(home, [28100, 28101, 28102, 28103])
    checked = subprocess.run(
        [str(haproxy.binary()), "-c", "-f", str(home.haproxy_config)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr
    written = home.haproxy_config.read_text()
    assert written.count("http-request disable-l7-retry unless { method GET HEAD }") == 4
    assert written.count("127.0.0.1:1 disabled check") == 16
    assert f'server recorder "unix@{home.proxylog_socket}"' in written


# -- what stops it ---------------------------------------------------------------------------------------------------


def test_refuses_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    far = Home(tmp_path / ("x" * 100))
    with pytest.raises(StackError, match=r"too long by \d+ characters.*Set RUNEROGUE_HOME to a shorter path"):
        foreground.run(far)
    assert not far.folder.exists()


def test_refuses_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=12 * 2**20))
    with pytest.raises(StackError, match=r"is full \(12 MB free, 300 MB needed\)"):
        foreground._check_space(Home(Path("/")))


@pytest.mark.parametrize(
    ("ask", "says"),
    [(postgres.binaries, "no embedded PostgreSQL for .*set DATABASE_URL"), (valkey.binary, "no embedded Valkey for")],
)
def test_says_which_wheel_is_missing(ask: object, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StackError, match=says):
        ask()  # type: ignore[operator]


def test_goes_on_without_haproxy_and_says_what_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("HAPROXY_BINARY", raising=False)
    assert haproxy.binary() is None
    assert "everything works but rollouts" in haproxy.absence()
    monkeypatch.setenv("HAPROXY_BINARY", "/nowhere/haproxy")
    with pytest.raises(StackError, match="HAPROXY_BINARY"):
        haproxy.binary()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root's PostgreSQL has another user")
def test_lets_one_user_through_a_closed_folder_and_nobody_else(tmp_path: Path) -> None:
    import pwd

    closed = tmp_path / "closed"
    inner = closed / "inner"
    inner.mkdir(parents=True)
    inner.chmod(0o755)
    closed.chmod(0o700)
    friend, stranger = pwd.getpwnam("nobody"), pwd.getpwnam("daemon")
    said: list[str] = []
    reach.let_in(inner, friend, said.append)
    assert reach.can_enter(inner, friend)
    assert not reach.can_enter(inner, stranger)
    assert any(str(closed) in line for line in said)
    said.clear()
    reach.let_in(inner, friend, said.append)
    assert said == []


def test_recognises_its_own_processes_only(home: Home) -> None:
    from runerogue.stack import processes

    with subprocess.Popen(["sleep", "60"], env={supervisor.MARK: str(home.folder)}) as marked:
        with subprocess.Popen(["sleep", "60"], env={"RUNEROGUE_HOME": str(home.folder)}) as bystander:
            deadline = time.monotonic() + 10
            while not processes.of_home(home) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert [process.pid for process in processes.of_home(home)] == [marked.pid]
            assert processes.stop_all(home, patience_seconds=5) == 1
            assert marked.wait(timeout=5) == -signal.SIGTERM
            assert bystander.poll() is None
            bystander.kill()


# -- the benchmark table ---------------------------------------------------------------------------------------------


def test_a_benchmark_row_knows_whether_its_target_is_met() -> None:
    assert Row("a", 2, "s", target=3).met is True
    assert Row("a", 2, "x/s", target=3, better="higher").met is False
    assert Row("a", 2, "s").met is None
    assert Row("a", float("nan"), "s", error="broke").met is False
    assert Row("a", 2, "s", peer="other", peer_value=4).ratio == 2
    assert Row("a", 2, "x/s", better="higher", peer="other", peer_value=4).ratio == 0.5
    shown = table([Row("start", 1.5, "s", target=2, peer="other", peer_value=3), Row("b", 0, "", error="no disk")])
    assert "start" in shown
    assert "≤ 2 s" in shown
    assert "2.00×" in shown
    assert "no disk" in shown
    assert json.dumps(shown)
