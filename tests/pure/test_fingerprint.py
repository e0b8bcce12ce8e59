from __future__ import annotations

import hashlib

import pytest

from approvals.fingerprint import canonical, digest, fingerprint


def test_spells_one_meaning_one_way() -> None:
    assert canonical({"b": 1.0, "a": "é", "c": [True, None]}) == '{"a":"é","b":1,"c":[true,null]}'.encode()
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) == hashlib.sha256(b'{"a":1,"b":2}').hexdigest()


def test_gives_the_rfc_8785_example() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"\u002f",
        "literals": [None, True, False],
    }
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical(value).decode() == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, b"bytes", "\ud800", {1: 2}])
def test_refuses_what_json_cannot_say(value: object) -> None:
    with pytest.raises(ValueError, match="can be hashed"):
        canonical({"value": value})


def test_changes_with_patch_evidence_and_policy_but_not_with_order() -> None:
    original = fingerprint(patch="a", evidence=["1", "2"], policy_version="1/high")
    assert original == fingerprint(patch="a", evidence=["2", "1"], policy_version="1/high")
    others = {
        fingerprint(patch="b", evidence=["1", "2"], policy_version="1/high"),
        fingerprint(patch="a", evidence=["1"], policy_version="1/high"),
        fingerprint(patch="a", evidence=["1", "2", "2"], policy_version="1/high"),
        fingerprint(patch="a", evidence=["12"], policy_version="1/high"),
        fingerprint(patch="a", evidence=["1", "2"], policy_version="1/medium"),
    }
    assert len(others) == 5
    assert original not in others
