"""The risk of a patch."""

from dataclasses import replace

import pytest

from approvals.policy import Tier
from improvements import risk

PLAIN = risk.PatchFacts(
    lines_changed=4,
    files_changed=1,
    touches_migration=False,
    touches_dependencies=False,
    promoted=0,
    harmful=0,
    inconclusive_checks=0,
    traffic_share=0.4,
)


@pytest.mark.parametrize(
    ("worse", "changes"),
    [
        ("more lines", {"lines_changed": 80}),
        ("more files", {"files_changed": 4}),
        ("a migration", {"touches_migration": True}),
        ("dependencies", {"touches_dependencies": True}),
        ("harm done before", {"harmful": 2}),
        ("an inconclusive check", {"inconclusive_checks": 1}),
        ("more traffic", {"traffic_share": 0.9}),
    ],
)
def test_is_higher_with(worse, changes):
    assert risk.assess(replace(PLAIN, **changes)).score > risk.assess(PLAIN).score


def test_falls_as_an_author_earns_trust():
    scores = [risk.assess(replace(PLAIN, promoted=n)).score for n in range(5)]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < scores[0]


def test_is_medium_for_a_small_patch_of_an_unknown_author():
    assert risk.assess(PLAIN).tier is Tier.MEDIUM


def test_is_low_for_a_small_patch_of_a_proven_author():
    assert risk.assess(replace(PLAIN, promoted=10)).tier is Tier.LOW


def test_is_at_least_high_when_the_schema_changes():
    tame = replace(PLAIN, touches_migration=True, traffic_share=0.0, promoted=50, lines_changed=1)
    assert risk.assess(tame).tier is Tier.HIGH


def test_treats_unknown_traffic_as_half_of_it():
    assert risk.assess(replace(PLAIN, traffic_share=None)).score == risk.assess(replace(PLAIN, traffic_share=0.5)).score


def test_is_the_product_of_what_its_drivers_add_up_to():
    assessed = risk.assess(PLAIN)
    total = {on: sum(d.points for d in assessed.drivers if d.on == on) for on in ("probability", "size")}
    assert assessed.score == pytest.approx(total["probability"] * total["size"], abs=1e-3)
    assert f"{assessed.score:.2f}" in assessed.reason


@pytest.mark.parametrize(
    ("score", "tier"),
    [
        (0.0, Tier.LOW),
        (0.119, Tier.LOW),
        (0.12, Tier.MEDIUM),
        (0.4, Tier.HIGH),
        (0.7, Tier.CRITICAL),
        (1.0, Tier.CRITICAL),
    ],
)
def test_maps_to_a_tier(score, tier):
    assert risk.tier_of(score) is tier
