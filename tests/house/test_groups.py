"""Stories that share a group run one after the other: two whole products at once are too much for two cores."""

from __future__ import annotations

import os

import pytest


@pytest.mark.xdist_group("one-after-the-other")
def test_keeps_a_group_in_one_worker(request):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("there is one worker")
    assert request.node.nodeid.endswith("@one-after-the-other")
