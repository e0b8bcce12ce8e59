"""`/metrics`: right with several processes, bounded, and what the rules and the board of `deploy/` rest on."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis
from django.conf import settings as django_settings
from django.test import Client
from gunicorn.config import Config
from gunicorn.glogging import Logger
from prometheus_client.parser import text_string_to_metric_families
from pytest_django.fixtures import Settings

from approvals import audit
from improvements.models import Release
from monitoring import exporting
from monitoring.models import Alert, AlertState, HealthScore
from runerogue.stack import gunicorn_conf
from tests.monitoring.factories import T0, ServiceFactory, TargetFactory

ROOT = Path(__file__).resolve().parents[2]
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")

WORKER = """
import os, sys
from prometheus_client import Counter, Gauge, Histogram
Counter("jobs", "Jobs.", ["kind"]).labels("a").inc(int(sys.argv[1]))
Histogram("took_seconds", "Time.", buckets=[1, 5]).observe(int(sys.argv[1]))
Gauge("held", "Held now.", multiprocess_mode="livesum").set(7)
Gauge("seen", "Of each process.").set(7)
print(os.getpid())
"""


class Arbiter:
    """As much of gunicorn's master as its hooks are given: its real logger."""

    def __init__(self, config: Config) -> None:
        self.log = Logger(config)


def work(folder: Path, *amounts: int) -> list[int]:
    """Processes that count, one after the other; their ids."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    ids = []
    for amount in amounts:
        command = [sys.executable, "-c", WORKER, str(amount)]
        ids.append(int(subprocess.run(command, env=environment, check=True, timeout=30, capture_output=True).stdout))
    return ids


def values(text: str) -> dict[str, float]:
    return {
        sample.name + str(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_counters_never_go_down_when_gunicorns_workers_die(folder: Path) -> None:
    """The real gunicorn with its settings: both workers are killed, and every answered request stays counted."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "RUNEROGUE_PORT": str(port), "WEB_CONCURRENCY": "2"}
    command = [sys.executable, "-m", "gunicorn", "-c", "runerogue/stack/gunicorn_conf.py", "runerogue.wsgi"]
    with (folder / "log").open("wb") as log:
        master = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    name = "django_http_responses_total_by_status_view_method_total"
    series = f"{name}[('method', 'GET'), ('status', '200'), ('view', 'health-live')]"

    def ask(path: str) -> str:
        with httpx.Client(trust_env=False, timeout=30, transport=httpx.HTTPTransport(retries=3)) as client:
            return client.get(f"http://127.0.0.1:{port}{path}").raise_for_status().text

    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                ask("/health/live")
                break
            except httpx.TransportError:
                assert master.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
        for _ in range(5):
            ask("/health/live")
        workers = psutil.Process(master.pid).children()
        for worker in workers:
            worker.kill()
        psutil.wait_procs(workers, timeout=30)
        assert values(ask("/metrics"))[series] == 6
        left = {int(path.stem.rpartition("_")[2]) for path in folder.glob("*_[0-9]*.db")}
        assert left <= {master.pid, *(worker.pid for worker in psutil.Process(master.pid).children())}
    finally:
        master.terminate()
        master.wait(timeout=30)


@pytest.mark.django_db
def test_processes_are_summed_and_dead_ones_keep_their_counts_only(folder: Path) -> None:
    pids = work(folder, 2, 4)
    before = values(exporting.exposition().decode())
    assert before["jobs_total[('kind', 'a')]"] == 6.0
    assert before["took_seconds_count[]"] == 2.0
    assert before["took_seconds_bucket[('le', '5.0')]"] == 2.0
    assert before["held[]"] == 14.0
    assert before["runerogue_database_up[]"] == 1.0

    class Worker:
        pid = pids[0]

    gunicorn_conf.child_exit(None, Worker())
    gunicorn_conf.child_exit(None, Worker())  # a second time adds nothing
    after = values(exporting.exposition().decode())
    assert after["held[]"] == 7.0
    gunicorn_conf.on_starting(Arbiter(Config()))
    last = values(exporting.exposition().decode())
    assert "held[]" not in last
    assert not [name for name in last if name.startswith("seen")]
    for name, value in before.items():
        if name.startswith(("jobs_total", "took_seconds")):
            assert after[name] == last[name] == value, name
    assert sorted(path.name for path in folder.glob("*.db")) == ["counter_gone.db", "histogram_gone.db"]


def test_files_stay_few_however_many_workers_there_were(folder: Path) -> None:
    """Thirty workers that counted the same thing, from one real file: what matters is what is left of them."""
    (pid,) = work(folder, 3)
    for copy in range(30):
        for path in list(folder.glob(f"*_{pid}.db")):
            shutil.copy(path, path.with_name(path.name.replace(str(pid), f"{4_000_000 + copy}")))
        exporting.forget_process(4_000_000 + copy)
    exporting.forget_process(pid)
    assert len(list(folder.glob("*.db"))) == 2
    from prometheus_client.multiprocess import MultiProcessCollector

    (jobs,) = (
        metric
        for metric in MultiProcessCollector(None).collect()
        if metric.name == "jobs"  # type: ignore[no-untyped-call]
    )
    assert jobs.samples[0].value == 31 * 3


def test_a_file_that_was_cut_off_costs_its_counts_and_nothing_else(folder: Path) -> None:
    (folder / "counter_4000001.db").write_bytes(b"\x40\0\0\0" + b"\xff" * 20)
    exporting.forget_process(4_000_001)
    assert not (folder / "counter_4000001.db").exists()


# --- State -------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(db: None) -> None:
    service = ServiceFactory(name="runerogue", is_self=True)
    TargetFactory(service=service, last_scraped_at=T0, last_error="It answered with status 500.")
    part: dict[str, Any] = {"score": 80.0, "status": "healthy", "message": "Well.", "confidence": 1.0, "drivers": []}
    HealthScore.objects.create(
        service=service, at=T0, score=91.0, status="healthy", confidence=0.5, components={"system": part}
    )
    Alert.objects.create(
        service=service, name="x", severity="critical", labels_key="{}", state=AlertState.FIRING, message="…"
    )
    Release.objects.create(service=service, commit="ccc", share=100)
    audit.record("test.happened", None)


@pytest.fixture
def text(client: Client, state: None) -> str:
    for path in ("/health/live", "/health/score", "/nowhere"):
        client.get(path)
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return answer.content.decode()


@pytest.mark.parametrize(
    ("series", "value"),
    [
        ("runerogue_health_score[('service', 'runerogue')]", 91.0),
        ("runerogue_health_component_score[('component', 'system'), ('service', 'runerogue')]", 80.0),
        ("runerogue_health_confidence_ratio[('service', 'runerogue')]", 0.5),
        ("runerogue_alerts_firing[('service', 'runerogue'), ('severity', 'critical')]", 1.0),
        ("runerogue_alerts_firing[('service', 'runerogue'), ('severity', 'warning')]", 0.0),
        ("runerogue_alerts_pending[('service', 'runerogue'), ('severity', 'critical')]", 0.0),
        ("runerogue_targets_failing[('service', 'runerogue')]", 1.0),
        (
            "runerogue_rollout_weight_ratio[('release', 'ccc'), ('role', 'current'), ('service', 'runerogue')]",
            1,
        ),
        ("runerogue_improvements[('state', 'STUCK')]", 0.0),
        ("runerogue_audit_entries[]", 1.0),
        ("runerogue_database_up[]", 1.0),
        ("runerogue_queue_up[]", 1.0),
        ("runerogue_queue_messages[('queue', 'collect')]", 2.0),
        ("runerogue_state_up[('part', 'rollouts')]", 1.0),
        ("runerogue_external_services_waiting[]", 0.0),
    ],
)
def test_carries_the_state_of_runerogue(client: Client, state: None, series: str, value: float) -> None:
    queue = redis.Redis.from_url(django_settings.REDIS_URL)
    queue.delete("collect")
    queue.rpush("collect", "one", "two")
    try:
        assert values(client.get("/metrics").content.decode())[series] == value
    finally:
        queue.delete("collect")
        queue.close()


def test_a_queue_that_does_not_answer_is_said_to_be_down(client: Client, state: None, settings: Settings) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    found = values(client.get("/metrics").content.decode())
    assert found["runerogue_queue_up[]"] == 0.0
    assert not [name for name in found if name.startswith("runerogue_queue_messages")]


def test_a_part_that_takes_too_long_is_left_out(client: Client, state: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow() -> list[Any]:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = '10ms'; SELECT pg_sleep(5)")
        return []

    monkeypatch.setitem(exporting._parts, "slow", slow)
    found = values(client.get("/metrics").content.decode())
    assert found["runerogue_state_up[('part', 'slow')]"] == 0.0
    assert found["runerogue_state_up[('part', 'scores')]"] == 1.0
    assert found["runerogue_database_up[]"] == 1.0


# --- Hostile clients ---------------------------------------------------------------------------------------------


def http_series(client: Client) -> set[str]:
    text = client.get("/metrics").content.decode()
    return {name for name in values(text) if name.startswith("django_http")}


def test_hostile_requests_add_no_series(client: Client, db: None) -> None:
    """Whatever is invented, again and again: after the first of a kind nothing new may appear."""

    def attack(number: int) -> None:
        for method in (f"HACK{number}", "get", "PROPFIND", f"{number}"):
            client.generic(method, "/health/live")
            client.generic(method, f"/nowhere/{number}")
        for path in (
            f"/x{number}",
            f"/health/{number}",
            f"/admin/{number}/",
            f"/metrics?a={number}",
            f"/%{number:02d}",
        ):
            client.get(
                path,
                headers={
                    "user-agent": f"bot{number}",
                    "content-type": f"text/{number}",
                    "accept": f"a/{number}",
                    "host": f"h{number}.example",
                    "x-requested-with": f"{number}",
                    "referer": f"http://{number}/",
                },
            )
            client.post(path, data=b"x" * number, content_type=f"application/x-{number}")

    attack(10)
    once = http_series(client)
    for number in range(11, 16):
        attack(number)
    assert http_series(client) == once


# --- What is written on top of it --------------------------------------------------------------------------------


@needs_promtool
@pytest.mark.parametrize("several", [False, True])
def test_promtool_has_nothing_to_say(text: str, folder: Path, several: bool) -> None:
    if several:
        work(folder, 1, 2)
        text = exporting.exposition().decode()
    assert PROMTOOL is not None
    told = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    assert (told.returncode, told.stdout + told.stderr) == (0, "")


@needs_promtool
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    assert PROMTOOL is not None
    folder = ROOT / "deploy/prometheus"
    for what in (["check", "config", "prometheus.yml"], ["check", "rules", "rules.yml"]):
        told = subprocess.run([PROMTOOL, *what], cwd=folder, capture_output=True, text=True, timeout=30)
        assert told.returncode == 0, told.stdout + told.stderr


def expressions() -> dict[str, str]:
    """Every PromQL expression under deploy/, by where it stands."""
    found = {}
    rules = (ROOT / "deploy/prometheus/rules.yml").read_text()
    ends = r"(?=\n +(?:for|labels|- record|- alert):|\n\n)"
    for number, text in enumerate(re.findall(rf"expr:(?: >-)?((?:.|\n)*?){ends}", rules)):
        found[f"rules.yml {number}"] = text
    board = json.loads((ROOT / "deploy/grafana/runerogue.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            found[f"variable {variable['name']}"] = variable["query"]["query"]
    return found


def test_rules_and_board_use_only_metrics_and_labels_that_exist(text: str) -> None:
    known: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            known.setdefault(sample.name, set()).update(sample.labels)
    recorded = set(re.findall(r"record: (\S+)", (ROOT / "deploy/prometheus/rules.yml").read_text()))
    used = expressions()
    assert len(used) > 30
    for where, expression in used.items():
        names = set(re.findall(r"\b(?:runerogue|django|process|python)[a-z0-9_:]*", re.sub(r'"[^"]*"', "", expression)))
        assert names or "up{" in expression, where
        assert names - recorded <= set(known), where
        for name, matchers in re.findall(r"\b([a-z_]+)\{([^}]*)\}", expression):
            labels = set(re.findall(r"(\w+)\s*[=!]~?", matchers))
            assert name == "up" or labels <= known[name], where


def test_no_two_panels_lie_on_each_other() -> None:
    board = json.loads((ROOT / "deploy/grafana/runerogue.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
