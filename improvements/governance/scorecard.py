"""The success metrics of the specification: what each means, and its arithmetic.

Every number comes with how many cases it rests on and its 95 % interval, or says that there is not enough data.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from improvements import intervals


class Unit(StrEnum):
    SHARE = "share"  # 0 to 1
    SECONDS = "seconds"


UNITS = {Unit.SHARE: "%", Unit.SECONDS: "s"}


class Trend(StrEnum):
    BETTER = "better"
    WORSE = "worse"
    UNCLEAR = "no clear change"
    UNKNOWN = "nothing to compare with"


@dataclass(frozen=True)
class Definition:
    """What a metric counts. `fewest`: with fewer cases than this its number would be chance."""

    title: str
    unit: Unit
    more_is_better: bool
    fewest: int
    cases: str  # what is counted, in the plural
    says: str


DEFINITIONS: Mapping[str, Definition] = {
    "time_to_detect": Definition(
        "Time to detect",
        Unit.SECONDS,
        more_is_better=False,
        fewest=6,
        cases="alerts",
        says="Median time from the first round in which an alert's rule held to the moment it fired, of the alerts "
        "that fired in the window and were not marked as false alarms. What went wrong may have begun up to one "
        "collection interval before that round.",
    ),
    "false_positives": Definition(
        "False alarms",
        Unit.SHARE,
        more_is_better=False,
        fewest=5,
        cases="judged alerts",
        says="Of the alerts that fired in the window and that a person judged, the share marked as false alarms. "
        "Alerts that nobody judged count for neither side.",
    ),
    "helped": Definition(
        "Suggestions that measurably helped",
        Unit.SHARE,
        more_is_better=True,
        fewest=5,
        cases="ended suggestions",
        says="Of the suggestions that ended in the window, in whatever way, the share that stayed promoted with at "
        "least one of the measured numbers (p95, mean, error ratio, queries per request) surely lower than before and "
        "none surely higher: the 95 % interval of its change excludes zero.",
    ),
    "rollback_success": Definition(
        "Rollbacks that worked",
        Unit.SHARE,
        more_is_better=True,
        fewest=5,
        cases="rollbacks",
        says="Of the rollbacks that ended in the window, the share that the machine finished with its proof at the "
        "first attempt. One that got stuck counts as failed, also when a person helped it through later.",
    ),
    "incidents": Definition(
        "Rollouts that caused an incident",
        Unit.SHARE,
        more_is_better=False,
        fewest=5,
        cases="rollouts",
        says="Of the rollouts that ended in the window, the share during which a critical alert fired on the service "
        "(false alarms aside) or that were taken back after they had been promoted. A candidate that a verdict sent "
        "back before that is no incident: the gate did its work.",
    ),
    "autonomous": Definition(
        "Promotions without anybody's hand",
        Unit.SHARE,
        more_is_better=True,
        fewest=5,
        cases="promotions",
        says="Of the improvements that settled in the window, the share in which no person did anything: none "
        "proposed, started, signed, stopped or retried it. Each of these is one intervention saved at least: their "
        "number is the first of the two that are counted.",
    ),
    "uptime": Definition(
        "Uptime during rollouts",
        Unit.SHARE,
        more_is_better=True,
        fewest=1000,
        cases="requests",
        says="Of the requests that the proxy saw for a service while one of its rollouts was live, the share that "
        "did not fail (5xx, or no answer). Of rollouts that ended in the window and whose traffic was counted "
        "completely. The interval takes requests as independent, which failures in a row are not: read it as a "
        "lower bound of the doubt.",
    ),
}


@dataclass(frozen=True)
class Value:
    """One metric in one window. `value` is None without enough data, and `note` says why; `hits` is None for times."""

    value: float | None
    low: float | None
    high: float | None
    hits: int | None
    cases: int
    note: str = ""


def of_share(name: str, hits: int, cases: int, *, note: str = "") -> Value:
    """The share of `hits` in `cases` as the metric `name` has it."""
    wanted = DEFINITIONS[name]
    if cases < wanted.fewest:
        return Value(None, None, None, hits, cases, _too_few(wanted, cases, note))
    low, high = intervals.wilson(hits, cases)
    return Value(hits / cases, low, high, hits, cases, note)


def of_times(name: str, seconds: Sequence[float], *, note: str = "") -> Value:
    """The median of `seconds` as the metric `name` has it."""
    wanted = DEFINITIONS[name]
    sure = intervals.of_median(seconds)
    if len(seconds) < wanted.fewest or sure is None:
        return Value(None, None, None, None, len(seconds), _too_few(wanted, len(seconds), note))
    return Value(statistics.median(seconds), *sure, None, len(seconds), note)


def trend(name: str, now: Value, before: Value) -> Trend:
    """Better or worse only when the two intervals do not touch: neighbouring windows always differ a little."""
    if now.low is None or now.high is None or before.low is None or before.high is None:
        return Trend.UNKNOWN
    if now.low > before.high:
        rises = True
    elif now.high < before.low:
        rises = False
    else:
        return Trend.UNCLEAR
    return Trend.BETTER if rises is DEFINITIONS[name].more_is_better else Trend.WORSE


def has_helped(changes: Mapping[str, Sequence[float]]) -> bool:
    """Whether the intervals of the changes (lower is better) show a gain and no loss. Without any, nothing is shown."""
    return any(high < 0 for _, high in changes.values()) and not any(low > 0 for low, _ in changes.values())


def as_number(name: str, value: float) -> float:
    """In the unit that people read: seconds, or percent, with as many digits as make a difference near 100."""
    if DEFINITIONS[name].unit is Unit.SECONDS:
        return round(value, 1)
    return round(100 * value, 3 if 0.99 < value < 1 else 1)


def in_words(name: str, value: float) -> str:
    return f"{as_number(name, value):,g} {UNITS[DEFINITIONS[name].unit]}"


def _too_few(wanted: Definition, cases: int, note: str) -> str:
    had = f"{cases} {wanted.cases}" if cases else f"no {wanted.cases}"
    return f"Not enough data: {had}, {wanted.fewest} are needed. {note}".strip()
