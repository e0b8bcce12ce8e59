"""Concurrent users and requests in flight."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.utils.timezone import now

from approvals.limits import valkey
from monitoring import instrumentation, presence, reading
from tests.monitoring.factories import T0, ServiceFactory

NOW = T0.timestamp()


@pytest.fixture(autouse=True)
def _first_window(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in valkey().scan_iter("runerogue:users:*"):
        valkey().delete(key)
    another_process(monkeypatch)


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_seen", presence._Seen())


def test_counts_sessions_once_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        for number in range(500):
            presence.see(f"session-{number}", at=NOW + 30)
        another_process(monkeypatch)
    assert presence.users(T0 + timedelta(seconds=59)) == 0, "the window is not over"
    assert presence.users(T0 + timedelta(seconds=60)) == pytest.approx(500, rel=0.03)
    assert presence.users(T0 + timedelta(seconds=120)) == 0


def test_nothing_tells_afterwards_who_was_there() -> None:
    presence.see("session-of-jane", at=NOW + 10)
    window = int(NOW // 60)
    salt = valkey().ttl(f"runerogue:users:{window}:salt")
    sketch = valkey().ttl(f"runerogue:users:{window}")
    assert 0 < salt <= 50, "the salt ends with its window"
    assert 60 < sketch <= 180
    held = b"".join(valkey().get(key) or b"" for key in valkey().scan_iter("runerogue:users:*"))
    assert b"jane" not in held
    first = valkey().get(f"runerogue:users:{window}:salt")
    presence.see("session-of-jane", at=NOW + 70)
    assert valkey().get(f"runerogue:users:{window + 1}:salt") != first


def test_without_valkey_requests_go_on_and_nobody_is_counted(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    for _ in range(3):
        presence.see("session", at=NOW)
    assert presence.users(T0) is None
    assert len([line for line in caplog.messages if "not counted" in line]) == 1, "it rests after the first failure"


@pytest.mark.django_db
def test_people_who_sign_in_are_counted_and_visitors_are_not(client: Client, mallory: User) -> None:
    own = ServiceFactory(name="runerogue", is_self=True)
    Client().get("/admin/login/")
    client.force_login(mallory)
    for _ in range(3):
        client.get("/admin/")
    later = now() + timedelta(seconds=presence.window_seconds())
    presence.write_round(later)
    assert reading.latest(own, "concurrent_users") == 1.0


def test_requests_in_flight_are_those_of_people() -> None:
    seen: list[float] = []

    def view(request: HttpRequest) -> HttpResponse:
        seen.append(instrumentation.IN_FLIGHT._value.get())
        if request.path == "/broken":
            raise ValueError
        return HttpResponse()

    counted = instrumentation.InFlightMiddleware(view)
    for path in ("/admin/", "/metrics", "/health/live", "/broken"):
        request = HttpRequest()
        request.path = request.path_info = path
        try:
            counted(request)
        except ValueError:
            assert path == "/broken"
    assert seen == [1.0, 0.0, 0.0, 1.0]
    assert instrumentation.IN_FLIGHT._value.get() == 0.0


@pytest.mark.django_db
def test_requests_in_flight_add_up_over_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from monitoring import exporting

    # Not Django itself: starting it twice takes longer than all tests here together.
    mode = instrumentation.IN_FLIGHT._multiprocess_mode
    program = (
        "import sys, prometheus_client\n"
        f"gauge = prometheus_client.Gauge('runerogue_requests_in_flight', 'x', multiprocess_mode={mode!r})\n"
        "gauge.inc(); print('ready', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    try:
        for process in started:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        assert "\nrunerogue_requests_in_flight 2.0\n" in exporting.exposition().decode()
    finally:
        for process in started:
            process.communicate()
