"""Profiles: what the requests of a service spend their time on, kept and read.

Spans arrive at any web process, the ones that end first before the ones that contain them. The web process strips and
names them (`monitoring.otlp`) and lays them, packed, into a list in Valkey, one for each service. Every round takes the
list, folds the requests that are complete, stores the sums, and puts back what still waits. So:

- A retried export is known by its hash and counted once.
- The list is taken under a name of its own and removed after the commit. A fold that is interrupted is done again from
  the same spans, and the number of the batch, stored with the sums, keeps it from being counted again.
- When Valkey is emptied, the spans of about one round are lost: a gap, never a wrong count.
- The list is bounded. When it is full the sender is told to come again later.
- Windows and waiting go by RuneRogue's clock when a span arrived; those of services are only subtracted.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import redis
from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.db.models import Q

from monitoring.claiming import claim
from monitoring.derive import ALL, Reading
from monitoring.models import Profile, Service, SpanIntake, Statement, Target
from monitoring.otlp import fingerprints, folding
from monitoring.otlp.folding import Arrived, Calls, Folded, Node, Span, Sums, Times
from monitoring.storing import store

log = logging.getLogger(__name__)

# When its entry has arrived, the rest of a request has too: exporters send in the order in which spans end. The time is
# for several exporters (or a collector) in between, and for what goes on after the answer.
SETTLE_SECONDS = 5.0
# Exporters send every few seconds, and what a request does is sent before the request itself: this is how long a
# request may last to be counted as one.
PATIENCE_SECONDS = 120.0
LARGEST_WAITING_BYTES = 8 * 1024 * 1024  # of one service, packed: some 300,000 spans, folded in a few seconds
FORGOTTEN_AFTER_SECONDS = 900  # when no round has taken them for so long
SAME_EXPORT_SECONDS = 300
MINUTE, HOUR = 60, 3600
FRESH_HOURS = 2  # kept by the minute
KEEP_DAYS = 28
MOST_STATEMENTS = 5_000  # of one service
LOCK = 0x07_1B  # the first key of the advisory lock; the second is the service


class Overloaded(Exception):
    """The spans can't be kept now; the sender may try again later. The message says why."""


# --- Waiting, in Valkey ------------------------------------------------------------------------------------------

# KEYS: spans, bytes, seen. ARGV: chunk, most bytes, seconds to live, seconds to know it again.
_PUT = """
if redis.call('EXISTS', KEYS[3]) == 1 then return 'again' end
local waiting = tonumber(redis.call('GET', KEYS[2]) or '0')
if waiting + #ARGV[1] > tonumber(ARGV[2]) then return 'full' end
redis.call('SET', KEYS[3], '1', 'EX', ARGV[4])
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('INCRBY', KEYS[2], #ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 'kept'
"""
# KEYS: spans, bytes, taken, batch. ARGV: a number for the batch, seconds to live.
_TAKE = """
local batch = redis.call('GET', KEYS[4])
if batch and redis.call('EXISTS', KEYS[3]) == 1 then return batch end
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
redis.call('RENAME', KEYS[1], KEYS[3])
redis.call('DEL', KEYS[2])
redis.call('EXPIRE', KEYS[3], ARGV[2])
redis.call('SET', KEYS[4], ARGV[1], 'EX', ARGV[2])
return ARGV[1]
"""
# KEYS: spans, bytes, taken, batch, given. ARGV: the batch, what waits on, what was given up, seconds to live.
_FINISH = """
if redis.call('GET', KEYS[4]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[3], KEYS[4])
redis.call('SET', KEYS[5], ARGV[3], 'EX', ARGV[4])
if #ARGV[2] > 0 then
  redis.call('RPUSH', KEYS[1], ARGV[2])
  redis.call('EXPIRE', KEYS[1], ARGV[4])
  redis.call('INCRBY', KEYS[2], #ARGV[2])
  redis.call('EXPIRE', KEYS[2], ARGV[4])
end
return 1
"""


@cache
def _valkey(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=5.0, socket_connect_timeout=2.0)


def _key(service_id: int, part: str) -> str:
    return f"runerogue:otlp:{{{service_id}}}:{part}"


def _run(script: str, service_id: int, parts: Iterable[str], *arguments: bytes | str | float) -> Any:
    keys = [_key(service_id, part) for part in parts]
    return _valkey(settings.REDIS_URL).eval(script, len(keys), *keys, *arguments)


def service_of(name: str) -> Service | None:
    """The watched service whose spans are called `name`: its own name, or one in its manifest's `[otlp] names`."""
    found = Service.objects.active().filter(Q(name=name) | Q(manifest__otlp__names__contains=[name]))
    return found.defer("environment").order_by("name").first() if name else None


def is_private(service: Service, version: str) -> bool:
    """Whether `version` is a release that is tried in private: what it does is no user's experience."""
    if not version:
        return False
    return Target.objects.active().filter(service=service, release=version[:12], serving=False).exists()


def receive(service: Service, spans: list[Span], *, at: datetime, export: bytes) -> bool:
    """Keep `spans` until the next round. False when this very `export` was kept before. Raises Overloaded."""
    seen = hashlib.blake2b(export, digest_size=16).hexdigest()
    chunk = folding.pack([Arrived(at.timestamp(), span) for span in spans])
    try:
        answer = _run(
            _PUT,
            service.pk,
            ("spans", "bytes", f"seen:{seen}"),
            chunk,
            LARGEST_WAITING_BYTES,
            FORGOTTEN_AFTER_SECONDS,
            SAME_EXPORT_SECONDS,
        )
    except redis.RedisError as error:
        raise Overloaded("The queue does not answer.") from error
    if answer == b"full":
        raise Overloaded(f"Too many spans of {service.name} wait for the next round.")
    return bool(answer == b"kept")


# --- Folding, once in every round --------------------------------------------------------------------------------


def fold_all(at: datetime) -> int:
    """Fold what waits for every service into profiles and signals at `at`. Returns how many spans were counted."""
    counted = 0
    for service in _with_spans(list(Service.objects.active().defer("environment"))):
        try:
            counted += fold(service, at=at)
        except redis.RedisError as error:
            log.warning("The spans of %s were not folded, the queue does not answer: %s", service, error)
            break
        except DatabaseError:
            # The others, and what else happens in a round, must not stop for one; what was taken is tried again.
            log.exception("The spans of %s were not folded", service)
    compact(at)
    return counted


def _with_spans(services: list[Service]) -> list[Service]:
    """Those for which something waits: one question for all of them, as most send nothing."""
    asked = _valkey(settings.REDIS_URL).pipeline(transaction=False)
    for service in services:
        asked.exists(_key(service.pk, "spans"), _key(service.pk, "taken"))
    try:
        found = asked.execute()
    except redis.RedisError as error:
        log.warning("No spans were folded, the queue does not answer: %s", error)
        return []
    return [service for service, waits in zip(services, found, strict=True) if waits]


def fold(service: Service, *, at: datetime) -> int:
    """Fold what waits for one service. Returns how many spans were counted; 0 when another worker is at it."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", [LOCK, service.pk])
            if not cursor.fetchone()[0]:
                return 0
        taken = _take(service, at)
        if taken is None:
            return 0
        batch, folded = taken
        intake, _ = SpanIntake.objects.get_or_create(service=service, defaults={"folded_at": at})
        is_new = intake.batch != batch
        if is_new:
            _store(service, folded, at=at, since=intake.folded_at if intake.batch else None)
            for name in ("spans", "requests", "without_request", "late_requests", "dropped"):
                setattr(intake, name, getattr(intake, name) + getattr(folded, name))
            intake.batch, intake.folded_at, intake.waiting = batch, at, len(folded.carried)
            intake.save()
    given_up = json.dumps({key.hex(): since for key, since in folded.given_up.items()})
    carried = folding.pack(folded.carried) if folded.carried else b""
    _run(
        _FINISH,
        service.pk,
        ("spans", "bytes", "taken", "batch", "given"),
        str(batch),
        carried,
        given_up,
        FORGOTTEN_AFTER_SECONDS,
    )
    return folded.spans if is_new else 0


def _take(service: Service, at: datetime) -> tuple[int, Folded] | None:
    """The batch that is due (or was interrupted), folded. Its number is its time, so that a repetition is the same."""
    number = _run(
        _TAKE,
        service.pk,
        ("spans", "bytes", "taken", "batch"),
        str(int(at.timestamp() * 1e6)),
        FORGOTTEN_AFTER_SECONDS,
    )
    if number is None:
        return None
    batch = int(number)
    client: Any = _valkey(settings.REDIS_URL)
    arrived: list[Arrived] = []
    for chunk in client.lrange(_key(service.pk, "taken"), 0, -1):
        try:
            arrived += folding.unpack(chunk)
        except ValueError:  # of another version of RuneRogue
            log.warning("Spans of %s that waited can't be read and are left out.", service)
    given_up = json.loads(client.get(_key(service.pk, "given")) or "{}")
    manifest = service.parsed
    return batch, folding.fold(
        arrived,
        now=batch / 1e6,
        settle_seconds=SETTLE_SECONDS,
        patience_seconds=PATIENCE_SECONDS,
        given_up={bytes.fromhex(key): since for key, since in given_up.items()},
        endpoints=manifest.otlp.endpoints,
        unwatched=frozenset({manifest.run.health.strip("/"), manifest.metrics.path.strip("/")}),
    )


def _store(service: Service, folded: Folded, *, at: datetime, since: datetime | None) -> None:
    interval = float(settings.METRICS_COLLECTION_INTERVAL)
    elapsed = (at - since).total_seconds() if since else interval
    # After a pause nobody knows when in it the calls were made; they came with the newest rounds.
    elapsed = elapsed if 0.5 <= elapsed <= 5 * interval else interval
    _remember_statements(service, folded.texts, at)
    _merge(service, _floor(at, MINUTE), MINUTE, folded.by_endpoint)
    store([(service, reading) for reading in readings(folded, seconds=elapsed)], at=at)


def _merge(service: Service, at: datetime, seconds: int, fresh: Mapping[tuple[str, str], Sums]) -> None:
    """Add `fresh` to the profiles of a window. The caller holds the service's lock."""
    rows = Profile.objects.filter(service=service, at=at, seconds=seconds, endpoint__in={key[0] for key in fresh})
    known = {(row.endpoint, row.method): row.body for row in rows}
    together = []
    for (endpoint, method), sums in fresh.items():
        if (endpoint, method) in known:
            whole = folding.from_json(known[endpoint, method])
            whole.merge(sums)
        else:
            whole = sums
        body = folding.as_json(whole)
        together.append(Profile(service=service, at=at, seconds=seconds, endpoint=endpoint, method=method, body=body))
    Profile.objects.bulk_create(
        together,
        update_conflicts=True,
        unique_fields=["service", "at", "seconds", "endpoint", "method"],
        update_fields=["body"],
    )


def _remember_statements(service: Service, texts: Mapping[str, str], at: datetime) -> None:
    known = set(Statement.objects.filter(service=service).values_list("digest", flat=True))
    room = max(0, MOST_STATEMENTS - len(known))
    new = [digest for digest in texts if digest not in known][:room]
    Statement.objects.bulk_create(
        [Statement(service=service, digest=digest, text=texts[digest], seen_at=at) for digest in new],
        ignore_conflicts=True,
    )
    # Once a day is enough to know what is still in use.
    Statement.objects.filter(service=service, digest__in=list(texts), seen_at__lt=at - timedelta(days=1)).update(
        seen_at=at
    )


def readings(folded: Folded, *, seconds: float) -> list[Reading]:
    """The signals of a fold that covers `seconds`."""
    found = []
    for (kind, name), calls in folded.dependencies.items():
        labels = (("dependency", name), ("kind", kind))
        p95 = calls.times.quantile(0.95)
        found += [
            Reading("dependency_calls_per_second", labels, calls.calls / seconds),
            Reading("dependency_error_ratio", labels, calls.errors / calls.calls),
            Reading("dependency_latency_mean_ms", labels, 1000.0 * calls.seconds / calls.calls),
        ]
        if p95 is not None:
            found.append(Reading("dependency_latency_p95_ms", labels, 1000.0 * p95))
    parts = [((("endpoint", endpoint), ("method", method)), s) for (endpoint, method), s in folded.by_endpoint.items()]
    if parts:
        everything = Sums()
        for _, sums in parts:
            for name in ("requests", "seconds", "db_seconds", "queries", "repeats"):
                setattr(everything, name, getattr(everything, name) + getattr(sums, name))
        parts.append(((("endpoint", ALL), ("method", ALL)), everything))
    for labels, sums in parts:
        found.append(Reading("queries_per_request", labels, sums.queries / sums.requests))
        found.append(Reading("repeats_per_request", labels, sums.repeats / sums.requests))
        if sums.seconds > 0:
            found.append(Reading("database_share", labels, min(1.0, sums.db_seconds / sums.seconds)))
    return found


# --- Hours, and the end ------------------------------------------------------------------------------------------


def _floor(at: datetime, seconds: int) -> datetime:
    return datetime.fromtimestamp(at.timestamp() // seconds * seconds, UTC)


def compact(at: datetime) -> int:
    """Merge minutes into hours and forget what is too old, at most once an hour. Returns how many rows went."""
    if not claim("compact profiles", at=at, interval_seconds=HOUR):
        return 0
    gone = 0
    before = _floor(at - timedelta(hours=FRESH_HOURS), HOUR)
    old = Profile.objects.filter(seconds=MINUTE, at__lt=before)
    for service in Service.objects.filter(pk__in=old.values("service")).defer("environment"):
        hours = {_floor(moment, HOUR) for moment in old.filter(service=service).values_list("at", flat=True).distinct()}
        for hour in sorted(hours):
            gone += _compact_hour(service, hour)
    gone += Profile.objects.filter(at__lt=at - timedelta(days=KEEP_DAYS))._raw_delete(using="default")
    Statement.objects.filter(seen_at__lt=at - timedelta(days=KEEP_DAYS + 2))._raw_delete(using="default")
    return gone


def _compact_hour(service: Service, hour: datetime) -> int:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [LOCK, service.pk])
        minutes = Profile.objects.filter(
            service=service, seconds=MINUTE, at__gte=hour, at__lt=hour + timedelta(hours=1)
        )
        sums: dict[tuple[str, str], Sums] = defaultdict(Sums)
        for row in minutes.iterator(chunk_size=200):
            sums[row.endpoint, row.method].merge(folding.from_json(row.body))
        _merge(service, hour, HOUR, sums)
        return int(minutes._raw_delete(using="default"))


# --- Reading -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One line of an exemplar's tree, `depth` (from 1) steps below the request."""

    depth: int
    what: str
    calls: int
    milliseconds: float


@dataclass(frozen=True)
class SlowRequest:
    """One of the slowest requests as a folded tree. `trace` finds it in the service's own tracing."""

    trace: str
    milliseconds: float
    failed: bool
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class DependencyUse:
    """What one endpoint asks of one dependency. Parallel calls count each: `ms_per_request` may exceed the latency."""

    kind: str  # db, cache, http, rpc, messaging
    name: str
    calls: int
    calls_per_request: float
    ms_per_request: float
    latency_mean_ms: float
    latency_p95_ms: float
    error_ratio: float
    times: Times = field(compare=False, repr=False)

    @property
    def error_percent(self) -> float:
        return 100.0 * self.error_ratio


@dataclass(frozen=True)
class StatementUse:
    """One statement in the requests of one endpoint. `most` is the largest number of times within one request."""

    digest: str
    text: str
    calls: int
    requests: int  # in which it ran
    calls_per_request: float  # of those
    most: int
    ms_per_request: float  # of those
    place: str  # `file:line function` where the spans tell it, else ''


@dataclass(frozen=True)
class EndpointProfile:
    """Where the time of one endpoint goes, over a range. Dependencies and statements come dearest first."""

    endpoint: str
    method: str
    requests: int
    error_ratio: float
    latency_mean_ms: float
    latency_p95_ms: float
    self_ms: float  # per request, in no dependency
    database_share: float  # 0 to 1, of the time that passed
    queries_per_request: float
    repeats_per_request: float  # how often the most repeated statement ran, mean over requests
    seconds: float  # of all requests together
    dependencies: tuple[DependencyUse, ...]
    statements: tuple[StatementUse, ...]
    exemplars: tuple[SlowRequest, ...]

    @property
    def database_percent(self) -> float:
        return 100.0 * self.database_share


@dataclass(frozen=True)
class RepeatedStatement:
    """A statement that runs several times in one request: the N+1 of whatever language."""

    endpoint: str
    method: str
    endpoint_requests: int
    statement: StatementUse


def profile(service: Service, since: datetime, until: datetime) -> list[EndpointProfile]:
    """The profiles of every endpoint over the windows that touch [since, until), the dearest endpoint first."""
    rows = Profile.objects.filter(service=service, at__lt=until, at__gt=since - timedelta(seconds=HOUR)).order_by("at")
    sums: dict[tuple[str, str], Sums] = defaultdict(Sums)
    for row in rows.iterator(chunk_size=500):
        if row.at + timedelta(seconds=row.seconds) > since:
            sums[row.endpoint, row.method].merge(folding.from_json(row.body))
    digests = {digest for one in sums.values() for digest in one.statements}
    texts = dict(Statement.objects.filter(service=service, digest__in=digests).values_list("digest", "text"))
    found = [_profile(endpoint, method, one, texts) for (endpoint, method), one in sums.items() if one.requests]
    return sorted(found, key=lambda one: (-one.seconds, one.endpoint, one.method))


def repeated_statements(
    service: Service, since: datetime, until: datetime, *, at_least: float = 5.0
) -> list[RepeatedStatement]:
    """The statements that ran `at_least` times in a request on average, those that cost most time first."""
    found = [
        RepeatedStatement(one.endpoint, one.method, one.requests, statement)
        for one in profile(service, since, until)
        for statement in one.statements
        if statement.calls_per_request >= at_least and not _is_no_repetition(statement)
    ]
    return sorted(found, key=lambda one: -one.statement.ms_per_request * one.statement.requests)


def _is_no_repetition(statement: StatementUse) -> bool:
    return statement.digest == folding.OTHER or fingerprints.is_bookkeeping(statement.text)


def _profile(endpoint: str, method: str, sums: Sums, texts: Mapping[str, str]) -> EndpointProfile:
    n = sums.requests
    return EndpointProfile(
        endpoint=endpoint,
        method=method,
        requests=n,
        error_ratio=sums.errors / n,
        latency_mean_ms=1000.0 * sums.seconds / n,
        latency_p95_ms=1000.0 * (sums.times.quantile(0.95) or 0.0),
        self_ms=1000.0 * sums.self_seconds / n,
        database_share=min(1.0, sums.db_seconds / sums.seconds) if sums.seconds else 0.0,
        queries_per_request=sums.queries / n,
        repeats_per_request=sums.repeats / n,
        seconds=sums.seconds,
        dependencies=tuple(sorted(_dependencies(sums.dependencies, n), key=lambda one: -one.ms_per_request)),
        statements=tuple(
            StatementUse(
                digest=digest,
                text=texts.get(digest, "(other statements)"),
                calls=used.calls,
                requests=used.requests,
                calls_per_request=used.calls / used.requests,
                most=used.most,
                ms_per_request=1000.0 * used.seconds / used.requests,
                place=used.place,
            )
            for digest, used in sorted(sums.statements.items(), key=lambda item: -item[1].seconds)
            if used.requests
        ),
        exemplars=tuple(
            SlowRequest(one.trace, 1000.0 * one.seconds, one.failed, tuple(_lines(one.parts))) for one in sums.exemplars
        ),
    )


def _lines(parts: Iterable[Node], depth: int = 1) -> Iterator[Line]:
    for part in parts:
        yield Line(depth, part.what, part.calls, 1000.0 * part.seconds)
        yield from _lines(part.parts, depth + 1)


def dependencies(profiles: Iterable[EndpointProfile]) -> list[DependencyUse]:
    """What all of `profiles` together ask of each dependency, the dearest first; per request means of any of them."""
    found: dict[tuple[str, str], Calls] = defaultdict(Calls)
    requests = 0
    for one in profiles:
        requests += one.requests
        for used in one.dependencies:
            seconds = used.latency_mean_ms * used.calls / 1000.0
            errors = round(used.error_ratio * used.calls)
            found[used.kind, used.name].merge(Calls(used.calls, errors, seconds, used.times))
    return sorted(_dependencies(found, requests), key=lambda one: -one.ms_per_request)


def _dependencies(used: Mapping[tuple[str, str], Calls], requests: int) -> Iterator[DependencyUse]:
    for (kind, name), calls in used.items():
        if calls.calls:
            yield DependencyUse(
                kind=kind,
                name=name,
                calls=calls.calls,
                calls_per_request=calls.calls / requests,
                ms_per_request=1000.0 * calls.seconds / requests,
                latency_mean_ms=1000.0 * calls.seconds / calls.calls,
                latency_p95_ms=1000.0 * (calls.times.quantile(0.95) or 0.0),
                error_ratio=calls.errors / calls.calls,
                times=calls.times,
            )
