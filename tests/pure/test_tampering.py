"""Each column of an entry of each action that the code knows: a change of any is found, without a database."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from approvals import chain
from tests.audit_actions import actions

ACTIONS = sorted(actions())
VALUES: dict[str, Any] = {
    "actor": "alice",
    "actor_id": 3,
    "at": "2026-03-01T12:00:00.000000Z",
    "because": 'é "quoted"\n\\N',
    "correlation": "request-1",
    "on_behalf_of": "dave",
    "origin": "address:0011223344556677",
    "outcome": "ok",
    "subject": "Prefetch guild 4",
    "subject_id": "4",
    "subject_kind": "improvements.improvement",
}


def entry(sequence: int, previous: str, action: str, **changes: Any) -> chain.Link:
    columns = {**VALUES, "action": action, "sequence": sequence, **changes}
    details = '{"became":{"b":2},"data":{"n":[1,"x"]},"was":{"b":1}}'
    before, after = chain.payload_parts(columns, details)
    payload = f"{before}{sequence}{after}"
    return chain.Link(sequence, previous, chain.link_hash(previous, payload), payload, chain.columns_text(columns))


def three(action: str) -> list[chain.Link]:
    """One before it, the entry of the action, one after it."""
    links: list[chain.Link] = []
    for sequence, one in enumerate(("test.before", action, "test.after"), 1):
        links.append(entry(sequence, links[-1].hash if links else chain.GENESIS, one))
    return links


def forgeries(link: chain.Link) -> dict[str, chain.Link]:
    """What a column, the chain's own fields, and each part of the payload could be made to say instead."""
    columns = json.loads(link.columns)
    made = {}
    for name in chain.COLUMNS:
        other = columns[name] + 1 if isinstance(columns[name], int) else f"{columns[name]}x"
        forged = chain.columns_text({**columns, name: other})
        made[name] = link._replace(columns=forged, sequence=other if name == "sequence" else link.sequence)
        # As somebody would who knows how it is made: the payload and its hash fit the column again.
        if name != "sequence":
            others = {key: value for key, value in columns.items() if key != "sequence"}
            made[f"{name}, with its payload"] = entry(2, link.prev_hash, **{**others, name: other})
    for name in ("was", "became", "data"):
        made[name] = link._replace(payload=link.payload.replace(f'"{name}":{{', f'"{name}":{{"z":0,'))
    made["hash"] = link._replace(hash=link.hash[::-1])
    made["prev_hash"] = link._replace(prev_hash=link.prev_hash[::-1])
    return made


def test_finds_a_change_of_each_column_of_an_entry_of_each_action() -> None:
    missed = []
    for action in ACTIONS:
        links = three(action)
        assert chain.walk(links).fault is None, action
        for name, forged in forgeries(links[1]).items():
            assert forged != links[1], (action, name)
            if chain.walk([links[0], forged, links[2]]).fault is None:
                missed.append((action, name))
    assert missed == []


# The topics that the log must tell, and the actions that tell them.
TOPICS: dict[str, tuple[str, ...]] = {
    "settings": ("settings.changed", "policy.proposed", "policy.in_force", "freezewindow.…", "workinghours.set"),
    "people and rights": ("person.created", "role.granted", "role.revoked", "deputy.named", "team.named"),
    "tokens": ("apitoken.issued", "apitoken.revoked"),
    "sign-ins": ("signin.began", "signin.ended", "signin.factor_given"),
    "failed sign-ins": ("signin.failed", "signin.locked", "signin.factor_failed"),
    "alerts": ("alert.…", "alert.acknowledged", "silence.added"),
    "findings": ("finding.opened", "finding.closed"),
    "suggestions": ("improvement.suggested", "improvement.started", "improvement.edited"),
    "risk": ("improvement.risk",),
    "signatures": (
        "approval.opened",
        "approval.signed",
        "approval.revoked",
        "approval.refused",
        "approval.signature_voided",
    ),
    "break-glass": ("break_glass.opened", "break_glass.confirmed", "break_glass.used"),
    "rollouts": ("rollout.started", "rollout.traffic", "rollout.done"),
    "verdicts and measured results": ("improvement.step",),
    "rollbacks": ("rollout.rolled_back", "improvement.reverted"),
    "reviews": ("review.made", "review.signed", "review.escalated"),
    "exports": ("audit.exported", "audit.tombstone"),
    "reads of the log itself": ("audit.read",),
    "verification": ("audit.verified", "audit.checkpoint", "audit.rotation"),
}


@pytest.mark.parametrize("topic", list(TOPICS))
def test_tells_of(topic: str) -> None:
    assert set(TOPICS[topic]) <= set(ACTIONS)


def test_finds_the_actions_in_every_call_that_records() -> None:
    """A call with an action of its own text must be among them, or the test above would pass it over."""
    told = set()
    for app in ("approvals", "monitoring", "analysis", "improvements", "runerogue"):
        for path in (Path(__file__).parents[2] / app).rglob("*.py"):
            told |= set(re.findall(r'audit\.record\(\s*"([^"]+)"', path.read_text(encoding="utf-8")))
    assert len(told) > 30
    assert told <= set(ACTIONS)
