"""How soon the default alert rules find what goes wrong, and how often they cry wolf: see `manage.py drill`."""

from __future__ import annotations

import time
from collections.abc import Iterator

from monitoring import drilling
from tests.bench.rows import Row


def bench() -> Iterator[Row]:
    began = time.monotonic()
    report = drilling.drill(seed=1, runs=100, weeks=20)
    took = time.monotonic() - began
    for found in report.detections:
        yield Row(f"drill: {found.fault} found, mean", found.mean_intervals, "intervals", found.mean_target)
        yield Row(f"drill: {found.fault} found, p95", found.p95_intervals, "intervals", found.p95_target)
    clean = report.clean
    yield Row(f"drill: false alerts in {clean.weeks} clean service-weeks", clean.per_week, "/week", clean.target)
    yield Row("drill: time for all of it", took, "s")
