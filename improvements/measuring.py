"""What a change was worth: the endpoint's own numbers before and after, as the service's metrics tell them."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from improvements import intervals
from improvements.models import Improvement, Rollout
from improvements.outcome import Evidence
from monitoring import reading

BEFORE = dt.timedelta(hours=1)
SIGNALS = {
    "p95_ms": "latency_p95_ms",
    "mean_ms": "latency_mean_ms",
    "error_ratio": "error_ratio",
}


def benefit(improvement: Improvement, rollout: Rollout, *, now: dt.datetime) -> Evidence:
    """Medians of the endpoint's signals before the rollout and since all traffic moved. A gap stays a gap (None).

    `interval` holds, for each signal with samples enough, between what the change lies with 95 % confidence.
    An endpoint with several methods is told by its busiest one, the same on both sides.
    """
    endpoint = improvement.finding.endpoint if improvement.finding else "*"
    current, candidate = rollout.current.short, rollout.candidate.short
    full_since = rollout.full_since or now
    sides = (
        (current, rollout.started_at - BEFORE, full_since),
        (candidate, full_since, now),
    )
    route = {"endpoint": endpoint, **_busiest_method(improvement, endpoint, sides)}
    content: dict[str, Any] = {"endpoint": endpoint, "before": {}, "after": {}, "change": {}, "interval": {}}
    for name, signal, labels in [
        *((name, signal, route) for name, signal in SIGNALS.items()),
        ("queries_per_request", "queries_per_request", {}),
    ]:
        were, are = (
            _values(improvement, signal, since=since, until=until, labels={**labels, "release": release})
            for release, since, until in sides
        )
        before, after = _median(were), _median(are)
        content["before"][name], content["after"][name] = before, after
        content["change"][name] = round(after / before - 1, 4) if before and after is not None else None
        if sure := intervals.of_change(were.tolist(), are.tolist()):
            content["interval"][name] = [round(end, 4) for end in sure]
    return Evidence("benefit", _sentence(content), content)


def _busiest_method(
    improvement: Improvement, endpoint: str, sides: Iterable[tuple[str, dt.datetime, dt.datetime]]
) -> dict[str, str]:
    """The label of the method with most requests over `sides` (release, since, until); empty without traffic."""
    rates: dict[str, float] = defaultdict(float)
    for release, since, until in sides:
        labels = {"endpoint": endpoint, "release": release}
        for series in reading.arrays(
            improvement.service, "requests_per_second", since=since, until=until, labels=labels
        ):
            rates[series.labels["method"]] += float(np.sum(series.value))
    return {"method": max(sorted(rates), key=rates.__getitem__)} if rates else {}


def _values(
    improvement: Improvement, signal: str, *, since: dt.datetime, until: dt.datetime, labels: dict[str, str]
) -> NDArray[np.float64]:
    """Every finite sample of these series, float64[n] in the signal's unit."""
    found = reading.arrays(improvement.service, signal, since=since, until=until, labels=labels)
    values: NDArray[np.float64] = np.concatenate([series.value for series in found]) if found else np.empty(0)
    finite: NDArray[np.float64] = values[np.isfinite(values)]
    return finite


def _median(values: NDArray[np.float64]) -> float | None:
    return round(float(np.median(values)), 4) if values.size else None


def _sentence(content: dict[str, Any]) -> str:
    parts = []
    for name, words in (("p95_ms", "p95 {} → {} ms"), ("queries_per_request", "queries per request {} → {}")):
        before, after, change = (content[part][name] for part in ("before", "after", "change"))
        if before is not None and after is not None:
            share = f" ({change:+.0%})" if change is not None else ""
            parts.append(words.format(f"{before:.4g}", f"{after:.4g}") + share)
    if not parts:
        return f"{content['endpoint']}: no numbers on both sides, so the benefit could not be measured."
    return f"{content['endpoint']}: {', '.join(parts)}."
