"""Metrics that a service sends by itself (OTLP): a scrape that came unasked.

Such a service has a target without an address (PUSHED). Each of its processes is a row with what it has counted so far
(`monitoring.otlp.streams`); whoever receives an export brings that up to date under the row's lock. A round reads the
rows as it reads the answers of other targets: what happened is the difference between two snapshots.

- A service that is scraped is not counted twice: what it sends is taken and left aside.
- When two exports are in one interval, the round sees the sum of both; when none is, what the last one told holds on,
  but not for longer than another export would have taken. Then the process has no numbers, and after SILENT_GAPS
  intervals it is down, unless others of its release send.
- A process that others have followed is forgotten; its last row stays to say that the service is down.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from pydantic import ValidationError

from monitoring import dialects, privacy, prometheus
from monitoring.manifest import PUSHED
from monitoring.models import PushedProcess, Service, Target
from monitoring.otlp import exposition, streams
from monitoring.otlp.exposition import Resource

log = logging.getLogger(__name__)

MOST_PROCESSES = 50  # of one release that send at a time
LONGEST_GAP_SECONDS = 300.0  # who sends less often is not waited for
LONGEST_APART_SECONDS = 1.1 * LONGEST_GAP_SECONDS  # of two exports that are compared: they come a little late
HOLDS_GAPS = 2  # exports: for so long the newest numbers hold on
SILENT_GAPS = 3  # intervals or exports, whichever are longer: after so long it is down
FORGOTTEN_SECONDS = 900.0

SCRAPED = "{service} is scraped, so what it sends is not counted: that would count it twice."
NO_RELEASE = (
    "No release of {service} that runs is called {version!r}. Set service.version to its commit, which RuneRogue's "
    "deployer does by itself where OTEL_EXPORTER_OTLP_ENDPOINT is set."
)
UNREADABLE = "The manifest of {service} was written by another version. Refresh the service."
TOO_MANY = "More than {most} processes of {service} send at a time. Let a collector add them up."


@dataclass
class Received:
    """What became of the points of one resource, and the reasons why some were refused or left `aside`."""

    accepted: int = 0
    repeated: int = 0
    unused: int = 0  # nothing is made of their metrics
    aside: int = 0  # nothing is made of them because the service is scraped
    refused: int = 0
    reasons: list[str] = field(default_factory=list)


def receive(service: Service, resource: Resource, *, at: datetime, room: int = exposition.MOST_POINTS) -> Received:
    """Take the metrics of a process of `service`, at most `room` points of them."""
    try:
        spoken = service.parsed.metrics.spoken
    except ValidationError:
        return Received(refused=resource.size, reasons=[UNREADABLE.format(service=service.name)])
    keep = dialects.allowlist(spoken, dialects.salt_of(settings.SECRET_KEY))
    batch = exposition.points(resource, keep=keep, room=room)
    received = Received(unused=batch.unused)
    _note(received, batch.refused)
    if not batch.points:
        return received
    targets = _targets(service)
    if targets is None:
        received.aside += len(batch.points)
        received.reasons.append(SCRAPED.format(service=service.name))
        return received
    target = _of_version(service, targets, batch.version)
    if target is None:
        received.refused += len(batch.points)
        received.reasons.append(NO_RELEASE.format(service=service.name, version=batch.version[:40]))
        return received
    process = privacy.pseudonym(batch.instance, key=settings.SECRET_KEY)
    with transaction.atomic():
        row = _locked(target, process, at)
        if row is None:
            received.refused += len(batch.points)
            received.reasons.append(TOO_MANY.format(most=MOST_PROCESSES, service=service.name))
            return received
        state = _state(row)
        heard = row.received_at.timestamp() if row.pk else None
        added = streams.add(state, batch.points, now=at.timestamp(), heard=heard, forget_seconds=_forget_seconds())
        if added.counted:
            if row.pk:
                row.gap_seconds = min(max(0.0, (at - row.received_at).total_seconds()), LONGEST_GAP_SECONDS)
            row.received_at = at
        row.state = streams.pack(state)
        if added.counted or row.pk:
            row.save(update_fields=["state", "received_at", "gap_seconds"] if row.pk else None)
    received.accepted, received.repeated = added.counted, added.repeated
    _note(received, added.refused)
    return received


def _note(received: Received, refused: Mapping[str, int]) -> None:
    received.refused += sum(refused.values())
    received.reasons += [f"{reason} ({count:,} left out)." for reason, count in refused.items()]


def _targets(service: Service) -> dict[str, Target] | None:
    """The targets of `service` by their release; None when it is scraped."""
    targets = list(Target.objects.active().filter(service=service))
    if all(target.is_pushed for target in targets):
        return {target.release: target for target in targets}
    if any(target.is_pushed for target in targets):
        Target.objects.pushed().filter(service=service).update(active=False)
    return None


def _of_version(service: Service, targets: Mapping[str, Target], version: str) -> Target | None:
    """Where the metrics of `version` belong; None when it is not one of the releases that RuneRogue runs.

    The first export of a service that runs elsewhere makes its target.
    """
    if any(targets):
        return targets.get(version[:12]) if version else None
    return targets.get("") or watch(service)


def watch(service: Service) -> Target:
    """The target of a service that sends its metrics and runs elsewhere."""
    target, _ = Target.objects.update_or_create(service=service, release="", url=PUSHED, defaults={"active": True})
    return target


def _locked(target: Target, process: str, at: datetime) -> PushedProcess | None:
    """The row of a process, locked or not yet saved; None when too many others send.

    The target's row is the lock: two first exports of one process must not both make a row.
    """
    Target.objects.select_for_update().get(pk=target.pk)
    rows = PushedProcess.objects.filter(target=target)
    row = rows.select_for_update().filter(process=process).first()
    if row is not None:
        return row
    if rows.count() >= MOST_PROCESSES:
        rows.filter(received_at__lt=at - timedelta(seconds=_silent_seconds(0.0))).delete()
        if rows.count() >= MOST_PROCESSES:
            return None
    return PushedProcess(target=target, process=process, received_at=at, state=b"")


def _state(row: PushedProcess) -> streams.State:
    if not row.pk:
        return streams.State()
    try:
        return streams.unpack(bytes(row.state))
    except ValueError:  # written by another version; what is sent from now on is known
        log.warning("What %s has sent can't be read and is begun anew.", row)
        return streams.State()


def _forget_seconds() -> float:
    return max(FORGOTTEN_SECONDS, 3.0 * settings.METRICS_COLLECTION_INTERVAL)


def _silent_seconds(gap_seconds: float) -> float:
    return SILENT_GAPS * max(float(settings.METRICS_COLLECTION_INTERVAL), gap_seconds)


# --- In a round --------------------------------------------------------------------------------------------------


@dataclass
class Sent:
    """What one target has sent: for each process that is current its last two snapshots, or why there are none."""

    pairs: list[tuple[prometheus.Snapshot | None, prometheus.Snapshot]] = field(default_factory=list)
    rows: list[PushedProcess] = field(default_factory=list)  # with what is to be remembered
    gone: list[PushedProcess] = field(default_factory=list)
    overdue_seconds: float = 0.0
    reason: str = ""


def read(targets: Collection[Target], *, at: datetime) -> dict[int, Sent]:
    """What `targets` have sent, by primary key; without those that never sent anything."""
    processes: dict[int, list[PushedProcess]] = defaultdict(list)
    for row in PushedProcess.objects.filter(target__in=targets).order_by("pk"):
        processes[row.target_id].append(row)
    return {pk: _of_target(rows, at) for pk, rows in processes.items()}


def _of_target(rows: list[PushedProcess], at: datetime) -> Sent:
    sent = Sent()
    ages = {row.pk: max(0.0, (at - row.received_at).total_seconds()) for row in rows}
    alive = [row for row in rows if ages[row.pk] <= _silent_seconds(row.gap_seconds)]
    if not alive:
        last = max(row.received_at for row in rows)
        sent.reason = f"It sent nothing since {last:%Y-%m-%d %H:%M:%S} UTC."
        return sent
    sent.gone = [row for row in rows if ages[row.pk] > FORGOTTEN_SECONDS + _silent_seconds(row.gap_seconds)]
    states = [(row, _state(row)) for row in alive]
    if any(state.is_contested(at.timestamp()) for _, state in states):
        sent.reason = "Several processes send as one: give each its own service.instance.id."
        return sent
    for row, state in states:
        gap = max(float(settings.METRICS_COLLECTION_INTERVAL), row.gap_seconds)
        sent.overdue_seconds = max(sent.overdue_seconds, ages[row.pk] - 1.1 * gap, 0.0)
        before, newest, now = _kept(row.before), _kept(row.newest), streams.snapshot(state)
        if newest is None or now.at != newest.at:
            before, newest = newest, now
            row.before, row.newest = row.newest, prometheus.pack(now)
            sent.rows.append(row)
        if ages[row.pk] <= HOLDS_GAPS * gap:
            sent.pairs.append((before, newest))
    return sent


def _kept(body: bytes | memoryview | None) -> prometheus.Snapshot | None:
    try:
        return None if body is None else prometheus.unpack(bytes(body))
    except (ValueError, KeyError, TypeError):  # written by another version
        return None


def remember(sent: Iterable[Sent], *, at: datetime) -> set[int]:
    """Keep what was read for the next round. The targets that another round has read meanwhile."""
    overtaken = set()
    for one in sent:
        for row in one.rows:
            mine = PushedProcess.objects.filter(pk=row.pk, read_at=row.read_at)
            if not mine.update(newest=row.newest, before=row.before, read_at=at):
                overtaken.add(row.target_id)
        for row in one.gone:  # unless it has just sent again
            PushedProcess.objects.filter(pk=row.pk, received_at=row.received_at).delete()
    return overtaken
