"""One collection round: scrape every target at once, derive signals, store them.

A round is claimed by a row, so a doubled message does nothing. A target that fails keeps its earlier snapshot, so its
next success covers the gap, and never keeps the others from being stored. A target that hangs costs its own timeout.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from django.conf import settings
from django.db import transaction
from pydantic import ValidationError

from monitoring import backfilling, credentials, derive, dialects, processes, prometheus, pushing
from monitoring.claiming import claim
from monitoring.credentials import NOBODY, MissingCredentials
from monitoring.derive import Reading
from monitoring.manifest import Manifest
from monitoring.models import Service, Snapshot, Target
from monitoring.promql import Interval, PromQL
from monitoring.pushing import Sent
from monitoring.scraping import MetricSource, ScrapeFailed, Scraper
from monitoring.storing import store

log = logging.getLogger(__name__)

MOST_AT_ONCE = 200
LONGEST_TIMEOUT_SECONDS = 10.0
TIMEOUT_SHARE = 0.8  # of the interval, at most
SPREAD_SHARE = 0.02  # of the interval: targets are not all asked in the same moment
LATE_SHARE = 0.1  # of the interval: an answer that took longer came late
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
# What is told of a service as a whole beside its releases; the rest of the processes' numbers is told by release.
WHOLE = frozenset({"queries_per_request", "requests_in_flight", "concurrent_users", "open_fds", "max_fds", "threads"})


@dataclass(frozen=True)
class Collected:
    """What a round did. `failed` maps the primary key of a target to the reason."""

    at: datetime
    targets: int
    failed: dict[int, str]
    samples: int


@dataclass(frozen=True)
class _Answer:
    """What came of asking one target: its numbers or a reason, and how long that took (what it sends: is overdue)."""

    numbers: prometheus.Snapshot | Interval | Sent | None
    seconds: float
    reason: str = ""


def collect(
    at: datetime, *, source: MetricSource | None = None, spread_seconds: float | None = None
) -> Collected | None:
    """Do the round of `at`. None when it is somebody else's.

    Uses HTTP unless a `source` is given, and then starts each target's request at its own moment within
    `spread_seconds` (by default a fiftieth of the interval).
    """
    interval = float(settings.METRICS_COLLECTION_INTERVAL)
    if not claim("collect", at=at, interval_seconds=interval):
        return None
    targets, sent = _targets(at)
    manifests = _manifests(targets)
    asked = [target for target in targets if target.pk not in sent]
    answers = _ask(asked, manifests, at, source, SPREAD_SHARE * interval if spread_seconds is None else spread_seconds)
    answers |= {pk: _Answer(None if one.reason else one, one.overdue_seconds, one.reason) for pk, one in sent.items()}
    local_ports = {port for target in targets if (port := _local_port(target)) is not None}
    used = processes.listening(local_ports)

    longest = max(300.0, 5 * interval)
    did: dict[int, derive.Traffic] = {}
    fresh: list[tuple[Target, prometheus.Snapshot]] = []
    for target in targets:
        numbers = answers[target.pk].numbers
        manifest = manifests.get(target.service_id)
        if numbers is None or manifest is None:
            continue
        dialect = manifest.metrics.spoken
        if isinstance(numbers, Sent):
            apart = max(longest, pushing.LONGEST_APART_SECONDS)
            parts = [derive.compare(*pair, dialect=dialect, longest_seconds=apart) for pair in numbers.pairs]
            if parts:
                did[target.pk] = derive.merge(parts)
            continue
        if isinstance(numbers, Interval):
            did[target.pk] = derive.compare(numbers.before, numbers.after, dialect=dialect)
            continue
        port = _local_port(target)
        after = _with_processes(numbers, used.get(port) if port is not None else None)
        fresh.append((target, after))
        did[target.pk] = derive.compare(_before(target), after, dialect=dialect, longest_seconds=longest)
    host = _host_rows()

    def rows(without: Collection[int] = ()) -> list[tuple[Service, Reading]]:
        kept = [target for target in targets if target.pk not in without]
        return [*_rows(kept, manifests, answers, did, late_seconds=LATE_SHARE * interval), *host]

    found = rows()
    failed = {pk: answer.reason for pk, answer in answers.items() if answer.numbers is None}
    with transaction.atomic():
        # Another round that took until now may have counted what this one has; its numbers are not counted again.
        overtaken = _remember(targets, fresh, failed, at, {target.pk for target in targets if target.pk in did})
        overtaken |= pushing.remember(sent.values(), at=at)
        stored = store(rows(without=overtaken) if overtaken else found, at=at)
        past = [target for target in targets if isinstance(answers[target.pk].numbers, Interval)]
        backfilling.note_pauses(past, manifests, at)
    for target in targets:
        if target.pk in failed and failed[target.pk] != target.last_error:
            log.warning("%s of %s was not measured: %s", target, target.service, failed[target.pk])
    return Collected(at, len(targets), failed, stored)


def _targets(at: datetime) -> tuple[list[Target], dict[int, Sent]]:
    """What is measured in this round, and what those of them sent that are not asked.

    Without those that never sent anything, and those of services that are scraped meanwhile.
    """
    active = list(Target.objects.active().select_related("service", "snapshot").order_by("pk"))
    scraped = {target.service_id for target in active if not target.is_pushed}
    sends = [target for target in active if target.is_pushed and target.service_id not in scraped]
    sent = pushing.read(sends, at=at) if sends else {}
    return [target for target in active if not target.is_pushed or target.pk in sent], sent


def _manifests(targets: Iterable[Target]) -> dict[int, Manifest]:
    """The manifest of each service, by its primary key; without those that can't be read."""
    found: dict[int, Manifest] = {}
    for service in {target.service for target in targets}:
        try:
            found[service.pk] = service.parsed
        except ValidationError:
            log.warning("The manifest of %s was written by another version. Refresh the service.", service)
    return found


def _rows(
    targets: Sequence[Target],
    manifests: dict[int, Manifest],
    answers: dict[int, _Answer],
    did: dict[int, derive.Traffic],
    *,
    late_seconds: float,
) -> list[tuple[Service, Reading]]:
    """What is stored. Several targets of one release are one series; all that serve together are the service."""
    groups: dict[tuple[Service, str], list[Target]] = defaultdict(list)
    for target in targets:
        groups[target.service, target.release].append(target)
    rows: list[tuple[Service, Reading]] = []
    for (service, release), members in groups.items():
        asked = [answers[target.pk] for target in members]
        labels = (("release", release),) if release else ()
        rows.append((service, Reading("up", labels, sum(map(_up, asked)) / len(asked))))
        if measured := [answer.seconds for answer in asked if answer.numbers is not None]:
            rows.append((service, Reading("scrape_seconds", labels, max(measured))))
        late = any(answer.seconds > late_seconds for answer in asked)
        rows.append((service, Reading("scrape_late", labels, float(late))))
        if parts := [did[target.pk] for target in members if target.pk in did]:
            satisfying_ms = manifests[service.pk].slo.latency_ms
            found = derive.readings(derive.merge(parts), release=release, satisfying_ms=satisfying_ms)
            rows += [(service, reading) for reading in found]
    for service in {service for service, release in groups if release}:
        serving = [
            did[target.pk]
            for (owner, _), members in groups.items()
            if owner == service
            for target in members
            if target.serving and target.pk in did
        ]
        if serving:
            found = derive.readings(derive.merge(serving), satisfying_ms=manifests[service.pk].slo.latency_ms)
            rows += [(service, reading) for reading in found if _is_of_the_whole(reading)]
    return rows


def _is_of_the_whole(reading: Reading) -> bool:
    labels = dict(reading.labels)
    if labels.get("endpoint") == derive.ALL:
        return True
    return reading.signal in WHOLE or "dependency" in labels


def _up(answer: _Answer) -> float:
    if isinstance(answer.numbers, Interval) and answer.numbers.up is not None:
        return answer.numbers.up
    return float(answer.numbers is not None)


def _ask(
    targets: Sequence[Target],
    manifests: dict[int, Manifest],
    at: datetime,
    source: MetricSource | None,
    spread_seconds: float,
) -> dict[int, _Answer]:
    """What each target answered, by its primary key. No thread touches the database."""
    if not targets:
        return {}
    interval = float(settings.METRICS_COLLECTION_INTERVAL)
    longest = min(LONGEST_TIMEOUT_SECONDS, max(1.0, TIMEOUT_SHARE * interval))
    salt = dialects.salt_of(settings.SECRET_KEY)
    began = time.monotonic()

    def ask(target: Target, manifest: Manifest, read: MetricSource, scraper: Scraper | None) -> _Answer:
        metrics = manifest.metrics
        timeout_seconds = min(metrics.timeout_seconds or longest, max(1.0, TIMEOUT_SHARE * interval))
        keep = dialects.allowlist(metrics.spoken, salt)
        if scraper is not None:
            time.sleep(spread_seconds * _moment(target.url))
        access = NOBODY
        asked = time.monotonic()
        now = at.timestamp() + (asked - began if scraper is not None else 0.0)
        try:
            numbers: prometheus.Snapshot | Interval
            # Those who read a Prometheus say who they are to it alone; what else the service has is not told.
            if scraper is not None and (metrics.promql is None or metrics.asks(target.url)):
                access = credentials.of(metrics, target.service.environment)
            if scraper is not None and metrics.promql is not None and metrics.asks(target.url):
                api = PromQL(
                    scraper.client, metrics.promql, metrics.selector, metrics.window(interval), timeout_seconds, access
                )
                numbers = api.read(at=now, dialect=metrics.spoken, keep=keep)
            elif scraper is not None:
                numbers = scraper.read(target.url, at=now, timeout_seconds=timeout_seconds, keep=keep, access=access)
            else:
                numbers = read.read(target.url, at=now, timeout_seconds=timeout_seconds, keep=keep)
        except (ScrapeFailed, MissingCredentials) as reason:
            return _Answer(None, time.monotonic() - asked, access.hidden(str(reason))[:500])
        return _Answer(numbers, time.monotonic() - asked)

    if source is not None:
        given = source
        return _all(targets, manifests, lambda target, manifest: ask(target, manifest, given, None), longest)
    with Scraper(timeout_seconds=longest) as scraper:
        longest = max([longest, *(m.metrics.timeout_seconds or 0.0 for m in manifests.values())]) + spread_seconds
        return _all(targets, manifests, lambda target, manifest: ask(target, manifest, scraper, scraper), longest)


def _all(
    targets: Sequence[Target],
    manifests: dict[int, Manifest],
    ask: Callable[[Target, Manifest], _Answer],
    longest_seconds: float,
) -> dict[int, _Answer]:
    """Ask all at once. Who drips so that no timeout of the client's ends it is given up and left to itself."""
    unreadable = _Answer(None, 0.0, "The manifest was written by another version. Refresh the service.")
    answers = dict.fromkeys((target.pk for target in targets), unreadable)
    pool = ThreadPoolExecutor(max_workers=min(MOST_AT_ONCE, len(targets)), thread_name_prefix="scrape")
    try:
        asked = {
            target.pk: pool.submit(ask, target, manifests[target.service_id])
            for target in targets
            if target.service_id in manifests
        }
        turns = -(-len(targets) // MOST_AT_ONCE)
        # What has answered may still wait to be read: at a first round, all series are new.
        enough = max(turns * longest_seconds + 1.0, 0.9 * float(settings.METRICS_COLLECTION_INTERVAL))
        wait(asked.values(), timeout=enough)
        for pk, future in asked.items():
            if not future.done():
                answers[pk] = _Answer(None, longest_seconds, f"It did not answer within {longest_seconds:g} s.")
            elif bug := future.exception():  # of ours, about one target: the others are measured all the same
                log.error("Target %s could not be read", pk, exc_info=bug)
                answers[pk] = _Answer(
                    None, 0.0, f"Its answer could not be read ({type(bug).__name__}); the log has more."
                )
            else:
                answers[pk] = future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return answers


def _moment(url: str) -> float:
    """Where in the spread a target has its turn, 0–1: the same in every round."""
    return int.from_bytes(hashlib.blake2b(url.encode(), digest_size=4).digest()) / 2**32


def _local_port(target: Target) -> int | None:
    parts = urlsplit(target.url)
    return parts.port if parts.hostname in LOOPBACK else None


def _with_processes(answer: prometheus.Snapshot, used: processes.ProcessUse | None) -> prometheus.Snapshot:
    """What the operating system says about all workers replaces what one worker says about itself."""
    if used is None or dialects.HOST_CPU in answer.layout.places:
        return answer
    levels = {dialects.MEMORY_BYTES: used.memory_bytes, dialects.THREADS: used.threads}
    if used.open_fds is not None:
        levels[dialects.OPEN_FDS] = used.open_fds
    if used.max_fds is not None:
        levels[dialects.MAX_FDS] = used.max_fds
    return answer.replacing(
        {
            dialects.CPU_SECONDS_BY_PROCESS: used.cpu_seconds,
            **{metric: {(): float(level)} for metric, level in levels.items()},
        }
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
    targets: Sequence[Target],
    fresh: Sequence[tuple[Target, prometheus.Snapshot]],
    failed: dict[int, str],
    at: datetime,
    measured: Collection[int],
) -> set[int]:
    """Keep what was read for the next round, and why something was not. Who was read by another round meanwhile."""
    seen = {target.pk: getattr(getattr(target, "snapshot", None), "at", None) for target in targets}
    rows = Target.objects.select_for_update(of=("self",)).filter(pk__in=seen).order_by("pk")
    # A target may have been removed while it was asked; its snapshot then has no owner.
    alive = set(rows.values_list("pk", flat=True))
    # Read after the rows are locked: a statement that waited for a lock would still see what was there before.
    kept = dict(Snapshot.objects.filter(target__in=alive).values_list("target", "at"))
    overtaken = {target.pk for target, _ in fresh if target.pk in alive and kept.get(target.pk) != seen[target.pk]}
    Snapshot.objects.bulk_create(
        [
            Snapshot(target=target, at=at, body=prometheus.pack(snapshot))
            for target, snapshot in fresh
            if target.pk in alive - overtaken
        ],
        update_conflicts=True,
        unique_fields=["target"],
        update_fields=["at", "body"],
    )
    Target.objects.filter(pk__in=set(measured) - overtaken).update(last_scraped_at=at, last_error="")
    reasons: dict[str, list[int]] = defaultdict(list)
    for pk, reason in failed.items():
        reasons[reason].append(pk)
    for reason, pks in reasons.items():
        Target.objects.filter(pk__in=pks).update(last_error=reason)
    return overtaken
