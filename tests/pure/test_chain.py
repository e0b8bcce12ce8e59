from __future__ import annotations

import json

import pytest
import rfc8785

from approvals import chain
from approvals.chain import Link


def columns(sequence: int, **others: object) -> dict[str, object]:
    texts = dict.fromkeys(chain.COLUMNS, "")
    return {**texts, "sequence": sequence, "actor_id": 7, "action": f"thing.{sequence}", **others}


def payload_of(told: dict[str, object], details: str = "{}") -> str:
    before, after = chain.payload_parts(told, details)
    return f"{before}{told['sequence']}{after}"


def a_chain(length: int) -> list[Link]:
    links: list[Link] = []
    previous = chain.GENESIS
    for sequence in range(1, length + 1):
        told = columns(sequence)
        payload = payload_of(told, f'{{"data":{{"n":{sequence},"yes":true}}}}')
        links.append(Link(sequence, previous, chain.link_hash(previous, payload), payload, chain.columns_text(told)))
        previous = links[-1].hash
    return links


def rehashed(links: list[Link]) -> list[Link]:
    """The same payloads with links and hashes made anew: what somebody with the formula could write."""
    result: list[Link] = []
    previous = chain.GENESIS
    for link in links:
        result.append(link._replace(prev_hash=previous, hash=chain.link_hash(previous, link.payload)))
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
            tampered[place] = links[place]._replace(**{name: flipped})
            fault = chain.walk(tampered, marks={3: links[-1].hash}).fault
            assert fault is not None
            assert fault.sequence == place + 1


@pytest.mark.parametrize(
    "others",
    [{"actor_id": 8}, {"actor_id": None}, {"action": "thing.3"}, {"actor_id": True}, {"subject": "new"}],
)
def test_finds_a_column_that_says_something_else_than_the_payload(others: dict[str, object]) -> None:
    links = a_chain(3)
    text = json.dumps(columns(2, **others), sort_keys=True, separators=(",", ":"))
    links[1] = links[1]._replace(columns=text)
    fault = chain.walk(links).fault
    assert fault == chain.Fault(2, f"Its column {next(iter(others))} does not say what was recorded.")


@pytest.mark.parametrize("text", ["", "plain", 'a"b\\c', "\b\f\n\r\t\x01\x7f", "é€😀 ", "<&>/"])
def test_spells_as_canonical_json(text: str) -> None:
    told = columns(1, because=text, actor_id=None)
    assert chain.columns_text(told) == rfc8785.dumps(told).decode()
    payload = payload_of(told, rfc8785.dumps({"data": {"é": text}}).decode())
    assert payload == rfc8785.dumps(json.loads(payload)).decode()


def test_verifies_entries_of_the_first_format() -> None:
    told = columns(1, actor="alice")
    first = {name: value for name, value in told.items() if name not in chain.NEW_IN_2}
    payload = rfc8785.dumps({"format": 1, **first, "was": None, "became": None, "data": {}}).decode()
    link = Link(1, chain.GENESIS, chain.link_hash(chain.GENESIS, payload), payload, chain.columns_text(told))
    assert chain.walk([link]).fault is None
    for name in chain.COLUMNS:
        other = {**told, name: 9 if name in ("sequence", "actor_id") else "other"}
        assert chain.walk([link._replace(columns=chain.columns_text(other))]).fault is not None, name


def test_finds_missing_inserted_swapped_and_doubled_entries() -> None:
    links = a_chain(6)
    assert chain.walk([*links[:2], *links[3:]]).fault == chain.Fault(3, "Entry 3 is missing: after 2 comes 4.")
    assert chain.walk([*links[:2], links[3], links[2], *links[4:]]).fault is not None
    assert chain.walk([*links[:3], links[2], *links[3:]]).fault is not None
    assert chain.walk(links[1:]).fault is not None
    foreign = links[2]._replace(payload='{"format":1}')
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
    told = columns(3, action="thing.forged")
    forged[2] = forged[2]._replace(payload=payload_of(told), columns=chain.columns_text(told))
    forged = rehashed(forged)
    assert chain.walk(forged).fault is None
    assert chain.walk(forged, marks=mark).fault is not None


def test_names_the_first_bad_entry_when_several_are() -> None:
    links = a_chain(6)
    for place in (4, 2):
        links[place] = links[place]._replace(payload="{}")
    checked = chain.walk(links)
    assert checked.fault is not None
    assert (checked.count, checked.fault.sequence) == (2, 3)
