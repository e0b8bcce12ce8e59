"""Who must sign what, and who may: two questions to the policy in force.

`required` turns a tier and what is known of a change into the signatures needed; `may_sign` says whether one person may
give one of them. Both explain themselves in sentences that pages, mails and errors print as they are.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from approvals.rulebook import DEFAULT, Document
from approvals.tiers import ANYBODY_SENIOR as ANYBODY_SENIOR
from approvals.tiers import ARCHITECT as ARCHITECT
from approvals.tiers import CTO as CTO
from approvals.tiers import LEAD as LEAD
from approvals.tiers import TITLES as TITLES
from approvals.tiers import Category as Category
from approvals.tiers import Role as Role
from approvals.tiers import Slot as Slot
from approvals.tiers import Tier as Tier
from approvals.tiers import highest, strictest
from approvals.tiers import in_words as in_words
from approvals.tiers import slot_in_words as slot_in_words

# Raise this whenever a rule below changes its meaning: every request made under another version is void.
VERSION = 2
FRESH_SECONDS = 300.0  # how long a second factor counts as fresh


class Channel(StrEnum):
    """Through what a decision came."""

    PAGE = "page"
    TOKEN = "token"  # noqa: S105 (a kind of caller, not a secret)
    PROGRAM = "program"


@dataclass(frozen=True)
class Terms:
    """What is in force: a document, its number (0: the one that is shipped), and what the installation set."""

    document: Document = DEFAULT
    number: int = 0
    approval_required: Tier = Tier.HIGH  # people sign from this tier on; above high it changes nothing
    risk_threshold: Tier = Tier.MEDIUM  # up to this estimated tier suggestions start by themselves

    @property
    def people_from(self) -> Tier:
        """The setting lowers the tier from which people sign; above high it changes nothing."""
        return Tier.HIGH if self.approval_required.at_least(Tier.HIGH) else self.approval_required

    @cached_property
    def version(self) -> str:
        """Of everything that an answer here depends on; at most 40 characters. A signature is bound to it."""
        return f"{VERSION}.{self.number}.{self.document.digest[:8]}/{self.people_from}/{self.risk_threshold}"


@dataclass(frozen=True)
class Subject:
    """What the policy needs to know of a change beside its tier."""

    categories: frozenset[Category] = frozenset()
    service: str = ""  # empty: the whole installation
    is_reliability_fix: bool = False


@dataclass(frozen=True)
class Requirement:
    """The signatures one change needs: every slot by a different person. No slots: the policy itself approves."""

    tier: Tier
    signatures: tuple[Slot, ...]
    reason: str
    policy_version: str
    reason_required: bool = False
    second_factor_required: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "tier": str(self.tier),
            "signatures": [sorted(str(role) for role in slot) for slot in self.signatures],
            "reason": self.reason,
            "policy_version": self.policy_version,
            "reason_required": self.reason_required,
            "second_factor_required": self.second_factor_required,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Requirement:
        tier = Tier(value["tier"])
        guarded = tier.at_least(Tier.HIGH)  # what was written down before the document could say otherwise
        return cls(
            tier=tier,
            signatures=tuple(frozenset(Role(role) for role in slot) for slot in value["signatures"]),
            reason=str(value["reason"]),
            policy_version=str(value["policy_version"]),
            reason_required=bool(value.get("reason_required", guarded)),
            second_factor_required=bool(value.get("second_factor_required", guarded)),
        )


def required(
    tier: Tier,
    subject: Subject = Subject(),
    *,
    all_pass: bool = True,
    approval_required: Tier = Tier.HIGH,
    terms: Terms | None = None,
) -> Requirement:
    """The signatures that a change of `tier` about `subject` needs.

    `all_pass` is true when every step so far ended in PASS (INCONCLUSIVE and NO_DATA are not PASS). `terms` is what is
    in force; without it, the policy as shipped, with people asked from `approval_required` on.
    """
    terms = terms or Terms(approval_required=approval_required)
    rules = terms.document.of(subject.service)
    raised, sentences = _raised(tier, subject, rules)
    row = rules.tiers[raised]
    asked, in_doubt = raised.at_least(terms.people_from), not all_pass
    slots = strictest((row.people, row.if_asked if asked else (), row.if_inconclusive if in_doubt else ()))
    if not slots:
        demands = {one: rules.tightening(one).if_nobody for one in Category if one in subject.categories}
        slots = strictest(demands.values())
        about = " and ".join(one for one, demand in demands.items() if demand)
    if slots == row.people and slots:
        sentences.append(f"A {raised}-risk change needs {in_words(slots)}.")
    elif not slots:
        checks = "" if in_doubt else " whose checks passed"
        sentences.append(f"A {raised}-risk change{checks} needs no signature; the policy approves it.")
    elif asked and row.if_asked:
        sentences.append(
            f"People sign here from {terms.people_from} risk on, so this {raised}-risk change needs {in_words(slots)}."
        )
    elif in_doubt and row.if_inconclusive:
        sentences.append(f"Not every check of this {raised}-risk change could say PASS, so it needs {in_words(slots)}.")
    else:
        sentences.append(f"A change about {about} never goes ahead without a person: it needs {in_words(slots)}.")
    return Requirement(
        tier=raised,
        signatures=slots,
        reason=" ".join(sentences),
        policy_version=terms.version,
        reason_required=raised.at_least(rules.reason_from),
        second_factor_required=raised.at_least(rules.second_factor_from),
    )


def _raised(tier: Tier, subject: Subject, rules: Document) -> tuple[Tier, list[str]]:
    """The tier with what the categories ask for, and the sentence that says so. Never below `tier`."""
    raised, sentences = tier, []
    for category in Category:
        least = rules.tightening(category).at_least
        if category in subject.categories and not raised.at_least(least):
            sentences.append(
                f"A change about {category} counts as {least} risk at least; this one is {tier} by itself."
            )
            raised = highest((raised, least))
    return raised, sentences


class RequestState(StrEnum):
    OPEN = "open"
    CHANGES_ASKED = "changes-asked"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    VOID = "void"


# What is said to whoever decides about a request that is not open any more, or wants to take a decision back.
CLOSED = {
    RequestState.APPROVED: "This request is approved already.",
    RequestState.REJECTED: "This request is rejected, which ended it: nobody takes a rejection back, whoever gave it.",
    RequestState.EXPIRED: "This request has expired, which ended it: nothing is approved by silence.",
    RequestState.VOID: "This request is void: it was withdrawn, or is not about what is true any more.",
}
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
class Reset:
    """Somebody else replaced what a person proves with that it is them, and the person may not have noticed yet."""

    what: str  # "second factor" or "password"
    by: str
    at: dt.datetime
    until: dt.datetime  # from then on it counts as noticed

    def of(self, name: str) -> str:
        """The sentence for whoever would act in the name of `name` meanwhile."""
        return (
            f"{self.by} reset the {self.what} of {name} on {self.at:%Y-%m-%d %H:%M} UTC, so until "
            f"{self.until:%Y-%m-%d %H:%M} UTC nothing of high or critical risk is signed in the name of {name}."
        )


@dataclass(frozen=True)
class Principal:
    """Whose right a deputy uses, and as far as it was lent: the roles that the principal holds themself."""

    id: int
    name: str
    roles: frozenset[Role]
    reset: Reset | None = None


@dataclass(frozen=True)
class PersonFacts:
    """A person as the policy sees one. Superuser is not a role and counts for nothing.

    `roles` are those held for the service asked about; `elsewhere` says in sentences why another does not count there.
    In a signer, `on_behalf_of` is whose right was used, and `roles` are that right's.
    """

    id: int
    name: str
    roles: frozenset[Role]
    active: bool = True
    is_service_account: bool = False
    stands_in_for: tuple[Principal, ...] = ()
    on_behalf_of: Principal | None = None
    elsewhere: tuple[str, ...] = ()
    reset: Reset | None = None

    @property
    def may_count(self) -> bool:
        return self.active and not self.is_service_account

    @property
    def bodies(self) -> frozenset[int]:
        """Who is used up by a signature of this person: themself, and whose right it was."""
        return frozenset({self.id}) if self.on_behalf_of is None else frozenset({self.id, self.on_behalf_of.id})

    @property
    def voice_of(self) -> int:
        """The id of whose right a signature of this person uses."""
        return self.id if self.on_behalf_of is None else self.on_behalf_of.id

    @property
    def signed_as(self) -> str:
        """'bob', or 'bob on behalf of dave'."""
        return self.name if self.on_behalf_of is None else f"{self.name} on behalf of {self.on_behalf_of.name}"

    def signing_for(self, principal_id: int | None) -> PersonFacts:
        """This person with one right alone: their own, or that of the principal; no roles when it was not lent."""
        if principal_id in (None, self.id):
            return replace(self, stands_in_for=(), on_behalf_of=None)
        lent = next((one for one in self.stands_in_for if one.id == principal_id), None)
        lent = lent or Principal(principal_id, "that person", frozenset())
        return replace(self, roles=lent.roles, stands_in_for=(), on_behalf_of=lent)


@dataclass(frozen=True)
class RequestFacts:
    """A request as the policy sees one. `signers` are those whose approval stands."""

    requirement: Requirement
    state: RequestState = RequestState.OPEN
    expired: bool = False
    proposed_by: int | None = None
    edited_by: frozenset[int] = frozenset()
    signers: tuple[PersonFacts, ...] = ()
    because: str = ""  # why it is in this state


class Rule(StrEnum):
    """Which rule refused, for programs; people read its sentence."""

    INACTIVE = "inactive"
    PROGRAM = "program"
    PROPOSED = "proposed"
    EDITED = "edited"
    NO_ROLE = "no-role"
    SECOND_FACTOR = "second-factor"
    CREDENTIALS_RESET = "credentials-reset"
    NO_REASON = "no-reason"
    TOO_LONG = "too-long"
    COUNTED = "counted-once"
    NOT_MISSING = "not-missing"
    CHANGES_ASKED = "changes-asked"
    OVER = "over"
    EXPIRED = "expired"
    STALE = "stale"  # what was looked at is not what is asked now
    POLICY_CHANGED = "policy-changed"
    STARTED = "started"
    NOTHING_DECIDED = "nothing-decided"


# These refuse everybody as the request stands; the others this person, or this way of deciding.
CONFLICTS = frozenset(
    {
        Rule.COUNTED,
        Rule.NOT_MISSING,
        Rule.CHANGES_ASKED,
        Rule.OVER,
        Rule.EXPIRED,
        Rule.STALE,
        Rule.POLICY_CHANGED,
        Rule.STARTED,
        Rule.NOTHING_DECIDED,
    }
)


class Why(str):
    """A rule's own sentence, and which rule it is. Empty: none refuses."""

    __slots__ = ("rule",)
    rule: Rule

    def __new__(cls, rule: Rule, sentence: str) -> Why:
        made = super().__new__(cls, sentence)
        made.rule = rule
        return made


NOTHING = Why(Rule.OVER, "")


@dataclass(frozen=True)
class Allowed:
    role: Role  # what the person signs as
    voice_of: int  # the id of whose right that is: their own, or a principal's
    on_behalf_of: Principal | None = None  # the principal, when it is not their own


@dataclass(frozen=True)
class Refused:
    why: Why

    @property
    def rule(self) -> Rule:
        return self.why.rule

    @property
    def lacks_second_factor(self) -> bool:
        """Nothing else is missing: the person can give one and decide again."""
        return self.rule is Rule.SECOND_FACTOR


def missing(requirement: Requirement, signers: Sequence[PersonFacts]) -> tuple[Slot, ...]:
    """The slots nobody fills yet when every voice fills at most one (a maximum matching, Kuhn 1955)."""
    voices = _voices(signers)
    holder: dict[int, int] = {}  # slot index -> voice index

    def place(slot: int, tried: set[int]) -> bool:
        for index, roles in enumerate(voices):
            if index in tried or not roles & requirement.signatures[slot]:
                continue
            tried.add(index)
            held = next((other for other, who in holder.items() if who == index), None)
            if held is None or place(held, tried):
                holder[slot] = index
                return True
        return False

    return tuple(slot for number, slot in enumerate(requirement.signatures) if not place(number, set()))


def out_of_reach(request: RequestFacts, people: Iterable[PersonFacts]) -> tuple[Slot, ...]:
    """The slots that nobody would fill even if all of `people` signed who may; empty when they are enough.

    Not each slot by itself: the one person who could fill either of two fills one.
    """
    ways = [person.signing_for(one.voice_of) for person in people for one in options(person, request)]
    return _left_open(request.requirement, request.signers, ways)


def _left_open(
    requirement: Requirement, signers: Sequence[PersonFacts], ways: Sequence[PersonFacts]
) -> tuple[Slot, ...]:
    """The fewest slots that stay open when some of `ways` join the signers, every person in one of them at most."""
    found = still_open = missing(requirement, signers)
    for number, way in enumerate(ways):
        if not found:
            break
        is_used = any(way.bodies & one.bodies for one in signers)
        if not is_used and len(missing(requirement, (*signers, way))) < len(still_open):
            found = min(found, _left_open(requirement, (*signers, way), ways[number + 1 :]), key=len)
    return found


def _voices(signers: Iterable[PersonFacts]) -> list[frozenset[Role]]:
    """The roles of each voice. A person is one voice, and so are a principal and who signed with their right."""
    voices: list[tuple[frozenset[int], frozenset[Role]]] = []
    for signer in signers:
        if not signer.may_count:
            continue
        bodies, roles = signer.bodies, signer.roles
        for voice in [one for one in voices if one[0] & signer.bodies]:
            voices.remove(voice)
            bodies, roles = bodies | voice[0], roles | voice[1]
        voices.append((bodies, roles))
    return [roles for _, roles in voices]


def may_sign(
    person: PersonFacts,
    request: RequestFacts,
    *,
    decision: Decision = Decision.APPROVE,
    reason: str | None = None,
    how: How | None = None,
    on_behalf_of: int | None = None,
) -> Allowed | Refused:
    """Whether `person` may approve or reject now, as what and with whose right; if not, which rule says so.

    `on_behalf_of` is the id of whose right it is to be, their own included; None takes what fits, their own first.
    With `reason=None` and `how=None` the question is only whether to offer it; otherwise, whether the text is reason
    enough, and whether this way of deciding is safe enough.
    """
    if why := _barred(person, request, decision):
        return Refused(why)
    obstacles = []
    for signer in _rights(person, on_behalf_of):
        why = _obstacle(signer, request, decision)
        if not why:
            if why := _wanting(request.requirement, decision, reason):
                return Refused(why)
            if how and decision is Decision.APPROVE and request.requirement.second_factor_required and not how.is_fresh:
                return Refused(Why(Rule.SECOND_FACTOR, _second_factor_wanted(request.requirement.tier, how)))
            return Allowed(_role_of(signer, request), signer.voice_of, signer.on_behalf_of)
        obstacles.append(why)
    return Refused(Why(obstacles[0].rule, " ".join(dict.fromkeys(obstacles))))


def options(person: PersonFacts, request: RequestFacts) -> tuple[Allowed, ...]:
    """Every way in which `person` may approve now: with which right, as what."""
    answers = (may_sign(person, request, on_behalf_of=one.voice_of) for one in _rights(person, None))
    return tuple(answer for answer in answers if isinstance(answer, Allowed))


def _rights(person: PersonFacts, on_behalf_of: int | None) -> list[PersonFacts]:
    """The person once with each right they could use, their own first; only the wanted one when one is."""
    if on_behalf_of is not None:
        return [person.signing_for(on_behalf_of)]
    return [person.signing_for(None), *(person.signing_for(one.id) for one in person.stands_in_for)]


def _barred(person: PersonFacts, request: RequestFacts, decision: Decision) -> Why:
    """Why nobody in the place of `person` may sign this, with whatever right. Empty when nothing is in the way."""
    if not person.active:
        return Why(Rule.INACTIVE, f"The account of {person.name} is not active, so it cannot sign.")
    if person.is_service_account:
        return Why(Rule.PROGRAM, f"{person.name} is the account of a program, and programs never sign.")
    if request.state is RequestState.CHANGES_ASKED and decision is Decision.APPROVE:
        return Why(
            Rule.CHANGES_ASKED,
            "Changes are asked for. Nothing is approved until they are made or whoever asks takes that back.",
        )
    if request.state not in PENDING:
        return Why(Rule.OVER, f"{CLOSED[request.state]} {request.because}".strip())
    if request.expired:
        return Why(Rule.EXPIRED, "This request has expired. It has to be asked for again.")
    if person.id == request.proposed_by:
        return Why(Rule.PROPOSED, f"Nobody signs what they proposed, and {person.name} proposed this.")
    if person.id in request.edited_by:
        return Why(Rule.EDITED, f"Nobody signs what they edited, and {person.name} edited this.")
    for signer in request.signers:
        if signer.id == person.id:
            return Why(Rule.COUNTED, f"{person.name} has signed already, and one person counts once.")
        if person.id in signer.bodies:
            return Why(Rule.COUNTED, f"{signer.name} has signed on behalf of {person.name}, and the two count once.")
    return NOTHING


def _obstacle(signer: PersonFacts, request: RequestFacts, decision: Decision) -> Why:
    """Why this one right cannot be used here. Empty when it can."""
    requirement, lent = request.requirement, signer.on_behalf_of
    if lent is not None:
        if lent.id == request.proposed_by:
            return Why(Rule.PROPOSED, f"{lent.name} proposed this, so nobody signs it on behalf of {lent.name}.")
        if lent.id in request.edited_by:
            return Why(Rule.EDITED, f"{lent.name} edited this, so nobody signs it on behalf of {lent.name}.")
        if any(lent.id in one.bodies for one in request.signers):
            return Why(
                Rule.COUNTED, f"The right of {lent.name} is used already, and a person and their deputy count once."
            )
    wanted: Slot = frozenset[Role]().union(*requirement.signatures)
    if not signer.roles & wanted:
        if lent is not None:
            return Why(
                Rule.NO_ROLE, f"{signer.name} may not sign this on behalf of {lent.name}: no right to it was lent."
            )
        return Why(Rule.NO_ROLE, " ".join((requirement.reason, f"{signer.name} has no such role.", *signer.elsewhere)))
    open_slots = missing(requirement, request.signers)
    if decision is Decision.APPROVE and len(missing(requirement, (*request.signers, signer))) == len(open_slots):
        return Why(Rule.NOT_MISSING, f"What is still missing is {in_words(open_slots)}; {signer.name} cannot give it.")
    if decision is Decision.APPROVE and requirement.second_factor_required:
        return _unsettled(signer, open_slots)
    return NOTHING


def _unsettled(signer: PersonFacts, open_slots: Sequence[Slot]) -> Why:
    """Whether it could be somebody else who signs: their credentials, or the principal's, were just reset."""
    for one in (signer, signer.on_behalf_of):
        if one and one.reset:
            others = [slot_in_words(slot) for slot in open_slots if slot & signer.roles]
            sentence = f"{one.reset.of(one.name)} Meanwhile somebody else may be asked: {', or '.join(others)}."
            return Why(Rule.CREDENTIALS_RESET, sentence)
    return NOTHING


def _wanting(requirement: Requirement, decision: Decision, reason: str | None) -> Why:
    """What is wanting in the reason of somebody who may decide."""
    if reason is not None and not reason.strip():
        if decision is Decision.REJECT:
            return Why(Rule.NO_REASON, "A rejection needs a written reason: it is what the next attempt learns from.")
        if decision is Decision.ASK_FOR_CHANGES:
            return Why(Rule.NO_REASON, "Who asks for changes writes down which.")
        if requirement.reason_required:
            return Why(Rule.NO_REASON, f"Approving a {requirement.tier}-risk change needs a written reason.")
    return NOTHING


def _role_of(signer: PersonFacts, request: RequestFacts) -> Role:
    open_slots = frozenset[Role]().union(*missing(request.requirement, request.signers))
    fitting = open_slots & signer.roles or frozenset[Role]().union(*request.requirement.signatures) & signer.roles
    return next(role for role in Role if role in fitting)


def _second_factor_wanted(tier: Tier, how: How) -> str:
    minutes = FRESH_SECONDS / 60
    if how.channel is Channel.TOKEN:
        return f"A {tier}-risk change cannot be signed by a token alone: it needs a one-time code too."
    if how.second_factor_age_seconds is None:
        return f"Approving a {tier}-risk change needs a second factor: confirm with a code of your authenticator first."
    return f"Your second factor is older than {minutes:g} minutes. Confirm with a new code and approve again."
