"""The charts of the pages: which numbers of which time they show."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from django.conf import settings
from django.template.loader import render_to_string
from django.utils.safestring import SafeString

from monitoring import reading, reporting
from monitoring.alerts import in_words, named
from monitoring.charting import Chart, Line, draw
from monitoring.models import Alert, Series, Service

# In words, hours, and the step in seconds; None: every sample.
RANGES: tuple[tuple[str, int, int | None], ...] = (
    ("1 hour", 1, None),
    ("24 hours", 24, 300),
    ("7 days", 168, 3600),
    ("28 days", 672, 3600),
)
BEFORE_ALERT, AFTER_ALERT = timedelta(hours=1), timedelta(minutes=15)
# What is longer is drawn in steps of so many seconds.
STEPS = ((timedelta(days=3), 3600), (timedelta(hours=6), 300))


@dataclass(frozen=True)
class Captioned:
    """A chart, or None where nothing was measured, below its caption."""

    caption: str
    chart: Chart | None


def of_series(series: Series, until: datetime) -> SafeString:
    """A series over an hour, a day, a week and four weeks."""

    def chart(hours: int, step_seconds: int | None) -> Chart | None:
        since = until - timedelta(hours=hours)
        return _drawn(series.service, series.signal, series.labels, since, until, step_seconds)

    return shown(Captioned(f"Last {words}", chart(hours, step)) for words, hours, step in RANGES)


def of_alert(alert: Alert, until: datetime) -> SafeString | str:
    """The series of an alert from before it was opened until after its end, or until now."""
    if alert.rule is None:
        return "Its rule is gone, and with it which signal it was about."
    until = min(until, alert.resolved_at + AFTER_ALERT) if alert.resolved_at else until
    since = alert.opened_at - BEFORE_ALERT
    step = next((seconds for span, seconds in STEPS if until - since > span), None)
    happened = ((alert.opened_at, "opened"), (alert.fired_at, "fires"), (alert.resolved_at, "resolved"))
    marks = tuple((when.timestamp(), text) for when, text in happened if when)
    chart = _drawn(alert.service, alert.rule.signal, alert.labels, since, until, step, marks)
    return shown([Captioned(named(alert.rule.signal).capitalize(), chart)])


def of_score(service: Service, until: datetime) -> SafeString:
    """The health score over the same ranges."""

    def chart(hours: int) -> Chart | None:
        bins = [one for one in reporting.binned(service, hours=hours, until=until) if one.mean is not None]
        at, mean, low = (
            np.array([float(value) for value in column])
            for column in (
                [one.at.timestamp() for one in bins],
                [one.mean or 0.0 for one in bins],
                [one.minimum or 0.0 for one in bins],
            )
        )
        apart = max(3600 * hours / reporting.MOST_POINTS, settings.METRICS_COLLECTION_INTERVAL)
        return draw(
            Line(at, mean, apart, low, mean),
            since=until.timestamp() - 3600 * hours,
            until=until.timestamp(),
            name="Health score",
            in_words="{:.0f}".format,
            top=100.0,
        )

    return shown(Captioned(f"Last {words}", chart(hours)) for words, hours, _ in RANGES)


def shown(charts: Iterable[Captioned]) -> SafeString:
    return render_to_string("admin/monitoring/charts.html", {"charts": list(charts)})


def _drawn(
    service: Service,
    signal: str,
    labels: dict[str, str],
    since: datetime,
    until: datetime,
    step_seconds: int | None,
    marks: tuple[tuple[float, str], ...] = (),
) -> Chart | None:
    written: Callable[[float], str] = lambda value: in_words(signal, value)  # noqa: E731
    line = _line(service, signal, labels, since, until, step_seconds)
    if line is None:
        return None
    first, last = since.timestamp(), until.timestamp()
    return draw(line, since=first, until=last, name=named(signal).capitalize(), in_words=written, marks=marks)


def _line(
    service: Service, signal: str, labels: dict[str, str], since: datetime, until: datetime, step_seconds: int | None
) -> Line | None:
    interval = float(settings.METRICS_COLLECTION_INTERVAL)
    asked: Any = {"since": since, "until": until, "labels": labels}
    if step_seconds is None:
        # Others may have these labels and more.
        samples = (one for one in reading.arrays(service, signal, **asked) if one.labels == labels)
        return next((Line(one.at, one.value, interval) for one in samples), None)
    steps = reading.steps(service, signal, step_seconds=step_seconds, **asked)
    apart = max(step_seconds, interval)
    exact = (one for one in steps if one.labels == labels)
    return next((Line(one.at, one.mean, apart, one.minimum, one.maximum) for one in exact), None)
