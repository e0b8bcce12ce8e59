"""How soon the default alert rules find what goes wrong, and how often they cry wolf: see `manage.py drill`.

On simulated services first, then on a real Realm, in a process of its own with engines of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from monitoring import drilling
from runerogue.stack.home import PROJECT
from tests import engines
from tests.bench.rows import Row

# A tenth of what the published figures rest on: `manage.py drill --runs 200 --weeks 110` takes minutes.
RUNS, WEEKS = 20, 20
REALM_RUNS, REALM_SECONDS = 1, 120


def bench() -> Iterator[Row]:
    began = time.monotonic()
    report = drilling.drill(seed=1, runs=RUNS, weeks=WEEKS)
    yield from _rows("drill", report.plain())
    clean = report.clean
    yield Row(f"drill: false alerts in {clean.weeks:g} clean service-weeks", clean.per_week, "/week", clean.target)
    yield Row("drill: time for all of it", time.monotonic() - began, "s")
    began = time.monotonic()
    yield from _rows("drill in Realm", _realm())
    yield Row("drill in Realm: time for all of it", time.monotonic() - began, "s")


def _rows(what: str, report: dict[str, Any]) -> Iterator[Row]:
    for found in report["detections"]:
        yield Row(f"{what}: {found['fault']} found, mean", found["mean_intervals"], "intervals", found["mean_target"])
        yield Row(f"{what}: {found['fault']} found, p95", found["p95_intervals"], "intervals", found["p95_target"])


def _realm() -> dict[str, Any]:
    home, owner = engines.spawn()
    try:
        engines.demand(home)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DJANGO_", "RUNEROGUE_"))},
            "DATABASE_URL": home.database_url(),
            "REDIS_URL": home.redis_url(),
            "RUNEROGUE_HOME": str(home.folder),
            "SECRET_KEY": home.secret("secret_key"),
        }
        limits = [f"--runs={REALM_RUNS}", f"--seconds={REALM_SECONDS}"]
        done = subprocess.run(
            [sys.executable, "manage.py", "drill", "--realm", "--json", *limits],
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=300,
        )
        # 1: a target was missed, which the table says too.
        if done.returncode not in (0, 1) or not done.stdout:
            raise RuntimeError("the drill in Realm broke, see above")
        return dict(json.loads(done.stdout))
    finally:
        engines.dismiss(owner)
