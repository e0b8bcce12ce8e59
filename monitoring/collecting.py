"""One collection round: scrape every target at once, derive signals, store them.

A round is claimed by a row, so a doubled message does nothing. A target that fails keeps its earlier snapshot, so its
next success covers the gap, and never keeps the others from being stored.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import urlsplit

from django.conf import settings
from django.db import transaction

from monitoring import derive, processes, prometheus
from monitoring.claiming import claim
from monitoring.derive import Reading
from monitoring.models import Service, Snapshot, Target
from monitoring.scraping import MetricSource, ScrapeFailed, Scraper
from monitoring.storing import store

log = logging.getLogger(__name__)

AT_ONCE = 16
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class Collected:
    """What a round did. `failed` maps the primary key of a target to the reason."""

    at: datetime
    targets: int
    failed: dict[int, str]
    samples: int


def collect(at: datetime, *, source: MetricSource | None = None) -> Collected | None:
    """Do the round of `at`. None when it is somebody else's. Uses HTTP unless a `source` is given."""
    interval = float(settings.METRICS_COLLECTION_INTERVAL)
    if not claim("collect", at=at, interval_seconds=interval):
        return None
    targets = list(Target.objects.active().select_related("service", "snapshot").order_by("pk"))
    if source is not None:
        answers = _ask(source, targets, at)
    else:
        with Scraper(timeout_seconds=min(10.0, max(1.0, 0.8 * interval))) as scraper:
            answers = _ask(scraper, targets, at)
    local_ports = {port for target in targets if (port := _local_port(target)) is not None}
    used = processes.listening(local_ports)

    # Several targets of one release are one series; all that serve together are the service.
    traffic: dict[tuple[Service, str], list[derive.Traffic]] = defaultdict(list)
    served: dict[Service, list[derive.Traffic]] = defaultdict(list)
    answered: dict[tuple[Service, str], list[bool]] = defaultdict(list)
    fresh: list[tuple[Target, prometheus.Snapshot]] = []
    failed: dict[int, str] = {}
    for target, answer in zip(targets, answers, strict=True):
        group = (target.service, target.release)
        answered[group].append(isinstance(answer, prometheus.Snapshot))
        if not isinstance(answer, prometheus.Snapshot):
            failed[target.pk] = answer
            continue
        port = _local_port(target)
        after = _with_processes(answer, used.get(port) if port is not None else None)
        fresh.append((target, after))
        did = derive.compare(
            _before(target),
            after,
            dialect=derive.named(target.service.parsed.metrics.dialect),
            longest_seconds=max(300.0, 5 * interval),
        )
        traffic[group].append(did)
        if target.serving:
            served[target.service].append(did)

    rows: list[tuple[Service, Reading]] = []
    for (service, release), parts in traffic.items():
        rows += [(service, reading) for reading in derive.readings(derive.merge(parts), release=release)]
    for service in {service for service, release in traffic if release}:
        rows += [
            (service, reading)
            for reading in derive.readings(derive.merge(served[service]))
            if reading.signal == "queries_per_request" or dict(reading.labels).get("endpoint") == derive.ALL
        ]
    for (service, release), successes in answered.items():
        labels = (("release", release),) if release else ()
        rows.append((service, Reading("up", labels, sum(successes) / len(successes))))
    rows += _host_rows()

    with transaction.atomic():
        _remember(targets, fresh, failed, at)
        stored = store(rows, at=at)
    for target in targets:
        if target.pk in failed and failed[target.pk] != target.last_error:
            log.warning("%s of %s was not measured: %s", target, target.service, failed[target.pk])
    return Collected(at, len(targets), failed, stored)


def _ask(source: MetricSource, targets: Sequence[Target], at: datetime) -> list[prometheus.Snapshot | str]:
    """The snapshot of each target, or why there is none. No thread touches the database."""

    def ask(url: str) -> prometheus.Snapshot | str:
        try:
            return source.read(url, at=at.timestamp())
        except ScrapeFailed as reason:
            return str(reason)[:500]

    if not targets:
        return []
    with ThreadPoolExecutor(max_workers=min(AT_ONCE, len(targets)), thread_name_prefix="scrape") as pool:
        return list(pool.map(ask, [target.url for target in targets]))


def _local_port(target: Target) -> int | None:
    parts = urlsplit(target.url)
    return parts.port if parts.hostname in LOOPBACK else None


def _with_processes(answer: prometheus.Snapshot, used: processes.ProcessUse | None) -> prometheus.Snapshot:
    """What the operating system says about all workers replaces what one worker says about itself."""
    if used is None:
        return answer
    return replace(
        answer,
        values={
            **answer.values,
            derive.CPU_SECONDS_BY_PROCESS: used.cpu_seconds,
            derive.MEMORY_BYTES: {(): used.memory_bytes},
        },
    )


def _before(target: Target) -> prometheus.Snapshot | None:
    kept = getattr(target, "snapshot", None)
    if kept is None:
        return None
    try:
        return prometheus.unpack(bytes(kept.body))
    except (ValueError, KeyError, TypeError):  # written by another version; this round writes it anew
        log.warning("The snapshot of %s can't be read and is replaced.", target)
        return None


def _host_rows() -> list[tuple[Service, Reading]]:
    """The host's own numbers belong to RuneRogue itself."""
    own = Service.objects.filter(is_self=True, archived_at=None).first()
    if own is None:
        return []
    use = processes.host(settings.RUNEROGUE_HOME)
    known = {
        "host_cpu_percent": use.cpu_percent,
        "host_memory_percent": use.memory_percent,
        "disk_used_percent": use.disk_percent,
    }
    return [(own, Reading(signal, (), value)) for signal, value in known.items() if value is not None]


def _remember(
    targets: Iterable[Target],
    fresh: Sequence[tuple[Target, prometheus.Snapshot]],
    failed: dict[int, str],
    at: datetime,
) -> None:
    # A target may have been removed while it was asked; its snapshot then has no owner.
    alive = set(Target.objects.select_for_update().filter(pk__in=[t.pk for t in targets]).values_list("pk", flat=True))
    Snapshot.objects.bulk_create(
        [Snapshot(target=t, at=at, body=prometheus.pack(snapshot)) for t, snapshot in fresh if t.pk in alive],
        update_conflicts=True,
        unique_fields=["target"],
        update_fields=["at", "body"],
    )
    Target.objects.filter(pk__in=[target.pk for target, _ in fresh]).update(last_scraped_at=at, last_error="")
    for pk, reason in failed.items():
        Target.objects.filter(pk=pk).update(last_error=reason)
