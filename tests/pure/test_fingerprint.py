from __future__ import annotations

import hashlib
import math

import pytest
import rfc8785

from approvals.fingerprint import canonical, digest, fingerprint, places


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


def test_is_spelled_as_rfc_8785_has_it_where_pythons_own_encoder_would_do() -> None:
    texts = ["", "a/b", 'q"\\', "\x00\x1f\x7f", "\b\t\n\f\r", "é\u2028\ufeff", "\U0001f600", "\ufb33"]
    near = [0.0001, 1e15, 1e16, 1e21]
    numbers = [0.0, -0.0, 0.31, -1.5, 5e-324, 123456789012345.6, *near]
    numbers += [math.nextafter(one, towards) for one in near for towards in (0, math.inf)]
    for value in [*texts, *numbers, *(-number for number in numbers), 2**53 - 1, 1 - 2**53, None, True, [], {}]:
        nested = {"b": [value], "a": {"": value}}
        assert canonical(nested) == rfc8785.dumps(nested)
    names = dict.fromkeys([*texts, "Z", "a", "aa", "a-", "10", "9"], 1)
    assert canonical(names) == rfc8785.dumps(names)


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


# --- What of a diff counts -----------------------------------------------------------------------------------------


def printed(diff: str) -> str:
    return fingerprint(patch=diff, evidence=[], policy_version="1/high")


PATCH = """diff --git a/shop/app.py b/shop/app.py
index 1111111111111111111111111111111111111111..2222222222222222222222222222222222222222 100644
--- a/shop/app.py
+++ b/shop/app.py
@@ -10,4 +10,4 @@ def price():
     one = 1
-    two = 2
+    two = 3
     three = 3
     four = 4
@@ -30,3 +30,3 @@ def total():
     a = 1
-- old = 2
++ new = 2
     c = 3
diff --git a/old name.py b/new name.py
similarity index 93%
rename from old name.py
rename to new name.py
index 3333333333333333333333333333333333333333..4444444444444444444444444444444444444444 100644
--- a/old name.py\t
+++ b/new name.py\t
@@ -1 +1 @@
-x = 1
+x = 2
\\ No newline at end of file
"""

SAME = {
    "the numbers of lines": ("@@ -10,4 +10,4 @@", "@@ -17,4 +19,4 @@"),
    "hashes of whole files": ("1" * 40, "a" * 40),
    "how alike files are": ("similarity index 93%", "similarity index 88%"),
}
OTHER = {
    "an added line": ("+    two = 3", "+    two = 4"),
    "a removed line": ("-    two = 2", "-    two = 5"),
    "a context line": ("     three = 3", "     three = 9"),
    "white space": ("+    two = 3", "+    two = 3 "),
    "an end of line": ("+    two = 3", "+    two = 3\r"),
    "a sign": ("     three = 3\n", "+    three = 3\n"),
    "the end of a file": ("\\ No newline at end of file\n", ""),
    "the function around": ("def price():", "def cost():"),
    "a path": ("+++ b/shop/app.py", "+++ b/shop/api.py"),
    "a renamed path": ("rename to new name.py", "rename to other name.py"),
    "a mode": ("index 1111", "old mode 100644\nnew mode 100755\nindex 1111"),
    "a file less": (PATCH[PATCH.index("diff --git a/old") :], ""),
    "a hunk less": (PATCH[PATCH.index("@@ -30,3") : PATCH.index("diff --git a/old")], ""),
    "what looks like a header": ("++ new = 2", "++ newer = 2"),
}


@pytest.mark.parametrize("what", SAME)
def test_keeps_a_patch_that_only_moved(what: str) -> None:
    old, new = SAME[what]
    assert PATCH.count(old) == 1
    assert printed(PATCH.replace(old, new)) == printed(PATCH)


@pytest.mark.parametrize("what", OTHER)
def test_tells_patches_apart(what: str) -> None:
    old, new = OTHER[what]
    assert PATCH.count(old) == 1
    assert printed(PATCH.replace(old, new)) != printed(PATCH)


@pytest.mark.parametrize("sign", ["\ufffd", "␀"])
def test_counts_hashes_of_what_text_cannot_hold(sign: str) -> None:
    """Two files of bytes may look alike as text."""
    binary = PATCH.replace("+    two = 3", f"+    two = {sign}")
    assert printed(binary) != printed(binary.replace("2" * 40, "b" * 40))
    assert printed(binary) == printed(binary.replace("4" * 40, "b" * 40)), "the other file is text"
    assert printed(binary) == printed(binary.replace("@@ -30,3 +30,3", "@@ -31,3 +31,3"))


def test_takes_no_line_of_a_file_for_a_header() -> None:
    """A hunk says how long it is, so what it adds cannot pretend to be the next file, which would not be shown."""
    honest = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1,3 @@\n one\n+two\n+three\n"
    for sly in ("diff --git a/y b/y", "index 1..2", "similarity index 5%", "@@ -1 +1 @@"):
        assert printed(honest.replace("+two", f"+{sly}")) != printed(honest.replace("+two", f"+{sly}!"))
        assert printed(honest.replace("+two", sly)) != printed(honest.replace("+two", f"{sly}!"))


def test_takes_other_text_as_it_is() -> None:
    assert printed("index 1") != printed("index 2")
    assert len({printed(text) for text in ("", "\n", "a", "a\n", "{}", "@@ -1 +1 @@", "@@ -2 +2 @@")}) == 7


TWINS = "def a():\n    x = 1\n    y = 2\n    z = 3\n\n\ndef b():\n    x = 1\n    y = 2\n    z = 3\n\n\n"


@pytest.mark.parametrize(
    ("start", "before", "place"),
    [(2, "", 0), (8, "", 1), (8, "import os\n\n", 1), (2, "import os\n\n", 0), (2, TWINS, 2)],
)
def test_knows_which_of_several_equal_places_it_is(start: int, before: str, place: int) -> None:
    line = start + before.count("\n")
    hunk = f"@@ -{line},3 +{line},3 @@\n     x = 1\n-    y = 2\n+    y = 3\n     z = 3\n"
    diff = f"diff --git a/x b/x\n--- a/x\n+++ b/x\n{hunk}"
    assert places(diff, {"x": before + TWINS}.__getitem__) == {"x": [place]}


def test_has_no_places_in_what_is_new_or_only_moved() -> None:
    new = "diff --git a/x b/x\nnew file mode 100644\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+one\n"
    moved = "diff --git a/x b/y\nsimilarity index 100%\nrename from x\nrename to y\n"
    assert places(new + moved, {}.__getitem__) == {}


def test_keeps_the_numbers_where_a_name_cannot_be_read() -> None:
    diff = 'diff --git "a/x\\"" "b/x\\""\n--- "a/x\\""\n+++ "b/x\\""\n@@ -7,1 +7,1 @@\n-one\n+two\n'
    assert places(diff, {}.__getitem__) == {'"a/x\\""': [7]}
