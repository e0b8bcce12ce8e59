"""The load generator tells the truth about a service that stalls, fails, hangs up or overloads."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.realm.conftest import SOURCE

Answer = Callable[[str, str], Awaitable[tuple[int, object] | None]]


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("realm_load", SOURCE / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


load: Any = _module()


async def ordinary(method: str, path: str) -> tuple[int, object]:
    if path.startswith("/api/players?"):
        return 200, {"pages": 1, "players": [{"id": 1}, {"id": 2}]}
    if path.startswith("/api/items/search"):
        return 200, {"items": [{"code": "W-1"}]}
    return (201 if method == "POST" else 200), {}


def drive(answer: Answer, *options: str) -> dict[str, Any]:
    """Serve by `answer` (None: hang up) while the load runs, and return the load's report."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                method, path, _ = head.decode().split(" ", 2)
                if b"Content-Length: " in head:
                    await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
                answered = await answer(method, path)
                if answered is None:
                    return
                body = json.dumps(answered[1]).encode()
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (answered[0], len(body), body))
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def both() -> dict[str, Any]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            report = await load.generate(load.parse([f"--url=http://127.0.0.1:{port}", "--random-seed=1", *options]))
            assert isinstance(report, dict)
            return report

    return asyncio.run(both())


def test_percentiles_agree_with_the_definition() -> None:
    dice = random.Random(3)
    values = [dice.lognormvariate(3, 1) for _ in range(5_000)]
    histogram = load.Histogram()
    for value in values:
        histogram.add(value)
    for percent in (50, 95, 99, 100):
        exact = float(np.percentile(values, percent, method="inverted_cdf"))
        assert histogram.percentile(percent) == pytest.approx(exact, rel=0.006)
    assert load.Histogram().percentile(50) is None


def test_a_stall_is_felt_by_every_request_that_was_due_during_it() -> None:
    began: list[float] = []

    async def stall_for_a_moment(method: str, path: str) -> tuple[int, object] | None:
        if path == "/api/leaderboard":
            loop = asyncio.get_running_loop()
            began.append(loop.time())
            await asyncio.sleep(max(0.0, began[0] + 0.5 - loop.time()))
        return await ordinary(method, path)

    report = drive(stall_for_a_moment, "--seconds=1.01", "--rate=50", "--constant", "--mix=leaderboard=1")
    # 25 of the 50 were due while nothing was answered. A client that waits for each answer would have counted one,
    # and its 95th percentile would have shown nothing.
    assert report["requests"] == 50
    assert report["p50_ms"] < 400 < report["p95_ms"]


def test_counts_failures_by_kind_and_sends_nothing_twice() -> None:
    seen: list[str] = []

    async def unreliable(method: str, path: str) -> tuple[int, object] | None:
        if method == "POST":
            seen.append(path)
            return (503, {}) if len(seen) % 2 else None
        if path.startswith("/api/trades/references"):
            return 200, {"trades": 1, "references": 1, "duplicates": 0}
        return await ordinary(method, path)

    report = drive(unreliable, "--seconds=0.51", "--rate=40", "--constant", "--mix=trade-create=1")
    assert report["requests"] == report["failed"] == report["trades"]["sent"] == len(seen) == 20
    assert report["failures"] == {"status 503": 10, "connection closed before the answer was complete": 10}


def test_a_refusal_with_4xx_is_no_failure_of_the_service() -> None:
    async def refuse(method: str, path: str) -> tuple[int, object] | None:
        return (404, {}) if path == "/api/leaderboard" else await ordinary(method, path)

    report = drive(refuse, "--seconds=0.21", "--rate=50", "--constant", "--mix=leaderboard=1")
    assert (report["failed"], report["statuses"]) == (0, {"404": 10})


def test_slow_answers_time_out_and_overload_is_dropped_and_counted() -> None:
    async def hang(method: str, path: str) -> tuple[int, object] | None:
        if path == "/api/leaderboard":
            await asyncio.sleep(5)
        return await ordinary(method, path)

    options = ("--seconds=0.305", "--rate=100", "--constant", "--max-in-flight=4", "--timeout=0.5")
    report = drive(hang, "--mix=leaderboard=1", *options)
    assert report["failures"] == {"timeout": 4}
    assert report["dropped"] == 26


def test_says_what_was_stored_twice_and_what_was_lost() -> None:
    async def forgetful(method: str, path: str) -> tuple[int, object] | None:
        if path.startswith("/api/trades/references"):
            return 200, {"trades": 11, "references": 8, "duplicates": 3}
        return await ordinary(method, path)

    report = drive(forgetful, "--seconds=0.21", "--rate=50", "--constant", "--mix=trade-create=1")
    assert report["duplicates"] == 3
    assert report["trades"] == {"sent": 10, "acknowledged": 10, "stored": 11, "duplicates": 3, "lost": 2}


def test_writes_the_report_as_a_whole(tmp_path: Path) -> None:
    report = drive(ordinary, "--seconds=0.2", f"--report={tmp_path / 'load.json'}")
    assert json.loads((tmp_path / "load.json").read_text()) == report
    assert [path.name for path in tmp_path.iterdir()] == ["load.json"]


@pytest.mark.parametrize(
    "url", ["http://example.com", "http://10.0.0.1:80", "https://127.0.0.1", "http://127.0.0.1:x", "http://0.0.0.0", ""]
)
def test_leaves_other_machines_alone(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load.parse([f"--url={url}"])
    assert "not an http:// address of this machine" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--rate=5000", "--rate=0", "--seconds=1e9", "--max-in-flight=0", "--mix=cheese=1"])
def test_refuses_what_is_out_of_bounds(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load.parse([option])
    assert option.split("=")[0] in capsys.readouterr().err
