from __future__ import annotations

from approvals.diff import Kind, counts, lines

DIFF = """\
diff --git a/realm/views.py b/realm/views.py
index 1111111..2222222 100644
--- a/realm/views.py
+++ b/realm/views.py
@@ -3,3 +3,3 @@ def players(request):
     first
--- looks like a header
+++ looks like one, too
     last
\\ No newline at end of file
@@ -20 +20,2 @@
-old
+new
+newer
diff --git a/gone.py b/gone.py
deleted file mode 100644
--- a/gone.py
+++ /dev/null
@@ -1 +0,0 @@
-x
"""


def test_tells_lines_apart_by_the_counts_of_their_hunk() -> None:
    found = lines(DIFF)
    assert [line.text for line in found if line.kind is Kind.FILE] == ["realm/views.py", "gone.py"]
    assert [line.text for line in found if line.kind is Kind.REMOVED] == ["-- looks like a header", "old", "x"]
    assert [line.text for line in found if line.kind is Kind.ADDED] == ["++ looks like one, too", "new", "newer"]
    assert counts(found) == (3, 3)


def test_numbers_the_lines_of_both_versions() -> None:
    numbers = [(line.old, line.new) for line in lines(DIFF) if line.kind in (Kind.SAME, Kind.ADDED, Kind.REMOVED)]
    assert numbers == [(3, 3), (4, None), (None, 4), (5, 5), (20, None), (None, 20), (None, 21), (1, None)]


def test_shows_text_that_is_no_diff() -> None:
    assert [(line.kind, line.text) for line in lines("setting: 2 -> 4")] == [(Kind.NOTE, "setting: 2 -> 4")]
    assert lines("") == []


def test_ends_a_hunk_whose_counts_lie_at_the_next_header() -> None:
    found = lines("@@ -1,9 +1,9 @@\n same\n@@ -20 +20 @@\n-a\n+b\n")
    assert [line.kind for line in found] == [Kind.HUNK, Kind.SAME, Kind.HUNK, Kind.REMOVED, Kind.ADDED]
