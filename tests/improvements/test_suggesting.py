"""From findings to suggestions, and which of them start by themselves."""

from __future__ import annotations

import datetime as dt

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from approvals.models import AuditEntry
from improvements import suggesting, ticking
from improvements.authors import author_for
from improvements.models import Improvement, State
from tests.improvements.factories import FindingFactory, ImprovementFactory, ServiceFactory, in_state

pytestmark = pytest.mark.django_db

TIERS = ("low", "medium", "high", "critical")


# --- suggesting ---------------------------------------------------------------------------------------------------


def test_suggests_once_for_each_finding() -> None:
    findings = [FindingFactory(), FindingFactory()]
    assert {one.finding for one in suggesting.suggest()} == set(findings)
    assert suggesting.suggest() == []
    assert Improvement.objects.count() == 2
    assert AuditEntry.objects.filter(action="improvement.suggested").count() == 2


def test_proposes_what_is_proposed_already_only_once(alice: User) -> None:
    finding = FindingFactory()
    author = author_for(finding)
    assert author is not None
    first = suggesting.propose(finding, author, by=None)
    assert suggesting.propose(finding, author, by=alice) == first
    assert Improvement.objects.count() == 1


@pytest.mark.parametrize(
    "unfit",
    [
        {"closed_at": timezone.now()},
        {"service__archived_at": timezone.now()},
        {"evidence": {}},
    ],
    ids=["closed", "of an archived service", "nothing to act on"],
)
def test_suggests_nothing_for_a_finding_that_nobody_can_act_on(unfit: dict) -> None:
    FindingFactory(**unfit)
    assert suggesting.suggest() == []


@pytest.mark.parametrize("state", State)
def test_does_not_suggest_again_what_was_tried(state: State) -> None:
    in_state(state)
    assert suggesting.suggest() == []


def test_ranks_by_what_it_is_worth() -> None:
    little, much = (
        FindingFactory(impact={"waiting_seconds_per_hour": seconds, "traffic_share": 0.2}) for seconds in (10.0, 900.0)
    )
    suggesting.suggest()
    assert [one.finding for one in Improvement.objects.order_by("-rank")] == [much, little]


def test_estimates_a_higher_risk_where_more_users_pass() -> None:
    shares = (0.05, 1.0)
    for share in shares:
        FindingFactory(impact={"waiting_seconds_per_hour": 100.0, "traffic_share": share})
    estimated = [one.estimated_tier for one in sorted(suggesting.suggest(), key=lambda one: one.finding_id)]
    assert [TIERS.index(one) for one in estimated] == sorted(TIERS.index(one) for one in estimated)
    assert estimated[0] != estimated[1]


# --- starting by itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("threshold", ["low", "medium", "high"])
def test_starts_by_itself_up_to_the_threshold(settings, threshold: str, tier: str) -> None:
    settings.SELF_BUILD_RISK_THRESHOLD = threshold
    improvement = ImprovementFactory(estimated_tier=tier)
    starts = TIERS.index(tier) <= TIERS.index(threshold)
    assert suggesting.start_by_itself() == ([improvement.pk] if starts else [])
    improvement.refresh_from_db()
    assert (improvement.started_at is not None) == starts
    assert AuditEntry.objects.filter(action="improvement.started").count() == starts


def test_starts_nothing_by_itself_when_that_is_switched_off(settings, bob: User) -> None:
    settings.SELF_BUILD_ENABLED = False
    improvement = ImprovementFactory(estimated_tier="low")
    assert suggesting.start_by_itself() == []
    assert suggesting.begin(improvement, actor=bob)  # a person may


def test_never_starts_on_itself(settings) -> None:
    settings.SELF_BUILD_RISK_THRESHOLD = "high"
    ImprovementFactory(finding__service=ServiceFactory(is_self=True), estimated_tier="low")
    assert suggesting.start_by_itself() == []
    assert ticking.due() == []


def test_does_not_start_for_a_service_that_is_no_longer_watched() -> None:
    ImprovementFactory(finding__service=ServiceFactory(archived_at=timezone.now()), estimated_tier="low")
    assert suggesting.start_by_itself() == []


def test_starts_one_at_a_time_and_the_best_first() -> None:
    service = ServiceFactory()
    little, much = (ImprovementFactory(finding__service=service, rank=rank) for rank in (1.0, 9.0))
    elsewhere = ImprovementFactory(rank=5.0)
    assert suggesting.start_by_itself() == [much.pk, elsewhere.pk]
    assert suggesting.start_by_itself() == []
    Improvement.objects.filter(pk=much.pk).update(state=State.FAILED)
    assert suggesting.start_by_itself() == [little.pk]


@pytest.mark.parametrize("settled", [False, True])
def test_waits_until_what_was_promoted_has_settled(settled: bool) -> None:
    promoted = in_state(State.PROMOTED)
    now = timezone.now()
    Improvement.objects.filter(pk=promoted.pk).update(started_at=now, settled_at=now if settled else None)
    following = ImprovementFactory(finding__service=promoted.service)
    assert suggesting.start_by_itself() == ([following.pk] if settled else [])


def test_starts_once_what_is_started_twice(alice: User, bob: User) -> None:
    improvement = ImprovementFactory()
    assert suggesting.begin(improvement, actor=alice)
    assert not suggesting.begin(improvement, actor=bob)
    improvement.refresh_from_db()
    assert improvement.proposed_by == alice
    assert AuditEntry.objects.filter(action="improvement.started").count() == 1


# --- what is no longer wanted -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("age_days", "state"), [(29, State.SUGGESTED), (31, State.EXPIRED)])
def test_expires_when_nobody_started_it_for_thirty_days(age_days: int, state: State) -> None:
    improvement = ImprovementFactory(created_at=timezone.now() - dt.timedelta(days=age_days))
    suggesting.expire_old()
    ticking.take_step(improvement)
    improvement.refresh_from_db()
    assert improvement.state == state


def test_is_dismissed_when_what_was_found_is_gone() -> None:
    improvement = ImprovementFactory(finding__closed_at=timezone.now(), finding__closed_because="fixed by hand")
    suggesting.begin(improvement, actor=None)
    assert ticking.take_step(improvement)
    improvement.refresh_from_db()
    assert improvement.state == State.DISMISSED
    assert "fixed by hand" in improvement.runs.get().reason


def test_goes_to_its_author_when_the_finding_is_still_open() -> None:
    improvement = ImprovementFactory()
    assert not ticking.take_step(improvement)
    suggesting.begin(improvement, actor=None)
    assert ticking.take_step(improvement)
    improvement.refresh_from_db()
    assert improvement.state == State.AUTHORING
