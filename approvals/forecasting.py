"""Who must sign this, and why? Answered before anybody is asked, for a subject or for any tier, category and time."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from approvals import holding, policy, roles, terms
from approvals.policy import PersonFacts, RequestFacts, Requirement, Role
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
        kept_out(request, people),
        str(hold) if hold else "",
    )


def needs(request: RequestFacts, people: Iterable[PersonFacts]) -> list[Need]:
    """Each slot that is still open, with those of `people` who may fill it now."""
    open_slots = policy.missing(request.requirement, request.signers)
    if not open_slots:
        return []
    able = [person.signing_for(way.voice_of) for person in people for way in policy.options(person, request)]
    return [
        Need(policy.slot_in_words(slot), sorted(signer.signed_as for signer in able if signer.roles & slot))
        for slot in open_slots
    ]


def kept_out(request: RequestFacts, people: Sequence[PersonFacts]) -> list[str]:
    """Why those may not sign who have a role that could, here or at another service."""
    if not request.requirement.signatures:
        return []
    wanted = frozenset[Role]().union(*request.requirement.signatures)
    found = []
    for person in people:
        has_role = person.roles & wanted or person.elsewhere or any(one.roles & wanted for one in person.stands_in_for)
        answer = policy.may_sign(person, request)
        if has_role and isinstance(answer, policy.Refused):
            found.append(answer.why.removeprefix(request.requirement.reason).strip())
    return sorted(found)
