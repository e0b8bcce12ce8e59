"""The policy's document: what it may say, and what nobody may make it say."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest

from approvals import rulebook
from approvals.rulebook import DEFAULT, FLOOR, Document, PolicyError, differences, parse, weaker
from approvals.tiers import ANYBODY_SENIOR, ARCHITECT, CTO, LEAD, Category, Role, Slot, Tier, as_strict, strictest

SENIORS = ["cto", "architecture", "lead"]


def changed(**fields: Any) -> dict[str, Any]:
    """The document as shipped, with `tiers__high__people=…` put in."""
    document = copy.deepcopy(DEFAULT.as_json())
    for path, value in fields.items():
        *parents, name = path.split("__")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return document


def test_is_written_and_read_alike() -> None:
    for document in (DEFAULT, FLOOR):
        assert parse(document.as_text()) == parse(document.as_json())
        assert parse(document.as_text()).digest == document.digest
    assert list(weaker(DEFAULT, FLOOR)) == []


# What somebody writes → the field that is named, a word of the problem, a word of the fix. Each row is one rule.
REFUSED = [
    ({"tiers__critical__people": [["cto"]]}, "tiers.critical.people", "weaker", "two different people"),
    ({"tiers__critical__people": [SENIORS, SENIORS]}, "tiers.critical.people", "weaker", "the CTO"),
    ({"tiers__critical__people": []}, "tiers.critical.people", "nobody", "the CTO"),
    ({"tiers__critical__if_asked": [["cto"]]}, "tiers.critical.if_asked", "weaker", "two"),
    ({"tiers__critical__if_inconclusive": [["lead"]]}, "tiers.critical.if_inconclusive", "weaker", "two"),
    ({"tiers__high__people": []}, "tiers.high.people", "nobody", "architecture"),
    ({"tiers__high__people": [["lead"]]}, "tiers.high.people", "weaker", "architecture"),
    ({"tiers__high__people": [["architecture", "lead"]]}, "tiers.high.people", "weaker", "architecture"),
    ({"tiers__medium__if_inconclusive": []}, "tiers.medium.if_inconclusive", "nobody", "one signature"),
    ({"tiers__medium__if_asked": []}, "tiers.medium.if_asked", "nobody", "one signature"),
    ({"tiers__low__if_asked": []}, "tiers.low.if_asked", "nobody", "one signature"),
    ({"tiers__low__machine": ["tests"]}, "tiers.low.machine", "scan is missing", "list it"),
    ({"tiers__medium__machine": ["tests", "scan"]}, "tiers.medium.machine", "staging is missing", "list it"),
    ({"reason_from": "critical"}, "reason_from", "later than high", "high or lower"),
    ({"second_factor_from": "critical"}, "second_factor_from", "later than high", "high or lower"),
    ({"categories__data": {"at_least": "medium"}}, "categories.data.at_least", "below high", "high or higher"),
    ({"categories__security": {}}, "categories.security.if_nobody", "nobody", "one signature"),
    ({"categories": {}}, "categories.data.at_least", "below", "high"),
    ({"tiers__high__expire_after_hours": 500}, "tiers.high.expire_after_hours", "longer than 400", "400 or less"),
    ({"tiers__high__remind_after_hours": 30}, "tiers.high.remind_after_hours", "reminded before", "ascend"),
    ({"tiers__low__escalate_to": "viewer"}, "tiers.low.escalate_to", "a viewer cannot sign", "lead"),
    # What does not fit the form.
    ({"tiers__high__people": [["viewer"]]}, "tiers.high.people.0", "roles cto, architecture or lead", "architecture"),
    ({"tiers__high__people": [["on-call"]]}, "tiers.high.people.0", "roles cto, architecture or lead", "architecture"),
    ({"tiers__high__people": [[]]}, "tiers.high.people.0", "roles cto, architecture or lead", "architecture"),
    ({"tiers__high__people": [["boss"]]}, "tiers.high.people.0.0", "'boss' is not known", "cto"),
    ({"tiers__high__people": "cto"}, "tiers.high.people", "tuple", "list"),
    ({"tiers__high__people": [["cto"]] * 6}, "tiers.high.people", "at most 5", "5"),
    ({"tiers__high__pepole": []}, "tiers.high.pepole", "not known", "'people'"),
    ({"tiers__huge": {}}, "tiers.huge", "not known", "critical"),
    ({"reason_form": "high"}, "reason_form", "not known", "'reason_from'"),
    ({"reason_from": "hihg"}, "reason_from", "'hihg' is not known", "high"),
    ({"categories__data__at_last": "high"}, "categories.data.at_last", "not known", "'at_least'"),
    ({"tiers__low__remind_after_hours": 0}, "tiers.low.remind_after_hours", "greater than 0", "above 0"),
    ({"tiers__low__remind_after_hours": "soon"}, "tiers.low.remind_after_hours", "number", "hours"),
    ({"reliability_fixes_pass_freezes": "perhaps"}, "reliability_fixes_pass_freezes", "boolean", "true or false"),
    # A service: only stricter than the rest.
    (
        {"services__realm": {"tiers": {"high": {"people": [["lead"]]}}}},
        "services.realm.tiers.high.people", "weaker", "architecture",
    ),
    (
        {"services__realm": {"tiers": {"low": {"if_asked": [SENIORS]}}}},
        "services.realm.tiers.low.if_asked", "weaker", "a lead developer",
    ),
    (
        {"services__realm": {"tiers": {"low": {"machine": ["scan"]}}}},
        "services.realm.tiers.low.machine", "tests is missing", "list",
    ),
    (
        {"services__realm": {"tiers": {"low": {"expire_after_hours": 41}}}},
        "services.realm.tiers.low.expire_after_hours", "longer than 40", "40 or less",
    ),
    (
        {"services__realm": {"categories": {"data": {"at_least": "low"}}}},
        "services.realm.categories.data.at_least", "below high", "high",
    ),
    (
        {"services__realm": {"categories": {"security": {"at_least": "high"}}}},
        "services.realm.categories.security.if_nobody", "nobody", "one signature",
    ),
    ({"services__realm": {"reason_from": "critical"}}, "services.realm.reason_from", "later", "high"),
    ({"services__realm": {"second_factor_from": "critical"}}, "services.realm.second_factor_from", "later", "high"),
    (
        {"reliability_fixes_pass_freezes": False, "services__realm": {"reliability_fixes_pass_freezes": True}},
        "services.realm.reliability_fixes_pass_freezes", "lets through", "false",
    ),
    ({"services__realm": {"tiers": {"low": {"pepole": []}}}}, "services.realm.tiers.low.pepole", "not known", "people"),
    ({"services__realm": {"teirs": {}}}, "services.realm.teirs", "not known", "'tiers'"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "field", "problem", "fix"), REFUSED)
def test_refuses_with_field_and_fix(fields: dict[str, Any], field: str, problem: str, fix: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse(changed(**fields))
    told = {mistake.field: mistake for mistake in refused.value.mistakes}
    assert field in told, str(refused.value)
    assert problem in told[field].problem
    assert fix in told[field].fix


def test_refuses_every_row_that_is_left_out() -> None:
    for tier in Tier:
        document = changed()
        del document["tiers"][tier]
        with pytest.raises(PolicyError, match=f"tiers.{tier}: the row is missing"):
            parse(document)
    for name in ("reason_from", "tiers"):
        document = changed()
        del document[name]
        with pytest.raises(PolicyError, match=f"{name}: field required. Fix: add it"):
            parse(document)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 5000, "x" * 100_001])
def test_refuses_what_is_no_document(text: str) -> None:
    with pytest.raises(PolicyError):
        parse(text)


STRICTER = [
    {"tiers__high__people": [["cto"], ["architecture"]]},
    {"tiers__medium__people": [["lead"]]},
    {"reason_from": "low", "second_factor_from": "medium"},
    {"categories__infrastructure": {"at_least": "high"}},
    {"tiers__high__expire_after_hours": 16.5},
    {"services__realm": {"tiers": {"medium": {"people": [["lead"], ["lead"]]}}, "second_factor_from": "low"}},
    {
        "services__realm": {
            "categories": {"performance": {"at_least": "medium"}},
            "reliability_fixes_pass_freezes": False,
        }
    },
]


@pytest.mark.parametrize("fields", STRICTER)
def test_takes_what_is_stricter(fields: dict[str, Any]) -> None:
    document = parse(changed(**fields))
    assert document.digest != DEFAULT.digest
    assert parse(document.as_text()).digest == document.digest
    assert differences(DEFAULT, document)
    assert list(weaker(document, DEFAULT)) == []


def test_lets_a_service_have_otherwise_only_what_it_names() -> None:
    document = parse(changed(services__realm={"tiers": {"medium": {"people": [["lead"]]}}, "reason_from": "low"}))
    realm = document.of("realm")
    assert realm.tiers[Tier.MEDIUM].people == (LEAD,)
    assert realm.tiers[Tier.MEDIUM].machine == document.tiers[Tier.MEDIUM].machine
    assert realm.tiers[Tier.HIGH] == document.tiers[Tier.HIGH]
    assert (realm.reason_from, document.reason_from) == (Tier.LOW, Tier.HIGH)
    assert document.of("shop") is document
    assert document.of("") is document


def test_has_one_digest_for_one_meaning() -> None:
    shuffled = json.loads(json.dumps(changed(), sort_keys=True))
    shuffled["tiers"]["critical"]["people"][1].reverse()
    assert parse(shuffled).digest == DEFAULT.digest
    assert parse(changed(tiers__low__expire_after_hours=41)).digest != DEFAULT.digest


def test_says_what_changes_in_words() -> None:
    new = parse(
        changed(
            tiers__high__people=[["architecture"], ["lead"]], services__realm={"reliability_fixes_pass_freezes": False}
        )
    )
    assert [(one.field, one.was, one.became) for one in differences(DEFAULT, new)] == [
        (
            "tiers.high.people",
            "one signature of the architecture team",
            "two different people: the architecture team, and a lead developer",
        ),
        ("services.realm.reliability_fixes_pass_freezes", "", "no"),
    ]
    told = rulebook.unified(DEFAULT.as_text().splitlines(), new.as_text().splitlines())
    assert '+      "reliability_fixes_pass_freezes": false' in told


SLOTS: list[Slot] = [CTO, ARCHITECT, LEAD, ANYBODY_SENIOR, frozenset({Role.ARCHITECTURE, Role.LEAD})]
DEMANDS = [demand for size in range(4) for demand in itertools.combinations_with_replacement(SLOTS, size)]


def fills(people: tuple[Role, ...], slots: tuple[Slot, ...]) -> bool:
    """The definition: some order of the people seats one in each slot."""
    return any(
        all(role in slot for role, slot in zip(order, slots, strict=False))
        for order in itertools.permutations(people, len(slots))
    )


CROWDS = [crowd for size in range(5) for crowd in itertools.combinations_with_replacement(sorted(ANYBODY_SENIOR), size)]
FILLED = {demand: frozenset(i for i, crowd in enumerate(CROWDS) if fills(crowd, demand)) for demand in DEMANDS}


def test_calls_strict_only_what_whoever_fills_it_has_filled_the_other() -> None:
    """Against the definition: every crowd of up to four people."""
    for one, other in itertools.product(DEMANDS, repeat=2):
        if as_strict(one, other):
            assert FILLED[one] <= FILLED[other], (one, other)
    assert not as_strict((LEAD,), (ARCHITECT,))
    assert as_strict((CTO, LEAD), (CTO, ANYBODY_SENIOR))


def test_adds_demands_up_to_what_satisfies_each() -> None:
    for one, other in itertools.product([demand for demand in DEMANDS if len(demand) < 3], repeat=2):
        both = strictest((one, other))
        assert as_strict(both, one), (one, other)
        assert as_strict(both, other), (one, other)
    assert strictest(((), (ANYBODY_SENIOR,), (ARCHITECT,))) == (ARCHITECT,)
    assert strictest(((LEAD,), (ARCHITECT,))) == (LEAD, ARCHITECT)


def test_is_a_document_of_every_tier_and_category() -> None:
    assert set(DEFAULT.as_json()["tiers"]) == {str(tier) for tier in Tier}
    assert set(DEFAULT.as_json()["categories"]) == {str(one) for one in Category}
    assert set(Document.model_fields) == set(DEFAULT.as_json())
