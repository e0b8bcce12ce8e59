"""Who must sign this, and why? Answered before anybody is asked, for a subject or for any tier, category and time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from approvals import holding, policy, roles, scopes, terms
from approvals.policy import PersonFacts, RequestFacts, RequestState, Requirement, Role, Slot, Subject, Tier
from approvals.rulebook import Row
from approvals.subjects import Forecast


@dataclass(frozen=True)
class Need:
    """One signature still missing, and who could give it: names, with whose right when it is not their own."""

    of: str
    people: list[str]


@dataclass(frozen=True)
class Answer:
    """Who must sign, and why; `row` holds what the machine must have done and the hours that people have."""

    requirement: Requirement
    needs: list[Need]
    row: Row
    escalates_to: str
    stuck: str  # why no people there are could sign it, and whom to ask; empty: they could
    kept_out: list[str]  # people with a fitting role, and the sentence why they may not
    held: str  # what would keep it from starting at that time; empty: nothing


def who_must_sign(asked: Forecast, at: dt.datetime) -> Answer:
    """The answer with the policy in force, and with the people, deputies and teams as they are at that time."""
    held = terms.in_force()
    requirement = policy.required(asked.tier, asked.concern, all_pass=asked.all_pass, terms=held)
    request = RequestFacts(requirement, proposed_by=asked.proposed_by)
    people = list(roles.everybody(scope=asked.concern.service, at=at).values())
    row = held.document.of(asked.concern.service).tiers[requirement.tier]
    hold = holding.hold(asked.concern.service, at, is_reliability_fix=asked.concern.is_reliability_fix)
    return Answer(
        requirement,
        needs(request, people),
        row,
        row.escalate_to.title,
        stuck(request, people, asked.concern.service, Helpers()),
        kept_out(request, people),
        str(hold) if hold else "",
    )


class Helpers:
    """Who can help where nobody can sign; asked of the database once for all that one page says of it."""

    @cached_property
    def administrators(self) -> str:
        return roles.administrators()

    @cached_property
    def groups(self) -> dict[Role, str]:
        return roles.names_of_groups()

    def whom_to_ask(self, slots: Sequence[Slot], service: str) -> str:
        """Who puts people where they could sign. With a service, it names its own people, which the CTO may change."""
        wanted = frozenset[Role]().union(*slots)
        groups = " or ".join(f"“{name}”" for role, name in self.groups.items() if role in wanted)
        teams = f", or the CTO to name somebody under “Team members” for {service}" if service else ""
        return f"Ask {self.administrators} to put somebody into the group {groups}{teams}."


def stuck(request: RequestFacts, people: Sequence[PersonFacts], service: str, helpers: Helpers) -> str:
    """The sentences for what would wait for ever: what nobody can give, and who can change that; "" when somebody can.

    Asked as if nobody wanted changes: whoever does takes that back, which needs no other people.
    """
    lacking = policy.out_of_reach(replace(request, state=RequestState.OPEN), people)
    if not lacking:
        return ""
    named = any(person.elsewhere for person in people)
    ask = helpers.whom_to_ask(lacking, service if named else "")
    return f"Nobody can sign this as things are: nobody is left for {given_by(lacking)}. {ask}"


def given_by(slots: Sequence[Slot]) -> str:
    """'the signature of the CTO' for slots that somebody should fill."""
    return " and ".join(f"the signature of {policy.slot_in_words(slot)}" for slot in slots)


def gaps(at: dt.datetime) -> list[str]:
    """What the policy asks for and nobody could give, whoever proposes: a sentence for each service and signature."""
    held, rights, helpers = terms.in_force(), roles.snapshot(at=at, everyone=True), Helpers()
    found: dict[tuple[str, tuple[Slot, ...]], list[Tier]] = {}
    teams: set[str] = set()
    for service in ("", *scopes.names()):
        people = list(rights.people(service).values())
        for tier in Tier:
            needed = policy.required(tier, Subject(service=service), all_pass=False, terms=held)
            lacking = policy.out_of_reach(RequestFacts(needed), people)
            if lacking and tier not in found.get(("", lacking), ()):
                found.setdefault((service, lacking), []).append(tier)
        teams |= {service} if any(person.elsewhere for person in people) else set()
    return [
        f"Nobody could sign changes of {' and '.join(tiers)} risk{f' in {service}' if service else ''}: nobody is left "
        f"for {given_by(lacking)}. {helpers.whom_to_ask(lacking, service if service in teams else '')}"
        for (service, lacking), tiers in found.items()
    ]


def needs(request: RequestFacts, people: Iterable[PersonFacts]) -> list[Need]:
    """Each slot that is still open, with those of `people` who may fill it now."""
    open_slots = policy.missing(request.requirement, request.signers)
    if not open_slots:
        return []
    request = replace(request, state=RequestState.OPEN)  # who could, once nobody asks for changes any more
    able = [person.signing_for(way.voice_of) for person in people for way in policy.options(person, request)]
    return [
        Need(policy.slot_in_words(slot), sorted(signer.signed_as for signer in able if signer.roles & slot))
        for slot in open_slots
    ]


def kept_out(request: RequestFacts, people: Sequence[PersonFacts]) -> list[str]:
    """Why those may not sign who have a role that could, here or at another service."""
    if not request.requirement.signatures:
        return []
    request = replace(request, state=RequestState.OPEN)  # that changes are asked for is nobody's own reason
    wanted = frozenset[Role]().union(*request.requirement.signatures)
    found = []
    for person in people:
        has_role = person.roles & wanted or person.elsewhere or any(one.roles & wanted for one in person.stands_in_for)
        answer = policy.may_sign(person, request)
        if has_role and isinstance(answer, policy.Refused):
            found.append(answer.why.removeprefix(request.requirement.reason).strip())
    return sorted(found)
