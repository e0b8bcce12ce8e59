"""Processes of one home, found by the mark they carry, and stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable

import psutil

from runerogue.stack.home import Home
from runerogue.stack.supervisor import MARK

ENGINES = ("postgres", "valkey-server", "haproxy")


def of_home(home: Home) -> list[psutil.Process]:
    """Every living process that a stack of this home started, except this process and those above it.

    Recognised by the mark in its environment; the engines, some of which overwrite theirs, by their command line.
    """
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        try:
            if _belongs(process, home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def stop_all(home: Home, *, patience_seconds: float = 15) -> int:
    """Stop every process of this home, PostgreSQL last and by its fast shutdown; the number that were found."""
    first = [process for process in of_home(home) if not _is_named(process, "postgres")]
    _stop(first, signal.SIGTERM, patience_seconds)
    rest = of_home(home)
    _stop([process for process in rest if _is_postmaster(process)], signal.SIGINT, patience_seconds * 2)
    _stop(of_home(home), signal.SIGTERM, patience_seconds)
    return len({process.pid for process in [*first, *rest]})


def _belongs(process: psutil.Process, home: Home) -> bool:
    if process.name() in ENGINES:
        line = " ".join(process.cmdline())
        if f"{home.folder}/" in line:
            return True
        if process.name() == "postgres" and (parent := process.parent()) is not None:
            return parent.name() == "postgres" and f"{home.folder}/" in " ".join(parent.cmdline())
        return False
    return process.environ().get(MARK) == str(home.folder)


def _is_named(process: psutil.Process, name: str) -> bool:
    try:
        return process.name() == name
    except psutil.Error:
        return False


def _is_postmaster(process: psutil.Process) -> bool:
    try:
        return process.name() == "postgres" and "-D" in process.cmdline()
    except psutil.Error:
        return False


def _stop(doomed: Iterable[psutil.Process], gently: signal.Signals, patience_seconds: float) -> None:
    waiting = list(doomed)
    for wish in (gently, signal.SIGKILL):
        for process in waiting:
            try:
                process.send_signal(wish)
            except psutil.Error:
                continue
        deadline = time.monotonic() + (patience_seconds if wish is gently else 5)
        while waiting and time.monotonic() < deadline:
            waiting = [process for process in waiting if _lives(process)]
            time.sleep(0.05)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
