"""From spans to sums: which request each span belongs to, and what the requests of an endpoint spend their time on.

A request is a span that enters the service (SERVER, CONSUMER, or a job without a parent) with everything below it that
no other entry is nearer to. Its spans come in several exports, the ones that end first before the ones that contain
them; `fold` takes what is complete and hands back the rest to be given to it again.

Times are seconds, float; start and end are unix nanoseconds. Nothing here knows where spans are kept.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from monitoring.otlp import fingerprints

MOST_ENDPOINTS = 300
MOST_DEPENDENCIES = 50  # of one endpoint
MOST_STATEMENTS = 200  # of one endpoint
MOST_NODES = 60  # of an exemplar
DEEPEST = 6
EXEMPLARS = 3
MOST_CARRIED = 200_000
MOST_GIVEN_UP = 10_000
OTHER = "other"


class Role(StrEnum):
    ENTRY = "entry"  # a request begins
    CALL = "call"  # the service waits for something else
    INNER = "inner"  # its own code


class Kind(StrEnum):
    HTTP = "http"
    RPC = "rpc"
    MESSAGING = "messaging"
    JOB = "job"
    DB = "db"
    CACHE = "cache"
    CODE = "code"


class What(NamedTuple):
    """What a span is about. `name` is an endpoint (ENTRY), a dependency (CALL) or a function (INNER)."""

    role: str
    kind: str
    name: str
    method: str = ""
    statement: str = ""  # a fingerprint
    place: str = ""  # `file:line function`


class Span(NamedTuple):
    trace: bytes
    id: bytes
    parent: bytes  # empty for the root of a trace
    what: What
    start_ns: int
    end_ns: int
    failed: bool

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


# --- Sums --------------------------------------------------------------------------------------------------------


class Times:
    """Durations in fixed logarithmic buckets, four to each doubling: quantiles are within 19 %, and sums add exactly.

    Bucket 0 holds all up to 10 µs, bucket i those up to 10 µs · 2^(i/4), bucket 120 all beyond about 3 hours.
    """

    __slots__ = ("counts",)
    SMALLEST_SECONDS = 1e-5
    LAST = 120

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: dict[int, int] = dict(counts or {})

    def add(self, seconds: float) -> None:
        place = 0
        if seconds > self.SMALLEST_SECONDS:
            place = min(self.LAST, math.ceil(4.0 * math.log2(seconds / self.SMALLEST_SECONDS)))
        self.counts[place] = self.counts.get(place, 0) + 1

    def merge(self, other: Times) -> None:
        for place, count in other.counts.items():
            self.counts[place] = self.counts.get(place, 0) + count

    def quantile(self, q: float) -> float | None:
        """Seconds, interpolated within the bucket on the logarithmic scale; None without observations."""
        total = sum(self.counts.values())
        if not total:
            return None
        rank, below = q * total, 0
        for place in sorted(self.counts):
            count = self.counts[place]
            if below + count >= rank:
                return float(self.SMALLEST_SECONDS * 2.0 ** ((place - 1 + (rank - below) / count) / 4.0))
            below += count
        return float(self.SMALLEST_SECONDS * 2.0 ** (max(self.counts) / 4.0))


@dataclass
class Calls:
    """What went to one dependency."""

    calls: int = 0
    errors: int = 0
    seconds: float = 0.0  # summed over calls: parallel calls add up to more than the time that passed
    times: Times = field(default_factory=Times)

    def merge(self, other: Calls) -> None:
        self.calls += other.calls
        self.errors += other.errors
        self.seconds += other.seconds
        self.times.merge(other.times)


@dataclass
class Statements:
    """One statement in the requests of one endpoint. `most` is the largest number of times within one request."""

    calls: int = 0
    seconds: float = 0.0
    requests: int = 0
    most: int = 0
    place: str = ""

    def merge(self, other: Statements) -> None:
        self.calls += other.calls
        self.seconds += other.seconds
        self.requests += other.requests
        self.most = max(self.most, other.most)
        self.place = self.place or other.place


class Node(NamedTuple):
    """A folded part of an exemplar: what ran `calls` times here, one after another or together."""

    what: str
    calls: int
    seconds: float
    parts: tuple[Node, ...] = ()


class Exemplar(NamedTuple):
    """One slow request as a folded tree. `trace` finds it in the service's own tracing."""

    trace: str
    seconds: float
    failed: bool
    parts: tuple[Node, ...]


@dataclass
class Sums:
    """The requests of one endpoint and method in a window.

    `self_seconds` is the time in no dependency, `db_seconds` the time in at least one database call; both count time
    that passed, so parallel calls are not counted twice and neither exceeds `seconds`. `repeats` sums, over requests,
    how often the most repeated statement ran.
    """

    requests: int = 0
    errors: int = 0
    seconds: float = 0.0
    self_seconds: float = 0.0
    db_seconds: float = 0.0
    queries: int = 0
    repeats: int = 0
    times: Times = field(default_factory=Times)
    dependencies: dict[tuple[str, str], Calls] = field(default_factory=dict)  # (kind, name) →
    statements: dict[str, Statements] = field(default_factory=dict)  # digest of the fingerprint →
    exemplars: list[Exemplar] = field(default_factory=list)  # slowest first

    def merge(self, other: Sums) -> None:
        self.requests += other.requests
        self.errors += other.errors
        self.seconds += other.seconds
        self.self_seconds += other.self_seconds
        self.db_seconds += other.db_seconds
        self.queries += other.queries
        self.repeats += other.repeats
        self.times.merge(other.times)
        for called, calls in other.dependencies.items():
            self.dependencies.setdefault(called, Calls()).merge(calls)
        for digest, statements in other.statements.items():
            self.statements.setdefault(digest, Statements()).merge(statements)
        self.exemplars = sorted([*self.exemplars, *other.exemplars], key=lambda one: -one.seconds)[:EXEMPLARS]
        self.bound()

    def bound(self) -> None:
        """What costs least becomes `other`, so that no service can fill the database with names."""
        _bound(self.dependencies, MOST_DEPENDENCIES, (Kind.HTTP.value, OTHER))
        _bound(self.statements, MOST_STATEMENTS, OTHER)


def _bound(table: dict[Any, Any], most: int, other: Any) -> None:
    if len(table) <= most:
        return
    rest = table.pop(other, None)
    dearest = sorted(table, key=lambda key: -table[key].seconds)
    for key in dearest[most - 1 :]:
        gone = table.pop(key)
        if rest is None:
            rest = type(gone)()
        rest.merge(gone)
    if rest is not None:
        table[other] = rest


# --- Folding -----------------------------------------------------------------------------------------------------


class Arrived(NamedTuple):
    """A span and when it arrived, in unix seconds by RuneRogue's clock: the only clock that decides about waiting."""

    at: float
    span: Span


@dataclass
class Folded:
    """What a fold came to.

    `by_endpoint` are requests, by (endpoint, method); `dependencies` all calls, those without a request among them.
    `texts` are the fingerprints behind the digests. `carried` and `given_up` (trace and span id of what never came) go
    into the next fold.
    """

    by_endpoint: dict[tuple[str, str], Sums] = field(default_factory=dict)
    dependencies: dict[tuple[str, str], Calls] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    carried: list[Arrived] = field(default_factory=list)
    given_up: dict[bytes, float] = field(default_factory=dict)
    spans: int = 0  # that were counted
    requests: int = 0
    without_request: int = 0  # calls whose request never came; counted by dependency alone
    late_requests: int = 0  # whose calls had been given up before; not counted
    dropped: int = 0  # spans for which there was no room to wait


def fold(
    arrived: Iterable[Arrived],
    *,
    now: float,
    settle_seconds: float,
    patience_seconds: float,
    given_up: Mapping[bytes, float] | None = None,
    endpoints: Mapping[str, str] | None = None,
    unwatched: frozenset[str] = frozenset(),
) -> Folded:
    """Fold the requests whose entry arrived `settle_seconds` ago or earlier, and give up what waited too long.

    `endpoints` renames endpoints; requests to those in `unwatched` (compared without slashes at the ends) are left
    out. The same input gives the same result, so a fold that was interrupted can be done again.
    """
    result = Folded(given_up={t: at for t, at in (given_up or {}).items() if now - at < 4 * patience_seconds})
    by_trace: dict[bytes, dict[bytes, Arrived]] = defaultdict(dict)
    for one in arrived:
        if one.at > now:  # the clock was set back; what waits must not wait until it has caught up
            one = Arrived(now, one.span)
        # A retried export brings the same span again.
        by_trace[one.span.trace].setdefault(one.span.id, one)
    for trace, spans in by_trace.items():
        _fold_trace(trace, spans, result, now, settle_seconds, patience_seconds, endpoints or {}, unwatched)
    if len(result.carried) > MOST_CARRIED:
        result.carried.sort(key=lambda one: one.at)
        result.dropped += len(result.carried) - MOST_CARRIED
        del result.carried[:-MOST_CARRIED]
    if len(result.given_up) > MOST_GIVEN_UP:
        newest = sorted(result.given_up.items(), key=lambda item: item[1])[-MOST_GIVEN_UP:]
        result.given_up = dict(newest)
    _bound_endpoints(result)
    _bound(result.dependencies, MOST_DEPENDENCIES, (Kind.HTTP.value, OTHER))
    return result


def _fold_trace(
    trace: bytes,
    spans: dict[bytes, Arrived],
    result: Folded,
    now: float,
    settle_seconds: float,
    patience_seconds: float,
    endpoints: Mapping[str, str],
    unwatched: frozenset[str],
) -> None:
    children: dict[bytes, list[Span]] = defaultdict(list)
    entries = []
    for one in spans.values():
        if one.span.what.role == Role.ENTRY:
            entries.append(one)
        else:
            children[one.span.parent].append(one.span)
    placed: set[bytes] = set()
    for entry in entries:
        below = _below(entry.span, children)
        placed.add(entry.span.id)
        placed.update(span.id for _, span in below)
        if now - entry.at < settle_seconds:
            result.carried.append(entry)
            result.carried += [spans[span.id] for _, span in below]
            continue
        what = entry.span.what
        if what.name.strip("/") in unwatched:
            continue
        if result.given_up and any(
            trace + span_id in result.given_up for span_id in (entry.span.id, *(span.id for _, span in below))
        ):
            result.late_requests += 1
            _count_calls(result, [span for _, span in below])
            continue
        name = endpoints.get(what.name, what.name)
        sums = result.by_endpoint.setdefault((name, what.method), Sums())
        _add_request(sums, entry.span, below, result)
    for span_id, one in spans.items():
        if span_id in placed:
            continue
        if now - one.at < patience_seconds:
            result.carried.append(one)
        else:
            if one.span.what.role == Role.CALL:
                result.without_request += 1
            _count_calls(result, [one.span])
            if one.span.parent not in spans:
                result.given_up[trace + one.span.parent] = now


def _below(entry: Span, children: Mapping[bytes, Sequence[Span]]) -> list[tuple[Span, Span]]:
    """Every span below `entry` with the one it hangs on, parents first. No recursion: depth is the sender's choice."""
    found: list[tuple[Span, Span]] = []
    seen = {entry.id}
    waiting = [entry]
    while waiting:
        parent = waiting.pop()
        for span in children.get(parent.id, ()):
            if span.id not in seen:
                seen.add(span.id)
                found.append((parent, span))
                waiting.append(span)
    return found


def _outermost(below: Sequence[tuple[Span, Span]]) -> list[Span]:
    """The calls, without those inside a call of the same kind: an ORM and its driver tell of one statement twice."""
    inside: dict[bytes, frozenset[str]] = {}
    found = []
    for parent, span in below:
        around = inside.get(parent.id, frozenset())
        if span.what.role == Role.CALL and span.what.kind not in around:
            found.append(span)
            around = around | {span.what.kind}
        inside[span.id] = around
    return found


def _add_request(sums: Sums, entry: Span, below: list[tuple[Span, Span]], result: Folded) -> None:
    calls = _outermost(below)
    seconds = entry.seconds
    sums.requests += 1
    sums.errors += entry.failed
    sums.seconds += seconds
    sums.times.add(seconds)
    sums.self_seconds += max(0.0, seconds - _covered(entry, calls))
    databases = [span for span in calls if span.what.kind == Kind.DB]
    sums.db_seconds += _covered(entry, databases)
    sums.queries += len(databases)
    counts: Counter[str] = Counter()
    for span in calls:
        _add_call(sums.dependencies, span)
        if span.what.kind == Kind.DB and span.what.statement:
            text = span.what.statement
            digest = fingerprints.digest(text)
            result.texts[digest] = text
            counts[digest] += 1
            statements = sums.statements.setdefault(digest, Statements())
            statements.calls += 1
            statements.seconds += span.seconds
            statements.place = statements.place or span.what.place
    most = 0
    for digest, count in counts.items():
        statements = sums.statements[digest]
        statements.requests += 1
        statements.most = max(statements.most, count)
        if count > most and not fingerprints.is_bookkeeping(result.texts[digest]):
            most = count
    sums.repeats += most
    slow = sums.exemplars
    if len(slow) < EXEMPLARS or seconds > slow[-1].seconds:
        tree = _tree(entry, below)
        sums.exemplars = sorted(
            [*slow, Exemplar(entry.trace.hex(), seconds, entry.failed, tree)], key=lambda one: -one.seconds
        )[:EXEMPLARS]
    result.requests += 1
    result.spans += 1 + len(below)
    for span in calls:
        _add_call(result.dependencies, span)


def _count_calls(result: Folded, spans: Sequence[Span]) -> None:
    for span in spans:
        result.spans += 1
        if span.what.role == Role.CALL:
            _add_call(result.dependencies, span)


def _add_call(table: dict[tuple[str, str], Calls], span: Span) -> None:
    key = (span.what.kind, span.what.name)
    calls = table.get(key)
    if calls is None:
        calls = table[key] = Calls()
    calls.calls += 1
    calls.errors += span.failed
    calls.seconds += span.seconds
    calls.times.add(span.seconds)


def _covered(entry: Span, spans: Sequence[Span]) -> float:
    """The seconds of `entry` during which at least one of `spans` ran."""
    covered, until = 0, entry.start_ns
    for start, end in sorted((span.start_ns, span.end_ns) for span in spans):
        start, end = max(start, until), min(end, entry.end_ns)
        if end > start:
            covered += end - start
            until = end
    return covered / 1e9


def _tree(entry: Span, below: Sequence[tuple[Span, Span]]) -> tuple[Node, ...]:
    """What ran below `entry`; equal neighbours are one node, so a hundred equal queries are one line."""
    children: dict[bytes, list[Span]] = defaultdict(list)
    for parent, span in below:
        children[parent.id].append(span)
    room = MOST_NODES

    def nodes(parents: Sequence[Span], depth: int) -> tuple[Node, ...]:
        nonlocal room
        groups: dict[str, list[Span]] = defaultdict(list)
        for parent in parents:
            for span in children.get(parent.id, ()):
                groups[_in_words(span.what)].append(span)
        found = []
        for words, spans in sorted(groups.items(), key=lambda item: min(span.start_ns for span in item[1])):
            if room <= 0:
                break
            room -= 1
            parts = nodes(spans, depth + 1) if depth < DEEPEST else ()
            found.append(Node(words, len(spans), sum(span.seconds for span in spans), parts))
        return tuple(found)

    return nodes([entry], 1)


def _in_words(what: What) -> str:
    words = what.statement or what.name
    return (f"{what.kind}: {words}" if what.role == Role.CALL else words)[:300]


def _bound_endpoints(result: Folded) -> None:
    table = result.by_endpoint
    if len(table) > MOST_ENDPOINTS:
        busiest = sorted(table, key=lambda key: (-table[key].requests, key))
        rest = table.setdefault((OTHER, OTHER), Sums())
        for key in busiest[MOST_ENDPOINTS - 1 :]:
            if key != (OTHER, OTHER):
                rest.merge(table.pop(key))
    for sums in table.values():
        sums.bound()


# --- Between folds -----------------------------------------------------------------------------------------------


def pack(spans: Sequence[Arrived]) -> bytes:
    """A small form to wait in: compressed JSON, each distinct `What` once."""
    whats: dict[What, int] = {}
    traces: dict[bytes, int] = {}
    rows = [
        [
            one.at,
            traces.setdefault(one.span.trace, len(traces)),
            one.span.id.hex(),
            one.span.parent.hex(),
            whats.setdefault(one.span.what, len(whats)),
            one.span.start_ns,
            one.span.end_ns - one.span.start_ns,
            int(one.span.failed),
        ]
        for one in spans
    ]
    content = {"whats": list(whats), "traces": [trace.hex() for trace in traces], "rows": rows}
    return zlib.compress(json.dumps(content, separators=(",", ":")).encode(), level=1)


def unpack(body: bytes) -> list[Arrived]:
    """The inverse of `pack`. Raises ValueError for anything else."""
    try:
        content = json.loads(zlib.decompress(body))
        whats = [What(*what) for what in content["whats"]]
        traces = [bytes.fromhex(trace) for trace in content["traces"]]
        return [
            Arrived(
                at,
                Span(
                    traces[trace],
                    bytes.fromhex(span_id),
                    bytes.fromhex(parent),
                    whats[what],
                    start,
                    start + lasted,
                    bool(failed),
                ),
            )
            for at, trace, span_id, parent, what, start, lasted, failed in content["rows"]
        ]
    except (zlib.error, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"not packed spans: {type(error).__name__}") from error


def as_json(sums: Sums) -> dict[str, Any]:
    """`sums` as plain JSON."""
    return {
        "requests": sums.requests,
        "errors": sums.errors,
        "seconds": sums.seconds,
        "self_seconds": sums.self_seconds,
        "db_seconds": sums.db_seconds,
        "queries": sums.queries,
        "repeats": sums.repeats,
        "times": _times_as_json(sums.times),
        "dependencies": [
            [kind, name, c.calls, c.errors, c.seconds, _times_as_json(c.times)]
            for (kind, name), c in sums.dependencies.items()
        ],
        "statements": [
            [digest, s.calls, s.seconds, s.requests, s.most, s.place] for digest, s in sums.statements.items()
        ],
        "exemplars": sums.exemplars,
    }


def from_json(content: Mapping[str, Any]) -> Sums:
    """The inverse of `as_json`."""
    return Sums(
        **{
            name: content[name]
            for name in ("requests", "errors", "seconds", "self_seconds", "db_seconds", "queries", "repeats")
        },
        times=_times_from_json(content["times"]),
        dependencies={
            (kind, name): Calls(calls, errors, seconds, _times_from_json(times))
            for kind, name, calls, errors, seconds, times in content["dependencies"]
        },
        statements={digest: Statements(*rest) for digest, *rest in content["statements"]},
        exemplars=[
            Exemplar(trace, seconds, failed, _nodes(parts)) for trace, seconds, failed, parts in content["exemplars"]
        ],
    )


def _nodes(parts: Iterable[Any]) -> tuple[Node, ...]:
    return tuple(Node(what, calls, seconds, _nodes(inner)) for what, calls, seconds, inner in parts)


def _times_as_json(times: Times) -> dict[str, int]:
    return {str(place): count for place, count in times.counts.items()}


def _times_from_json(content: Mapping[str, int]) -> Times:
    return Times({int(place): count for place, count in content.items()})
