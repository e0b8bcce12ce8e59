"""Which release serves, who moves the traffic, and which processes are put away."""

from __future__ import annotations

import pytest

from approvals.models import AuditEntry
from improvements import releasing
from improvements.deployers import DeployError
from improvements.models import Improvement, Release, Rollout, State
from improvements.models.lifecycle import ENDED
from tests.improvements.factories import ServiceFactory, in_state
from tests.improvements.world import PretendDeployer, Shop

pytestmark = pytest.mark.django_db

UNFINISHED = [state for state in State if state not in ENDED]


def entries(action: str) -> int:
    return AuditEntry.objects.filter(action=action).count()


def idle(shop: Shop, commit: str) -> Release:
    """A release that runs and serves nothing."""
    release = releasing.release_of(shop.service, commit * 40)
    releasing.bring_up(release)
    return release


# --- deploying ----------------------------------------------------------------------------------------------------


def test_deploys_the_head_of_the_branch_when_nothing_serves(shop: Shop) -> None:
    assert shop.current.commit == shop.repository.head()
    assert shop.deployer.traffic(shop.service) == {shop.current.short: 1.0}


def test_deploys_once_what_it_deploys_twice(shop: Shop) -> None:
    before = AuditEntry.objects.count()
    for _ in range(2):
        assert releasing.deploy(shop.service) == shop.current
    assert Release.objects.count() == 1
    assert AuditEntry.objects.count() == before
    assert shop.deployer.traffic(shop.service) == {shop.current.short: 1.0}


def test_keeps_what_serves_although_the_branch_moved_on(shop: Shop) -> None:
    serving = shop.current
    shop.commit({"other.py": "stock = 1\n"})
    assert releasing.deploy(shop.service) == serving
    assert Release.objects.count() == 1


def test_starts_what_should_serve_and_lost_its_process(shop: Shop) -> None:
    shop.deployer.running.clear()
    shop.deployer.restart_proxy()
    releasing.deploy(shop.service)
    assert shop.deployer.traffic(shop.service) == {shop.current.short: 1.0}


def test_serves_nothing_before_the_first_release_is_ready(shop: Shop) -> None:
    other = ServiceFactory(repository=str(shop.folder))
    shop.deployer.broken.add(shop.repository.head())
    with pytest.raises(DeployError):
        releasing.deploy(other)
    assert releasing.current_release(other) is None


def test_takes_the_newest_when_a_person_wants_it(shop: Shop) -> None:
    head = shop.commit({"other.py": "stock = 1\n"})
    assert releasing.deploy(shop.service, newest=True).commit == head
    assert shop.deployer.traffic(shop.service) == {head[:12]: 1.0}


def test_does_not_take_the_newest_while_a_rollout_is_live(shop: Shop) -> None:
    shop.roll_out()
    shop.commit({"other.py": "stock = 1\n"})
    with pytest.raises(DeployError, match="rollout"):
        releasing.deploy(shop.service, newest=True)
    assert shop.deployer.traffic(shop.service) == {shop.current.short: 1.0}


# --- moving traffic -----------------------------------------------------------------------------------------------


def test_writes_down_a_change_of_traffic_and_nothing_when_none_changed(shop: Shop) -> None:
    shop.propose()
    shares = {shop.current.pk: 90, shop.candidate.pk: 10}
    before = entries("rollout.traffic")
    for _ in range(3):
        releasing.shift(shop.service, shares, because="the test says so")
    assert entries("rollout.traffic") == before + 1
    assert shop.traffic == 0.1
    entry = AuditEntry.objects.filter(action="rollout.traffic").latest("sequence")
    assert (entry.because, shop.candidate.short in str(entry.payload)) == ("the test says so", True)


def test_makes_the_proxy_agree_although_the_rows_did_before(shop: Shop) -> None:
    shop.propose()
    Release.objects.filter(pk=shop.current.pk).update(share=50)
    Release.objects.filter(pk=shop.candidate.pk).update(share=50)
    releasing.shift(shop.service, {shop.current.pk: 50, shop.candidate.pk: 50}, because="again")
    assert shop.traffic == 0.5


def test_brings_the_shares_back_after_the_proxy_was_restarted(shop: Shop) -> None:
    shop.propose()
    releasing.shift(shop.service, {shop.current.pk: 50, shop.candidate.pk: 50}, because="half")
    shop.deployer.restart_proxy()
    assert shop.deployer.traffic(shop.service) == {}
    assert releasing.reconcile() == []
    assert shop.traffic == 0.5


def test_complains_about_one_service_and_reconciles_the_others(shop: Shop) -> None:
    other = ServiceFactory(name="a-first", repository=str(shop.folder))
    lost = releasing.release_of(other, "a" * 40)
    Release.objects.filter(pk=lost.pk).update(share=100)
    shop.deployer.restart_proxy()
    assert [one.partition(":")[0] for one in releasing.reconcile()] == ["a-first"]
    assert shop.deployer.traffic(shop.service) == {shop.current.short: 1.0}


# --- sweeping -----------------------------------------------------------------------------------------------------


def test_stops_what_nothing_needs(shop: Shop) -> None:
    unneeded = idle(shop, "a")
    assert releasing.sweep() == [str(unneeded)]
    assert shop.deployer.running == {shop.current.commit}
    unneeded.refresh_from_db()
    assert unneeded.state == Release.State.STOPPED
    assert releasing.sweep() == []


@pytest.mark.parametrize("state", State)
def test_keeps_the_candidate_of_an_improvement_that_is_under_way(shop: Shop, state: State) -> None:
    candidate = idle(shop, "c")
    Improvement.objects.filter(pk=in_state(state, finding__service=shop.service).pk).update(
        head_commit=candidate.commit
    )
    assert (releasing.sweep() == []) == (state in UNFINISHED)


@pytest.mark.parametrize("rollout_state", Rollout.State)
@pytest.mark.parametrize(
    "state", [State.ROLLING_OUT, State.VALIDATING, State.PROMOTED, State.ROLLING_BACK, State.STUCK]
)
def test_keeps_both_releases_of_a_rollout_whose_improvement_is_under_way(
    shop: Shop, state: State, rollout_state: str
) -> None:
    """The row of the rollout may say that it is over before the improvement does: a worker may die in between."""
    old, new = idle(shop, "a"), idle(shop, "b")
    improvement = in_state(state, finding__service=shop.service)
    Rollout.objects.create(
        service=shop.service, improvement=improvement, current=old, candidate=new, state=rollout_state
    )
    assert releasing.sweep() == []
    assert {old.commit, new.commit} < shop.deployer.running


def test_goes_on_when_one_release_does_not_stop(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    releases = [idle(shop, digit) for digit in "abc"]
    stop = shop.deployer.stop

    def stop_all_but_one(release: Release) -> None:
        if release == releases[1]:
            raise DeployError("its process does not end")
        stop(release)

    monkeypatch.setattr(shop.deployer, "stop", stop_all_but_one)
    assert sorted(releasing.sweep()) == sorted([str(releases[0]), str(releases[2])])
    monkeypatch.undo()
    assert shop.deployer.running == {shop.current.commit, releases[1].commit}


def test_leaves_a_service_alone_that_is_just_being_deployed(deployer: PretendDeployer) -> None:
    release = releasing.release_of(ServiceFactory(), "a" * 40)
    releasing.bring_up(release)
    assert releasing.sweep() == []
    assert deployer.running == {release.commit}
