import os
import time

import pytest

from realm import faults


@pytest.fixture
def exits(monkeypatch):
    seen = []
    monkeypatch.setattr(os, "_exit", seen.append)
    return seen


def test_errors_reach_views_but_not_health_and_metrics(client, players, no_faults):
    no_faults.write_text('{"error_ratio": 1}')
    assert client.get("/api/players").status_code == 500
    assert client.get("/up").status_code == 200
    assert client.get("/metrics").status_code == 200


@pytest.mark.django_db
def test_everything_means_everything(client, no_faults):
    no_faults.write_text('{"error_ratio": 1, "everything": true}')
    assert client.get("/up").status_code == 500


def test_a_fault_can_be_kept_to_some_views(client, players, no_faults):
    no_faults.write_text('{"error_ratio": 1, "only_views": ["leaderboard"]}')
    assert client.get("/api/leaderboard").status_code == 500
    assert client.get("/api/players").status_code == 200


def test_faults_come_and_go_while_running(client, players, no_faults, monkeypatch):
    monkeypatch.setattr(faults, "RECHECK_SECONDS", 0)
    assert client.get("/api/players").status_code == 200
    no_faults.write_text('{"error_ratio": 1}')
    assert client.get("/api/players").status_code == 500
    no_faults.unlink()
    assert client.get("/api/players").status_code == 200


def test_latency_processor_time_and_leak(client, players, no_faults):
    no_faults.write_text('{"latency_ms": 30, "cpu_ms": 20, "leak_bytes": 1000}')
    started = time.perf_counter()
    assert client.get("/api/players").status_code == 200
    assert time.perf_counter() - started >= 0.05
    assert len(faults._leaked.pop()) == 1000


def test_latency_can_be_a_multiple_of_the_views_own(client, players, no_faults):
    no_faults.write_text('{"latency_ms": 20, "latency_ratio": 2}')
    started = time.perf_counter()
    assert client.get("/api/players").status_code == 200
    assert time.perf_counter() - started >= 0.06


def test_a_crash_comes_before_or_after_the_view(client, trade, no_faults, exits):
    no_faults.write_text('{"crash_ratio": 1}')
    client.get("/api/trades")
    assert exits == [faults.CRASH_EXIT_CODE]


@pytest.mark.parametrize("text", ["{", "[]", '{"latency": 1}', '{"error_ratio": 2}', '{"everything": 1}'])
def test_a_wrong_file_is_ignored_and_said(client, players, no_faults, caplog, text):
    no_faults.write_text(text)
    assert client.get("/api/players").status_code == 200
    assert "is ignored" in caplog.text


def test_the_command_line_sets_shows_and_clears(no_faults, capsys):
    assert faults.main(["set", "latency_ms=400", "only_views=player-list,trades"]) == 0
    assert faults.main(["set", "error_ratio=0.2"]) == 0
    assert faults.FaultFile(no_faults).faults() == faults.Faults(
        latency_ms=400, error_ratio=0.2, only_views=("player-list", "trades")
    )
    assert faults.main(["set", "error_ratio=7"]) == 2
    assert faults.main(["set", "nonsense=1"]) == 2
    assert faults.main(["clear"]) == 0
    assert not no_faults.exists()
