"""The whole loop on Realm, in numbers: `manage.py demo`, once to a promotion and once with each sabotage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.bench import Row
from tests.flows import product


def bench() -> Iterator[Row]:
    with product.running() as running:
        promoted = story(running, "--until", "promoted")
        yield Row("demo: finding to promoted", promoted["seconds_since_finding"], "s", target=300)
        yield Row(
            "demo: player list p95 after the fix, of before",
            promoted["after"]["p95_ms"] / promoted["before"]["p95_ms"],
            "ratio",
            target=0.5,
        )
        yield Row(
            "demo: requests failed in the rollout", promoted["load"]["failed_during_rollout"], "requests", target=0
        )
        for kind in ("errors", "latency", "crash"):
            back = story(running, "--sabotage", kind)
            yield Row(f"sabotage {kind}: traffic back after the verdict", back["traffic_back_seconds"], "s", target=1.0)
            yield Row(
                f"sabotage {kind}: seconds of live traffic until back", back["seconds_per_stage"]["ROLLING_OUT"], "s"
            )
            yield Row(f"sabotage {kind}: POSTs run twice", back["load"]["posts_run_twice"], "requests", target=0)


def story(running: product.Product, *arguments: str) -> dict[str, Any]:
    done = running.python("manage.py", "demo", "--approve-as", "bob", "--json", *arguments, timeout_seconds=700)
    if done.returncode:
        raise RuntimeError(f"the story did not end as asked: {done.stdout[-1500:] or done.stderr[-1500:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told
