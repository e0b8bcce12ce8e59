"""From a proven patch to a prepared rollout: who must sign, what voids it, and what is left when it does not happen."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone
from django.utils.timezone import now

from approvals import breaking_glass, deputies, policy, requests, roles, rulebook, subjects, terms
from approvals.models import (
    ApprovalRequest,
    AuditEntry,
    BreakGlass,
    Deputy,
    FreezeWindow,
    PersonSettings,
    PolicyVersion,
    Signature,
)
from approvals.policy import RequestState, Role
from improvements import approving, authoring, releasing, stopping
from improvements.authors import Patch
from improvements.models import Improvement, LostRace, Release, Rollout, State
from improvements.outcome import Evidence, Outcome, Verdict, Waiting
from monitoring.models import QualityReport
from tests.improvements.factories import FindingFactory, ImprovementFactory, in_state
from tests.improvements.world import Shop
from tests.monitoring.factories import samples
from tests.people import FRESH, person
from tests.racing import at_once

pytestmark = pytest.mark.django_db

MIGRATION = {"shop/migrations/0002_prices.py": "operations = []\n"}

# Tier → a patch that has it, and who signs in which order.
PATCHES = {
    "low": ({"lines": 1, "traffic_share": 0.05}, ()),
    "medium": ({"lines": 1, "traffic_share": 1.0}, ()),
    "high": ({"lines": 500, "traffic_share": 1.0}, (Role.ARCHITECTURE,)),
    "critical": ({"lines": 500, "traffic_share": 1.0, "files": MIGRATION}, (Role.CTO, Role.LEAD)),
}
HIGH = PATCHES["high"][0]


def drift(improvement: Improvement, traffic_share: float) -> None:
    """The next round of measuring says something else about the traffic that goes through the patch."""
    improvement.finding.impact = {"traffic_share": traffic_share}
    improvement.finding.save()


def request_of(shop: Shop) -> ApprovalRequest:
    return ApprovalRequest.objects.exclude(state=RequestState.VOID).get(subject_id=shop.improvement.pk)


def states() -> list[str]:
    return sorted(ApprovalRequest.objects.values_list("state", flat=True))


@pytest.mark.parametrize(("tier", "patch", "signers"), [(tier, *row) for tier, row in PATCHES.items()])
def test_asks_for_the_signatures_of_the_tier_and_starts_when_they_are_there(
    shop: Shop, tier: str, patch: dict, signers: tuple[Role, ...]
) -> None:
    shop.propose(**patch)
    for role in signers:
        assert shop.tick() is State.AWAITING_APPROVAL
        assert not Rollout.objects.exists()
        requests.approve(request_of(shop), person=person(f"the-{role}", role), how=FRESH, reason="I read it.")
    assert shop.tick() is State.ROLLING_OUT
    assert (shop.improvement.tier, request_of(shop).tier, request_of(shop).state) == (tier, tier, "approved")
    rollout = Rollout.objects.get()
    assert (rollout.current, rollout.candidate, rollout.state) == (shop.current, shop.candidate, Rollout.State.LIVE)
    assert shop.traffic == 0
    assert AuditEntry.objects.filter(action="rollout.started").count() == 1


@pytest.mark.parametrize("role", [Role.LEAD, Role.ON_CALL, Role.VIEWER])
def test_takes_no_signature_of_somebody_else_for_a_high_risk(shop: Shop, role: Role) -> None:
    shop.propose(**HIGH)
    shop.tick()
    with pytest.raises(requests.Refused):
        requests.approve(request_of(shop), person=person("somebody", role), how=FRESH, reason="Looks fine.")
    assert shop.tick() is State.AWAITING_APPROVAL


def test_takes_no_signature_of_who_proposed_it(shop: Shop, carol: User) -> None:
    shop.propose(**HIGH, proposed_by=carol)
    shop.tick()
    with pytest.raises(requests.Refused):
        requests.approve(request_of(shop), person=carol, how=FRESH, reason="My own.")


def test_asks_a_lead_when_a_check_of_a_medium_risk_was_inconclusive(shop: Shop, bob: User) -> None:
    shop.propose(lines=1, traffic_share=0.6, inconclusive=(State.STAGING,))
    assert shop.tick() is State.AWAITING_APPROVAL
    assert shop.improvement.tier == "medium"
    requests.approve(request_of(shop), person=bob, how=FRESH)
    assert shop.tick() is State.ROLLING_OUT


def test_asks_people_from_the_tier_on_that_the_installation_wants(shop: Shop, settings, bob: User) -> None:
    settings.SELF_BUILD_APPROVAL_REQUIRED = "low"
    shop.propose()
    assert shop.tick() is State.AWAITING_APPROVAL
    requests.approve(request_of(shop), person=bob, how=FRESH)
    assert shop.tick() is State.ROLLING_OUT


@pytest.mark.parametrize("drifts_to", [None, 0.05, 1.0])
@pytest.mark.parametrize(("starts_at", "role"), [(1.0, Role.ARCHITECTURE), (0.05, Role.LEAD)])
def test_ends_with_a_rejection_whatever_the_risk_becomes(
    shop: Shop, settings, starts_at: float, role: Role, drifts_to: float | None
) -> None:
    settings.SELF_BUILD_APPROVAL_REQUIRED = "medium"
    shop.propose(lines=500, traffic_share=starts_at)
    shop.tick()
    requests.reject(request_of(shop), person=person("reviewer", role), how=FRESH, reason="No. This breaks the shop.")
    if drifts_to is not None:
        drift(shop.improvement, drifts_to)
    assert shop.tick() is State.REJECTED
    assert "breaks the shop" in shop.said()
    assert not Rollout.objects.exists()
    assert RequestState.OPEN not in states()


@pytest.mark.parametrize("what", ["traffic", "track record"])
def test_never_lets_the_policy_approve_what_was_waiting_for_a_person(shop: Shop, what: str) -> None:
    shop.propose(**HIGH)
    assert shop.tick() is State.AWAITING_APPROVAL
    if what == "traffic":
        drift(shop.improvement, 0.05)
    else:
        for _ in range(20):
            in_state(State.PROMOTED, author=shop.improvement.author)
    for _ in range(2):
        assert shop.tick() is State.AWAITING_APPROVAL
    assert shop.improvement.tier == "high"
    assert request_of(shop).state == RequestState.OPEN
    assert not Rollout.objects.exists()


def test_asks_for_more_when_the_risk_has_grown(shop: Shop) -> None:
    shop.propose(lines=500, traffic_share=0.05, inconclusive=(State.STAGING,))
    shop.tick()
    requests.approve(request_of(shop), person=person("a-lead", Role.LEAD), how=FRESH)
    drift(shop.improvement, 1.0)
    shop.tick()
    assert shop.tick() is State.AWAITING_APPROVAL
    assert request_of(shop).tier == "high"
    assert not Rollout.objects.exists()


def test_judges_another_patch_afresh(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tier never falls for one patch. When the author writes another one, it is another question."""

    class SmallAuthor:
        def write(self, checkout, evidence):
            return Patch({"app.py": "price = 3\n"}, "A smaller fix")

    monkeypatch.setattr(authoring, "AUTHORS", {shop.propose(**HIGH).author: SmallAuthor()})
    shop.tick()
    assert shop.improvement.tier == "high"
    drift(shop.improvement, 0.05)
    shop.commit({"other.py": "stock = 1\n"})
    assert shop.tick() is State.AUTHORING
    assert shop.tick() is State.TESTING
    Improvement.objects.filter(pk=shop.improvement.pk).update(state=State.AWAITING_APPROVAL)
    releasing.deploy(shop.service, newest=True)
    releasing.bring_up(releasing.release_of(shop.service, shop.improvement.head_commit))
    assert shop.tick() is State.ROLLING_OUT
    assert shop.improvement.tier == "low"


@pytest.mark.parametrize("prepared", [False, True], ids=["asked", "prepared by a worker that died"])
def test_begins_again_when_the_branch_moved(shop: Shop, carol: User, prepared: bool) -> None:
    shop.propose(**HIGH)
    shop.tick()
    requests.approve(request_of(shop), person=carol, how=FRESH, reason="I read it.")
    if prepared:
        assert isinstance(shop.run(approving.await_approval), Outcome)
        assert Rollout.objects.exists()
    moved_to = shop.commit({"other.py": "stock = 1\n"})
    assert shop.tick() is State.AUTHORING
    assert moved_to[:7] in shop.said()
    # Whether the signature still counts is known when the patch was proven again.
    assert states() == ["approved"]
    assert ApprovalRequest.objects.get().started_at is None
    assert not Rollout.objects.exists()


@pytest.mark.parametrize("changed", ["nothing", "the patch", "a verdict"])
def test_keeps_signatures_over_a_rebase_that_changes_nothing(shop: Shop, carol: User, changed: str) -> None:
    shop.propose(**HIGH)
    shop.tick()
    requests.approve(request_of(shop), person=carol, how=FRESH, reason="I read it.")
    shop.commit({"other.py": "stock = 1\n"})
    assert shop.tick() is State.AUTHORING
    lines = 501 if changed == "the patch" else 500
    inconclusive = (State.STAGING,) if changed == "a verdict" else ()
    shop.patch({"app.py": "price = 2\n" + "spare = 0\n" * (lines - 1)}, inconclusive=inconclusive)
    releasing.deploy(shop.service, newest=True)
    Improvement.objects.filter(pk=shop.improvement.pk).update(state=State.AWAITING_APPROVAL)
    if changed == "nothing":
        assert shop.tick() is State.ROLLING_OUT
        assert states() == ["approved"]
    else:
        assert shop.tick() is State.AWAITING_APPROVAL
        assert states() == ["open", "void"]
        assert not Signature.objects.standing().exists()


def test_takes_the_question_along_when_proving_again_fails(shop: Shop, carol: User) -> None:
    shop.propose(**HIGH)
    shop.tick()
    requests.approve(request_of(shop), person=carol, how=FRESH, reason="I read it.")
    shop.commit({"other.py": "stock = 1\n"})
    assert shop.tick() is State.AUTHORING
    Improvement.objects.filter(pk=shop.improvement.pk).update(author="gone with its package")
    assert shop.tick() is State.FAILED
    assert states() == ["void"]


@pytest.mark.parametrize("state", requests.StandingState)
def test_has_an_answer_for_every_standing(state: requests.StandingState) -> None:
    assert (state in approving.UNSATISFIED) == (state is not requests.StandingState.SATISFIED)


def test_starts_nothing_while_commits_of_the_branch_are_not_deployed(shop: Shop) -> None:
    shop.commit({"other.py": "stock = 1\n"})
    shop.propose()
    assert shop.tick() is not State.ROLLING_OUT
    assert shop.current.short in shop.said()
    assert not Rollout.objects.exists()


def test_starts_when_the_release_that_serves_has_the_files_of_another_commit(shop: Shop) -> None:
    """After a rollback the branch holds the change and its revert; the old release still serves what the branch is."""
    shop.commit({"app.py": "price = 9\n"})
    shop.commit({"app.py": "price = 1\n"})
    shop.propose()
    assert shop.tick() is State.ROLLING_OUT


def test_waits_for_a_service_that_serves_nothing(shop: Shop) -> None:
    shop.propose()
    Release.objects.update(share=0)
    assert shop.tick() is State.AWAITING_APPROVAL
    assert "deploy" in shop.said()


def test_leaves_nothing_behind_when_it_was_stopped_meanwhile(
    shop: Shop, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.propose()
    assess = approving.risk.assess

    def stopped_meanwhile(facts):
        stopping.stop(Improvement.objects.get(pk=shop.improvement.pk), actor=bob, because="not now")
        return assess(facts)

    monkeypatch.setattr(approving.risk, "assess", stopped_meanwhile)
    assert shop.tick() is State.REJECTED
    assert RequestState.OPEN not in states()
    assert not Rollout.objects.filter(state=Rollout.State.LIVE).exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("patch", [PATCHES["low"][0], HIGH], ids=["approved by the policy", "waiting for a person"])
@pytest.mark.parametrize("moment", ["open_request", "standing"])
def test_leaves_nothing_behind_when_somebody_stops_it_at_the_same_time(
    shop: Shop, bob: User, monkeypatch: pytest.MonkeyPatch, moment: str, patch: dict
) -> None:
    shop.propose(**patch)
    reached, real = threading.Event(), getattr(requests, moment)

    def slowly(*arguments, **named):
        reached.set()
        time.sleep(0.2)
        return real(*arguments, **named)

    monkeypatch.setattr(requests, moment, slowly)
    answers = []

    def stop() -> None:
        try:
            assert reached.wait(timeout=10)
            for _ in range(2):
                try:
                    answers.append(
                        stopping.stop(Improvement.objects.get(pk=shop.improvement.pk), actor=bob, because="not now")
                    )
                    return
                except LostRace:
                    continue  # the step won; the person stops what it has become
        finally:
            connection.close()

    stopper = threading.Thread(target=stop)
    stopper.start()
    shop.tick()
    stopper.join(timeout=20)
    shop.reload()
    assert answers == [shop.improvement.state]
    assert RequestState.OPEN not in states()
    live = Rollout.objects.filter(state=Rollout.State.LIVE).exists()
    # A rollout that had begun is ended by the rollback; a rejected improvement has none.
    assert live == (shop.improvement.state == State.ROLLING_BACK)


def test_waits_while_another_rollout_of_the_service_is_live(shop: Shop) -> None:
    first = shop.roll_out()
    second = ImprovementFactory(finding=FindingFactory(service=shop.service, impact={"traffic_share": 0.05}))
    shop.improvement = second
    shop.patch({"app.py": "price = 3\n"})
    Improvement.objects.filter(pk=second.pk).update(state=State.AWAITING_APPROVAL)
    assert shop.tick() is State.AWAITING_APPROVAL
    assert "another rollout" in shop.said()
    assert list(Rollout.objects.all()) == [first]
    Rollout.objects.filter(pk=first.pk).update(state=Rollout.State.ROLLED_BACK)
    Improvement.objects.filter(pk=first.improvement_id).update(state=State.ROLLED_BACK)
    assert shop.tick() is State.ROLLING_OUT


def test_makes_one_request_and_one_rollout_when_it_is_taken_twice(shop: Shop, carol: User) -> None:
    shop.propose(**HIGH)
    assert all(isinstance(shop.run(approving.await_approval), Waiting) for _ in range(2))
    requests.approve(request_of(shop), person=carol, how=FRESH, reason="I read it.")
    assert [shop.run(approving.await_approval).verdict for _ in range(2)] == [Verdict.PASS, Verdict.PASS]
    assert states() == ["approved"]
    assert Rollout.objects.count() == 1
    assert AuditEntry.objects.filter(action="rollout.started").count() == 1
    assert AuditEntry.objects.filter(action="approval.opened").count() == 1


@pytest.mark.parametrize("signed", [False, True])
def test_expires_when_nobody_used_it_in_time(shop: Shop, carol: User, signed: bool) -> None:
    shop.propose(**HIGH)
    shop.tick()
    if signed:
        requests.approve(request_of(shop), person=carol, how=FRESH, reason="I read it.")
    shop.elapse((request_of(shop).expires_at - timezone.now()).total_seconds() + 60)
    assert shop.tick() is State.EXPIRED
    assert states() == ["expired"]
    assert not Rollout.objects.exists()


def test_asks_a_person_for_whatever_is_about_security(shop: Shop, bob: User) -> None:
    shop.propose(lines=1, traffic_share=0.05, files={"shop/auth/views.py": "ok = True\n"})
    assert shop.tick() is State.AWAITING_APPROVAL
    request = request_of(shop)
    assert (request.tier, request.scope) == ("medium", shop.service.name)
    assert "security" in request.categories
    assert "never goes ahead without a person" in request.needs.reason
    requests.approve(request, person=bob, how=FRESH)
    assert shop.tick() is State.ROLLING_OUT


def test_says_beforehand_who_will_have_to_sign(shop: Shop, carol: User) -> None:
    shop.propose(lines=1, traffic_share=0.05, files=MIGRATION, proposed_by=carol)
    before = subjects.forecast("improvement", shop.improvement.pk)
    assert before is not None
    assert before.is_estimate
    shop.tick()
    after = subjects.forecast("improvement", shop.improvement.pk)
    assert after is not None
    assert not after.is_estimate
    assert (after.tier, after.concern.service, after.proposed_by) == ("high", shop.service.name, carol.pk)
    assert "data" in after.concern.categories
    asked = request_of(shop)
    assert policy.required(after.tier, after.concern, terms=terms.in_force()).as_json() == asked.requirement
    assert subjects.forecast("improvement", 0) is None


# --- Between the signature and the start ----------------------------------------------------------------------------


def report(shop: Shop, kind: str, content: dict, commit: str) -> None:
    QualityReport.objects.create(
        service=shop.service, commit=commit, kind=kind, content=content, source="CI", sha256=kind
    )


def prove_another_patch(shop: Shop) -> None:
    shop.patch({"app.py": "price = 7\n" * 500})
    Improvement.objects.filter(pk=shop.improvement.pk).update(state=State.AWAITING_APPROVAL)


def keep_other_evidence(shop: Shop) -> None:
    shop.improvement.runs.get(state=State.STAGING).keep(Evidence("smoke", "another answer", {"failed": 1}))


def tamper_with_evidence(shop: Shop) -> None:
    shop.improvement.runs.get(state=State.STAGING).evidence.update(content={"seconds": 0.1})


def put_another_policy_in_force(shop: Shop) -> None:
    written = rulebook.DEFAULT.as_json() | {"reason_from": "low"}
    PolicyVersion.objects.create(
        number=1, document=written, digest=rulebook.parse(written).digest, instead_of=0, because="stricter",
        proposed_by=User.objects.get(username="carol"), proposed_at=now(), in_force_since=now(),
    )  # fmt: skip


def spend_the_error_budget(shop: Shop) -> None:
    for until in (now() - dt.timedelta(days=27), now()):
        for signal, value in (("requests_per_second", 1000.0), ("error_ratio", 1.0)):
            samples(shop.service, signal, [value], until=until, endpoint="*", method="*")


def name_other_architects(shop: Shop) -> None:
    deputies.name_member(shop.service.name, Role.ARCHITECTURE, person("ann", Role.ARCHITECTURE), actor=None)


def become(**changes: object) -> Callable[[Shop], object]:
    return lambda shop: User.objects.filter(username="carol").update(**changes)


def make_a_program(name: str) -> Callable[[Shop], object]:
    return lambda shop: PersonSettings.objects.create(user=User.objects.get(username=name), is_service_account=True)


def freeze(shop: Shop) -> FreezeWindow:
    begin = now() - dt.timedelta(hours=1)
    return FreezeWindow.objects.create(
        name="Year end", scope=shop.service.name, reason="nobody is here", first_day=begin.date(),
        begins=begin.time(), duration_minutes=120,
    )  # fmt: skip


def leave_the_group(shop: Shop) -> None:
    roles.revoke(User.objects.get(username="carol"), Role.ARCHITECTURE)


def report_a_vulnerability(shop: Shop) -> None:
    report(shop, "sarif", {"vulnerabilities": 1, "vulnerable": ["CVE-1"]}, shop.improvement.base_commit)


def report_a_failing_test(shop: Shop) -> None:
    report(shop, "junit", {"passed": [], "failed": ["test_price"], "skipped": 0}, shop.improvement.head_commit)


def take_it_back(shop: Shop) -> None:
    requests.revoke(request_of(shop), person=User.objects.get(username="carol"), how=FRESH)


def end_the_term(shop: Shop) -> None:
    Deputy.objects.update(since=now() - dt.timedelta(days=2), until=now())


NO_ROLE = "carol no longer has a role that may sign this."
NOT_LENT = "zoe no longer stands in for carol with a right to sign this."
# Who signed, what happens after that → what the rule says that keeps it from starting.
CHANGES: dict[str, tuple[str, Callable[[Shop], object], str]] = {
    "the patch": ("carol", prove_another_patch, requests.WHY_CHANGED),
    "the evidence": ("carol", keep_other_evidence, requests.WHY_CHANGED),
    "the evidence under its old hash": ("carol", tamper_with_evidence, requests.WHY_CHANGED),
    "the policy": ("carol", put_another_policy_in_force, requests.WHY_CHANGED),
    "a new vulnerability": ("carol", report_a_vulnerability, "a vulnerability became known (CVE-1)"),
    "the error budget": ("carol", spend_the_error_budget, "the error budget is exhausted now"),
    "a newer failing check": ("carol", report_a_failing_test, "a check fails that did not (tests of the patch)"),
    "the signer left the group": ("carol", leave_the_group, NO_ROLE),
    "the signer was deactivated": ("carol", become(is_active=False), "carol was deactivated."),
    "the signer became a program": ("carol", make_a_program("carol"), "carol is the account of a program"),
    "the service named others": ("carol", name_other_architects, NO_ROLE),
    "the signer took it back": ("carol", take_it_back, "carol took it back."),
    "the deputy's term ended": ("zoe", end_the_term, NOT_LENT),
    "the principal was deactivated": ("zoe", become(is_active=False), NOT_LENT),
    "the deputy became a program": ("zoe", make_a_program("zoe"), "zoe is the account of a program"),
    "a freeze began": ("carol", freeze, "is frozen by “Year end”"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_starts_nothing_after_something_changed_since_it_was_signed(shop: Shop, carol: User, what: str) -> None:
    name, change, why = CHANGES[what]
    zoe = person("zoe")
    deputies.name_deputy(
        carol, zoe, since=now() - dt.timedelta(days=1), until=now() + dt.timedelta(days=1), because="away", actor=carol
    )
    shop.propose(**HIGH)
    assert shop.tick() is State.AWAITING_APPROVAL
    signed = requests.approve(request_of(shop), person=User.objects.get(username=name), how=FRESH, reason="I read it.")
    change(shop)
    for _ in range(2):
        assert shop.tick() is State.AWAITING_APPROVAL
        assert not Rollout.objects.exists()
    told = [shop.said(), *signed.signatures.values_list("voided_because", flat=True)]
    assert why in " ".join(told), told
    held = what == "a freeze began"
    assert Signature.objects.standing().exists() == held
    assert request_of(shop).state == (RequestState.APPROVED if held else RequestState.OPEN), "it is asked again"


def test_starts_when_nothing_changed_since_it_was_signed(shop: Shop, carol: User) -> None:
    shop.propose(**HIGH)
    shop.tick()
    requests.approve(request_of(shop), person=carol, how=FRESH, reason="I read it.")
    assert shop.tick() is State.ROLLING_OUT


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("what", ["the signature", "the right"])
def test_gives_a_start_and_a_revocation_one_outcome(shop: Shop, what: str) -> None:
    """Either the start was first and nothing takes it back, or nothing starts."""
    carol = person("carol", Role.ARCHITECTURE)
    shop.propose(**HIGH)
    shop.tick()
    request = requests.approve(request_of(shop), person=carol, how=FRESH, reason="I read it.")
    take_away: dict[str, Callable[[], object]] = {
        "the signature": lambda: requests.revoke(request, person=carol, how=FRESH),
        "the right": lambda: roles.revoke(carol, Role.ARCHITECTURE),
    }
    state, revoked = at_once(shop.tick, take_away[what])
    order = list(
        AuditEntry.objects.filter(action__in=["rollout.started", "role.revoked", "approval.revoked"])
        .order_by("sequence")
        .values_list("action", flat=True)
    )
    request.refresh_from_db()
    if state is State.ROLLING_OUT:
        assert order[0] == "rollout.started"
        assert Rollout.objects.count() == Signature.objects.standing().count() == 1
        assert (request.state, isinstance(revoked, requests.Refused)) == ("approved", what == "the signature")
    else:
        assert state is State.AWAITING_APPROVAL, state
        assert "rollout.started" not in order
        assert not Rollout.objects.exists()
        assert not Signature.objects.standing().exists()
        assert not isinstance(revoked, Exception), revoked


# --- Freezes, and what passes them ----------------------------------------------------------------------------------


def test_waits_for_the_end_of_a_freeze_and_says_when_that_is(shop: Shop) -> None:
    window = freeze(shop)
    shop.propose()
    assert shop.tick() is State.AWAITING_APPROVAL
    assert f"{shop.service.name} is frozen by “Year end” (nobody is here). Until 20" in shop.said()
    assert not Rollout.objects.exists()
    FreezeWindow.objects.filter(pk=window.pk).update(enabled=False)
    assert shop.tick() is State.ROLLING_OUT
    assert "error budget" in AuditEntry.objects.get(action="rollout.started").because  # not known, and said


def test_never_holds_a_rollback(shop: Shop) -> None:
    shop.bake()
    freeze(shop)
    stopping.stop(shop.improvement, actor=None, because="it is slow")
    shop.reload()
    for _ in range(5):
        if shop.tick() is State.ROLLED_BACK:
            break
    assert shop.improvement.state == State.ROLLED_BACK


def test_starts_once_by_broken_glass(shop: Shop, bob: User, erin: User) -> None:
    freeze(shop)
    shop.propose(**HIGH)
    shop.tick()
    request = request_of(shop)
    glass = breaking_glass.open_glass(
        request, person=bob, how=FRESH, reason="It is down.", ticket="INC-7", seen=request.fingerprint, at=now()
    )
    assert shop.tick() is State.AWAITING_APPROVAL
    breaking_glass.confirm(glass, person=erin, how=FRESH, at=now())
    assert shop.tick() is State.ROLLING_OUT
    glass.refresh_from_db()
    assert (glass.state, request_of(shop).state) == ("used", "approved")
    because = AuditEntry.objects.get(action="rollout.started").because
    assert because == "Break-glass by bob and erin (ticket INC-7): It is down."


def test_passes_no_proof_by_broken_glass(shop: Shop, bob: User, erin: User) -> None:
    """What was opened is for one patch with its evidence. Another patch is another question."""
    shop.propose(**HIGH)
    shop.tick()
    request = request_of(shop)
    glass = breaking_glass.open_glass(
        request, person=bob, how=FRESH, reason="It is down.", ticket="INC-7", seen=request.fingerprint, at=now()
    )
    breaking_glass.confirm(glass, person=erin, how=FRESH, at=now())
    run = shop.improvement.runs.filter(state=State.TESTING).get()
    run.keep(Evidence("tests", "another run of the tests", {"failed": 1}))
    shop.tick()
    assert shop.tick() is State.AWAITING_APPROVAL
    assert not Rollout.objects.exists()
    assert BreakGlass.objects.get().state == "confirmed"
