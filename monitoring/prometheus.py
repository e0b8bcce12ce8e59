"""The Prometheus text format and OpenMetrics, read into plain numbers.

What a line is about (its name and labels) is understood by prometheus_client, once: it is the same text at every
scrape, so what was understood is remembered, and a scrape that shows the same series as before is a list of numbers.
This module bounds that memory and refuses what would lead to a wrong number.
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families as parse_text

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")

Labels = tuple[tuple[str, str], ...]  # sorted by name
Numbers = NDArray[np.float64]
# Which labels of a series are kept; None when the series is not. It is part of the key of what is remembered.
# Asked without labels it answers None when no series of that name is kept.
Keep = Callable[[str, Labels], Labels | None]

LARGEST_BYTES = 8 * 1024 * 1024
MOST_SERIES = 100_000
MOST_REMEMBERED_KEYS = 200_000
MOST_REMEMBERED_CHARACTERS = 64 * 1024 * 1024
LONGEST_LINE = 10_000

_TEXT_IN_QUOTES = r'"(?:[^"\\]|\\.)*+"'
_LABELS = rf'\{{(?:[^"{{}}]|{_TEXT_IN_QUOTES})*+\}}'
_KEY = rf"[a-zA-Z_:][a-zA-Z0-9_:]*+(?:[ \t]*{_LABELS})?|{_LABELS}"
_NUMBER = r"(?:[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?Inf|NaN)"
_EXEMPLAR = rf"[ \t]+#[ \t]+{_LABELS}[ \t]+{_NUMBER}(?:[ \t]+{_NUMBER})?"
_line = re.compile(
    rf"(?P<key>{_KEY})(?:(?<=\}})|[ \t])[ \t]*(?P<value>[^\s#]+)(?:[ \t]+(?P<time>\S+?))??(?:{_EXEMPLAR})?"
).fullmatch
# Most keys: labels without escapes, which can only be read in one way.
_plain = re.compile(
    r'(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(?P<labels>(?:[a-zA-Z][a-zA-Z0-9_]*="[^"\\]*+"(?:,|(?=\})))++)\})?'
).fullmatch
_pairs = re.compile(r'([a-zA-Z][a-zA-Z0-9_]*)="([^"\\]*)"').findall
_is_timestamp = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?").fullmatch


class NotPrometheus(ValueError):
    """The text is not a usable exposition; the message says why, and quotes no label."""


@dataclass(eq=False)
class Layout:
    """Which series a snapshot holds, in order. Equal layouts are one object as long as they are remembered."""

    series: tuple[tuple[str, Labels], ...]
    # What others have worked out about these series; it is forgotten together with them.
    notes: dict[Hashable, Any] = field(default_factory=dict)

    @functools.cached_property
    def places(self) -> dict[str, list[int]]:
        """Metric name → the places of its series."""
        found: dict[str, list[int]] = {}
        for place, (name, _) in enumerate(self.series):
            found.setdefault(name, []).append(place)
        return found

    @functools.cached_property
    def place_of(self) -> dict[tuple[str, Labels], int]:
        return {series: place for place, series in enumerate(self.series)}

    @functools.cached_property
    def packed(self) -> bytes:
        rows = [[name, *(part for pair in labels for part in pair)] for name, labels in self.series]
        return zlib.compress(json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode(), level=1)


@dataclass(frozen=True)
class Clock:
    """A clock that nobody sets: seconds since the boot that `boot` names."""

    boot: str
    seconds: float


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The raw values of one target at one time. `at` is in unix seconds; `numbers` is float64[n] in the layout's order.

    NaN in `numbers` means that there is no value. `clock` is when it was taken by a clock that does not jump.
    """

    at: float
    layout: Layout
    numbers: Numbers
    clock: Clock | None = None

    @classmethod
    def of(cls, at: float, values: Mapping[str, Mapping[Labels, float]], clock: Clock | None = None) -> Snapshot:
        """A snapshot of metric name → labels → value."""
        series = tuple((name, labels) for name, rows in values.items() for labels in rows)
        numbers = [float(value) for rows in values.values() for value in rows.values()]
        return cls(at, _layout(series), np.array(numbers, float), clock)

    @property
    def values(self) -> dict[str, dict[Labels, float]]:
        """Metric name → labels → value: slow, to look at."""
        return {name: found for name in self.layout.places if (found := self.get(name))}

    def get(self, name: str) -> dict[Labels, float]:
        """All series of the metric `name` that have a value; empty when there are none."""
        places = self.layout.places.get(name, [])
        found = {self.layout.series[place][1]: float(self.numbers[place]) for place in places}
        return {labels: value for labels, value in found.items() if not math.isnan(value)}

    def only(self, name: str) -> float | None:
        """The value of a metric that has exactly one series, else None."""
        series = self.get(name)
        return next(iter(series.values())) if len(series) == 1 else None

    def replacing(self, values: Mapping[str, Mapping[Labels, float]]) -> Snapshot:
        """The same with other series for the metrics in `values`."""
        series = tuple((name, labels) for name, rows in values.items() for labels in rows)
        known = self.layout.notes.get(series)
        if known is None:
            places = [place for place, (name, _) in enumerate(self.layout.series) if name not in values]
            wider = _layout((*(self.layout.series[place] for place in places), *series))
            known = self.layout.notes[series] = (np.array(places, dtype=np.intp), wider)
        stays, layout = known
        numbers = [value for rows in values.values() for value in rows.values()]
        return replace(self, layout=layout, numbers=np.append(self.numbers[stays], np.array(numbers, float)))

    def seconds_since(self, before: Snapshot) -> float:
        """How long after `before` this one was taken; by the clock that nobody sets where both know the same one."""
        if self.clock and before.clock and self.clock.boot == before.clock.boot:
            return self.clock.seconds - before.clock.seconds
        return self.at - before.at


class _Memory(Generic[_K, _V]):
    """What was understood, until it weighs more than `most`; then the oldest goes. Safe to use from several threads."""

    def __init__(self, most: int) -> None:
        self.most, self.weight = most, 0
        self.kept: OrderedDict[_K, tuple[_V, int]] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, key: _K) -> _V | None:
        found = self.kept.get(key)
        return found[0] if found else None

    def put(self, key: _K, value: _V, weight: int = 1) -> _V:
        """Remember `value`; gives the one that another thread put there first, if any."""
        with self.lock:
            if (known := self.kept.get(key)) is not None:
                return known[0]
            self.kept[key] = (value, weight)
            self.weight += weight
            while self.weight > self.most and len(self.kept) > 1:
                _, (_, lighter) = self.kept.popitem(last=False)
                self.weight -= lighter
        return value


_keys: _Memory[str, tuple[str, Labels]] = _Memory(MOST_REMEMBERED_KEYS)
_layouts: _Memory[tuple[tuple[str, Labels], ...], Layout] = _Memory(10 * MOST_REMEMBERED_KEYS)
_packed: _Memory[bytes, Layout] = _Memory(MOST_REMEMBERED_CHARACTERS)
# All keys of an exposition in one text, and what is kept of them → where the kept ones are, and their layout.
_texts: _Memory[tuple[str, Keep], tuple[NDArray[np.intp], Layout]] = _Memory(MOST_REMEMBERED_CHARACTERS)


def _layout(series: tuple[tuple[str, Labels], ...]) -> Layout:
    known = _layouts.get(series)
    return known or _layouts.put(series, Layout(series), 1 + len(series))


def everything(name: str, labels: Labels) -> Labels | None:
    """Keeps all series with all labels."""
    return labels


def parse(
    text: str, *, at: float, openmetrics: bool = False, keep: Keep = everything, clock: Clock | None = None
) -> Snapshot:
    """Read an exposition, keeping of each series what `keep` says.

    Timestamps, exemplars and comments are read over. Raises NotPrometheus for text that is malformed, too large, cut
    off (OpenMetrics says where it ends), or gives one series twice.
    """
    if len(text) > LARGEST_BYTES:
        raise NotPrometheus(f"The metrics are larger than {LARGEST_BYTES // 1024 // 1024} MB.")
    if text.lstrip()[:1] == "<":
        raise NotPrometheus("The answer is a web page, not Prometheus text. Is metrics.path in the manifest right?")
    if openmetrics and not text.endswith(("\n# EOF\n", "\n# EOF")):
        raise NotPrometheus("This is not Prometheus text: OpenMetrics ends with # EOF, so a part is missing.")
    lines = [line for line in text.split("\n") if line and line[0] != "#"]
    if len(lines) > MOST_SERIES:
        raise NotPrometheus(f"There are more than {MOST_SERIES:,} series.")
    parts = [line.rpartition(" ") for line in lines]
    heads, tails = [part[0] for part in parts], [part[2] for part in parts]
    known = _known(heads, keep)
    if known is None:
        heads, tails = _careful(text)
        known = _known(heads, keep)
    values = _numbers(tails)
    places, layout = known or _understand(heads, keep)
    return Snapshot(at, layout, values[places], clock)


def _known(heads: list[str], keep: Keep) -> tuple[NDArray[np.intp], Layout] | None:
    """What is kept of series with exactly these keys; only keys that were understood as a whole are remembered."""
    return _texts.get(("\n".join(heads), keep)) if heads else None


def _careful(text: str) -> tuple[list[str], list[str]]:
    """Key and value of each line, however it is written."""
    heads, tails = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line or line[0] == "#":
            continue
        head, _, tail = line.rpartition(" ")
        if _keys.get(head) is None:
            found = _line(line) if len(line) <= LONGEST_LINE else None
            if found is None or (found["time"] and not _is_timestamp(found["time"])):
                raise NotPrometheus(f"This is not Prometheus text: line {number} is no series with a number.")
            head, tail = found["key"], found["value"]
        heads.append(head)
        tails.append(tail)
    if not heads:
        raise NotPrometheus("The answer holds no metrics.")
    return heads, tails


def _understand(heads: list[str], keep: Keep) -> tuple[NDArray[np.intp], Layout]:
    series: dict[tuple[str, Labels], int] = {}
    for place, head in enumerate(heads):
        if (plain := _plain(head)) and keep(plain["name"], ()) is None:
            continue
        name, labels = _keys.get(head) or _keys.put(head, _series(head))
        if (kept := keep(name, labels)) is None:
            continue
        if (name, kept) in series:
            raise NotPrometheus(f"A series of {name} is there twice.")
        series[name, kept] = place
    places = np.fromiter(series.values(), dtype=np.intp, count=len(series))
    joined = "\n".join(heads)
    return _texts.put((joined, keep), (places, _layout(tuple(series))), len(joined))


def _series(key: str) -> tuple[str, Labels]:
    """The name and labels that a key stands for, as prometheus_client understands them."""
    if plain := _plain(key):
        pairs: list[tuple[str, str]] = _pairs(plain["labels"] or "")
        if len(dict(pairs)) == len(pairs):
            return plain["name"], tuple(sorted(pairs))
    try:
        samples = [sample for family in parse_text(f"{key} 1\n") for sample in family.samples]
    except (ValueError, KeyError, IndexError, TypeError):
        samples = []
    if len(samples) != 1:
        # Without its labels: the reason is stored and shown.
        raise NotPrometheus(f"This is not Prometheus text: the labels of {key.partition('{')[0] or 'a series'!r}.")
    return samples[0].name, tuple(sorted(samples[0].labels.items()))


def _numbers(tails: list[str]) -> Numbers:
    together = "".join(tails)
    try:
        # Python reads 1_000 and digits of other scripts as numbers; no other reader of this format does.
        if "_" in together or not together.isascii():
            raise ValueError
        return np.fromiter(map(float, tails), dtype=float, count=len(tails))
    except ValueError:
        raise NotPrometheus("This is not Prometheus text: a value is no number.") from None


_HEADER = struct.Struct("<4sII")
_MAGIC = b"RRS2"


def pack(snapshot: Snapshot) -> bytes:
    """A small form to keep between rounds: the layout, compressed once, and the values."""
    head: dict[str, Any] = {"at": snapshot.at}
    if snapshot.clock:
        head |= {"boot": snapshot.clock.boot, "seconds": snapshot.clock.seconds}
    about, layout = json.dumps(head).encode(), snapshot.layout.packed
    numbers = zlib.compress(np.ascontiguousarray(snapshot.numbers, "<f8").tobytes(), level=1)
    return b"".join((_HEADER.pack(_MAGIC, len(about), len(layout)), about, layout, numbers))


def unpack(body: bytes) -> Snapshot:
    """The inverse of `pack`. Raises ValueError for anything else."""
    try:
        magic, about_bytes, layout_bytes = _HEADER.unpack_from(body)
        if magic != _MAGIC:
            raise ValueError("this was not written by this version")
        begin = _HEADER.size + about_bytes
        about = json.loads(body[_HEADER.size : begin])
        packed = body[begin : begin + layout_bytes]
        numbers = np.frombuffer(zlib.decompress(body[begin + layout_bytes :]), dtype="<f8")
        layout = _packed.get(packed)
        if layout is None:
            rows = json.loads(zlib.decompress(packed))
            series = tuple((row[0], tuple(zip(row[1::2], row[2::2], strict=True))) for row in rows)
            layout = _packed.put(packed, _layout(series), len(packed))
        if len(numbers) != len(layout.series):
            raise ValueError("its values and series don't belong together")
        clock = Clock(about["boot"], about["seconds"]) if "boot" in about else None
        return Snapshot(about["at"], layout, numbers, clock)
    except (zlib.error, struct.error, KeyError, TypeError, IndexError) as error:
        raise ValueError(str(error)) from error
