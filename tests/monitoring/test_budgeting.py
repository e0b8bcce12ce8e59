"""The error budget: what is gone, what is not known, and what that holds."""

from __future__ import annotations

from datetime import timedelta

import pytest

from approvals import holding
from monitoring import budgeting
from monitoring.manifest import parse
from monitoring.models import Service
from tests.monitoring.factories import MANIFEST, T0, ServiceFactory, samples

pytestmark = pytest.mark.django_db
WHOLE = {"endpoint": "*", "method": "*"}


def service(slo: str = "availability = 0.99\nperiod_days = 7") -> Service:
    made: Service = ServiceFactory(name="shop", manifest=parse(f"{MANIFEST}[slo]\n{slo}\n").model_dump(mode="json"))
    return made


def traffic(one: Service, ratios: list[float], *, per_second: float = 10.0, days: int = 7) -> None:
    """An interval of a minute for each ratio, the last one just before T0: 600 requests each if not said otherwise.

    One more, without failures, lies at the beginning of the period of so many `days`; 0: there is none.
    """
    for until, values in [(T0 - timedelta(days=days) + timedelta(minutes=2), [0.0] * bool(days)), (T0, ratios)]:
        samples(one, "error_ratio", values, until=until, **WHOLE)
        samples(one, "requests_per_second", [per_second] * len(values), until=until, **WHOLE)


def test_holds_when_the_budget_is_gone_and_says_when_it_is_back() -> None:
    # 60,600 requests may fail 606 times. 1,710 did: in the first of a hundred minutes, the fiftieth and the last.
    traffic(service(), [0.95, *[0.0] * 48, 0.95, *[0.0] * 49, 0.95])
    hold = holding.hold("shop", T0, is_reliability_fix=False)
    assert hold is not None
    assert "The error budget of shop is gone: 1,710 of 60,600 requests failed" in hold.why
    assert "what 99% over 7 days allows" in hold.why
    assert budgeting.left(Service.objects.get(), T0) == pytest.approx(1 - 1710 / 606, abs=0.001)
    # Two of the three must leave the period.
    assert hold.until == T0 - timedelta(minutes=51) + timedelta(days=7)


@pytest.mark.parametrize(("fix", "rollback"), [(True, False), (False, True)])
def test_lets_reliability_fixes_and_rollbacks_through(fix: bool, rollback: bool) -> None:
    traffic(service(), [0.5] * 10)
    assert holding.hold("shop", T0, is_reliability_fix=False) is not None
    assert holding.hold("shop", T0, is_reliability_fix=fix, is_rollback=rollback) is None


@pytest.mark.parametrize(
    ("ratios", "per_second", "note", "left"),
    [
        ([0.009] * 10, 10.0, False, 1 - 54 / 66),  # within the budget
        ([], 10.0, True, None),  # never measured
        ([0.5], 0.5, True, None),  # 60 requests say nothing
        ([0.0, 0.07], 1.0, False, None),  # 4 of 180 failed: more than 1 %, and no incident
    ],
)
def test_holds_nothing_where_it_lasts_or_is_not_known(
    ratios: list[float], per_second: float, note: bool, left: float | None
) -> None:
    one = service()
    if ratios:
        traffic(one, ratios, per_second=per_second)
    found = holding.look("shop", T0, is_reliability_fix=False)
    assert found.hold is None
    assert ("is not known" in found.note) is note
    known = budgeting.left(one, T0)
    assert known == (None if left is None else pytest.approx(left, abs=0.001))


def test_gives_a_young_service_the_budget_of_its_whole_period() -> None:
    traffic(service(), [0.5] * 10, days=0)
    assert holding.look("shop", T0, is_reliability_fix=False) == holding.Finding()


def test_looks_at_its_period_only() -> None:
    traffic(service(), [1.0, 1.0, *[0.0] * 20])
    assert holding.hold("shop", T0, is_reliability_fix=False) is not None
    assert holding.hold("shop", T0 + timedelta(days=7) - timedelta(minutes=15), is_reliability_fix=False) is None


def test_reads_a_quarter_from_rollups() -> None:
    traffic(service("availability = 0.99\nperiod_days = 90"), [0.5] * 30, days=90)
    assert holding.hold("shop", T0, is_reliability_fix=False) is not None


def test_knows_nothing_of_what_is_no_service() -> None:
    assert budgeting.holds("nothing", T0) == holding.Finding()
