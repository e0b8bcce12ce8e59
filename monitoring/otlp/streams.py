"""What one process of a service has sent so far: streams that only grow, whatever temporality they are sent in.

Each counter is kept as a total that never falls: the growth that every export tells is added to it. Two snapshots of
these totals are subtracted as those of two scrapes are, and a restart, a retried export or one that was lost in between
changes nothing about that.

- A retried export is known by its times: nothing of it is newer than what is known.
- A cumulative stream that began later, or went down, began again at zero.
- Points of two processes that call themselves the same take turns; that is seen, and refused.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from monitoring.dialects import STARTED_AT
from monitoring.otlp.exposition import Kind, Point
from monitoring.prometheus import Labels, Snapshot

MOST_NUMBERS = 20_000  # of one process: each bucket is one
CLOCK_SECONDS = 300.0  # after so long with nothing but old points, the sender's clock was set back
LEVEL_SECONDS = 300.0  # a level that was not sent again for so long is not known any more
CONTESTED_SECONDS = 300.0
CONTESTED_TURNS = 3
OVERLAP_NS = 1_000_000
_VERSION = 1

OLD = "Points older than what is known already"
TWO_PROCESSES = "Points of several processes that send as one: give each its own service.instance.id"
NO_ROOM = f"More than {MOST_NUMBERS:,} series of one process"

Key = tuple[str, Labels]


@dataclass
class Stream:
    """One stream: `raw` is what was sent last, `total` what it has grown to since it is known; both as a Point's."""

    kind: Kind
    is_delta: bool
    start_ns: int
    at_ns: int
    bounds: tuple[float, ...]
    raw: tuple[float, ...]
    total: tuple[float, ...]


@dataclass
class State:
    """All streams of one process. `at_ns` is the newest time of any; `turns` when others sent in its name."""

    streams: dict[Key, Stream] = field(default_factory=dict)
    at_ns: int = 0
    turns: list[float] = field(default_factory=list)

    def is_contested(self, now: float) -> bool:
        """Whether several processes send as this one, so that no number is right."""
        return sum(now - moment < CONTESTED_SECONDS for moment in self.turns) >= CONTESTED_TURNS


@dataclass
class Added:
    """What became of an export: how many points counted, how many were known already, and why others were refused."""

    counted: int = 0
    repeated: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def add(
    state: State, points: Sequence[Point], *, now: float, heard: float | None = None, forget_seconds: float = 900.0
) -> Added:
    """Bring `state` up to date with `points`, which are in the order of their times, at `now` (unix seconds).

    `heard` is when something was counted last. Delta streams that are silent for `forget_seconds` are forgotten.
    """
    added = Added()
    newest = max((point.at_ns for point in points), default=0)
    if heard is not None and now - heard > CLOCK_SECONDS and 0 < newest < state.at_ns:
        state.streams, state.at_ns = {}, 0
    room = MOST_NUMBERS - sum(len(stream.total) for stream in state.streams.values())
    for point in points:
        key = (point.name, point.labels)
        known = state.streams.get(key)
        if known is None:
            if not point.numbers:
                continue
            room -= len(point.numbers)
            if room < 0:
                room += len(point.numbers)
                added.refused[NO_ROOM] += 1
                continue
            state.streams[key] = Stream(
                point.kind, point.is_delta, point.start_ns, point.at_ns, point.bounds, point.numbers, point.numbers
            )
            added.counted += 1
        elif (reason := _refused(known, point)) is not None:
            if reason == TWO_PROCESSES and now not in state.turns:
                state.turns = [*state.turns, now][-CONTESTED_TURNS:]
            added.refused[reason] += 1
        elif point.at_ns <= known.at_ns:
            added.repeated += 1
        else:
            if point.numbers:
                _grow(known, point)
                added.counted += 1
            elif known.kind == Kind.GAUGE:
                del state.streams[key]  # a counter without a value keeps its total: it may count on
            continue
    state.at_ns = max(state.at_ns, max((stream.at_ns for stream in state.streams.values()), default=0))
    _forget(state, forget_seconds)
    return added


def _refused(known: Stream, point: Point) -> str | None:
    if point.is_delta:
        if point.at_ns == known.at_ns:
            return None  # the same again
        if point.at_ns < known.at_ns:
            return OLD
        return TWO_PROCESSES if 0 < point.start_ns < known.at_ns - OVERLAP_NS else None
    if point.kind == Kind.GAUGE or known.is_delta or point.at_ns <= known.at_ns:
        return None
    # It began before the one that is known, and yet has news.
    return TWO_PROCESSES if 0 < point.start_ns < known.start_ns else None


def _grow(known: Stream, point: Point) -> None:
    if point.kind == Kind.GAUGE:
        known.total = point.numbers
    else:
        has_reset = not point.is_delta and point.start_ns > known.start_ns > 0
        bounds = point.bounds if has_reset else _shared(known.bounds, point)
        fresh, was = _at(point.bounds, point.numbers, bounds), _at(known.bounds, known.raw, bounds)
        if known.is_delta and not point.is_delta and not has_reset:
            growth = tuple(0.0 for _ in fresh)  # how far it had counted before is not known
        elif point.is_delta or has_reset or _fell(was, fresh, has_sum=point.kind == Kind.HISTOGRAM):
            growth = fresh
        else:
            growth = tuple(new - old for new, old in zip(fresh, was, strict=True))
        total = _at(known.bounds, known.total, bounds)
        known.total = tuple(old + (more if more >= 0 else math.nan) for old, more in zip(total, growth, strict=True))
        known.bounds, known.raw = bounds, fresh
    known.kind, known.is_delta = point.kind, point.is_delta
    known.start_ns, known.at_ns = point.start_ns, point.at_ns


def _shared(known: tuple[float, ...], point: Point) -> tuple[float, ...]:
    """The bounds to go on with: where a histogram becomes coarser, what it says at the bounds that stay is exact.

    They never become finer again: a bound that went and came back would have missed what was counted meanwhile.
    """
    both = tuple(bound for bound in point.bounds if bound in known)
    is_other = point.is_delta and len(both) < min(len(known), len(point.bounds))
    return point.bounds if is_other else both


def _at(bounds: tuple[float, ...], numbers: tuple[float, ...], wanted: tuple[float, ...]) -> tuple[float, ...]:
    """The numbers at other bounds: 0 where there was none, so that it begins to count."""
    if bounds == wanted:
        return numbers
    table = dict(zip(bounds, numbers, strict=False))
    return (*(table.get(bound, 0.0) for bound in wanted), *numbers[len(bounds) :])


def _fell(was: tuple[float, ...], fresh: tuple[float, ...], *, has_sum: bool) -> bool:
    counts = len(fresh) - 1 if has_sum else len(fresh)
    return any(new < old for new, old in zip(fresh[:counts], was[:counts], strict=True))


def _forget(state: State, forget_seconds: float) -> None:
    """Levels and delta streams that are not sent any more; a cumulative one that came back would count all its life."""
    for key, stream in list(state.streams.items()):
        silent = (state.at_ns - stream.at_ns) / 1e9
        if silent > (LEVEL_SECONDS if stream.kind == Kind.GAUGE else forget_seconds if stream.is_delta else math.inf):
            del state.streams[key]


# --- As a scrape would have shown it -----------------------------------------------------------------------------


def snapshot(state: State) -> Snapshot:
    """The streams as the snapshot of a scrape at the newest time that was sent, by the sender's clock.

    Without when the process began: totals go on over a restart, and would be counted once more as a new one's.
    """
    values: dict[str, dict[Labels, float]] = {}
    for (name, labels), stream in state.streams.items():
        if name == STARTED_AT:
            continue
        if stream.kind != Kind.HISTOGRAM:
            values.setdefault(name, {})[labels] = stream.total[0]
            continue
        *cumulative, count, total = stream.total
        buckets = values.setdefault(f"{name}_bucket", {})
        # A summary has no buckets, only what it counts.
        for bound, below in zip(stream.bounds, cumulative, strict=True):
            if len(stream.bounds) > 1:
                le = "+Inf" if math.isinf(bound) else repr(bound)
                buckets[tuple(sorted((*labels, ("le", le))))] = below
        values.setdefault(f"{name}_count", {})[labels] = count
        if not math.isnan(total):
            values.setdefault(f"{name}_sum", {})[labels] = total
    return Snapshot.of(state.at_ns / 1e9, values)


def pack(state: State) -> bytes:
    """A small form to keep between exports."""
    rows = [
        [name, labels, str(s.kind), s.is_delta, s.start_ns, s.at_ns, s.bounds, s.raw, s.total]
        for (name, labels), s in state.streams.items()
    ]
    content = {"version": _VERSION, "at": state.at_ns, "turns": state.turns, "streams": rows}
    return zlib.compress(json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode(), level=1)


def unpack(body: bytes) -> State:
    """The inverse of `pack`. Raises ValueError for anything else."""
    try:
        content: Any = json.loads(zlib.decompress(body))
        if content["version"] != _VERSION:
            raise ValueError("this was not written by this version")
        streams = {
            (name, tuple((label, text) for label, text in labels)): Stream(
                Kind(kind), is_delta, start, at, tuple(bounds), tuple(raw), tuple(total)
            )
            for name, labels, kind, is_delta, start, at, bounds, raw, total in content["streams"]
        }
        return State(streams, content["at"], content["turns"])
    except (zlib.error, KeyError, TypeError) as error:
        raise ValueError(f"not packed streams: {type(error).__name__}") from error
