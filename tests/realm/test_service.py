"""Realm keeps its side: its suite passes with and without its flaws, and it serves, is measured and fails on demand."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pytest

from monitoring import manifest
from tests.realm.conftest import SOURCE, Realm


def suite(realm: Realm) -> dict[str, int]:
    finished = realm.run("-m", "pytest", "-q", "--junitxml=report.xml")
    report = ElementTree.parse(realm.folder / "report.xml").getroot().find("testsuite")
    assert report is not None, finished.stdout + finished.stderr
    counts = {name: int(report.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    assert finished.returncode == (1 if counts["failures"] or counts["errors"] else 0), finished.stdout
    return counts


def fix_the_player_list(folder: Path) -> None:
    views = folder / "game" / "views.py"
    slow, fast = 'Player.objects.order_by("id")', 'select_related("guild").prefetch_related("inventory").order_by("id")'
    assert views.read_text().count(slow) == 1
    views.write_text(views.read_text().replace(slow, f"Player.objects.{fast}"))


def test_its_own_tests_pass_with_the_flaws(realm: Realm) -> None:
    counts = suite(realm)
    assert counts["tests"] >= 40
    assert counts["failures"] == counts["errors"] == counts["skipped"] == 0


def test_the_fix_takes_three_queries_and_breaks_nothing(living_realm: Realm) -> None:
    before = json.loads(living_realm.must_run("bench.py"))
    fix_the_player_list(living_realm.folder)
    after = json.loads(living_realm.must_run("bench.py"))
    assert (before["player_list_queries"], after["player_list_queries"]) == (62, 3)
    counts = suite(living_realm)
    assert counts["failures"] == counts["errors"] == 0


def test_it_knows_nothing_of_who_watches_it() -> None:
    for path in SOURCE.rglob("*.py"):
        assert not re.search(r"runerogue|^(?:from|import) (?:monitoring|analysis|improvements|approvals)\b",
                             path.read_text(), re.IGNORECASE | re.MULTILINE), path  # fmt: skip


def test_its_manifest_is_valid() -> None:
    parsed = manifest.parse((SOURCE / "runerogue.toml").read_text())
    assert parsed.run.health in parsed.smoke.paths
    assert parsed.setup.command is None  # it shares the environment of the interpreter that runs it


@contextmanager
def serving(realm: Realm) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (realm.folder / "gunicorn.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "realm.wsgi", "--bind", f"127.0.0.1:{port}"],
            cwd=realm.folder,
            env=realm.environment,
            stdout=log,
            stderr=log,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_up(url)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0


def wait_until_up(url: str) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            if httpx.get(f"{url}/up", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    pytest.fail("Realm did not come up.")


def load(realm: Realm, url: str, *options: str) -> dict[str, object]:
    report: dict[str, object] = json.loads(realm.must_run("load.py", f"--url={url}", "--seconds=2", *options))
    return report


@pytest.mark.slow
def test_it_serves_under_load_is_measured_and_fails_on_demand(living_realm: Realm) -> None:
    with serving(living_realm) as url:
        for path in manifest.parse((SOURCE / "runerogue.toml").read_text()).smoke.paths:
            assert httpx.get(url + path).status_code == 200, path

        report = load(living_realm, url, "--rate=20")
        assert report["failed"] == report["dropped"] == report["duplicates"] == 0
        metrics = httpx.get(f"{url}/metrics").text
        assert 'django_http_requests_latency_seconds_by_view_method_count{method="GET",view="player-list"}' in metrics

        living_realm.must_run("-m", "realm.faults", "set", "error_ratio=1", "only_views=leaderboard")
        report = load(living_realm, url, "--rate=20", "--mix=leaderboard=1,trade-list=1", "--constant")
        endpoints = report["endpoints"]
        assert isinstance(endpoints, dict)
        assert endpoints["leaderboard"]["failed"] == endpoints["leaderboard"]["requests"] > 0
        assert endpoints["trade-list"]["failed"] == 0

        living_realm.must_run("-m", "realm.faults", "clear")
        living_realm.must_run("-m", "realm.faults", "set", "crash_after_ratio=1", "only_views=trades")
        time.sleep(0.2)
        player = httpx.get(f"{url}/api/players").json()["players"]
        code = httpx.get(f"{url}/api/items/search?q=of").json()["items"][0]["code"]
        trade = {"reference": "last", "seller": player[0]["id"], "buyer": player[1]["id"], "item": code, "gold": 1}
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{url}/api/trades", json=trade)
        living_realm.must_run("-m", "realm.faults", "clear")
        wait_until_up(url)
        # It was stored although nobody was told: what a retry by a proxy would store a second time.
        assert httpx.get(f"{url}/api/trades/references?prefix=last").json()["trades"] == 1
