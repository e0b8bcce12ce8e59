"""The words of the policy: tiers, roles, categories, and slots, of which each is one signature to be given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum


class Tier(StrEnum):
    """How much harm a change could do. Compare with `at_least`, never with `<`, which would compare letters."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        return list(Tier).index(self)

    def at_least(self, other: Tier) -> bool:
        return self.rank >= other.rank


def highest(tiers: Iterable[Tier]) -> Tier:
    return max(tiers, key=lambda tier: tier.rank)


class Role(StrEnum):
    """What a person is here, in the order in which a role is chosen for someone who has several."""

    CTO = "cto"
    ARCHITECTURE = "architecture"
    LEAD = "lead"
    ON_CALL = "on-call"
    VIEWER = "viewer"

    @property
    def title(self) -> str:  # type: ignore[override]  # str.title is of no use on a role
        return TITLES[self]


class Category(StrEnum):
    """What a change is about; each may ask for more than its tier alone."""

    INFRASTRUCTURE = "infrastructure"
    APPLICATION = "application"
    DATA = "data"
    SECURITY = "security"
    PERFORMANCE = "performance"


TITLES: Mapping[Role, str] = {
    Role.CTO: "the CTO",
    Role.ARCHITECTURE: "the architecture team",
    Role.LEAD: "a lead developer",
    Role.ON_CALL: "an on-call engineer",
    Role.VIEWER: "a viewer",
}

Slot = frozenset[Role]  # one signature: of anybody who has one of these roles

CTO: Slot = frozenset({Role.CTO})
ARCHITECT: Slot = frozenset({Role.ARCHITECTURE})
LEAD: Slot = frozenset({Role.LEAD})
ANYBODY_SENIOR: Slot = frozenset({Role.CTO, Role.ARCHITECTURE, Role.LEAD})


def in_words(slots: Sequence[Slot]) -> str:
    """'two different people: the CTO and …' for the slots of a requirement."""
    if not slots:
        return "nobody's signature"
    if len(slots) == 1:
        return f"one signature of {slot_in_words(slots[0])}"
    count = {2: "two", 3: "three"}.get(len(slots), str(len(slots)))
    return f"{count} different people: " + ", and ".join(slot_in_words(slot) for slot in slots)


def slot_in_words(slot: Slot) -> str:
    """'the CTO', or 'one of the CTO, the architecture team or a lead developer'."""
    titles = [role.title for role in Role if role in slot]
    return titles[0] if len(titles) == 1 else "one of " + ", ".join(titles[:-1]) + " or " + titles[-1]


def as_strict(slots: Sequence[Slot], than: Sequence[Slot]) -> bool:
    """Whether whoever fills `slots` has filled `than` too: each slot of `than` contains a slot of its own."""

    def seated(wanted: Sequence[Slot], given: Sequence[Slot]) -> bool:
        if not wanted:
            return True
        return any(
            slot <= wanted[0] and seated(wanted[1:], [*given[:index], *given[index + 1 :]])
            for index, slot in enumerate(given)
        )

    return seated(than, slots)


def strictest(demands: Iterable[Sequence[Slot]]) -> tuple[Slot, ...]:
    """The slots that satisfy all of `demands`, the narrowest first; side by side where neither contains the other."""
    found: tuple[Slot, ...] = ()
    for demand in demands:
        if not as_strict(found, demand):
            found = tuple(demand) if as_strict(demand, found) else (*found, *demand)
    return tuple(sorted(found, key=len))
