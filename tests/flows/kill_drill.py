"""The drill behind test_killing.py: run beside a running product, it kills the worker in each state of the machine.

An improvement of a tiny service travels, and in each state the worker that works on it gets SIGKILL; it must still end
where it should, with nothing done twice. A second one is killed on its way back. Prints one JSON object.

    python -m tests.flows.kill_drill
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import django
import httpx

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "runerogue.settings")
django.setup()

from django.conf import settings
from django.db import transaction

from analysis.models import Finding
from approvals.models import ApprovalRequest, AuditEntry, AuditHead
from improvements import releasing, stopping, suggesting
from improvements.authors import AUTHORS
from improvements.deployers import base_url
from improvements.models import Improvement, Release, Rollout, State
from improvements.tasks import PROVING
from monitoring import registry
from monitoring.models import Service
from monitoring.repository import Repository, repository_of
from runerogue.stack import supervisor

TO_PROMOTION = [
    State.SUGGESTED,
    State.AUTHORING,
    State.TESTING,
    State.SCANNING,
    State.STAGING,
    State.AWAITING_APPROVAL,
    State.ROLLING_OUT,
    State.VALIDATING,
    State.PROMOTED,
]
PATIENCE_SECONDS = 400
FILES = {
    "runerogue.toml": """
[service]
name = "tiny"
[run]
command = "python app.py {port}"
health = "/up"
[test]
command = "python -m pytest -q -p no:cacheprovider --junitxml={report}"
[benchmark]
command = "python bench.py"
""",
    "app.py": """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One packet an answer: two of them on a kept connection wait 40 ms for each other (Nagle, delayed ACK).
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self):
        body = b"tiny_answers_total 1\\n" if self.path == "/metrics" else b"ok"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
""",
    "shop.py": """
class Basket:
    def prices(self):
        return [item.price for item in Item.objects.all()]


class Item:
    objects = None
""",
    "bench.py": """
print('{"queries": 3}')
""",
    "test_shop.py": """
def test_adds_up():
    assert 1 + 1 == 2
""",
}
EVIDENCE_FRAME = {"file": "shop.py", "line": 4, "function": "prices"}


def main() -> int:
    service = make_service()
    stop = threading.Event()
    errors: list[str] = []
    client = threading.Thread(target=keep_asking, args=(base_url(service), stop, errors), daemon=True)
    client.start()
    told = []
    try:
        for states in (TO_PROMOTION, [State.ROLLING_BACK]):
            told.append(drill(service, states))
            print(json.dumps(told[-1]), file=sys.stderr, flush=True)
    finally:
        stop.set()
        client.join(timeout=10)
    print(json.dumps({"drills": told, "failed_requests": errors[:10], "failed": len(errors)}))
    return 0


def make_service() -> Service:
    folder = Path(settings.RUNEROGUE_HOME) / "services" / "tiny" / "repository"
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text.lstrip())
    repository = Repository(folder)
    repository.git("init", "--quiet", "--initial-branch=main")
    repository.git("add", "--all")
    repository.git("commit", "--quiet", "--message", "As it was.")
    service = registry.register("tiny", str(folder), environment={}, actor=None)
    releasing.deploy(service)
    return service


def keep_asking(url: str, stop: threading.Event, errors: list[str]) -> None:
    """A client at some 20 requests a second on one connection: a rollout needs traffic for its verdicts."""
    with httpx.Client(trust_env=False, timeout=5) as client:
        while not stop.wait(0.05):
            try:
                answer = client.get(f"{url}/")
                if answer.status_code != 200:
                    errors.append(f"{time.time():.1f} {answer.status_code}")
            except httpx.HTTPError as error:
                errors.append(f"{time.time():.1f} {error!r}")


def drill(service: Service, states: list[State]) -> dict[str, Any]:
    """One improvement, and its worker killed once in the midst of each of `states`."""
    improvement = propose(service)
    commits_before = commits(service)
    back = State.ROLLING_BACK in states
    left = list(states)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        improvement.refresh_from_db()
        state = State(improvement.state)
        if back and state is State.VALIDATING:
            stopping.stop(improvement, actor=None, because="the drill wants it back")
            continue
        if state in left and kill_within(improvement, state):
            left.remove(state)
            continue
        if improvement.has_ended:
            break
        time.sleep(0.05)
    return {
        "back": back,
        "killed_in": [state.value for state in states if state not in left],
        "ended": improvement.state,
        "settled": improvement.settled_at is not None,
        **once(service, improvement, commits_before),
    }


def propose(service: Service) -> Improvement:
    """A finding and its suggestion, started; the files are put back to how they were before."""
    repository = repository_of(service)
    restore(repository)
    releasing.deploy(service, newest=True)
    finding = Finding.objects.create(
        service=service,
        kind=Finding.Kind.N_PLUS_ONE,
        key=f"drill:{service.improvements.count()}",
        title="What the drill found",
        endpoint="*",
        confidence=0.9,
        impact={"waiting_seconds_per_hour": 10, "traffic_share": 0.1},
        evidence={"found": [nplusone()]},
    )
    improvement = suggesting.propose(finding, AUTHORS["n-plus-one"], by=None)
    suggesting.begin(improvement, actor=None)
    return improvement


def nplusone() -> dict[str, Any]:
    return {
        "model": "shop.Item",
        "relation": "price",
        "relation_kind": "forward",
        "route": "*",
        "route_template": "/",
        "method": "GET",
        "location": "shop.py:4",
        "frames": [EVIDENCE_FRAME],
        "repeats": 5,
        "queries_per_request": 6,
        "plain": True,
        "source": None,
        "view": None,
        "test": "test_shop.py",
    }


def restore(repository: Repository) -> None:
    """The branch with the first commit's files again, as a new commit; nothing when they are the same."""
    first = repository.git("rev-list", "--max-parents=0", repository.branch).strip()
    head = repository.head()
    if repository.tree(head) != repository.tree(first):
        commit = repository.git("commit-tree", repository.tree(first), "-p", head, "-m", "As it was, again.").strip()
        repository.fast_forward(expected=head, to=commit)


def commits(service: Service) -> int:
    repository = repository_of(service)
    return int(repository.git("rev-list", "--count", repository.branch))


def kill_within(improvement: Improvement, state: State) -> bool:
    """SIGKILL to the worker that works on `state`, while it is at it. False when it is not, or not yet.

    The audit log is held meanwhile: no step ends without an entry there, so even the quickest is caught in its midst.
    """
    with transaction.atomic():
        AuditHead.objects.select_for_update().get(pk=1)
        running = improvement.runs.filter(state=state, ended_at=None)
        patience = time.monotonic() + 2
        while not running.exists() and time.monotonic() < patience:
            time.sleep(0.01)
        pids = {process["name"]: process["pid"] for process in supervisor.processes(settings.HOME)}
        worker = pids["prover" if state in PROVING else "worker"]
        if worker and running.exists():
            os.kill(worker, signal.SIGKILL)
            return True
        return False


def once(service: Service, improvement: Improvement, commits_before: int) -> dict[str, Any]:
    """Whatever may happen once only, counted."""
    entries = AuditEntry.objects.filter(subject_kind="improvements.improvement", subject_id=str(improvement.pk))
    actions = entries.filter(action__startswith="improvement.").order_by("sequence").values_list("action", flat=True)
    words = [action.split(".")[1].upper() for action in actions]
    repository = repository_of(service)
    merged = repository.git("log", "--format=%H", repository.branch).split().count(improvement.head_commit)
    return {
        "moves": [word for word in words if word in State.values and word != State.SUGGESTED],
        "merged_times": merged,
        "new_commits": commits(service) - commits_before,
        "requests": ApprovalRequest.objects.about("improvement", improvement.pk).count(),
        "rollouts": Rollout.objects.filter(improvement=improvement).count(),
        "live_rollouts": Rollout.objects.filter(service=service, state=Rollout.State.LIVE).count(),
        "passed_runs": {
            state: improvement.runs.filter(state=state, verdict="PASS").count()
            for state in improvement.runs.values_list("state", flat=True).distinct()
        },
        "shares": sorted(Release.objects.filter(service=service, share__gt=0).values_list("share", flat=True)),
    }


if __name__ == "__main__":
    sys.exit(main())
