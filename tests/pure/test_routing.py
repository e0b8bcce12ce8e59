"""Who is told of which alert, when, in which group; and what keeps an alert quiet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from monitoring.alerts import DEFAULT_RULES
from monitoring.routing import (
    INHIBITIONS,
    LONGEST_RETRY_SECONDS,
    MOST_ATTEMPTS,
    MOST_GROUPS,
    Due,
    Kind,
    Outbox,
    Quiet,
    Raised,
    Step,
    Told,
    due,
    grouped,
    retry_after_seconds,
    suppressed,
)

T0 = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SHOP, OTHER, OWN = 1, 2, 3
ON_CALL, LEAD = 11, 12
STEPS = [Step(ON_CALL, 0, repeat_minutes=60), Step(LEAD, 15, repeat_minutes=120)]


def alert(number: int = 1, name: str = "error-ratio", **fields) -> Raised:
    given = {"service_id": SHOP, "severity": "critical", "signal": "error_ratio", "audible_since": T0} | fields
    return Raised(id=number, name=name, **given)


def told(contact: int, minutes: float = 0, *, kind=Kind.FIRING, number: int = 1, state=Outbox.SENT) -> Told:
    return Told(contact, kind, number, T0 + timedelta(minutes=minutes), state)


FIRST, SECOND = (ON_CALL, "firing", 1), (LEAD, "firing", 1)


@pytest.mark.parametrize(
    ("why", "fields", "before", "minutes", "expected"),
    [
        ("the first step is told at once", {}, [], 0, [FIRST]),
        ("nobody is told twice", {}, [told(ON_CALL)], 1, []),
        ("the second step waits", {}, [told(ON_CALL)], 14.9, []),
        ("the second step is told when nobody acknowledged", {}, [told(ON_CALL)], 15, [SECOND]),
        ("both, when nothing ran for a while", {}, [], 20, [FIRST, SECOND]),
        ("an acknowledgement ends escalation", {"is_acknowledged": True}, [told(ON_CALL)], 200, []),
        ("an acknowledgement before anyone was told", {"is_acknowledged": True}, [], 0, []),
        ("what is kept quiet is not told", {"audible_since": None}, [], 30, []),
        ("it is repeated", {}, [told(ON_CALL), told(LEAD, 15)], 60, [(ON_CALL, "firing", 2)]),
        (
            "each at their own interval",
            {},
            [told(ON_CALL), told(ON_CALL, 60, number=2), told(LEAD, 15)],
            135,
            [(ON_CALL, "firing", 3), (LEAD, "firing", 2)],
        ),
        ("not before the last one arrived", {}, [told(ON_CALL, state=Outbox.WAITING), told(LEAD, 15)], 60, []),
        (
            "again, when the last one was given up",
            {},
            [told(ON_CALL, state=Outbox.DEAD), told(LEAD, 15)],
            60,
            [(ON_CALL, "firing", 2)],
        ),
        ("a message that is given up calls the next at once", {}, [told(ON_CALL, state=Outbox.DEAD)], 1, [SECOND]),
        ("one that is tried again does not", {}, [told(ON_CALL, state=Outbox.WAITING)], 1, []),
        ("the end goes to who was told", {"is_firing": False}, [told(ON_CALL)], 5, [(ON_CALL, "resolved", 1)]),
        (
            "whatever was acknowledged",
            {"is_firing": False, "is_acknowledged": True},
            [told(LEAD)],
            5,
            [(LEAD, "resolved", 1)],
        ),
        (
            "also when the first message waits",
            {"is_firing": False},
            [told(ON_CALL, state=Outbox.WAITING)],
            5,
            [(ON_CALL, "resolved", 1)],
        ),
        ("not to whom nothing reached", {"is_firing": False}, [told(ON_CALL, state=Outbox.DEAD)], 5, []),
        ("and once", {"is_firing": False}, [told(ON_CALL), told(ON_CALL, 5, kind=Kind.RESOLVED)], 9, []),
        ("nobody hears of the end of what they never heard of", {"is_firing": False}, [], 5, []),
    ],
)
def test_tells(why, fields, before, minutes, expected):
    found = due(alert(**fields), STEPS, before, at=T0 + timedelta(minutes=minutes))
    assert [(one.contact_id, one.kind.value, one.number) for one in found] == expected, why


def test_leaves_warnings_to_who_wants_them():
    steps = [Step(ON_CALL), Step(LEAD, critical_only=True)]
    assert [one.contact_id for one in due(alert(severity="warning"), steps, [], at=T0)] == [ON_CALL]
    assert [one.contact_id for one in due(alert(), steps, [], at=T0)] == [ON_CALL, LEAD]


def test_tells_once_where_nothing_is_repeated():
    assert due(alert(), [Step(ON_CALL)], [told(ON_CALL)], at=T0 + timedelta(days=30)) == []


@pytest.mark.parametrize(
    ("quiet", "is_covered"),
    [
        (Quiet("all"), True),
        (Quiet("service", SHOP), True),
        (Quiet("other service", OTHER), False),
        (Quiet("rule", None, "error-ratio"), True),
        (Quiet("other rule", None, "latency-slow"), False),
        (Quiet("part of a rule's name", None, "error"), False),
        (Quiet("label", SHOP, "", {"endpoint": "/players"}), True),
        (Quiet("both labels", SHOP, "", {"endpoint": "/players", "method": "GET"}), True),
        (Quiet("other value", SHOP, "", {"endpoint": "/items"}), False),
        (Quiet("a label it lacks", SHOP, "", {"release": "abc"}), False),
    ],
)
def test_silences_what_matches(quiet, is_covered):
    one = alert(labels={"endpoint": "/players", "method": "GET"})
    assert suppressed([one], [quiet]) == ({1: quiet.words} if is_covered else {})


@pytest.mark.parametrize(
    ("why", "source", "target", "is_inhibited"),
    [
        (
            "down silences latency",
            {"name": "not-measured", "signal": "up"},
            {"name": "latency-slow", "signal": "latency_p95_ms"},
            True,
        ),
        ("and errors", {"name": "not-measured", "signal": "up"}, {"name": "mine", "signal": "error_ratio"}, True),
        ("and burn rates", {"name": "absent"}, {"name": "error-budget-fast"}, True),
        ("not the disk", {"name": "not-measured"}, {"name": "disk-filling", "signal": "disk_used_percent"}, False),
        (
            "not another service",
            {"name": "not-measured", "service_id": OTHER},
            {"name": "latency-slow", "signal": "latency_p95_ms"},
            False,
        ),
        (
            "not when it is over",
            {"name": "not-measured", "is_firing": False},
            {"name": "latency-slow", "signal": "latency_p95_ms"},
            False,
        ),
        ("not itself", {"name": "not-measured"}, {"name": "not-measured", "signal": "up"}, False),
        (
            "our own silence, everywhere",
            {"labels": {"program": "beat"}, "name": "program-silent", "service_id": OWN, "is_own": True},
            {"name": "not-measured"},
            True,
        ),
        (
            "another's worker is no reason",
            {"labels": {"program": "beat"}, "name": "program-silent", "service_id": OTHER},
            {"name": "not-measured"},
            False,
        ),
        (
            "a fixed limit before a relative one",
            {"name": "latency-slow"},
            {"name": "latency-unusual", "signal": "latency_p95_ms"},
            True,
        ),
        (
            "of the same series only",
            {"name": "latency-slow", "labels": {"endpoint": "/a"}},
            {"name": "latency-unusual"},
            False,
        ),
    ],
)
def test_inhibits(why, source, target, is_inhibited):
    found = suppressed([alert(1, **source), alert(2, **target)], [])
    assert (2 in found) is is_inhibited, why
    assert 1 not in found
    if is_inhibited:
        assert found[2].startswith(f"Inhibited by {source['name']}: ")


@pytest.mark.parametrize(
    ("serving", "blind", "is_inhibited"),
    [
        (set(), ["a"], True),
        ({"a"}, ["a"], True),
        ({"a", "b"}, ["a"], False),  # the other release still measures
        ({"a", "b"}, ["a", "b"], True),
        ({"b"}, ["a"], False),
    ],
)
def test_one_blind_release_of_two_hides_nothing_of_the_service(serving, blind, is_inhibited):
    causes = [alert(10 + n, "not-measured", labels={"release": release}) for n, release in enumerate(blind)]
    found = suppressed([alert(1, "latency-slow", signal="latency_p95_ms"), *causes], [], serving={SHOP: serving})
    assert (1 in found) is is_inhibited


def test_never_silences_a_cause_by_what_it_causes():
    everything = [
        alert(number, rule.name, signal=rule.signal, is_own=True) for number, rule in enumerate(DEFAULT_RULES)
    ]
    quiet = suppressed(everything, [])
    assert len(quiet) < len(everything)
    for inhibition in INHIBITIONS:
        for one in everything:
            for other in everything:
                mutual = inhibition.reaches(one, other) and any(i.reaches(other, one) for i in INHIBITIONS)
                assert not mutual, (one.name, other.name)


def test_groups_by_contact_kind_and_service():
    dues = [
        Due(2, ON_CALL, Kind.FIRING, 1),
        Due(1, ON_CALL, Kind.FIRING, 1),
        Due(3, ON_CALL, Kind.FIRING, 1),
        Due(4, ON_CALL, Kind.RESOLVED, 1),
        Due(1, LEAD, Kind.FIRING, 1),
    ]
    groups = grouped(dues, {1: SHOP, 2: SHOP, 3: OTHER, 4: SHOP})
    assert sorted((g.contact_id, g.kind.value, g.service_id, [d.alert_id for d in g.dues]) for g in groups) == [
        (ON_CALL, "firing", SHOP, [1, 2]),
        (ON_CALL, "firing", OTHER, [3]),
        (ON_CALL, "resolved", SHOP, [4]),
        (LEAD, "firing", SHOP, [1]),
    ]
    assert grouped(reversed(dues), {1: SHOP, 2: SHOP, 3: OTHER, 4: SHOP})[0].key in {group.key for group in groups}
    assert len({group.key for group in groups}) == len(groups)


def test_makes_one_message_of_a_storm():
    count = MOST_GROUPS + 1
    dues = [Due(number, ON_CALL, Kind.FIRING, 1) for number in range(count)]
    (group,) = grouped(dues, {number: number for number in range(count)})
    assert (group.service_id, len(group.dues)) == (None, count)


def test_waits_longer_each_time_and_gives_up():
    waits = [retry_after_seconds(attempts) for attempts in range(1, MOST_ATTEMPTS + 1)]
    assert waits[:3] == [10, 20, 40]
    assert waits[-1] is None
    known = [wait for wait in waits if wait is not None]
    assert known == sorted(known)
    assert max(known) == LONGEST_RETRY_SECONDS
    assert 3600 < sum(known) < 2 * 3600
