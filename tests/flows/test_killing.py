"""The worker is killed in each state of the machine, in turn; nothing is lost and nothing done twice."""

from __future__ import annotations

import json

import pytest

from improvements.models import MOVES, State
from tests.flows import product

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows"), pytest.mark.timeout(900)]

PROMOTION = [
    "AUTHORING",
    "TESTING",
    "SCANNING",
    "STAGING",
    "AWAITING_APPROVAL",
    "ROLLING_OUT",
    "VALIDATING",
    "PROMOTED",
]


def test_ends_right_whichever_state_the_worker_is_killed_in(subtests):
    pace = {
        "ROLLOUT_STEP_SECONDS": "2",
        "ROLLOUT_STEP_REQUESTS": "10",
        "ROLLOUT_STEPS": "50,100",
        "BAKE_SECONDS": "2",
        "WATCH_SECONDS": "2",
        "METRICS_COLLECTION_INTERVAL": "3",
        "LEASE_SECONDS": "3",
        "SELF_BUILD_APPROVAL_REQUIRED": "high",
        "ANALYSIS_INTERVAL": "86400",
    }
    with product.running(**pace) as running:
        done = running.python("-m", "tests.flows.kill_drill", timeout_seconds=800)
        assert done.returncode == 0, done.stderr[-4000:]
        checked = running.python("manage.py", "verify_audit", "--json", timeout_seconds=60)
    told = json.loads(done.stdout)

    promoted, back = told["drills"]
    killed_in = {State(state) for one in told["drills"] for state in one["killed_in"]}
    assert killed_in == {state for state in State if MOVES[state]} - {State.STUCK}
    assert checked.returncode == 0, checked.stdout
    assert told["failed"] == 0, told["failed_requests"]
    for one in told["drills"]:
        with subtests.test(back=one["back"]):
            assert (one["requests"], one["rollouts"], one["live_rollouts"]) == (1, 1, 0)
            assert one["shares"] == [100]
            assert max(one["passed_runs"].values()) == 1, one["passed_runs"]
    assert (promoted["ended"], promoted["settled"]) == ("PROMOTED", True)
    assert promoted["moves"] == PROMOTION
    assert promoted["merged_times"] == 1
    assert back["ended"] == "ROLLED_BACK"
    assert back["moves"] == [*PROMOTION[:-1], "ROLLING_BACK", "ROLLED_BACK"]
    assert back["merged_times"] in (0, 1)
    assert back["new_commits"] in (0, 2)
