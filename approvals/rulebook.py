"""The policy as a document: what people may change about it, and what nobody may.

A document says row by row who signs. It is never weaker than FLOOR, and what it says for one service is never weaker
than what it says for all. `parse` turns every mistake into a sentence that names the field and the fix.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from approvals.fingerprint import digest
from approvals.tiers import (
    ANYBODY_SENIOR,
    ARCHITECT,
    CTO,
    LEAD,
    Category,
    Role,
    Slot,
    Tier,
    as_strict,
    in_words,
)

LARGEST_CHARACTERS = 100_000
MOST_SIGNATURES = 5


class Step(StrEnum):
    """What the machine must have done before anybody is asked."""

    TESTS = "tests"
    SCAN = "scan"
    STAGING = "staging"


def _of_seniors(slot: Slot) -> Slot:
    if not slot or not slot <= ANYBODY_SENIOR:
        raise PydanticCustomError(
            "slot",
            "a signature is given by somebody with one of the roles cto, architecture or lead",
            {"fix": 'list at least one of them, such as ["architecture"]'},
        )
    return slot


Signers = Annotated[
    Slot, AfterValidator(_of_seniors), PlainSerializer(lambda slot: [role.value for role in Role if role in slot])
]
Slots = Annotated[tuple[Signers, ...], Field(max_length=MOST_SIGNATURES)]
Hours = Annotated[float, Field(gt=0, le=2000, allow_inf_nan=False)]


class Part(BaseModel):
    """A piece of the document: exactly these members, and never changed once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(Part):
    """What a change of one tier needs. Hours are working hours of its service."""

    machine: tuple[Step, ...]  # the steps that must have passed
    people: Slots  # who signs in any case
    if_asked: Slots  # who signs when the installation wants people from this tier on
    if_inconclusive: Slots  # who signs when a step could neither pass nor fail
    remind_after_hours: Hours  # those who can sign are told once more
    escalate_after_hours: Hours  # `escalate_to` is told that nobody signed
    escalate_to: Role
    expire_after_hours: Hours  # the question ends unanswered, which is a no


class RowChange(Part):
    """What one service has otherwise than the rest in one tier."""

    machine: tuple[Step, ...] | None = None
    people: Slots | None = None
    if_asked: Slots | None = None
    if_inconclusive: Slots | None = None
    remind_after_hours: Hours | None = None
    escalate_after_hours: Hours | None = None
    escalate_to: Role | None = None
    expire_after_hours: Hours | None = None


class Tightening(Part):
    """What a category adds: a tier that its changes have at least, and who signs when nobody else would have to."""

    at_least: Tier = Tier.LOW
    if_nobody: Slots = ()


class Override(Part):
    """What one service has otherwise than the rest; only stricter."""

    tiers: dict[Tier, RowChange] = {}
    categories: dict[Category, Tightening] = {}
    reason_from: Tier | None = None
    second_factor_from: Tier | None = None
    reliability_fixes_pass_freezes: bool | None = None


class Document(Part):
    """The policy. Make one from outside with `parse`, which knows all the rules."""

    tiers: dict[Tier, Row]
    categories: dict[Category, Tightening] = {}
    reason_from: Tier  # an approval from this tier on needs a written reason; a rejection always does
    second_factor_from: Tier  # an approval from this tier on needs a fresh second factor
    reliability_fixes_pass_freezes: bool
    services: dict[Annotated[str, Field(min_length=1, max_length=100)], Override] = {}

    def of(self, service: str) -> Document:
        """What holds for the service of that name; the whole installation is named ""."""
        override = self.services.get(service)
        if override is None:
            return self
        tiers = {
            tier: row.model_copy(update=_set_fields(override.tiers[tier])) if tier in override.tiers else row
            for tier, row in self.tiers.items()
        }
        changed = _set_fields(override) | {"tiers": tiers, "categories": self.categories | override.categories}
        return self.model_copy(update={**changed, "services": {}})

    def tightening(self, category: Category) -> Tightening:
        return self.categories.get(category, Tightening())

    def as_json(self) -> dict[str, Any]:
        """As plain JSON in one fixed order; of a service only what it has otherwise."""
        written = self.model_dump(mode="json", exclude={"tiers", "categories", "services"})
        return {
            "tiers": {tier.value: self.tiers[tier].model_dump(mode="json") for tier in Tier},
            "categories": {one.value: self.tightening(one).model_dump(mode="json") for one in Category},
            **written,
            "services": {
                name: self.services[name].model_dump(mode="json", exclude_none=True, exclude_unset=True)
                for name in sorted(self.services)
            },
        }

    def as_text(self) -> str:
        return json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: the same for the same rules, however they were written down."""
        return digest(self.as_json())


def _set_fields(part: Part) -> dict[str, Any]:
    return {name: getattr(part, name) for name in part.model_fields_set if getattr(part, name) is not None}


_STEPS = (Step.TESTS, Step.SCAN, Step.STAGING)


def _row(
    machine: tuple[Step, ...],
    people: tuple[Slot, ...],
    if_asked: tuple[Slot, ...],
    if_inconclusive: tuple[Slot, ...],
    escalate_to: Role,
    hours: tuple[float, float, float],
) -> Row:
    remind, escalate, expire = hours
    return Row(
        machine=machine,
        people=people,
        if_asked=if_asked,
        if_inconclusive=if_inconclusive,
        escalate_to=escalate_to,
        remind_after_hours=remind,
        escalate_after_hours=escalate,
        expire_after_hours=expire,
    )


_BOTH = (CTO, ANYBODY_SENIOR)
# The policy as it is shipped, and in force until people put another in its place.
DEFAULT = Document(
    tiers={
        Tier.LOW: _row(_STEPS[:2], (), (LEAD,), (), Role.LEAD, (8, 16, 40)),
        Tier.MEDIUM: _row(_STEPS, (), (LEAD,), (LEAD,), Role.LEAD, (8, 16, 40)),
        Tier.HIGH: _row(_STEPS, (ARCHITECT,), (ARCHITECT,), (ARCHITECT,), Role.ARCHITECTURE, (4, 12, 40)),
        Tier.CRITICAL: _row(_STEPS, _BOTH, _BOTH, _BOTH, Role.CTO, (2, 6, 40)),
    },
    categories={
        Category.DATA: Tightening(at_least=Tier.HIGH),  # a changed schema outlives a rollback of the code
        Category.SECURITY: Tightening(if_nobody=(ANYBODY_SENIOR,)),  # never without a person
    },
    reason_from=Tier.HIGH,
    second_factor_from=Tier.HIGH,
    reliability_fixes_pass_freezes=False,
)
# What no document may fall below, whoever signs it.
_SENIOR = (ANYBODY_SENIOR,)
_LONGEST = (80.0, 160.0, 400.0)
FLOOR = Document(
    tiers={
        Tier.LOW: _row(_STEPS[:2], (), _SENIOR, (), Role.LEAD, _LONGEST),
        Tier.MEDIUM: _row(_STEPS, (), _SENIOR, _SENIOR, Role.LEAD, _LONGEST),
        Tier.HIGH: _row(_STEPS, (ARCHITECT,), (ARCHITECT,), (ARCHITECT,), Role.ARCHITECTURE, _LONGEST),
        Tier.CRITICAL: _row(_STEPS, _BOTH, _BOTH, _BOTH, Role.CTO, _LONGEST),
    },
    categories=DEFAULT.categories,
    reason_from=Tier.HIGH,
    second_factor_from=Tier.HIGH,
    reliability_fixes_pass_freezes=True,
)


@dataclass(frozen=True)
class Mistake:
    """One thing that a document may not say: where, what, and what to do."""

    field: str
    problem: str
    fix: str

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}. Fix: {self.fix}."


class PolicyError(ValueError):
    """A document that cannot be a policy, with everything that is wrong with it."""

    def __init__(self, mistakes: tuple[Mistake, ...]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = mistakes


def parse(given: str | Mapping[str, Any]) -> Document:
    """The document in a JSON text or what was read from one. Raises PolicyError with every mistake."""
    document = _read(given)
    mistakes = tuple(_mistakes(document))
    if mistakes:
        raise PolicyError(mistakes)
    return document


def weaker(document: Document, than: Document, *, prefix: str = "") -> Iterator[Mistake]:
    """Where `document` asks for less than `than`, row by row; its services are not looked at."""
    for tier in Tier:
        yield from _weaker_row(document.tiers[tier], than.tiers[tier], f"{prefix}tiers.{tier}")
    for category in Category:
        given, base = document.tightening(category), than.tightening(category)
        field = f"{prefix}categories.{category}"
        if not given.at_least.at_least(base.at_least):
            problem = f"{given.at_least} is below {base.at_least}"
            yield Mistake(f"{field}.at_least", problem, f"write {base.at_least} or higher")
        if not as_strict(given.if_nobody, base.if_nobody):
            yield _fewer(f"{field}.if_nobody", given.if_nobody, base.if_nobody)
    for name in ("reason_from", "second_factor_from"):
        mine, theirs = getattr(document, name), getattr(than, name)
        if not theirs.at_least(mine):
            yield Mistake(f"{prefix}{name}", f"{mine} begins later than {theirs}", f"write {theirs} or lower")
    for name in ("reliability_fixes_pass_freezes",):
        if getattr(document, name) and not getattr(than, name):
            yield Mistake(f"{prefix}{name}", "true lets through what false holds back", "write false")


def _weaker_row(row: Row, than: Row, field: str) -> Iterator[Mistake]:
    for name in ("people", "if_asked", "if_inconclusive"):
        if not as_strict(getattr(row, name), getattr(than, name)):
            yield _fewer(f"{field}.{name}", getattr(row, name), getattr(than, name))
    if lacking := [step for step in than.machine if step not in row.machine]:
        yield Mistake(f"{field}.machine", f"{', '.join(lacking)} is missing", "list it too")
    for name in ("remind_after_hours", "escalate_after_hours", "expire_after_hours"):
        mine, theirs = getattr(row, name), getattr(than, name)
        if mine > theirs:
            yield Mistake(f"{field}.{name}", f"{mine:g} is longer than {theirs:g}", f"write {theirs:g} or less")


def _fewer(field: str, slots: tuple[Slot, ...], than: tuple[Slot, ...]) -> Mistake:
    return Mistake(
        field, f"it asks for {in_words(slots)}, which is weaker than {in_words(than)}", f"ask for {in_words(than)}"
    )


def _mistakes(document: Document) -> Iterator[Mistake]:
    if absent := [tier for tier in Tier if tier not in document.tiers]:
        yield from (Mistake(f"tiers.{tier}", "the row is missing", "add it") for tier in absent)
        return
    yield from weaker(document, FLOOR)
    yield from _disordered(document, "")
    for name in document.services:
        prefix = f"services.{name}."
        yield from weaker(document.of(name), document, prefix=prefix)
        yield from _disordered(document.of(name), prefix)


def _disordered(document: Document, prefix: str) -> Iterator[Mistake]:
    for tier, row in document.tiers.items():
        if not row.remind_after_hours <= row.escalate_after_hours <= row.expire_after_hours:
            yield Mistake(
                f"{prefix}tiers.{tier}.remind_after_hours",
                "people are reminded before others are told, and both before the request expires",
                "make remind_after_hours, escalate_after_hours and expire_after_hours ascend",
            )
        if row.escalate_to not in ANYBODY_SENIOR:
            yield Mistake(
                f"{prefix}tiers.{tier}.escalate_to",
                f"{row.escalate_to.title} cannot sign",
                "write cto, architecture or lead",
            )


def _read(given: str | Mapping[str, Any]) -> Document:
    if isinstance(given, str):
        if len(given) > LARGEST_CHARACTERS:
            raise PolicyError((Mistake("document", f"it has {len(given):,} characters", "keep it under 100,000"),))
        try:
            given = json.loads(given)
        except (json.JSONDecodeError, RecursionError) as error:
            line = getattr(error, "lineno", 1)
            told = getattr(error, "msg", "it is nested too deeply")
            raise PolicyError((Mistake(f"line {line}", f"this is no JSON: {told}", "look there"),)) from error
    try:
        return Document.model_validate(given)
    except ValidationError as error:
        raise PolicyError(tuple(_explained(one) for one in error.errors(include_url=False))) from error


_FIXES = {
    "missing": "add it",
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "float_parsing": "write a number of hours",
    "float_type": "write a number of hours",
    "greater_than": "write a number of hours above 0",
    "less_than_equal": "write fewer hours",
    "too_long": f"ask for {MOST_SIGNATURES} signatures at most",
    "tuple_type": "write a list",
    "frozen_set_type": 'write a list of roles, such as ["architecture"]',
}
_PARTS: Mapping[str, type[Part]] = {"tiers": Row, "categories": Tightening, "services": Override}


def _explained(detail: ErrorDetails) -> Mistake:
    field = ".".join(str(part) for part in detail["loc"] if part != "[key]") or "document"
    problem = detail["msg"][:1].lower() + detail["msg"][1:].rstrip(".")
    match detail["type"]:
        case "extra_forbidden":
            near = difflib.get_close_matches(str(detail["loc"][-1]), _known_names(detail["loc"]), n=1, cutoff=0.5)
            return Mistake(field, "it is not known", f"did you mean {near[0]!r}?" if near else "remove it")
        case "enum":
            expected = str(detail.get("ctx", {}).get("expected", ""))
            return Mistake(field, f"{detail['input']!r} is not known", f"write one of {expected}")
        case "slot":
            return Mistake(field, problem, str(detail.get("ctx", {}).get("fix", "")))
        case kind:
            return Mistake(field, problem, _FIXES.get(kind, "see the document in force for how it is written"))


def _known_names(place: tuple[int | str, ...]) -> list[str]:
    if len(place) == 1:
        return list(Document.model_fields)
    inner = place[2:] if place[0] == "services" else place
    part = Override if len(inner) == 1 else _PARTS.get(str(inner[0]), Row)
    return list(part.model_fields)


@dataclass(frozen=True)
class Difference:
    """One field that two documents have differently, in words; empty where one has no such field."""

    field: str
    was: str
    became: str


def differences(old: Document, new: Document) -> list[Difference]:
    """What changes from `old` to `new`, field by field."""
    before, after = dict(_leaves("", old.as_json())), dict(_leaves("", new.as_json()))
    fields = [*before, *(field for field in after if field not in before)]
    return [
        Difference(field, before.get(field, ""), after.get(field, ""))
        for field in fields
        if before.get(field) != after.get(field)
    ]


def _leaves(field: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _leaves(f"{field}.{name}" if field else str(name), one)
    elif isinstance(value, list):
        slots = field.rsplit(".", 1)[-1] != "machine"
        yield field, in_words([frozenset(map(Role, slot)) for slot in value]) if slots else ", ".join(value)
    elif isinstance(value, bool):
        yield field, "yes" if value else "no"
    else:
        yield field, f"{value:g}" if isinstance(value, float) else str(value)


def unified(before: list[str], after: list[str]) -> str:
    """A unified diff of two documents' lines."""
    return "\n".join(difflib.unified_diff(before, after, "a/policy.json", "b/policy.json", lineterm="")) + "\n"
