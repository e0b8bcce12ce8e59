"""The policy as tables: every (role, tier, relation, state), and every tier under every setting."""

from __future__ import annotations

import datetime as dt
import itertools
from dataclasses import replace

import pytest

from approvals import policy, rulebook
from approvals.policy import (
    Allowed,
    Category,
    Channel,
    Decision,
    How,
    PersonFacts,
    Principal,
    Refused,
    RequestFacts,
    RequestState,
    Requirement,
    Role,
    Subject,
    Terms,
    Tier,
    may_sign,
    missing,
    required,
)
from approvals.tiers import as_strict

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
# Tier → who may sign it when everybody is asked.
MAY_SIGN = {Tier.LOW: {LEAD}, Tier.MEDIUM: {LEAD}, Tier.HIGH: {ARCHITECTURE}, Tier.CRITICAL: SENIOR}
NEVER_SIGN = {Role.ON_CALL, Role.VIEWER}

PAT, QUINN, OTHER = 1, 2, 3  # who asks; whose deputy pat may be; somebody else
# How pat and quinn stand to a change → whether pat's own role counts, whether one lent by quinn does, and a word of the
# refusal where neither can. A relation is who did what; "pat has" says which rights pat brings.
RELATIONS: dict[str, tuple[bool, bool, str]] = {
    "stranger": (True, True, "no such role"),
    "proposed it": (False, False, "Nobody signs what they proposed"),
    "edited it": (False, False, "Nobody signs what they edited"),
    "signed it": (False, False, "one person counts once"),
    "signed it for quinn": (False, False, "one person counts once"),
    "quinn proposed it": (True, False, "quinn proposed this"),
    "quinn edited it": (True, False, "quinn edited this"),
    "quinn signed it": (True, False, "used already"),
    "another signed it for quinn": (True, False, "used already"),
    "another signed it for pat": (False, False, "on behalf of pat"),
    "is inactive": (False, False, "not active"),
    "is a program": (False, False, "programs never sign"),
    "is of another service": (False, True, "no say in"),
    "was reset": (False, False, "boss reset the second factor of pat"),
    "quinn was reset": (True, False, "boss reset the second factor of quinn"),
}
# Where no second factor is asked for, nobody needs to have kept theirs; and a no is always believed.
GUARDED = (Tier.HIGH, Tier.CRITICAL)
DAY = dt.datetime(2026, 5, 4, 12, tzinfo=dt.UTC)
RESET = policy.Reset("second factor", "boss", DAY, DAY + dt.timedelta(hours=24))
RIGHTS = ("own", "lent")
APPROVE, REJECT, ASK = Decision.APPROVE, Decision.REJECT, Decision.ASK_FOR_CHANGES
# State → which decisions can be made in it at all.
STATES: dict[str, set[Decision]] = {
    "open": {APPROVE, REJECT, ASK},
    "changes-asked": {REJECT, ASK},
    "approved": set(),
    "rejected": set(),
    "expired": set(),
    "void": set(),
    "overdue": set(),  # open, and its time is up, and nobody has written that down yet
}


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
    assert set(rulebook.DEFAULT.tiers) == set(rulebook.FLOOR.tiers) == set(Tier)
    assert set(policy.TITLES) == set(Role)


def test_has_a_row_for_every_role_tier_state_and_decision() -> None:
    """Whoever adds one says here what it may, and what may be done in it."""
    assert set(MAY_SIGN) == set(Tier)
    assert set().union(*MAY_SIGN.values()) | NEVER_SIGN == set(Role)
    assert set(STATES) == {str(state) for state in RequestState} | {"overdue"}
    assert set().union(*STATES.values()) == set(Decision)
    assert set(policy.CLOSED) | {"overdue"} == {state for state, can in STATES.items() if not can}


def test_changes_its_version_with_the_setting() -> None:
    versions = [Terms(approval_required=tier).version for tier in Tier]
    assert len(set(versions)) == 3
    assert versions[2] == versions[3]


TERMS = {tier: Terms(approval_required=tier) for tier in Tier}


def asked(tier: Tier, **facts: object) -> RequestFacts:
    return RequestFacts(required(tier, terms=TERMS[Tier.LOW]), **facts)  # type: ignore[arg-type]


def scene(role: Role | None, tier: Tier, relation: str, right: str, state: str) -> tuple[PersonFacts, RequestFacts]:
    """Pat, with a role of their own or lent by quinn, and the request; every relation is built by its own branch."""
    held = frozenset({role} if role else ())
    abroad = right == "own" and relation == "is of another service"
    pat = PersonFacts(
        PAT,
        "pat",
        held if right == "own" and not abroad else frozenset(),
        active=relation != "is inactive",
        is_service_account=relation == "is a program",
        stands_in_for=(Principal(QUINN, "quinn", held, RESET if relation == "quinn was reset" else None),)
        if right == "lent"
        else (),
        elsewhere=("pat is a lead developer of shop, which gives no say in realm.",) if abroad else (),
        reset=RESET if relation == "was reset" else None,
    )
    quinn, other = PersonFacts(QUINN, "quinn", held), PersonFacts(OTHER, "other", frozenset())
    signed = {
        "signed it": (pat,),
        "signed it for quinn": (replace(pat, roles=held, on_behalf_of=Principal(QUINN, "quinn", held)),),
        "quinn signed it": (replace(quinn, roles=frozenset()),),
        "another signed it for quinn": (replace(other, on_behalf_of=Principal(QUINN, "quinn", held)),),
        "another signed it for pat": (replace(other, on_behalf_of=Principal(PAT, "pat", held)),),
    }
    by = {"proposed it": PAT, "quinn proposed it": QUINN}
    edited = {"edited it": PAT, "quinn edited it": QUINN}
    return pat, asked(
        tier,
        state=RequestState.OPEN if state == "overdue" else RequestState(state),
        expired=state == "overdue",
        proposed_by=by.get(relation, OTHER),
        edited_by=frozenset({edited.get(relation, OTHER)}),
        signers=signed.get(relation, ()),
    )


def test_lets_exactly_the_right_people_sign() -> None:
    """Every (role, tier, relation, right, state); only a complete table passes, because every row is looked up."""
    for role, tier, relation, right, state in itertools.product([None, *Role], Tier, RELATIONS, RIGHTS, STATES):
        row = (role, tier, relation, right, state)
        pat, request = scene(*row)
        own_counts, lent_counts, word = RELATIONS[relation]
        for decision in Decision:
            believed = relation.endswith("was reset") and (tier not in GUARDED or decision is not APPROVE)
            counts = believed or (own_counts if right == "own" else lent_counts)
            expected = role in MAY_SIGN[tier] and counts and decision in STATES[state]
            answer = may_sign(pat, request, decision=decision, reason="It is sound.")
            assert isinstance(answer, Allowed) == expected, (*row, answer)
            if isinstance(answer, Allowed):
                assert answer.role is role, row
                assert answer.voice_of == (PAT if right == "own" else QUINN), row
                assert (answer.on_behalf_of is None) == (right == "own"), row
            else:
                assert answer.why.endswith("."), row
                barred_first = decision not in STATES[state] and relation not in ("is inactive", "is a program")
                told_first = relation.endswith("was reset") and role not in MAY_SIGN[tier]  # has no such role
                if not counts and not barred_first and not told_first and (right == "lent" or not own_counts):
                    assert word in answer.why, (*row, answer.why)


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
        assert not MAY_SIGN[tier] & NEVER_SIGN
        wanted = frozenset[Role]().union(*required(tier, approval_required=Tier.LOW).signatures)
        assert not wanted & NEVER_SIGN


def test_says_in_words_who_must_sign() -> None:
    assert "one signature of the architecture team" in required(Tier.HIGH).reason
    assert "two different people: the CTO, and one of the CTO, the architecture team or a lead developer" in (
        required(Tier.CRITICAL).reason
    )


# Tier, categories, everything passed → tier that counts, slots, words of the reason. People are asked from high on.
C = Category
CATEGORIES: list[tuple[Tier, set[Category], bool, Tier, list[set[Role]], str]] = [
    (Tier.LOW, {C.APPLICATION}, True, Tier.LOW, [], "needs no signature"),
    (Tier.MEDIUM, {C.PERFORMANCE, C.INFRASTRUCTURE}, True, Tier.MEDIUM, [], "needs no signature"),
    (Tier.LOW, {C.DATA}, True, Tier.HIGH, [{ARCHITECTURE}], "about data counts as high risk at least"),
    (Tier.MEDIUM, {C.DATA, C.APPLICATION}, False, Tier.HIGH, [{ARCHITECTURE}], "this one is medium by itself"),
    (Tier.HIGH, {C.DATA}, True, Tier.HIGH, [{ARCHITECTURE}], "A high-risk change needs"),
    (Tier.CRITICAL, {C.DATA}, True, Tier.CRITICAL, [{CTO}, SENIOR], "two different people"),
    (Tier.LOW, {C.SECURITY}, True, Tier.LOW, [SENIOR], "about security never goes ahead without a person"),
    (Tier.LOW, {C.SECURITY}, False, Tier.LOW, [SENIOR], "about security never goes ahead without a person"),
    (Tier.MEDIUM, {C.SECURITY}, True, Tier.MEDIUM, [SENIOR], "about security never goes ahead without a person"),
    (Tier.MEDIUM, {C.SECURITY}, False, Tier.MEDIUM, [{LEAD}], "could say PASS"),
    (Tier.HIGH, {C.SECURITY}, True, Tier.HIGH, [{ARCHITECTURE}], "A high-risk change needs"),
    (Tier.CRITICAL, {C.SECURITY}, True, Tier.CRITICAL, [{CTO}, SENIOR], "two different people"),
    (Tier.LOW, {C.SECURITY, C.DATA}, True, Tier.HIGH, [{ARCHITECTURE}], "about data counts as high risk at least"),
]


@pytest.mark.parametrize(("tier", "categories", "all_pass", "counts_as", "slots", "words"), CATEGORIES)
def test_tightens_by_category(
    tier: Tier, categories: set[Category], all_pass: bool, counts_as: Tier, slots: list[set[Role]], words: str
) -> None:
    requirement = required(tier, Subject(frozenset(categories)), all_pass=all_pass)
    assert (requirement.tier, [set(slot) for slot in requirement.signatures]) == (counts_as, slots)
    assert words in requirement.reason


def test_never_asks_for_less_because_of_a_category_or_a_setting() -> None:
    every = [frozenset(some) for size in range(6) for some in itertools.combinations(Category, size)]
    assert {one for _, named, *_ in CATEGORIES for one in named} == set(Category)
    for tier, categories, all_pass, threshold in itertools.product(Tier, every, (True, False), Tier):
        plain = required(tier, terms=TERMS[Tier.HIGH])
        found = required(tier, Subject(categories), all_pass=all_pass, terms=TERMS[threshold])
        assert found.tier.at_least(tier)
        assert as_strict(found.signatures, plain.signatures)
        if Category.SECURITY in categories:
            assert found.signatures


def document_with(**services: object) -> rulebook.Document:
    return rulebook.parse(rulebook.DEFAULT.as_json() | {"services": services})


def test_asks_for_what_the_service_has_otherwise() -> None:
    strict = {"tiers": {"medium": {"people": [["lead"], ["architecture"]]}}, "reason_from": "low"}
    terms = Terms(document_with(realm=strict), number=7)
    realm = required(Tier.MEDIUM, Subject(service="realm"), terms=terms)
    assert [set(slot) for slot in realm.signatures] == [{LEAD}, {ARCHITECTURE}]
    assert realm.reason_required
    assert not required(Tier.MEDIUM, Subject(service="shop"), terms=terms).signatures
    assert not required(Tier.MEDIUM, Subject(service="shop"), terms=terms).reason_required


def test_has_another_version_whenever_something_in_force_is_otherwise() -> None:
    versions = [
        Terms(),
        Terms(number=1),
        Terms(document_with(realm={"reason_from": "low"})),
        Terms(approval_required=Tier.LOW),
        Terms(risk_threshold=Tier.LOW),
    ]
    assert len({one.version for one in versions}) == len(versions)
    longest = Terms(number=999_999, approval_required=Tier.MEDIUM, risk_threshold=Tier.CRITICAL)
    assert len(longest.version) <= 40


def for_quinn(signer: PersonFacts, *roles: Role) -> PersonFacts:
    return replace(signer, roles=frozenset(roles), on_behalf_of=Principal(QUINN, "quinn", frozenset(roles)))


# Signers of a critical change → how many signatures are still missing.
TOGETHER: list[tuple[str, tuple[PersonFacts, ...], int]] = [
    ("the CTO and a deputy of the CTO", (person(QUINN, CTO), for_quinn(person(4), CTO)), 1),
    ("two deputies of the CTO", (for_quinn(person(4), CTO), for_quinn(person(5), CTO)), 1),
    ("a deputy of the CTO and a lead", (for_quinn(person(4), CTO), person(5, LEAD)), 0),
    ("the CTO and a deputy of a lead", (person(6, CTO), for_quinn(person(4), LEAD)), 0),
    ("the CTO and their deputy, who signs as a lead", (person(QUINN, CTO), person(4, LEAD)), 0),
    (
        "the CTO, who lent the role of a lead, and a lead",
        (person(QUINN, CTO), for_quinn(person(4), LEAD), person(5, LEAD)),
        0,
    ),
    ("a program and the CTO", (replace(person(4, LEAD), is_service_account=True), person(5, CTO)), 1),
    ("one person with both roles", (person(4, CTO, LEAD),), 1),
]


@pytest.mark.parametrize(("who", "signers", "left"), TOGETHER, ids=[row[0] for row in TOGETHER])
def test_counts_a_principal_and_their_deputy_once(who: str, signers: tuple[PersonFacts, ...], left: int) -> None:
    for order in itertools.permutations(signers):
        assert len(missing(required(Tier.CRITICAL), order)) == left


def test_signs_with_their_own_right_first_and_with_the_one_they_choose() -> None:
    lead = replace(person(4, LEAD), stands_in_for=(Principal(QUINN, "quinn", frozenset({CTO})),))
    request = RequestFacts(required(Tier.CRITICAL))
    assert may_sign(lead, request) == Allowed(LEAD, 4)
    assert may_sign(lead, request, on_behalf_of=QUINN) == Allowed(CTO, QUINN, lead.stands_in_for[0])
    assert may_sign(lead, request, on_behalf_of=4) == Allowed(LEAD, 4)
    assert isinstance(may_sign(lead, request, on_behalf_of=OTHER), Refused)
    assert [one.role for one in policy.options(lead, request)] == [LEAD, CTO]
    after_a_lead = replace(request, signers=(person(5, LEAD),))
    assert may_sign(lead, after_a_lead) == Allowed(CTO, QUINN, lead.stands_in_for[0])


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("decision", Decision)
@pytest.mark.parametrize("age_seconds", [None, 0.0, 300.0, 300.1, -1.0])
def test_wants_a_fresh_second_factor(tier: Tier, decision: Decision, age_seconds: float | None) -> None:
    answer = may_sign(
        person(4, *SENIOR), asked(tier), decision=decision, reason="Sound.", how=How(Channel.PAGE, age_seconds)
    )
    guarded = decision is Decision.APPROVE and tier.at_least(Tier.HIGH)
    assert isinstance(answer, Refused) == (guarded and age_seconds not in (0.0, 300.0))


DAVE, CARL, DEPUTY = person(1, CTO), person(2, LEAD), replace(person(3), stands_in_for=(Principal(1, "p", {CTO}),))  # type: ignore[arg-type]
# Tier, who there is, who signed, who proposed → how many signatures nobody could give.
REACH: list[tuple[Tier, tuple[PersonFacts, ...], tuple[PersonFacts, ...], int | None, int]] = [
    (Tier.HIGH, (), (), None, 1),
    (Tier.HIGH, (DAVE, CARL), (), None, 1),
    (Tier.HIGH, (person(4, ARCHITECTURE),), (), None, 0),
    (Tier.HIGH, (person(4, ARCHITECTURE),), (), 4, 1),
    (Tier.HIGH, (person(4, ARCHITECTURE, active=False),), (), None, 1),
    (Tier.HIGH, (replace(person(4, ARCHITECTURE), is_service_account=True),), (), None, 1),
    (Tier.CRITICAL, (), (), None, 2),
    (Tier.CRITICAL, (DAVE,), (), None, 1),  # who could give either of two gives one
    (Tier.CRITICAL, (CARL, DAVE), (), None, 0),
    (Tier.CRITICAL, (CARL, person(4, LEAD)), (), None, 1),
    (Tier.CRITICAL, (CARL, DAVE), (), 1, 1),
    (Tier.CRITICAL, (DAVE,), (CARL,), None, 0),
    (Tier.CRITICAL, (CARL,), (CARL,), None, 1),
    (Tier.CRITICAL, (DEPUTY, DAVE), (), None, 1),  # a principal and their deputy count once
    (Tier.CRITICAL, (DEPUTY, CARL), (), None, 0),
    (Tier.CRITICAL, (replace(DEPUTY, roles=frozenset({LEAD})), DAVE), (), None, 0),
]


@pytest.mark.parametrize(("tier", "people", "signers", "proposed_by", "left"), REACH)
def test_sees_what_nobody_could_sign(
    tier: Tier, people: tuple[PersonFacts, ...], signers: tuple[PersonFacts, ...], proposed_by: int | None, left: int
) -> None:
    request = RequestFacts(required(tier), signers=signers, proposed_by=proposed_by)
    for order in itertools.permutations(people):
        assert len(policy.out_of_reach(request, order)) == left
