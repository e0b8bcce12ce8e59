"""It runs a service's own command in a cage, and nothing of it survives."""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from monitoring import sandbox, sandboxed

BUBBLEWRAP_WORKS = bool(shutil.which("bwrap")) and (
    subprocess.run(
        ["bwrap", "--unshare-user-try", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "true"],
        capture_output=True,
        check=False,
    ).returncode
    == 0
)
needs_bubblewrap = pytest.mark.skipif(not BUBBLEWRAP_WORKS, reason="bubblewrap is missing or does not work here")


@pytest.fixture(params=["limits", pytest.param("bubblewrap", marks=needs_bubblewrap)])
def bubblewrap(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "bubblewrap")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def living(marker: str) -> list[int]:
    """Every process with `marker` among its arguments, zombies aside."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        if marker in " ".join(process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.info["pid"])
    return found


def wait_until_none(marker: str, seconds: float = 5.0) -> list[int]:
    until = time.monotonic() + seconds
    while living(marker) and time.monotonic() < until:
        time.sleep(0.02)
    return living(marker)


def test_returns_what_the_command_printed_and_its_exit_code(tmp_path: Path, bubblewrap: bool) -> None:
    done = sandbox.run(
        python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"),
        cwd=tmp_path,
        environment={},
        timeout_seconds=20,
        bubblewrap=bubblewrap,
    )
    assert (done.exit_code, done.stdout, done.stderr, done.timed_out) == (3, "out\n", "err\n", False)
    assert done.isolation == "bubblewrap" if bubblewrap else done.isolation.startswith(("user ", "limits only: "))


def test_gives_only_the_environment_it_was_told(
    tmp_path: Path, bubblewrap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "of-the-caller")
    done = sandbox.run(
        python("import json, os; print(json.dumps(dict(os.environ)))"),
        cwd=tmp_path,
        environment={"GAME": "on"},
        timeout_seconds=20,
        bubblewrap=bubblewrap,
    )
    seen = json.loads(done.stdout)
    assert set(seen) <= {"PATH", "LANG", "HOME", "TMPDIR", "PYTHONUNBUFFERED", "GAME", "PWD", "LC_CTYPE"}
    assert seen["GAME"] == "on"
    assert Path(seen["PATH"].split(os.pathsep)[0]) == Path(sys.executable).parent


def test_passes_no_open_descriptor_to_the_command(tmp_path: Path, bubblewrap: bool) -> None:
    done = sandbox.run(
        python("import os; print([fd for fd in os.listdir('/proc/self/fd') if int(fd) > 3])"),
        cwd=tmp_path,
        environment={},
        timeout_seconds=20,
        bubblewrap=bubblewrap,
    )
    assert done.stdout.strip() == "[]"


def test_a_timeout_takes_the_whole_tree_along(tmp_path: Path, bubblewrap: bool) -> None:
    marker = f"timeout-{os.getpid()}-{bubblewrap}"
    tree = f"""
        import subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600) # {marker}"], start_new_session=True)
        time.sleep(600)
    """
    done = sandbox.run(python(tree), cwd=tmp_path, environment={}, timeout_seconds=1.5, bubblewrap=bubblewrap)
    assert done.timed_out
    assert done.exit_code == 124
    assert done.seconds < 10
    assert wait_until_none(marker) == []


def test_what_the_command_leaves_running_is_killed_when_it_ends(tmp_path: Path, bubblewrap: bool) -> None:
    marker = f"left-{os.getpid()}-{bubblewrap}"
    leaves = f"""
        import subprocess, sys
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600) # {marker}"], start_new_session=True)
    """
    done = sandbox.run(python(leaves), cwd=tmp_path, environment={}, timeout_seconds=20, bubblewrap=bubblewrap)
    assert done.exit_code == 0
    assert wait_until_none(marker) == []


@pytest.mark.parametrize("victim", ["caller", "launcher"])
def test_kill_9_of_the_caller_or_the_launcher_leaves_no_process(tmp_path: Path, bubblewrap: bool, victim: str) -> None:
    marker = f"killed-{victim}-{os.getpid()}-{bubblewrap}"
    tree = f"""
        import subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", "import time; " + "time.sleep(600) # {marker}"], start_new_session=True)
        time.sleep(600)
    """
    root = Path(sandbox.__file__).parent.parent
    caller = subprocess.Popen(
        python(f"""
            import sys
            sys.path.insert(0, {str(root)!r})
            from pathlib import Path
            from monitoring import sandbox
            sandbox.run({python(tree)!r}, cwd=Path({str(tmp_path)!r}), environment={{}}, timeout_seconds=600,
                        bubblewrap={bubblewrap})
        """),
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 15
        # Not before the command's own child is there: bubblewrap's inner process, if its outer one is killed while they
        # set things up, waits for it for ever. Nothing of the command runs in it then.
        last = f"{sys.executable} -c import time; time.sleep(600) # {marker}"
        while not living(last) and time.monotonic() < until:
            time.sleep(0.05)
        family = psutil.Process(caller.pid).children(recursive=True)
        assert len(family) >= 3, "the sandboxed tree never came up"
        os.kill(caller.pid if victim == "caller" else family[0].pid, signal.SIGKILL)
        if victim == "launcher":
            caller.wait(15)
        else:
            caller.wait(5)
        until = time.monotonic() + 5
        while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family) and time.monotonic() < until:
            time.sleep(0.02)
        assert [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
        assert wait_until_none(marker) == []
    finally:
        caller.kill()
        caller.wait()


def test_memory_is_limited(tmp_path: Path, bubblewrap: bool) -> None:
    done = sandbox.run(
        python("bytearray(1024**3)"),
        cwd=tmp_path,
        environment={},
        timeout_seconds=20,
        limits=sandbox.Limits(memory_bytes=512 * 1024**2),
        bubblewrap=bubblewrap,
    )
    assert done.exit_code == 1
    assert "MemoryError" in done.stderr


def test_file_size_is_limited(tmp_path: Path, bubblewrap: bool) -> None:
    done = sandbox.run(
        python("open('big', 'wb').write(b'x' * 2_000_000)"),
        cwd=tmp_path,
        environment={},
        timeout_seconds=20,
        limits=sandbox.Limits(file_bytes=1_000_000),
        bubblewrap=bubblewrap,
    )
    assert done.exit_code != 0
    assert (tmp_path / "big").stat().st_size <= 1_000_000


def test_a_fork_bomb_is_ended(tmp_path: Path, bubblewrap: bool) -> None:
    done = sandbox.run(
        ["sh", "-c", "i=0; while [ $i -lt 200 ]; do sleep 60 & i=$((i+1)); done; wait"],
        cwd=tmp_path,
        environment={},
        timeout_seconds=20,
        limits=sandbox.Limits(processes=30),
        bubblewrap=bubblewrap,
    )
    assert done.exit_code != 0
    assert done.seconds < 15


def test_keeps_the_end_of_a_flood_of_output(tmp_path: Path, bubblewrap: bool) -> None:
    done = sandbox.run(
        python("import sys\nfor i in range(300000): sys.stdout.write(f'line {i:020d}\\n')"),
        cwd=tmp_path,
        environment={},
        timeout_seconds=30,
        bubblewrap=bubblewrap,
    )
    assert len(done.stdout) == sandbox.OUTPUT_BYTES
    assert done.stdout.endswith("line 00000000000000299999\n")


def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(sandbox.SandboxError, match="no program 'no-such-thing' on PATH"):
        sandbox.run("no-such-thing --x", cwd=tmp_path, environment={}, timeout_seconds=5)


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(sandbox.SandboxError, match="nowhere"):
        sandbox.run("true", cwd=tmp_path / "nowhere", environment={}, timeout_seconds=5)


def test_no_shell_reads_the_command(tmp_path: Path, bubblewrap: bool) -> None:
    done = sandbox.run(
        "echo 'a b' ; touch hacked", cwd=tmp_path, environment={}, timeout_seconds=10, bubblewrap=bubblewrap
    )
    assert done.stdout == "a b ; touch hacked\n"
    assert not (tmp_path / "hacked").exists()


@needs_bubblewrap
def test_bubblewrap_hides_every_folder_not_named(tmp_path: Path) -> None:
    secret, shared, work = tmp_path / "secret", tmp_path / "shared", tmp_path / "work"
    for folder in (secret, shared, work):
        folder.mkdir()
        (folder / "file").write_text(folder.name, encoding="utf-8")
    code = f"""
        import os, pathlib
        print(os.path.exists({str(secret)!r}), os.path.exists("/etc/shadow"))
        print(pathlib.Path({str(shared)!r}, "file").read_text())
        try:
            pathlib.Path({str(shared)!r}, "new").write_text("x")
        except OSError as error:
            print("read-only", error.errno)
        pathlib.Path("new").write_text("x")
    """
    done = sandbox.run(python(code), cwd=work, environment={}, timeout_seconds=20, readable=[shared])
    assert done.stdout.splitlines() == ["False False", "shared", "read-only 30"], done.stderr
    assert (work / "new").exists()


@needs_bubblewrap
@pytest.mark.parametrize("network", [True, False])
def test_bubblewrap_closes_the_network_unless_asked_for(tmp_path: Path, network: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"""
            import socket
            socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), 2)
        """
        done = sandbox.run(python(code), cwd=tmp_path, environment={}, timeout_seconds=20, network=network)
    assert (done.exit_code == 0) is network


def test_a_named_socket_folder_can_be_connected_to(tmp_path: Path, bubblewrap: bool) -> None:
    folder, work = tmp_path / "s", tmp_path / "w"
    folder.mkdir()
    work.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "db"))
        server.listen()
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(folder / 'db')!r})"
        done = sandbox.run(
            python(code), cwd=work, environment={}, timeout_seconds=20, readable=[folder], bubblewrap=bubblewrap
        )
    assert done.exit_code == 0, done.stderr


def test_a_specification_file_runs_under_a_process_manager_and_passes_sigterm_on(
    tmp_path: Path, bubblewrap: bool
) -> None:
    code = """
        import signal, sys, time, pathlib
        def bye(*_):
            pathlib.Path("bye").write_text("clean"); sys.exit(0)
        signal.signal(signal.SIGTERM, bye)
        pathlib.Path("up").touch()
        time.sleep(600)
    """
    work = tmp_path / "work"
    work.mkdir()
    spec = sandbox.specification(
        python(code), cwd=work, environment={"A": "secret"}, grace_seconds=10, bubblewrap=bubblewrap
    )
    argv = sandbox.write_specification(tmp_path / "spec.json", spec)
    assert (tmp_path / "spec.json").stat().st_mode & 0o777 == 0o600
    manager = subprocess.Popen(argv)
    try:
        until = time.monotonic() + 15
        while not (work / "up").exists() and time.monotonic() < until:
            time.sleep(0.02)
        manager.terminate()
        manager.wait(15)
    finally:
        manager.kill()
        manager.wait()
    assert (work / "bye").read_text(encoding="utf-8") == "clean"


@pytest.mark.parametrize(
    ("environment", "folders", "network"),
    [
        ({}, [], False),
        ({"DATABASE_URL": "postgresql://realm:pw@/realm?host=/var/run/x"}, ["/var/run/x"], False),
        ({"DATABASE_URL": "postgres://realm:pw@%2Fvar%2Frun%2Fx/realm"}, ["/var/run/x"], False),
        ({"DATABASE_URL": "postgres://realm:pw@db.example:5432/realm"}, [], True),
        ({"REDIS_URL": "unix:///var/run/y/valkey.sock?db=0"}, ["/var/run/y"], False),
        ({"REDIS_URL": "redis://127.0.0.1:6379/0"}, [], True),
        ({"PGHOST": "/var/run/x"}, ["/var/run/x"], False),
        ({"HOMEPAGE": "https://realm.example/"}, [], False),
    ],
)
def test_knows_what_the_environment_needs_to_reach(
    environment: dict[str, str], folders: list[str], network: bool
) -> None:
    assert sandbox.reach(environment) == sandbox.Reach(tuple(Path(folder) for folder in folders), network)


SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(not os.access(SYSTEM_PYTHON, os.X_OK), reason="there is no Python that every user can read")
def test_root_becomes_another_user_where_that_user_can_read_everything(tmp_path: Path) -> None:
    code = "import os; print(os.getuid(), os.environ['HOME']); open('written', 'w').close(); os.setuid(0)"
    # Not under tmp_path: pytest's folders are closed to other users.
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        work.chmod(0o777)
        spec = sandbox.specification([SYSTEM_PYTHON, "-c", code], cwd=work, environment={}, bubblewrap=False)
        (work / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        launcher = shutil.copy(sandbox.LAUNCHER, work / "sandboxed.py")
        done = subprocess.run(
            [SYSTEM_PYTHON, "-I", launcher, "--spec-file", str(work / "spec.json")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (work / "written").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert done.stdout.split()[0] == str(pwd.getpwnam("nobody").pw_uid)
    assert "Operation not permitted" in done.stderr
    assert not Path(done.stdout.split()[1]).exists(), "the scratch folder was left behind"


# ---- what a virtual environment claims about its interpreter


def interpreter(folder: Path) -> Path:
    """What an installed Python looks like; its bin/."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python3").symlink_to(sys.executable)
    (folder / "lib" / "python3.12").mkdir(parents=True)
    (folder / "lib" / "python3.12" / "os.py").touch()
    return folder / "bin"


def claim(work: Path, home: Path | str) -> list[str]:
    (work / ".venv").mkdir(parents=True, exist_ok=True)
    (work / ".venv" / "pyvenv.cfg").write_text(f"home = {home}\nversion = 3.12.1\n", encoding="utf-8")
    return sandboxed.environment_base(str(work))


def test_believes_a_virtual_environment_that_names_an_interpreter(tmp_path: Path) -> None:
    real = interpreter(tmp_path / "cpython-3.12.1")
    (tmp_path / "cpython-3.12").symlink_to(tmp_path / "cpython-3.12.1")
    work = tmp_path / "work"
    assert claim(work, real) == [str(real.parent)]
    assert claim(work, tmp_path / "cpython-3.12" / "bin") == [str(tmp_path / "cpython-3.12"), str(real.parent)]


def test_believes_no_virtual_environment_that_names_anything_else(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (secret / "bin").mkdir(parents=True)
    (secret / "bin" / "python3").symlink_to(sys.executable)  # a home folder may well have this
    real = interpreter(tmp_path / "python")
    (secret / "python").symlink_to(real)
    work = tmp_path / "work"
    around = interpreter(tmp_path / "around")
    for home in (secret / "bin", secret, secret / "python", "relative/bin", "/bin", real / "..", "\0"):
        assert claim(work, home) == [], home
    assert claim(work, interpreter(work / "own")) == []
    assert claim(tmp_path / "around" / "work", around) == []


# ---- root without bubblewrap

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about what root gives up")


@as_root
def test_root_that_must_stay_root_gives_up_its_powers_and_says_what_is_open(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_text("of somebody else", encoding="utf-8")
    foreign.chmod(0o600)
    os.chown(foreign, pwd.getpwnam("nobody").pw_uid, -1)
    code = f"""
        import os, pathlib
        print(os.getuid(), [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")])
        print(os.access({str(foreign)!r}, os.R_OK), os.system("cat {foreign} 2>&1 | grep -c denied"))
        pathlib.Path("written").touch()
    """
    done = sandbox.run(python(code), cwd=tmp_path, environment={}, timeout_seconds=20, user=None, bubblewrap=False)
    assert done.exit_code == 0, done.stderr
    assert f"0 {['0' * 16] * 5}" in done.stdout
    assert "False 0" in done.stdout
    assert done.isolation == (
        "limits only: runs as root without its capabilities; files and network are open, because bubblewrap is not "
        "installed; install bubblewrap"
    )


@as_root
def test_root_gives_its_folder_to_the_other_user_and_takes_it_back(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    work, outside = tmp_path / "work", tmp_path / "outside"
    (work / "inner").mkdir(parents=True)
    for file in (work / "a", work / "inner" / "b", outside):
        file.touch()
    (work / "link").symlink_to(outside)
    (work / "second name").hardlink_to(outside)
    os.chown(work / "inner" / "b", 12345, -1)
    sandboxed.give(str(work), nobody, of=0)
    assert {work.stat().st_uid, (work / "a").stat().st_uid, (work / "inner").stat().st_uid} == {nobody.pw_uid}
    assert outside.stat().st_uid == 0, "a link or a second name led outside"
    assert (work / "inner" / "b").stat().st_uid == 12345, "it belongs to somebody else"
    spec = sandbox.specification(["true"], cwd=work, environment={})
    sandboxed.take_back(spec)
    assert {work.stat().st_uid, (work / "a").stat().st_uid} == {0}


@as_root
@pytest.mark.skipif(not os.access(SYSTEM_PYTHON, os.X_OK), reason="there is no Python that every user can read")
def test_the_other_user_gets_the_group_of_a_socket_folder_that_it_needs() -> None:
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        work, sockets = Path(folder, "work"), Path(folder, "s")
        work.mkdir()
        sockets.mkdir()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(sockets / "db"))
            server.listen()
            (sockets / "db").chmod(0o770)
            sockets.chmod(0o2710)
            code = f"import os, socket; socket.socket(1).connect({str(sockets / 'db')!r}); print(os.getuid())"
            spec = sandbox.specification(
                [SYSTEM_PYTHON, "-c", code], cwd=work, environment={}, readable=[sockets], bubblewrap=False
            )
            (Path(folder) / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
            launcher = shutil.copy(sandbox.LAUNCHER, Path(folder) / "sandboxed.py")
            done = subprocess.run(
                [SYSTEM_PYTHON, "-I", launcher, "--spec-file", f"{folder}/spec.json"],
                capture_output=True,
                text=True,
                check=False,
            )
    assert done.stdout.strip() == str(nobody.pw_uid), done.stderr


@as_root
def test_says_when_code_of_services_would_run_as_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    locked = tmp_path / "python"
    locked.write_text("#!/bin/sh\n", encoding="utf-8")
    locked.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(locked))
    assert sandbox.weakness() == f"bubblewrap is not installed, and user nobody can't run {locked}"
    monkeypatch.setattr(sys, "executable", "/bin/true")
    assert sandbox.weakness() == ""
