"""The policy as tables: every (role, tier, relation, state), and every tier under every setting."""

from __future__ import annotations

import itertools

import pytest

from approvals import policy
from approvals.policy import (
    Allowed,
    Decision,
    PersonFacts,
    Refused,
    RequestFacts,
    RequestState,
    Requirement,
    Role,
    Tier,
    may_sign,
    missing,
    required,
)

LEAD, ARCHITECTURE, CTO = Role.LEAD, Role.ARCHITECTURE, Role.CTO
SENIOR = {LEAD, ARCHITECTURE, CTO}

# tier, people from, all PASS → the slots, written out from the specification.
REQUIRED = {
    (Tier.LOW, Tier.HIGH, True): [],
    (Tier.LOW, Tier.HIGH, False): [],
    (Tier.LOW, Tier.MEDIUM, True): [],
    (Tier.LOW, Tier.MEDIUM, False): [],
    (Tier.LOW, Tier.LOW, True): [{LEAD}],
    (Tier.LOW, Tier.LOW, False): [{LEAD}],
    (Tier.MEDIUM, Tier.HIGH, True): [],
    (Tier.MEDIUM, Tier.HIGH, False): [{LEAD}],
    (Tier.MEDIUM, Tier.MEDIUM, True): [{LEAD}],
    (Tier.MEDIUM, Tier.MEDIUM, False): [{LEAD}],
    (Tier.MEDIUM, Tier.LOW, True): [{LEAD}],
    (Tier.MEDIUM, Tier.LOW, False): [{LEAD}],
    **{
        (Tier.HIGH, threshold, clean): [{ARCHITECTURE}]
        for threshold in (Tier.LOW, Tier.MEDIUM, Tier.HIGH)
        for clean in (True, False)
    },
    **{
        (Tier.CRITICAL, threshold, clean): [{CTO}, SENIOR]
        for threshold in (Tier.LOW, Tier.MEDIUM, Tier.HIGH)
        for clean in (True, False)
    },
}
MAY_SIGN = {Tier.LOW: {LEAD}, Tier.MEDIUM: {LEAD}, Tier.HIGH: {ARCHITECTURE}, Tier.CRITICAL: SENIOR}
RELATIONS = ("stranger", "proposed it", "edited it", "signed it", "is inactive")


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("threshold", Tier)
@pytest.mark.parametrize("all_pass", [True, False])
def test_asks_the_people_of_the_table(tier: Tier, threshold: Tier, all_pass: bool) -> None:
    # A threshold above high is high: the setting cannot spare anybody the signatures of high and critical.
    expected = REQUIRED[tier, Tier.HIGH if threshold is Tier.CRITICAL else threshold, all_pass]
    requirement = required(tier, approval_required=threshold, all_pass=all_pass)
    assert [set(slot) for slot in requirement.signatures] == expected
    assert requirement.tier is tier
    assert requirement.reason.endswith(".")
    assert Requirement.from_json(requirement.as_json()) == requirement


def test_has_a_row_for_every_tier() -> None:
    assert set(policy.POLICY) == set(Tier)
    assert set(policy.TITLES) == set(Role)


def test_changes_its_version_with_the_setting() -> None:
    versions = [policy.version(tier) for tier in Tier]
    assert len(set(versions)) == 3
    assert versions[2] == versions[3]


def asked(tier: Tier, **facts: object) -> RequestFacts:
    return RequestFacts(required(tier, approval_required=Tier.LOW), **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("role", "tier", "relation", "state"),
    list(itertools.product([None, *Role], Tier, RELATIONS, [*RequestState, "overdue"])),
)
def test_lets_exactly_the_right_people_sign(role: Role | None, tier: Tier, relation: str, state: str) -> None:
    person = PersonFacts(1, "pat", frozenset({role} if role else ()), active=relation != "is inactive")
    request = asked(
        tier,
        state=RequestState.OPEN if state == "overdue" else RequestState(state),
        expired=state == "overdue",
        proposed_by=1 if relation == "proposed it" else 2,
        edited_by=frozenset({1, 3} if relation == "edited it" else {3}),
        signers=(person,) if relation == "signed it" else (),
    )
    for decision in Decision:
        states = ("open",) if decision is Decision.APPROVE else ("open", "changes-asked")
        right = role in MAY_SIGN[tier] and relation == "stranger" and state in states
        answer = may_sign(person, request, decision=decision, reason="It is sound.")
        assert isinstance(answer, Allowed if right else Refused)
        if isinstance(answer, Allowed):
            assert answer.role is role
        else:
            assert answer.why.endswith(".")


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("decision", Decision)
@pytest.mark.parametrize("reason", [None, "", "  \n", "It is sound."])
def test_wants_a_written_reason(tier: Tier, decision: Decision, reason: str | None) -> None:
    person = PersonFacts(1, "pat", frozenset(SENIOR))
    needed = decision is not Decision.APPROVE or tier in (Tier.HIGH, Tier.CRITICAL)
    answer = may_sign(person, asked(tier), decision=decision, reason=reason)
    assert isinstance(answer, Refused) == (needed and reason is not None and not reason.strip())


def person(number: int, *roles: Role, active: bool = True) -> PersonFacts:
    return PersonFacts(number, f"person{number}", frozenset(roles), active)


@pytest.mark.parametrize("first", list(SENIOR))
@pytest.mark.parametrize("second", list(SENIOR))
def test_needs_the_cto_and_somebody_else_for_critical(first: Role, second: Role) -> None:
    requirement = required(Tier.CRITICAL)
    pair = (person(1, first), person(2, second))
    assert (missing(requirement, pair) == ()) == (Role.CTO in (first, second))
    answer = may_sign(pair[1], RequestFacts(requirement, signers=pair[:1]))
    assert isinstance(answer, Allowed if Role.CTO in (first, second) else Refused)


def test_counts_a_person_with_every_role_once() -> None:
    requirement = required(Tier.CRITICAL)
    everything = person(1, *SENIOR)
    assert len(missing(requirement, [everything])) == 1
    assert len(missing(requirement, [everything, everything])) == 1
    assert missing(requirement, [everything, person(2, Role.LEAD)]) == ()


def test_counts_nobody_inactive() -> None:
    assert len(missing(required(Tier.CRITICAL), [person(1, Role.CTO), person(2, Role.CTO, active=False)])) == 1


def test_finds_the_seating_that_satisfies_most() -> None:
    """Against the definition: try every assignment of people to slots."""
    slots = (frozenset({CTO}), frozenset({ARCHITECTURE}), frozenset({LEAD, CTO}))
    requirement = Requirement(Tier.CRITICAL, slots, "", "")
    choices = [
        frozenset(),
        frozenset({CTO}),
        frozenset({ARCHITECTURE, CTO}),
        frozenset({LEAD}),
        frozenset({LEAD, ARCHITECTURE}),
    ]
    for held in itertools.product(choices, repeat=3):
        people = [PersonFacts(number, "", roles) for number, roles in enumerate(held)]
        best = max(
            sum(bool(one.roles & slot) for one, slot in zip(order, slots, strict=True))
            for order in itertools.permutations(people)
        )
        assert len(missing(requirement, people)) == 3 - best


def test_never_lets_a_viewer_or_on_call_sign() -> None:
    for tier in Tier:
        assert not MAY_SIGN[tier] & {Role.VIEWER, Role.ON_CALL}
        wanted = frozenset[Role]().union(*required(tier, approval_required=Tier.LOW).signatures)
        assert not wanted & {Role.VIEWER, Role.ON_CALL}


def test_says_in_words_who_must_sign() -> None:
    assert "one signature of the architecture team" in required(Tier.HIGH).reason
    assert "two different people: the CTO, and one of the CTO, the architecture team or a lead developer" in (
        required(Tier.CRITICAL).reason
    )
