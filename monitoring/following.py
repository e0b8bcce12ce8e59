"""The past that rules look at: read once, then followed round by round.

A round of 100 services would otherwise read three days of each of them every minute. What is held is only what the
database has: after a gap, and every hour, it is read anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from monitoring import baselining, deviation, reading
from monitoring.alerts import PATTERN_SECONDS
from monitoring.deviation import Usual
from monitoring.models import Service, labels_key

RELOAD_SECONDS = 3600.0
# What today's own level is taken from, see `deviation.usual_by_hour`, and a little more.
LEVEL_READ_SECONDS = 2 * deviation.LEVEL_SECONDS
DAY = timedelta(days=1)

Key = tuple[int, str, str]


@dataclass
class _Held:
    at: NDArray[np.float64]
    value: NDArray[np.float64]
    seconds: float
    loaded_at: float
    used_at: float


@dataclass
class Follower:
    """The newest samples of the series that were asked for, and what is usual for them."""

    interval_seconds: float
    _held: dict[Key, _Held] = field(default_factory=dict)
    _patterns: dict[Key, tuple[float, Usual | None]] = field(default_factory=dict)
    _usuals: dict[Key, tuple[float, float | None]] = field(default_factory=dict)

    def past(
        self, service: Service, signal: str, labels: dict[str, str], *, now: float, value: float | None, seconds: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Unix seconds [n], rising, and values [n] in (now - seconds, now]; `value` is that of the round `now`."""
        key = (service.pk, signal, labels_key(labels))
        held = self._held.get(key)
        if held is None or self._is_stale(held, now, seconds, service.pk):
            longest = max(seconds, held.seconds if held else 0.0)
            at, values = _read(service, signal, labels, since=now - longest, until=now + 0.001)
            held = self._held[key] = _Held(at, values, longest, now, now)
        if value is not None and (not len(held.at) or now > held.at[-1]):
            first = int(np.searchsorted(held.at, now - held.seconds, side="right"))
            held.at = np.append(held.at[first:], now)
            held.value = np.append(held.value[first:], value)
        held.used_at = now
        first, last = np.searchsorted(held.at, (now - seconds, now), side="right")
        return held.at[first:last], held.value[first:last]

    def _is_stale(self, held: _Held, now: float, seconds: float, spread: int) -> bool:
        # Another worker may have done the rounds between. Not all series are read anew in the same round.
        gap = not len(held.at) or now - held.at[-1] > 1.5 * self.interval_seconds
        old = not 0 <= now - held.loaded_at <= RELOAD_SECONDS + 30.0 * (spread % 60)
        return held.seconds < seconds or gap or old

    def pattern(self, service: Service, signal: str, labels: dict[str, str], *, now: float) -> Usual | None:
        """What is usual at this time, by the baseline where it knows this hour; worked out every ten minutes.

        Shares, whose quantiles say nothing as long as failures are rare, and what no fresh baseline has, are compared
        with the last days themselves.
        """
        key, at = (service.pk, signal, labels_key(labels)), now - now % PATTERN_SECONDS
        known = self._patterns.get(key)
        if known is None or known[0] != at:
            found = None if deviation.is_share(signal) else self._by_baseline(service, signal, labels, at)
            known = self._patterns[key] = (at, found or self._by_samples(service, signal, labels, at))
        return known[1]

    def _by_baseline(self, service: Service, signal: str, labels: dict[str, str], at: float) -> Usual | None:
        made = baselining.fresh_profile(service, signal, labels_key(labels), _moment(at))
        if made is None or not made.daily:
            return None
        when, values = _read(service, signal, labels, since=at - LEVEL_READ_SECONDS, until=at)
        hours = deviation.Hours.of(made)
        return deviation.usual_by_hour(hours, when, values, now=at, interval_seconds=self.interval_seconds)

    def _by_samples(self, service: Service, signal: str, labels: dict[str, str], at: float) -> Usual | None:
        since = at - (deviation.DAYS + 1) * deviation.DAY
        share = deviation.is_share(signal)
        when, values = _read(service, signal, labels, since=since, until=at)
        requests = np.zeros(len(when))
        if share:
            requests = self.interval_seconds * aligned(
                when, *_read(service, "requests_per_second", labels, since=since, until=at)
            )
        return deviation.usual(when, values, requests, now=at, interval_seconds=self.interval_seconds, share=share)

    def usual(self, service: Service, signal: str, labels: dict[str, str], *, now: float) -> float | None:
        """The median of the last day without its last ten intervals; worked out every ten minutes."""
        key, at = (service.pk, signal, labels_key(labels)), now - now % PATTERN_SECONDS
        known = self._usuals.get(key)
        if known is None or known[0] != at:
            until = _moment(now) - timedelta(seconds=deviation.RECENT_INTERVALS * self.interval_seconds)
            median = reading.usual(service, signal, since=_moment(now) - DAY, until=until, labels_key=key[2])
            known = self._usuals[key] = (at, median)
        return known[1]

    def forget_unused(self, now: float) -> None:
        """Drop what no rule has asked for lately: each release leaves series behind."""
        for key in [key for key, held in self._held.items() if abs(now - held.used_at) > RELOAD_SECONDS]:
            del self._held[key]
        for memory in (self._patterns, self._usuals):
            for key in [key for key, (at, _) in memory.items() if abs(now - at) > RELOAD_SECONDS]:
                del memory[key]


def aligned(wanted_at: NDArray[np.float64], at: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.float64]:
    """`value` at each of `wanted_at`[n] (float64[n]), 0 where there is none; `at` rises."""
    if not len(at):
        return np.zeros(len(wanted_at))
    place = np.minimum(np.searchsorted(at, wanted_at), len(at) - 1)
    return np.where(at[place] == wanted_at, value[place], 0.0)


def _read(
    service: Service, signal: str, labels: dict[str, str], *, since: float, until: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = reading.arrays(service, signal, since=_moment(since), until=_moment(until), labels=labels)
    # `arrays` also gives series that have more labels.
    for series in found:
        if series.labels == labels:
            return series.at, series.value
    return np.empty(0), np.empty(0)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)
