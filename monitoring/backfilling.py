"""The past of services whose series are in a Prometheus, asked for once and kept as what rounds would have kept.

Two times are missing: the weeks before a service was watched, and pauses in which RuneRogue did not run or did not
reach that Prometheus. Both are rows (`Backfill`), filled from their end in pieces, so that what matters most comes
first and a run that dies costs one piece. Where a round was answered nothing is added. Of a scraped service a gap stays
one: nobody has its numbers.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from django.conf import settings
from django.db.models import F, Min
from numpy.typing import NDArray
from pydantic import ValidationError

from monitoring import credentials, derive, dialects, reading, storing
from monitoring.claiming import claim
from monitoring.credentials import MissingCredentials
from monitoring.derive import Reading
from monitoring.manifest import Manifest
from monitoring.models import Backfill, Service, Target
from monitoring.promql import Grid, Interval, PromQL
from monitoring.scraping import ScrapeFailed, open_client

log = logging.getLogger(__name__)

RUN_SECONDS = 15.0  # of a run; what is left is done by the next one
PIECE_SECONDS = 30.0  # for the answers of one piece
# Rules look back a week and half an hour at this resolution; what is older serves baselines, which want 20 samples of
# an hour of the week and get 48.
FINE = timedelta(days=8)
COARSE_SECONDS = 300.0
LEAST_POINTS, MOST_POINTS = 15, 1440
PAUSE = 1.5  # intervals without a round


@dataclass(frozen=True)
class Run:
    """What a run did: new samples, and the services whose time before they were watched is known from now on."""

    samples: int
    finished: tuple[Service, ...]


def note_pauses(targets: Iterable[Target], manifests: Mapping[int, Manifest], at: datetime) -> int:
    """Note for each target, as it was before the round `at` measured it, when no round did. Returns how many.

    In a transaction that holds the targets: one that was removed while it was asked has no pause.
    """
    longest = timedelta(seconds=PAUSE * float(settings.METRICS_COLLECTION_INTERVAL))
    rows = []
    for target in targets:
        last, metrics = target.last_scraped_at, manifests[target.service_id].metrics
        if last is not None and at - last > longest and metrics.history_days:
            since = max(last, at - timedelta(days=metrics.history_days))
            rows.append(Backfill(target=target, since=since, until=at, asked_at=at))
    if not rows:
        return 0
    alive = set(Target.objects.filter(pk__in=[row.target_id for row in rows]).values_list("pk", flat=True))
    return len(Backfill.objects.bulk_create([row for row in rows if row.target_id in alive]))


def run(at: datetime, *, seconds: float = RUN_SECONDS) -> Run | None:
    """Ask for a part of what is missing, for about `seconds`; None when somebody else does."""
    if not claim("backfill", at=at, interval_seconds=float(settings.METRICS_COLLECTION_INTERVAL)):
        return None
    _note_new(at)
    deadline = time.monotonic() + seconds
    samples, finished = 0, []
    # Who waited longest comes first, so that one Prometheus that hangs does not keep the others waiting.
    rows = Backfill.objects.open().select_related("target__service").order_by(F("tried_at").asc(nulls_first=True), "pk")
    for row in rows:
        manifest = _manifest(row.target.service)
        if manifest is None or not manifest.metrics.asks(row.target.url):
            row.delete()  # its numbers are no longer there
            continue
        while not row.is_done and time.monotonic() < deadline:
            wrote = _fill_piece(row, manifest, at)
            if wrote is None:
                break
            samples += wrote
        if row.is_done:
            log.info("The past of %s since %s was asked for: %d samples", row.target, row.since, row.samples)
            if row.is_first:
                finished.append(row.target.service)
            else:
                row.delete()
    return Run(samples, tuple(finished))


def known_since(service: Service) -> datetime | None:
    """Since when the past of `service` is known from its Prometheus; None when it is not, or not yet as a whole."""
    done = Backfill.objects.filter(target__service=service, is_first=True, until__lte=F("since"))
    oldest: datetime | None = done.aggregate(oldest=Min("oldest"))["oldest"]
    return oldest


def told(service: Service) -> str:
    """In words for a page, what is known of the time before and of pauses; empty where nobody has it."""
    rows = list(Backfill.objects.filter(target__service=service).order_by("-is_first", "pk"))
    return " ".join(_told(row) for row in rows[:5])


def _told(row: Backfill) -> str:
    what = "The time before it was watched" if row.is_first else "A pause"
    if row.is_done:
        found = f"known back to {row.oldest:%Y-%m-%d %H:%M} UTC" if row.oldest else "asked for; there is nothing"
        return f"{what} is {found} ({row.samples:,} samples)."
    state = f"{what} is being asked for: from {row.since:%Y-%m-%d %H:%M} to {row.until:%Y-%m-%d %H:%M} UTC is left."
    return f"{state} The last try failed: {row.problem}" if row.problem else state


def _note_new(at: datetime) -> None:
    """A row for each target in a Prometheus that was measured and whose time before was never asked for."""
    targets = Target.objects.active().exclude(last_scraped_at=None).exclude(backfills__is_first=True)
    for target in targets.select_related("service"):
        metrics = _manifest(target.service)
        if metrics is None or not metrics.metrics.asks(target.url) or not metrics.metrics.history_days:
            continue
        until = target.last_scraped_at or at
        since = until - timedelta(days=metrics.metrics.history_days)
        Backfill.objects.get_or_create(
            target=target, is_first=True, defaults={"since": since, "until": until, "asked_at": at}
        )


def _manifest(service: Service) -> Manifest | None:
    try:
        return service.parsed
    except ValidationError:
        return None  # rounds say so beside the target


def _fill_piece(row: Backfill, manifest: Manifest, at: datetime) -> int | None:
    """Fill the newest piece of `row`. How many samples are new; None when it failed, or when somebody else did it."""
    service = row.target.service
    # Before anything can go wrong: what raises must not be the first again in every run to come.
    Backfill.objects.filter(pk=row.pk).update(tried_at=at)
    grid, begin = _piece(row, float(settings.METRICS_COLLECTION_INTERVAL))
    try:
        found = _ask(service, manifest, grid) if grid else {}
    except (ScrapeFailed, MissingCredentials) as reason:
        if str(reason)[:500] != row.problem:
            log.warning("The past of %s can't be read: %s", service, reason)
        # Smaller pieces may be what it can answer.
        _keep(row, until=row.until, points=max(LEAST_POINTS, row.points // 2), problem=str(reason)[:500], tried_at=at)
        return None
    past = list(_as_rounds(service, manifest, grid, found)) if grid else []
    wrote = storing.store_past(service, past)
    kept = _keep(
        row,
        until=begin,
        points=min(MOST_POINTS, 2 * row.points),
        problem="",
        tried_at=at,
        samples=row.samples + wrote,
        oldest=past[0][0] if past else row.oldest,
    )
    return wrote if kept else None


def _keep(row: Backfill, **fields: Any) -> bool:
    """Write what became of a piece, unless another run was here meanwhile: then its word counts."""
    if not Backfill.objects.filter(pk=row.pk, until=row.until).update(**fields):
        return False
    for name, value in fields.items():
        setattr(row, name, value)
    return True


def _piece(row: Backfill, interval_seconds: float) -> tuple[Grid | None, datetime]:
    """The newest points of `row` that are still to be asked for, and where what is left then ends.

    Points are multiples of their step: whoever asks for them again finds the same ones.
    """
    fine_since = row.asked_at - FINE
    is_fine = row.until > fine_since
    step = interval_seconds if is_fine else interval_seconds * math.ceil(COARSE_SECONDS / interval_seconds)
    since = max(row.since, fine_since) if is_fine else row.since
    begin = max(since, row.until - timedelta(seconds=step * row.points))
    first = math.ceil(begin.timestamp() / step)
    last = math.ceil(row.until.timestamp() / step) - 1  # the end is not part of it
    return (Grid(first * step, step, last - first + 1) if first <= last else None), begin


def _ask(service: Service, manifest: Manifest, grid: Grid) -> dict[int, Interval]:
    metrics = manifest.metrics
    access = credentials.of(metrics, service.environment)
    assert metrics.promql is not None
    with open_client(PIECE_SECONDS) as client:
        window = metrics.window(float(settings.METRICS_COLLECTION_INTERVAL))
        api = PromQL(client, metrics.promql, metrics.selector, window, PIECE_SECONDS, access)
        return api.read_past(grid, dialect=metrics.spoken, keep=dialects.allowlist(metrics.spoken))


def _as_rounds(
    service: Service, manifest: Manifest, grid: Grid, found: Mapping[int, Interval]
) -> Iterator[tuple[datetime, list[Reading]]]:
    """What rounds would have stored at those points of `grid` around which none was answered; the oldest first."""
    answered = _rounds(service, "scrape_seconds", grid)
    told = _rounds(service, "up", grid)
    for place, interval in sorted(found.items()):
        moment = grid.moment(place)
        if _is_near(moment, answered):
            continue
        # A round that was refused has said so with a 0, and that stays.
        up = [] if _is_near(moment, told) else [Reading("up", (), 1.0 if interval.up is None else interval.up)]
        did = derive.compare(interval.before, interval.after, dialect=manifest.metrics.spoken)
        rest = derive.readings(did, satisfying_ms=manifest.slo.latency_ms) if interval.after.layout.series else []
        if up or rest:
            yield datetime.fromtimestamp(moment, UTC), up + rest


def _rounds(service: Service, signal: str, grid: Grid) -> NDArray[np.float64]:
    """When rounds stored `signal` of the whole service around `grid`: unix seconds, rising."""
    margin = float(settings.METRICS_COLLECTION_INTERVAL)
    since, until = (datetime.fromtimestamp(at, UTC) for at in (grid.start - margin, grid.end + margin))
    found = reading.arrays(service, signal, since=since, until=until)
    return next((series.at for series in found if not series.labels), np.empty(0))


def _is_near(moment: float, rounds: NDArray[np.float64]) -> bool:
    """Whether one of `rounds` is at most half an interval away, and so the round of this moment."""
    half = 0.5 * float(settings.METRICS_COLLECTION_INTERVAL)
    place = int(np.searchsorted(rounds, moment))
    return bool((np.abs(rounds[max(0, place - 1) : place + 1] - moment) <= half).any())
