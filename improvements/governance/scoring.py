"""The scorecard, loaded: each metric of a window and of the one before, with the rows that it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from django.db.models import Sum

from improvements.governance import recorded, scorecard
from improvements.governance.facts import Window
from improvements.governance.scorecard import DEFINITIONS, Definition, Trend, Value
from improvements.models import RolloutTraffic
from improvements.outcome import Verdict


@dataclass(frozen=True)
class Metric:
    """One line of the scorecard. `link` leads to the rows that `now` counts; empty when there are none."""

    name: str
    definition: Definition
    now: Value
    before: Value
    trend: Trend
    link: str


def score(window: Window) -> list[Metric]:
    """Every metric of the specification in `window`, and its trend against the window before."""
    return [_metric(name, window) for name in DEFINITIONS]


def value(name: str, window: Window) -> Value:
    """One metric in one window."""
    return LOADERS[name](window)[0]


def _metric(name: str, window: Window) -> Metric:
    now, link = LOADERS[name](window)
    before = value(name, window.before)
    return Metric(name, DEFINITIONS[name], now, before, scorecard.trend(name, now, before), link)


Loaded = tuple[Value, str]


def _time_to_detect(window: Window) -> Loaded:
    link = recorded.rows_within("monitoring_alert", "fired_at", window)
    return scorecard.of_times("time_to_detect", recorded.seconds_to_fire(recorded.fired(window))), link


def _false_positives(window: Window) -> Loaded:
    false, judged, total = recorded.judged(recorded.fired(window))
    note = f"{judged} of {total} alerts were judged." if total else ""
    link = recorded.rows_within("monitoring_alert", "fired_at", window, was_false__isnull="False")
    return scorecard.of_share("false_positives", false, judged, note=note), link


def _helped(window: Window) -> Loaded:
    ended = list(recorded.ended_suggestions(window).only("pk", "measured", "settled_at"))
    settled = [one for one in ended if one.settled_at is not None]
    helped = sum(scorecard.has_helped(one.measured.get("interval", {})) for one in settled)
    unsure = sum(not one.measured.get("interval") for one in settled)
    note = f"{unsure} of {len(settled)} that stayed had too few samples to be sure." if unsure else ""
    link = recorded.rows_of("improvements_improvement", (one.pk for one in ended))
    return scorecard.of_share("helped", helped, len(ended), note=note), link


def _rollback_success(window: Window) -> Loaded:
    runs = list(recorded.first_rollbacks(window).values_list("improvement_id", "verdict"))
    worked = sum(verdict == Verdict.PASS for _, verdict in runs)
    link = recorded.rows_of("improvements_improvement", (pk for pk, _ in runs))
    return scorecard.of_share("rollback_success", worked, len(runs)), link


def _incidents(window: Window) -> Loaded:
    rollouts = recorded.ended_rollouts(window)
    harmful = recorded.caused_incident(rollouts).count()
    link = recorded.rows_within("improvements_rollout", "ended_at", window)
    return scorecard.of_share("incidents", harmful, rollouts.count()), link


def _autonomous(window: Window) -> Loaded:
    settled = list(recorded.settled(window).only("pk", "proposed_by_id"))
    link = recorded.rows_within("improvements_improvement", "settled_at", window)
    return scorecard.of_share("autonomous", len(recorded.untouched(settled)), len(settled)), link


def _uptime(window: Window) -> Loaded:
    rollouts = recorded.ended_rollouts(window)
    counted = RolloutTraffic.objects.filter(rollout__in=rollouts, is_complete=True)
    seen = counted.aggregate(requests=Sum("requests", default=0), failed=Sum("failed", default=0))
    total = rollouts.count()
    told = f"{counted.count()} of {total} rollouts were counted completely." if total else ""
    link = recorded.rows_within("improvements_rollout", "ended_at", window)
    return scorecard.of_share("uptime", seen["requests"] - seen["failed"], seen["requests"], note=told), link


LOADERS: dict[str, Callable[[Window], Loaded]] = {
    "time_to_detect": _time_to_detect,
    "false_positives": _false_positives,
    "helped": _helped,
    "rollback_success": _rollback_success,
    "incidents": _incidents,
    "autonomous": _autonomous,
    "uptime": _uptime,
}
