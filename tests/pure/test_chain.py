from __future__ import annotations

import dataclasses

import pytest

from approvals import chain
from approvals.chain import Link


def a_chain(length: int) -> list[Link]:
    links: list[Link] = []
    previous = chain.GENESIS
    for sequence in range(1, length + 1):
        fields = {"sequence": sequence, "actor_id": 7, "action": f"thing.{sequence}"}
        payload = chain.payload_of(fields, details={"data": {"n": sequence, "yes": True}})
        links.append(Link(sequence, previous, chain.link_hash(previous, payload), payload, fields))
        previous = links[-1].hash
    return links


def rehashed(links: list[Link]) -> list[Link]:
    """The same payloads with links and hashes made anew: what somebody with the formula could write."""
    result: list[Link] = []
    previous = chain.GENESIS
    for link in links:
        result.append(dataclasses.replace(link, prev_hash=previous, hash=chain.link_hash(previous, link.payload)))
        previous = result[-1].hash
    return result


def test_finds_nothing_wrong_with_what_was_written() -> None:
    links = a_chain(20)
    checked = chain.walk(iter(links), marks={20: links[-1].hash, 7: links[6].hash})
    assert checked == chain.Checked(20, 20, links[-1].hash, None)
    assert chain.walk([]) == chain.Checked(0, 0, chain.GENESIS, None)


def test_finds_every_flipped_character_of_every_stored_text() -> None:
    links = a_chain(3)
    for place, name in ((place, name) for place in range(3) for name in ("prev_hash", "hash", "payload")):
        text = getattr(links[place], name)
        for position in range(len(text)):
            flipped = text[:position] + chr(ord(text[position]) ^ 1) + text[position + 1 :]
            tampered = [*links]
            tampered[place] = dataclasses.replace(links[place], **{name: flipped})
            fault = chain.walk(tampered, marks={3: links[-1].hash}).fault
            assert fault is not None
            assert fault.sequence == place + 1


@pytest.mark.parametrize(
    "fields",
    [
        {"sequence": 2, "actor_id": 8, "action": "thing.2"},
        {"sequence": 2, "actor_id": None, "action": "thing.2"},
        {"sequence": 2, "actor_id": 7, "action": "thing.3"},
        {"sequence": True, "actor_id": 7, "action": "thing.2"},
        {"sequence": 2, "actor_id": 7, "action": "thing.2", "subject": "new"},
    ],
)
def test_finds_a_column_that_says_something_else_than_the_payload(fields: dict[str, object]) -> None:
    links = a_chain(3)
    links[1] = dataclasses.replace(links[1], fields=fields)
    fault = chain.walk(links).fault
    assert fault is not None
    assert fault.sequence == 2


def test_finds_missing_inserted_swapped_and_doubled_entries() -> None:
    links = a_chain(6)
    assert chain.walk([*links[:2], *links[3:]]).fault == chain.Fault(3, "Entry 3 is missing: after 2 comes 4.")
    assert chain.walk([*links[:2], links[3], links[2], *links[4:]]).fault is not None
    assert chain.walk([*links[:3], links[2], *links[3:]]).fault is not None
    assert chain.walk(links[1:]).fault is not None
    foreign = dataclasses.replace(links[2], payload='{"format":1}', fields={})
    assert chain.walk([*links[:2], foreign, *links[2:]]).fault is not None


def test_finds_a_lost_tail_only_with_a_mark_from_elsewhere() -> None:
    links = a_chain(6)
    assert chain.walk(links[:4]).fault is None
    assert chain.walk(links[:4], marks={6: links[-1].hash}).fault == chain.Fault(
        5, "The log ends at 4 but had reached 6."
    )


def test_finds_a_chain_rewritten_with_right_hashes_only_with_a_mark() -> None:
    links = a_chain(6)
    mark = {6: links[-1].hash}
    forged = [*links]
    fields = {"sequence": 3, "actor_id": 7, "action": "thing.forged"}
    forged[2] = dataclasses.replace(forged[2], payload=chain.payload_of(fields, details={}), fields=fields)
    forged = rehashed(forged)
    assert chain.walk(forged).fault is None
    assert chain.walk(forged, marks=mark).fault is not None


def test_names_the_first_bad_entry_when_several_are() -> None:
    links = a_chain(6)
    for place in (4, 2):
        links[place] = dataclasses.replace(links[place], payload="{}")
    checked = chain.walk(links)
    assert checked.fault is not None
    assert (checked.count, checked.fault.sequence) == (2, 3)
