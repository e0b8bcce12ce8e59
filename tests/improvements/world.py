"""A service with a real git repository, a deployer of dictionaries, and one improvement somewhere on its way.

Traffic is written as the proxy's log would write it, and time passes by moving every row into the past.
"""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from django.db import models
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone

from approvals.models import ApprovalRequest
from improvements import pipeline, releasing, ticking
from improvements.deployers import MemoryDeployer
from improvements.models import Improvement, Release, Rollout, State, StepRun, TrafficSlice
from improvements.outcome import Evidence, Outcome, Waiting
from monitoring.models import Alert, Service
from monitoring.repository import Repository
from tests.improvements.factories import FindingFactory, ImprovementFactory, ServiceFactory

PROOF = (State.AUTHORING, State.TESTING, State.SCANNING, State.STAGING)
# Long enough that the seconds which a test itself takes on a busy machine do not matter.
STEP_SECONDS = 300
IDENTITY = ("-c", "user.name=alice", "-c", "user.email=alice@example.org")


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *IDENTITY, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make_repository(folder: Path) -> Path:
    """A repository with one commit on main, checked out."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main", "--template=")
    commit(folder, {"app.py": "price = 1\n", "README.md": "A shop.\n"}, "The shop opens")
    return folder


def commit(folder: Path, files: dict[str, str], message: str) -> str:
    """Somebody's commit on the branch that is checked out. Returns it."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, newline="")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def _data(text: str) -> str:
    """A text as git's fast-import reads it."""
    return f"data {len(text.encode())}\n{text}\n"


@dataclass
class Site:
    """What answers at the service's stable address."""

    status: int = 200
    url: str = ""


@contextmanager
def answering() -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(site.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()
    thread.join(timeout=5)


@dataclass
class PretendDeployer(MemoryDeployer):
    """The in-memory deployer, whose proxy's address answers for real: a rollback asks there for its proof."""

    site: Site = field(default_factory=Site)

    def base_url(self, service: Service) -> str:
        return self.site.url


@dataclass
class Shop:
    """The service, and the improvement `self.improvement` of it."""

    folder: Path
    deployer: PretendDeployer
    service: Service
    improvement: Improvement = field(init=False)

    @classmethod
    def open(cls, template: Path, folder: Path, deployer: PretendDeployer) -> Shop:
        shutil.copytree(template, folder)
        shop = cls(folder, deployer, ServiceFactory(repository=str(folder)))
        releasing.deploy(shop.service)
        return shop

    # --- the repository ---------------------------------------------------------------------------------------------

    @property
    def repository(self) -> Repository:
        return Repository(self.folder)

    def commit(self, files: dict[str, str], message: str = "Somebody else's work") -> str:
        return commit(self.folder, files, message)

    def write(self, files: dict[str, str], *, branch: str) -> str:
        """The author's commit on top of the service's branch, which stays where it is."""
        parts = [f"commit refs/heads/{branch}\ncommitter RuneRogue <runerogue@localhost> now\n{_data('Fix')}"]
        parts += ["from refs/heads/main^0\n", *(f"M 100644 inline {name}\n{_data(files[name])}" for name in files)]
        command = ["git", "fast-import", "--quiet", "--force", "--date-format=now"]
        subprocess.run(command, cwd=self.folder, check=True, input="".join(parts).encode())
        return git(self.folder, "rev-parse", f"refs/heads/{branch}")

    # --- the improvement --------------------------------------------------------------------------------------------

    def propose(
        self,
        *,
        state: State = State.AWAITING_APPROVAL,
        lines: int = 1,
        traffic_share: float = 0.05,
        inconclusive: tuple[State, ...] = (),
        files: dict[str, str] | None = None,
        **fields: Any,
    ) -> Improvement:
        """An improvement with its patch, its proof and its candidate up; `lines` and `traffic_share` make its risk."""
        self.improvement = ImprovementFactory(
            finding=FindingFactory(service=self.service, impact={"traffic_share": traffic_share}), **fields
        )
        self.patch({"app.py": "price = 2\n" + "spare = 0\n" * (lines - 1), **(files or {})}, inconclusive=inconclusive)
        Improvement.objects.filter(pk=self.improvement.pk).update(state=state)
        return self.reload()

    def patch(self, files: dict[str, str], *, inconclusive: tuple[State, ...] = ()) -> None:
        """What the steps before the approval leave behind for a patch of `files`."""
        base, head = self.repository.head(), self.write(files, branch=self.improvement.branch)
        diff = self.repository.diff(base, head)
        Improvement.objects.filter(pk=self.improvement.pk).update(base_commit=base, head_commit=head, diff=diff)
        now = timezone.now()
        for state in PROOF:
            verdict = "INCONCLUSIVE" if state in inconclusive else "PASS"
            run = self.improvement.runs.create(
                state=state, lease="0" * 32, verdict=verdict, reason="said so", started_at=now, ended_at=now
            )
            run.keep(Evidence("start", "said so", {"seconds": 1.5, "commit": head}))
        releasing.bring_up(releasing.release_of(self.service, head))
        self.reload()

    def roll_out(self, **fields: Any) -> Rollout:
        """The improvement in ROLLING_OUT with its rollout prepared, and nothing moved yet."""
        self.propose(state=State.ROLLING_OUT, **fields)
        return Rollout.objects.create(
            service=self.service, improvement=self.improvement, current=self.current, candidate=self.candidate
        )

    def bake(self, state: State = State.VALIDATING, **fields: Any) -> Rollout:
        """The improvement in a state in which its candidate has all traffic; the old release had some before."""
        rollout = self.roll_out(**fields)
        self.requests(self.current, 300)
        self.elapse(STEP_SECONDS)
        releasing.shift(self.service, {self.current.pk: 0, self.candidate.pk: 100}, because="the test says so")
        now = timezone.now()
        Rollout.objects.filter(pk=rollout.pk).update(step=2, step_since=now, full_since=now)
        Improvement.objects.filter(pk=self.improvement.pk).update(state=state, state_since=now)
        self.reload()
        rollout.refresh_from_db()
        return rollout

    def merged(self, **fields: Any) -> Rollout:
        """The improvement in PROMOTED: its commit is on the branch, its candidate has all traffic."""
        rollout = self.bake(State.PROMOTED, **fields)
        self.repository.fast_forward(expected=self.improvement.base_commit, to=self.improvement.head_commit)
        Improvement.objects.filter(pk=self.improvement.pk).update(merged_commit=self.improvement.head_commit)
        self.reload()
        return rollout

    def reload(self) -> Improvement:
        self.improvement = Improvement.objects.get(pk=self.improvement.pk)
        return self.improvement

    # --- its releases -----------------------------------------------------------------------------------------------

    @property
    def current(self) -> Release:
        """The release that served first."""
        return Release.objects.filter(service=self.service).order_by("pk")[0]

    @property
    def candidate(self) -> Release:
        return Release.objects.get(service=self.service, commit=self.improvement.head_commit)

    @property
    def traffic(self) -> float:
        """The share of the traffic (0–1) that the proxy gives the candidate."""
        return self.deployer.traffic(self.service).get(self.candidate.short, 0.0)

    def requests(self, release: Release, count: int, *, ms: float = 20.0, errors: int = 0, status: int = 500) -> None:
        """`count` requests that `release` answered in this second, `errors` of them with `status`."""
        latencies = np.random.default_rng(count).lognormal(np.log(ms), 0.2, count)
        TrafficSlice.objects.create(
            service=self.service,
            release=release,
            second=timezone.now().replace(microsecond=0),
            latencies_ms=[float(value) for value in latencies],
            statuses=[status] * errors + [200] * (count - errors),
            methods=["GET"] * count,
        )

    def both(self, count: int = 300) -> None:
        """Ordinary traffic on both releases."""
        self.requests(self.current, count)
        self.requests(self.candidate, count)

    # --- time and steps ---------------------------------------------------------------------------------------------

    def elapse(self, seconds: float) -> None:
        """Let time pass: everything that has happened, happened so much longer ago."""
        for model in (Improvement, Rollout, StepRun, TrafficSlice, ApprovalRequest, Alert):
            moments = [one.name for one in model._meta.get_fields() if isinstance(one, models.DateTimeField)]
            model._default_manager.update(**{name: F(name) - dt.timedelta(seconds=seconds) for name in moments})

    def run(self, step: Callable[[Improvement], Any]) -> Any:
        """What `step` says, asked under a lease as the tick would ask it. The improvement moves nowhere."""
        Improvement.objects.filter(pk=self.improvement.pk).update(wake_at=Now())
        token = self.improvement.claim(seconds=60)
        assert token is not None, "it is not due"
        try:
            return step(self.improvement)
        finally:
            self.improvement.release_lease(token)
            self.reload()

    def tick(self) -> State:
        """Take one step, whenever it wanted to be woken. Returns the state after it."""
        Improvement.objects.filter(pk=self.improvement.pk).update(wake_at=Now())
        ticking.take_step(self.reload())
        assert not self.improvement.runs.filter(crashed=True).exists(), self.improvement.runs.last().reason
        return State(self.reload().state)

    def said(self) -> str:
        """What the step said last."""
        run = self.improvement.runs.last()
        assert run is not None
        return run.reason

    def until_it_ends(self, step: Callable[[Improvement], Any], *, every: float, times: int = 12) -> Outcome:
        """The outcome of a step that is asked `every` so many seconds, at most so often."""
        for _ in range(times):
            result = self.run(step)
            if isinstance(result, Outcome):
                return result
            assert isinstance(result, Waiting)
            self.elapse(every)
        raise AssertionError(f"it waits for ever: {result}")

    def leads_to(self, outcome: Outcome) -> State | None:
        return pipeline.PIPELINE[State(self.improvement.state)].target(outcome)
