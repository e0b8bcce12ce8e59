"""Who must sign what, and who may: the policy as one table and two questions.

`required` turns a tier into the signatures needed; `may_sign` says whether one person may give one of them. Both
explain themselves in a sentence that pages, mails and errors print as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

# Raise this whenever POLICY or a rule below changes its meaning: every request made under another version is void.
VERSION = 1


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


class Channel(StrEnum):
    """Through what a decision came."""

    PAGE = "page"
    TOKEN = "token"  # noqa: S105 (a kind of caller, not a secret)
    PROGRAM = "program"


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


@dataclass(frozen=True)
class Rule:
    """One row of the policy: what a change of this tier needs."""

    machine: tuple[str, ...]  # the steps that must have passed
    people: tuple[Slot, ...]  # who signs in any case
    if_asked: tuple[Slot, ...]  # who signs when the installation wants people from this tier on
    if_inconclusive: tuple[Slot, ...]  # who signs when a step could neither pass nor fail


# Slots go from the narrowest to the widest: `missing` fills them in this order.
POLICY: Mapping[Tier, Rule] = {
    Tier.LOW: Rule(("tests", "scan"), people=(), if_asked=(LEAD,), if_inconclusive=()),
    Tier.MEDIUM: Rule(("tests", "scan", "staging"), people=(), if_asked=(LEAD,), if_inconclusive=(LEAD,)),
    Tier.HIGH: Rule(
        ("tests", "scan", "staging"), people=(ARCHITECT,), if_asked=(ARCHITECT,), if_inconclusive=(ARCHITECT,)
    ),
    Tier.CRITICAL: Rule(
        ("tests", "scan", "staging"),
        people=(CTO, ANYBODY_SENIOR),
        if_asked=(CTO, ANYBODY_SENIOR),
        if_inconclusive=(CTO, ANYBODY_SENIOR),
    ),
}
REASON_FROM = Tier.HIGH  # an approval from this tier on needs a written reason; a rejection always does
SECOND_FACTOR_FROM = Tier.HIGH  # an approval from this tier on needs a fresh second factor
FRESH_SECONDS = 300.0  # how long a second factor counts as fresh


@dataclass(frozen=True)
class Requirement:
    """The signatures one change needs: every slot by a different person. No slots: the policy itself approves."""

    tier: Tier
    signatures: tuple[Slot, ...]
    reason: str
    policy_version: str

    def as_json(self) -> dict[str, Any]:
        return {
            "tier": str(self.tier),
            "signatures": [sorted(str(role) for role in slot) for slot in self.signatures],
            "reason": self.reason,
            "policy_version": self.policy_version,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Requirement:
        return cls(
            tier=Tier(value["tier"]),
            signatures=tuple(frozenset(Role(role) for role in slot) for slot in value["signatures"]),
            reason=str(value["reason"]),
            policy_version=str(value["policy_version"]),
        )


def version(approval_required: Tier) -> str:
    """The policy in force: the table's version and the tier from which this installation wants people."""
    return f"{VERSION}/{effective(approval_required)}"


def effective(approval_required: Tier) -> Tier:
    """The setting lowers the tier from which people sign; above high it changes nothing."""
    return Tier.HIGH if approval_required.at_least(Tier.HIGH) else approval_required


def required(tier: Tier, *, approval_required: Tier = Tier.HIGH, all_pass: bool = True) -> Requirement:
    """The signatures that a change of `tier` needs.

    `approval_required` is the tier from which this installation wants people to sign; `all_pass` is true when every
    step so far ended in PASS (INCONCLUSIVE and NO_DATA are not PASS).
    """
    rule = POLICY[tier]
    threshold = effective(approval_required)
    if rule.people:
        slots, why = rule.people, f"A {tier}-risk change needs {in_words(rule.people)}."
    elif tier.at_least(threshold):
        slots = rule.if_asked
        why = f"People sign here from {threshold} risk on, so this {tier}-risk change needs {in_words(slots)}."
    elif not all_pass and rule.if_inconclusive:
        slots = rule.if_inconclusive
        why = f"Not every check of this {tier}-risk change could say PASS, so it needs {in_words(slots)}."
    else:
        slots, why = (), f"A {tier}-risk change whose checks passed needs no signature; the policy approves it."
    return Requirement(tier=tier, signatures=slots, reason=why, policy_version=version(approval_required))


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


class RequestState(StrEnum):
    OPEN = "open"
    CHANGES_ASKED = "changes-asked"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    VOID = "void"


PENDING = frozenset({RequestState.OPEN, RequestState.CHANGES_ASKED})  # somebody has to decide


class Decision(StrEnum):
    APPROVE = "approve"
    REJECT = "reject"
    ASK_FOR_CHANGES = "ask-for-changes"


@dataclass(frozen=True)
class How:
    """How somebody decides: through what, and how long ago, in seconds, they gave a second factor (None: never)."""

    channel: Channel
    second_factor_age_seconds: float | None = None

    @property
    def is_fresh(self) -> bool:
        age = self.second_factor_age_seconds
        return age is not None and 0 <= age <= FRESH_SECONDS


@dataclass(frozen=True)
class PersonFacts:
    """A person as the policy sees one. Superuser is not a role and counts for nothing."""

    id: int
    name: str
    roles: frozenset[Role]
    active: bool = True


@dataclass(frozen=True)
class RequestFacts:
    """A request as the policy sees one. `signers` are those whose approval stands."""

    requirement: Requirement
    state: RequestState = RequestState.OPEN
    expired: bool = False
    proposed_by: int | None = None
    edited_by: frozenset[int] = frozenset()
    signers: tuple[PersonFacts, ...] = ()


@dataclass(frozen=True)
class Allowed:
    role: Role  # what the person signs as


@dataclass(frozen=True)
class Refused:
    why: str


def missing(requirement: Requirement, signers: Sequence[PersonFacts]) -> tuple[Slot, ...]:
    """The slots nobody fills yet when every active signer fills at most one (a maximum matching, Kuhn 1955)."""
    holder: dict[int, int] = {}  # slot index -> signer index
    people = [(index, person) for index, person in enumerate(signers) if person.active]
    seen_ids = {person.id: index for index, person in reversed(people)}  # one person counts once

    def place(slot: int, tried: set[int]) -> bool:
        for index, person in people:
            if index in tried or seen_ids[person.id] != index or not person.roles & requirement.signatures[slot]:
                continue
            tried.add(index)
            held = next((other for other, who in holder.items() if who == index), None)
            if held is None or place(held, tried):
                holder[slot] = index
                return True
        return False

    return tuple(slot for number, slot in enumerate(requirement.signatures) if not place(number, set()))


def may_sign(
    person: PersonFacts,
    request: RequestFacts,
    *,
    decision: Decision = Decision.APPROVE,
    reason: str | None = None,
    how: How | None = None,
) -> Allowed | Refused:
    """Whether `person` may approve or reject now, and if not, which rule says so.

    With `reason=None` and `how=None` the question is only whether to offer it; otherwise, whether the text is reason
    enough, and whether this way of deciding is safe enough.
    """
    if not person.active:
        return Refused(f"The account of {person.name} is not active, so it cannot sign.")
    if request.state is RequestState.CHANGES_ASKED and decision is Decision.APPROVE:
        return Refused(
            "Changes are asked for. Nothing is approved until they are made or whoever asks takes that back."
        )
    if request.state not in PENDING:
        return Refused(f"This request is {request.state}; only an open request can be signed.")
    if request.expired:
        return Refused("This request has expired. It has to be asked for again.")
    if person.id == request.proposed_by:
        return Refused(f"Nobody signs what they proposed, and {person.name} proposed this.")
    if person.id in request.edited_by:
        return Refused(f"Nobody signs what they edited, and {person.name} edited this.")
    if any(signer.id == person.id for signer in request.signers):
        return Refused(f"{person.name} has signed already, and one person counts once.")
    wanted: Slot = frozenset[Role]().union(*request.requirement.signatures)
    if not person.roles & wanted:
        return Refused(f"{request.requirement.reason} {person.name} has no such role.")
    open_slots = missing(request.requirement, request.signers)
    if decision is Decision.APPROVE and len(missing(request.requirement, (*request.signers, person))) == len(
        open_slots
    ):
        return Refused(f"What is still missing is {in_words(open_slots)}; {person.name} cannot give it.")
    if reason is not None and not reason.strip():
        if decision is Decision.REJECT:
            return Refused("A rejection needs a written reason: it is what the next attempt learns from.")
        if decision is Decision.ASK_FOR_CHANGES:
            return Refused("Who asks for changes writes down which.")
        if request.requirement.tier.at_least(REASON_FROM):
            return Refused(f"Approving a {request.requirement.tier}-risk change needs a written reason.")
    guarded = decision is Decision.APPROVE and request.requirement.tier.at_least(SECOND_FACTOR_FROM)
    if how and guarded and not how.is_fresh:
        return Refused(_second_factor_wanted(request.requirement.tier, how))
    fitting = frozenset[Role]().union(*open_slots) & person.roles or wanted & person.roles
    return Allowed(next(role for role in Role if role in fitting))


def _second_factor_wanted(tier: Tier, how: How) -> str:
    minutes = FRESH_SECONDS / 60
    if how.channel is Channel.TOKEN:
        return f"A {tier}-risk change cannot be signed by a token alone: it needs a one-time code too."
    if how.second_factor_age_seconds is None:
        return f"Approving a {tier}-risk change needs a second factor: confirm with a code of your authenticator first."
    return f"Your second factor is older than {minutes:g} minutes. Confirm with a new code and approve again."
