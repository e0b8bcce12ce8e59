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
        "METRICS_COLLECTION_INTERVAL": "1",
        "LEASE_SECONDS": "3",
        "SELF_BUILD_APPROVAL_REQUIRED": "high",
        "ANALYSIS_INTERVAL": "86400",
    }
    with product.running(**pace) as running:
        done = running.python("-m", "tests.flows.kill_drill", timeout_seconds=800)
        assert done.returncode == 0, done.stderr[-4000:]
        checked = running.python("manage.py", "verify_audit", "--json", timeout_seconds=60)
    told = json.loads(done.stdout)

    drilled = {State(one["at"]) for one in told["drills"]}
    assert drilled == {state for state in State if MOVES[state]} - {State.STUCK}
    assert checked.returncode == 0, checked.stdout
    assert told["failed"] == 0, told["failed_requests"]
    for one in told["drills"]:
        with subtests.test(at=one["at"]):
            assert one["killed"] == 2
            assert (one["requests"], one["rollouts"], one["live_rollouts"]) == (1, 1, 0)
            assert one["shares"] == [100]
            assert max(one["passed_runs"].values()) == 1, one["passed_runs"]
            if one["at"] == "ROLLING_BACK":
                assert one["ended"] == "ROLLED_BACK"
                assert one["moves"] == [*PROMOTION[:-1], "ROLLING_BACK", "ROLLED_BACK"]
                assert one["merged_times"] in (0, 1)
                assert one["new_commits"] in (0, 1, 2, 3)
            else:
                assert one["killed_in"] == one["at"]
                assert (one["ended"], one["settled"]) == ("PROMOTED", True)
                assert one["moves"] == PROMOTION
                assert one["merged_times"] == 1
