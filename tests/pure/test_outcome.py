"""Several checks as one outcome."""

import itertools

import pytest

from improvements.outcome import Evidence, Outcome, Verdict, combine

ORDER = [Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.NO_DATA, Verdict.FAIL]


@pytest.mark.parametrize(("one", "other"), [*itertools.product(Verdict, Verdict)])
def test_combines_to_the_worse_of_two_verdicts(one, other):
    worse = max(one, other, key=ORDER.index)
    assert combine([Outcome(one, "a"), Outcome(other, "b")]).verdict is worse


def test_says_no_data_when_nothing_was_checked():
    assert combine([]).verdict is Verdict.NO_DATA


def test_keeps_every_reason_and_all_evidence():
    parts = [
        Outcome(Verdict.PASS, "fine", (Evidence("a", "a"),)),
        Outcome(Verdict.FAIL, "broken", (Evidence("b", "b"),)),
    ]
    combined = combine(parts)
    assert "fine" in combined.reason
    assert "broken" in combined.reason
    assert [evidence.kind for evidence in combined.evidence] == ["a", "b"]
