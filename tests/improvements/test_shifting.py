"""The order in which servers get and lose traffic, for every state that two servers can be in."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from improvements.deployers import shifting
from improvements.deployers.shifting import Seen, Wanted

OFF = Seen(port=1, weight=1, takes_traffic=False, is_healthy=False, is_off=True)
DRAINING = Seen(port=10, weight=0, takes_traffic=False, is_healthy=True, is_off=False)
SERVING = Seen(port=10, weight=5, takes_traffic=True, is_healthy=True, is_off=False)
DOWN = Seen(port=10, weight=5, takes_traffic=False, is_healthy=False, is_off=False)
STATES = {"off": OFF, "draining": DRAINING, "serving": SERVING, "down": DOWN}


@pytest.mark.parametrize(
    ("shares", "weights"),
    [
        ((100, 0), (1, 0)),
        ((90, 10), (9, 1)),
        ((50, 50), (1, 1)),
        ((0, 100), (0, 1)),
        ((99, 1), (99, 1)),
        ((33, 33), (1, 1)),
        ((7, 3), (7, 3)),
        ((100, 100), (1, 1)),
    ],
)
def test_weights_are_the_shares_as_small_as_they_can_be(shares: tuple[int, int], weights: tuple[int, int]) -> None:
    wanted = {f"r{index}": Wanted(10, share) for index, share in enumerate(shares)}
    assert tuple(shifting.weights(wanted).values()) == weights


@pytest.mark.parametrize("share", [-1, 101])
def test_refuses_what_is_no_percentage(share: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 100"):
        shifting.weights({"r0": Wanted(10, share)})


@pytest.mark.parametrize(("first", "second"), list(itertools.product(STATES, STATES)))
@pytest.mark.parametrize("shares", [(100, 0), (50, 50), (0, 100)])
def test_never_leaves_nobody_where_somebody_served(first: str, second: str, shares: tuple[int, int]) -> None:
    """After introducing, raising and draining, in this order and at each command, whoever can serve does."""
    seen = {"r0": STATES[first], "r1": STATES[second]}
    wanted = {name: Wanted(10, share) for name, share in zip(seen, shares, strict=True) if share}
    somebody = any(server.takes_traffic for server in seen.values())

    for name in shifting.to_introduce(seen, wanted):
        assert not seen[name].takes_traffic, "a server that serves is not introduced again"
        seen[name] = replace(DRAINING, port=wanted[name].port)
    rising = shifting.to_raise(seen, wanted)
    commands = [(name, True) for name in rising] + [(n, False) for n in shifting.to_drain(seen, wanted) if rising]
    for name, on in commands:
        seen[name] = replace(seen[name], weight=int(on), takes_traffic=on)
        assert not somebody or any(server.takes_traffic for server in seen.values())
    missing = shifting.unserved(seen, wanted)
    assert missing == [name for name in wanted if STATES[first if name == "r0" else second] is DOWN]
    if rising:
        assert not [name for name in seen if name not in wanted and seen[name].takes_traffic]


def test_a_server_whose_release_moved_to_another_port_is_introduced_again() -> None:
    assert shifting.to_introduce({"r0": SERVING}, {"r0": Wanted(11, 100)}) == ["r0"]
    assert shifting.to_introduce({"r0": SERVING}, {"r0": Wanted(10, 100)}) == []
