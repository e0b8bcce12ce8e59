"""Which endpoint costs users most."""

import pytest

from analysis.costs import Measured, averaged, rank


def test_ranks_by_the_time_users_wait_not_by_the_slowest():
    ranked = rank([Measured("slow-but-rare", 0.1, 900.0), Measured("common", 10.0, 50.0)])
    assert [cost.endpoint for cost in ranked] == ["common", "slow-but-rare"]
    assert ranked[0].waiting_per_second == pytest.approx(0.5)
    assert ranked[0].waiting_share == pytest.approx(0.5 / 0.59)


def test_counts_the_series_of_one_endpoint_together():
    [cost] = rank([Measured("list", 1.0, 100.0, 150.0), Measured("list", 3.0, 20.0, 40.0)])
    assert cost.requests_per_second == 4.0
    assert cost.mean_ms == pytest.approx((100 + 3 * 20) / 4)
    assert cost.p95_ms == 150.0
    assert cost.traffic_share == 1.0


def test_leaves_out_endpoints_without_traffic():
    assert rank([Measured("idle", 0.0, 10.0)]) == []


def test_has_shares_that_add_up_to_one():
    ranked = rank([Measured(name, rate, 10.0 * rate) for name, rate in (("a", 1.0), ("b", 2.0), ("c", 3.0))])
    assert sum(cost.waiting_share for cost in ranked) == pytest.approx(1)
    assert sum(cost.traffic_share for cost in ranked) == pytest.approx(1)


def test_counts_a_round_without_a_sample_as_no_traffic_and_a_busy_round_for_more():
    found = averaged(
        "list",
        rounds=4,
        rates={1.0: 9.0, 2.0: 1.0},
        means_ms={1.0: 10.0, 2.0: 110.0},
        p95s_ms={1.0: 50.0},
    )
    assert found == Measured("list", requests_per_second=2.5, mean_ms=pytest.approx(20.0), p95_ms=50.0)


def test_says_nothing_of_an_endpoint_whose_times_are_unknown():
    nothing: dict[float, float] = {}
    assert averaged("list", rounds=1, rates={1.0: 9.0}, means_ms=nothing, p95s_ms=nothing) is None
    assert averaged("list", rounds=1, rates={1.0: 0.0}, means_ms={1.0: 5.0}, p95s_ms=nothing) is None
