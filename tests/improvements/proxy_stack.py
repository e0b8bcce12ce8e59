"""A real supervisord and a real HAProxy in a folder of their own, and a small service to deploy."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from django.test import override_settings

from improvements.supervision import Supervisor
from monitoring.models import Service
from runerogue.stack import haproxy, supervisor
from runerogue.stack.home import Home

SERVER = """
import http.server, json, os, pathlib, socketserver, sys, time
VERSION = pathlib.Path("version.txt").read_text().strip()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, status, text):
        body = text.encode()
        head = f"HTTP/1.1 {status} X\\r\\nContent-Length: {len(body)}\\r\\nX-Release: {VERSION}\\r\\n\\r\\n"
        self.wfile.write(head.encode() + body)
    def do_GET(self):
        if self.path == "/up":
            return self.answer(503 if VERSION == "sick" else 200, "up")
        if self.path == "/environment":
            return self.answer(200, json.dumps(dict(os.environ)))
        if self.path.startswith("/slow"):
            time.sleep(float(self.path.partition("=")[2]))
        self.answer(200, VERSION)
    def do_POST(self):
        token = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with open("posts.txt", "a") as posts:
            posts.write(token + "\\n")
        time.sleep(0.01)
        self.answer(200, VERSION)
    def log_message(self, *arguments):
        pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128
if VERSION == "broken":
    sys.exit("it is broken on purpose")
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=alice", "-c", "user.email=alice@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(repository: Path, version: str) -> str:
    """A commit of the small service that calls itself `version`. Returns it."""
    if not (repository / ".git").exists():
        repository.mkdir(parents=True, exist_ok=True)
        git(repository, "init", "--quiet", "--initial-branch=main")
    (repository / "server.py").write_text(SERVER)
    (repository / "version.txt").write_text(version)
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--allow-empty", "--message", version)
    return git(repository, "rev-parse", "HEAD")


def manifest(*, setup: str | None = None) -> dict[str, Any]:
    return {
        "service": {"name": "tiny"},
        "run": {"command": "python server.py {port}", "health": "/up"},
        "test": {"command": "true"},
        "setup": {"command": setup},
    }


def make_service(repository: Path, *, name: str = "tiny", **fields: Any) -> Service:
    fields.setdefault("manifest", manifest())
    return Service.objects.create(name=name, repository=str(repository), **fields)


def free_ports(count: int) -> tuple[int, ...]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(probe.getsockname()[1] for probe in probes)


@dataclass
class ProxyStack:
    """supervisord with HAProxy under it; `ports` are the slots' ports."""

    home: Home
    ports: tuple[int, ...]

    def pid(self, program: str) -> int:
        """The program's process now, or 0."""
        process = Supervisor(self.home.supervisor_socket, self.home.programs).process(program)
        return process.pid if process else 0

    def kill(self, program: str) -> None:
        """kill -9 of a program's process and everything below it."""
        parent = psutil.Process(self.pid(program))  # the launcher, which supervisord knows
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def kill_proxy_and_wait(self) -> None:
        was = self.pid("haproxy")
        os.kill(was, 9)
        deadline = time.monotonic() + 10
        while self.pid("haproxy") in (0, was) or not haproxy.is_ready(self.home):
            assert time.monotonic() < deadline, "HAProxy did not come back"
            time.sleep(0.02)


@contextlib.contextmanager
def running() -> Iterator[ProxyStack]:
    """A stack of its own, under settings that name it; ended and removed afterwards."""
    binary = haproxy.binary()
    assert binary is not None, haproxy.absence()
    # A short path: a unix socket's name has about 100 characters.
    home = Home(Path(tempfile.mkdtemp(prefix="rrp-", dir="/tmp")))
    home.create()
    ports = free_ports(4)
    haproxy.prepare(home, ports)
    home.supervisor_config.write_text(supervisor.configuration(home, [haproxy.program(home, binary)]))
    # A secret in the process manager's own environment must not reach what it runs.
    process = supervisor.start(home, {"PATH": os.environ["PATH"], "SECRET_KEY": "of-the-stack"})
    try:
        deadline = time.monotonic() + 10
        while not (supervisor.answers(home.supervisor_socket) and haproxy.is_ready(home)):
            assert time.monotonic() < deadline, (home.logs / "supervisord.log").read_text()
            time.sleep(0.02)
        with override_settings(
            RUNEROGUE_HOME=home.folder,
            HAPROXY_SOCKET=str(home.haproxy_socket),
            SUPERVISOR_SOCKET=str(home.supervisor_socket),
            SERVICE_PORTS=ports,
        ):
            yield ProxyStack(home, ports)
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(home.folder, ignore_errors=True)


@dataclass
class Client:
    """A strict keep-alive client: one connection a thread, no retries, and every failure is remembered."""

    url: str
    threads: int = 4
    path: str = "/"
    posting: bool = False
    pause_seconds: float = 0.001
    answers: Counter[str] = field(default_factory=Counter)  # by release
    failures: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def __enter__(self) -> Client:
        self._stop = threading.Event()
        self._running = [threading.Thread(target=self._send, args=(number,)) for number in range(self.threads)]
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._running:
            thread.join(30)

    def during(self, seconds: float) -> Counter[str]:
        """The answers of the next `seconds`, by release."""
        before = self.answers.copy()
        time.sleep(seconds)
        return self.answers - before

    def _send(self, number: int) -> None:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        sent = 0
        while not self._stop.wait(self.pause_seconds):
            sent += 1
            token = f"{number}-{sent}"
            try:
                if self.posting:
                    self.tokens.append(token)
                    connection.request("POST", self.path, body=token)
                else:
                    connection.request("GET", self.path)
                answer = connection.getresponse()
                answer.read()
                if answer.status == 200:
                    self.answers[answer.headers["X-Release"]] += 1
                else:
                    self.failures.append(f"{token}: {answer.status}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{token}: {error!r}")
                connection.close()
        connection.close()


def ask(url: str) -> Any:
    """The JSON that `url` answers."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", urlsplit(url).path)
        return json.loads(connection.getresponse().read())
