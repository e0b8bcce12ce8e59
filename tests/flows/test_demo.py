"""The whole loop on Realm, as `manage.py demo` tells it: one change promoted, one taken back."""

from __future__ import annotations

import json

import pytest

from tests.flows import product

# Less than the demonstration's own: another worker's tests take their part of the machine meanwhile.
RATE = "5"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def running():
    with product.running(ROLLOUT_STEPS="25,100", ROLLOUT_STEP_REQUESTS="20") as started:
        yield started


def story(running, *arguments):
    done = running.python(
        "manage.py", "demo", "--approve-as", "bob", "--json", "--rate", RATE, *arguments, timeout_seconds=700
    )
    assert done.stdout, done.stderr[-4000:]
    return done.returncode, json.loads(done.stdout)


def test_promotes_a_fix_that_halves_what_users_wait(running):
    code, told = story(running, "--until", "promoted")
    assert (code, told["problems"], told["state"]) == (0, [], "PROMOTED"), told["because"]
    assert told["finding"]["location"].startswith("game/")
    assert told["after"]["p95_ms"] <= told["before"]["p95_ms"] * 0.5
    assert told["after"]["queries_per_request"] < told["before"]["queries_per_request"]
    assert told["load"]["requests_during_rollout"] > 0
    assert (told["load"]["failed_during_rollout"], told["load"]["posts_run_twice"]) == (0, 0)
    assert told["audit"]["verified"]


def test_takes_back_a_candidate_that_crashes_only_in_production(running):
    code, told = story(running, "--sabotage", "crash")
    assert (code, told["problems"], told["state"]) == (0, [], "ROLLED_BACK"), told["because"]
    assert told["serving"] == {told["old_release"]: 100}
    assert told["load"]["posts_run_twice"] == 0
    assert told["audit"]["verified"]
