from __future__ import annotations

from improvements.reliability import FIXES_RELIABILITY, is_fix


def test_has_judged_every_kind_of_finding():
    from analysis.models import Finding

    assert set(FIXES_RELIABILITY) == set(Finding.Kind.values)


def test_takes_a_kind_that_nobody_judged_for_no_fix():
    assert not is_fix("made-up")
    assert not is_fix("")
