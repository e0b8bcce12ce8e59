"""RuneRogue's own `/metrics`: what its web processes counted, and the state that the database and the queue hold.

State is read at the moment it is asked for, so every process gives the same, and each part on its own: one that is
broken or slow is missing and said to be, and the others come all the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import prometheus_client
import psutil
import psycopg
import redis
from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.db.models import Count, Max, Q
from django.utils.timezone import now
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from approvals import checkpoints
from approvals.models import AuditHead
from approvals.statements import StatementsUnusable
from monitoring import notifying
from monitoring.models import Alert, AlertState, ExternalService, HealthScore, Page, Service, Severity, Target
from monitoring.reporting import check_database

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TIMEOUT_SECONDS = 2  # for one question to the database or the queue; Prometheus waits 10 s for all of it
QUEUES = ("collect", "analysis", "rollout", "celery")

Part = Callable[[], Iterable[Metric]]
_parts: dict[str, Part] = {}


def register(name: str, part: Part) -> None:
    """Have `part` asked for its metrics whenever `/metrics` is read; apps above this one add their state so.

    It may use the database (each statement is ended after two seconds) and must not change anything. Registering a
    name again replaces its part.
    """
    _parts[name] = part


def exposition() -> bytes:
    """Prometheus text. With PROMETHEUS_MULTIPROC_DIR it holds the sum of all web processes, past ones included."""
    state = CollectorRegistry()
    state.register(State())
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder:
        return bytes(generate_latest(prometheus_client.REGISTRY) + generate_latest(state))
    counted = CollectorRegistry()
    MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
    with _exclusively(Path(folder), shared=True):
        text = generate_latest(counted)
    return bytes(text + generate_latest(state))


# --- Processes that ended ----------------------------------------------------------------------------------------

GONE = "gone"  # stands for the process id in the names of the files that hold what ended processes counted
ADDED_UP = ("counter", "histogram", "summary")


def forget_process(pid: int) -> None:
    """Put away what an ended process has left: its gauges go, what it counted is added to one file for all such.

    Without this every restarted worker leaves files that each later `/metrics` reads; without the counts, counters
    would go down, which Prometheus takes for a restart and so for as many new requests.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder:
        return
    with _exclusively(Path(folder)):
        for path in sorted(Path(folder).glob(f"*_{pid}.db")):
            kind = path.name.removesuffix(f"_{pid}.db")
            if kind in ADDED_UP:
                _add_up(path, path.with_name(f"{kind}_{GONE}.db"))
            path.unlink(missing_ok=True)


def forget_dead() -> None:
    """The same for every process that is no longer there: what a killed master could not put away itself."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    found = (path.stem.rpartition("_")[2] for path in Path(folder).glob("*.db")) if folder else ()
    for pid in {int(text) for text in found if text.isdecimal()}:
        if not psutil.pid_exists(pid):
            forget_process(pid)


def _add_up(source: Path, target: Path) -> None:
    """Add every value of one of prometheus_client's files to another, which is made if it is missing."""
    try:
        values = list(MmapedDict.read_all_values_from_file(str(source)))  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, struct.error):
        log.warning("%s can't be read; what that process counted is lost.", source.name)
        return
    total = MmapedDict(str(target))  # type: ignore[no-untyped-call]
    try:
        for key, value, timestamp, _ in values:
            known, _ = total.read_value(key)  # type: ignore[no-untyped-call]
            total.write_value(key, known + value, timestamp)  # type: ignore[no-untyped-call]
    finally:
        total.close()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _exclusively(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Nobody reads while counts move between files: a sum without them, or with them twice, looks like a restart."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


# --- State -------------------------------------------------------------------------------------------------------


class State(Collector):
    """Gauges of what the database and the queue say now."""

    def collect(self) -> Iterator[Metric]:
        reachable = GaugeMetricFamily("runerogue_database_up", "Whether the database answered: 1 or 0.")
        found: list[Metric] = []
        failed: dict[str, bool] = {}
        try:
            # On a connection of its own with a timeout: a request's own may hang on a host that went away.
            check_database(TIMEOUT_SECONDS)
            for name, part in {**PARTS, **_parts}.items():
                metrics = _asked(name, part)
                failed[name] = metrics is None
                found += metrics or ()
        except (DatabaseError, psycopg.Error, OSError):
            # The HTTP numbers are needed most on such a day.
            found = []
            reachable.add_metric([], 0)
        else:
            reachable.add_metric([], 1)
        yield reachable
        told = GaugeMetricFamily(
            "runerogue_state_up", "Whether a part of the state could be read: 1 or 0.", labels=["part"]
        )
        for name, is_missing in failed.items():
            told.add_metric([name], 0 if is_missing else 1)
        yield told
        yield from found
        yield from queue_depths()


def _asked(name: str, part: Part) -> list[Metric] | None:
    """A part's metrics; None where a statement took too long or failed while the database lives."""
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL statement_timeout = %s", [f"{TIMEOUT_SECONDS}s"])
            found = list(part())
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL statement_timeout = DEFAULT")
    except DatabaseError as error:
        if not connection.is_usable():
            raise
        log.warning("The metrics of %s could not be read: %s", name, type(error).__name__)
        return None
    return found


def scores() -> Iterator[Metric]:
    """The newest health score of each service, with its components."""
    score = GaugeMetricFamily("runerogue_health_score", "Health of a service, 0 to 100.", labels=["service"])
    confidence = GaugeMetricFamily(
        "runerogue_health_confidence_ratio", "Share of a service's vital signs that is known.", labels=["service"]
    )
    components = GaugeMetricFamily(
        "runerogue_health_component_score", "One component of a health score.", labels=["service", "component"]
    )
    age = GaugeMetricFamily(
        "runerogue_health_score_age_seconds", "Seconds since a service was last scored.", labels=["service"]
    )
    at = now()
    newest = HealthScore.objects.filter(service__archived_at=None).order_by("service_id", "-at").distinct("service_id")
    for row in newest.select_related("service"):
        name = row.service.name
        confidence.add_metric([name], row.confidence)
        age.add_metric([name], max(0.0, (at - row.at).total_seconds()))
        if row.score is not None:
            score.add_metric([name], row.score)
        for component, said in sorted(row.components.items()):
            if said.get("score") is not None:
                components.add_metric([name, component], said["score"])
    yield from (score, confidence, components, age)


def alerts() -> Iterator[Metric]:
    """Open alerts; zeros too, so that a rule can tell none from not known."""
    firing = GaugeMetricFamily("runerogue_alerts_firing", "Alerts that fire now.", labels=["service", "severity"])
    pending = GaugeMetricFamily(
        "runerogue_alerts_pending", "Alerts that wait whether they last.", labels=["service", "severity"]
    )
    counts: dict[tuple[int, str, str], int] = {
        (service, severity, state): count
        for service, severity, state, count in Alert.objects.open()
        .order_by()
        .values_list("service_id", "severity", "state")
        .annotate(Count("pk"))
    }
    for pk, name in Service.objects.active().order_by("name").values_list("pk", "name"):
        for severity in Severity:
            firing.add_metric([name, str(severity)], counts.get((pk, severity, AlertState.FIRING), 0))
            pending.add_metric([name, str(severity)], counts.get((pk, severity, AlertState.PENDING), 0))
    yield from (firing, pending)


def collection() -> Iterator[Metric]:
    """How fresh the measurements are."""
    failing = GaugeMetricFamily("runerogue_targets_failing", "Targets whose last scrape failed.", labels=["service"])
    targets = GaugeMetricFamily("runerogue_targets", "Targets that are scraped.", labels=["service"])
    age = GaugeMetricFamily(
        "runerogue_collection_age_seconds",
        "Seconds since the newest successful scrape of a service.",
        labels=["service"],
    )
    last = GaugeMetricFamily(
        "runerogue_last_collection_timestamp_seconds", "When a target was last scraped with success."
    )
    at = now()
    newest = None
    rows = Target.objects.active().order_by("service__name").values("service__name")
    for row in rows.annotate(
        count=Count("pk"), failing=Count("pk", filter=~Q(last_error="")), newest=Max("last_scraped_at")
    ):
        name = row["service__name"]
        targets.add_metric([name], row["count"])
        failing.add_metric([name], row["failing"])
        if row["newest"] is not None:
            age.add_metric([name], max(0.0, (at - row["newest"]).total_seconds()))
            newest = max(newest, row["newest"]) if newest else row["newest"]
    if newest is not None:
        last.add_metric([], newest.timestamp())
    yield from (failing, targets, age, last)


def audit_log() -> Iterator[Metric]:
    length = GaugeMetricFamily("runerogue_audit_entries", "Entries of the audit log.")
    length.add_metric([], AuditHead.objects.values_list("sequence", flat=True).first() or 0)
    readable = GaugeMetricFamily("runerogue_audit_checkpoints_up", "Whether the checkpoints can be read: 1 or 0.")
    oldest = GaugeMetricFamily(
        "runerogue_audit_uncovered_age_seconds",
        "How long the oldest entry without a checkpoint waits; 0 for none.",
    )
    try:
        oldest.add_metric([], checkpoints.uncovered().age_seconds(now()))
        readable.add_metric([], 1)
    except StatementsUnusable:
        readable.add_metric([], 0)
    yield from (length, readable, oldest)


def external_services() -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "runerogue_external_services_waiting", "Hosts outside that nobody has approved or refused."
    )
    waiting.add_metric([], ExternalService.objects.waiting().count())
    yield waiting


def notices() -> Iterator[Metric]:
    """The outbox: what waits, what failed and is tried again, and what was given up in the last day."""
    at = now()
    counts = notifying.outbox(at)
    found = GaugeMetricFamily(
        "runerogue_notices", "Messages to people that wait, failed so far, or were given up today.", labels=["state"]
    )
    for state, count in counts.by_state.items():
        found.add_metric([state], count)
    oldest = GaugeMetricFamily(
        "runerogue_notices_oldest_age_seconds", "How long the oldest message that waits has been waiting; 0 for none."
    )
    oldest.add_metric([], counts.oldest_seconds)
    pages = GaugeMetricFamily("runerogue_pages_open", "Pages that nobody has taken and that are not over.")
    pages.add_metric([], Page.objects.open().filter(taken_at=None).count())
    yield from (found, oldest, pages)


PARTS: dict[str, Part] = {
    "scores": scores,
    "alerts": alerts,
    "collection": collection,
    "audit": audit_log,
    "external services": external_services,
    "notices": notices,
}


def queue_depths() -> Iterator[Metric]:
    """Messages that wait in each Celery queue. A queue server that does not answer is said to be down, no more."""
    reachable = GaugeMetricFamily("runerogue_queue_up", "Whether the queue's server answered: 1 or 0.")
    depth = GaugeMetricFamily("runerogue_queue_messages", "Messages that wait in a queue.", labels=["queue"])
    client = redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
    )
    try:
        with client.pipeline(transaction=False) as asked:
            for queue in QUEUES:
                asked.llen(queue)
            for queue, count in zip(QUEUES, asked.execute(), strict=True):
                depth.add_metric([queue], count)
    except (redis.RedisError, OSError):
        reachable.add_metric([], 0)
    else:
        reachable.add_metric([], 1)
    finally:
        client.close()
    yield from (reachable, depth)
