"""Changing the policy takes the signatures of a critical change, and then every other question is asked again."""

from __future__ import annotations

import copy
import datetime as dt
import threading
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import InternalError, connection, transaction
from django.db.utils import IntegrityError, OperationalError
from django.test import Client
from django.urls import reverse_lazy
from django.utils.timezone import now

from approvals import policies, policy, requests, roles, rulebook, subjects, tasks, terms
from approvals.models import ApprovalRequest, AuditEntry, Letter, PersonSettings, PolicyVersion
from approvals.policies import NotProposed
from approvals.policy import Role, Tier
from approvals.rulebook import DEFAULT, PolicyError
from approvals.subjects import SubjectRef
from tests.people import FRESH, person

pytestmark = pytest.mark.django_db
PROPOSE = reverse_lazy("admin:approvals_policy_propose")


def document(expire_after_hours: float = 30, **services: Any) -> rulebook.Document:
    """The policy as shipped, but for how long a high risk waits."""
    written = copy.deepcopy(DEFAULT.as_json())
    written["tiers"]["high"]["expire_after_hours"] = expire_after_hours
    return rulebook.parse(written | {"services": services})


def proposed(actor: User, **fields: Any) -> tuple[PolicyVersion, ApprovalRequest]:
    version = policies.propose(document(**fields), actor=actor, because="people answer faster")
    return version, ApprovalRequest.objects.get(subject_kind="policy", subject_id=version.number)


def sign(request: ApprovalRequest, *signers: User) -> ApprovalRequest:
    for signer in signers:
        request = requests.approve(request, person=signer, how=FRESH, reason="I read every line.")
    return request


def put(by: User, *signers: User, **fields: Any) -> PolicyVersion:
    version, request = proposed(by, **fields)
    sign(request, *signers)
    policies.decided(version.number)
    return version


def test_is_the_policy_as_shipped_until_people_put_another_in_its_place(settings: Any) -> None:
    held = terms.in_force()
    assert (held.document, held.number) == (DEFAULT, 0)
    assert requests.policy_version() == held.version
    settings.SELF_BUILD_APPROVAL_REQUIRED = "low"
    assert terms.in_force().version != held.version
    settings.SELF_BUILD_APPROVAL_REQUIRED = "high"
    settings.SELF_BUILD_RISK_THRESHOLD = "low"
    assert terms.in_force().version != held.version


def test_comes_into_force_with_the_cto_and_one_more(bob: User, carol: User, dave: User) -> None:
    version, request = proposed(bob)
    assert (request.tier, request.proposed_by, request.categories) == ("critical", bob, ["security"])
    assert "tiers.high.expire_after_hours: 40 → 30" in request.facts["what"]
    assert '+      "expire_after_hours": 30.0' in request.facts["diff"]
    for signer in (carol, dave):
        policies.decided(version.number)
        assert terms.in_force().number == 0
        sign(request, signer)
    policies.decided(version.number)
    assert (terms.in_force().number, terms.in_force().document.digest) == (1, document().digest)
    assert AuditEntry.objects.get(action="policy.in_force").became["digest"] == document().digest
    assert policies.put_in_force(version.number) is None
    assert [one.action for one in AuditEntry.objects.about(version)] == ["policy.proposed", "policy.in_force"]


def test_happens_by_itself_when_the_last_one_signs(
    bob: User, carol: User, dave: User, django_capture_on_commit_callbacks: Any
) -> None:
    _, request = proposed(bob)
    with django_capture_on_commit_callbacks(execute=True):
        sign(request, dave, carol)
    assert terms.in_force().number == 1


def test_is_taken_back_by_nobody_once_it_is_in_force(bob: User, carol: User, dave: User) -> None:
    version = put(bob, dave, carol)
    request = ApprovalRequest.objects.get(subject_kind="policy", subject_id=version.number)
    with pytest.raises(requests.Refused, match="has begun"):
        requests.revoke(request, person=dave, how=FRESH, reason="I think otherwise now.")
    request.refresh_from_db()
    assert request.state == "approved"


@pytest.mark.django_db(transaction=True)
def test_changes_only_before_or_after_a_start_under_it() -> None:
    """Whoever looks whether an approval holds keeps the policy until what it allows has started."""
    request = requests.open_request(
        SubjectRef("thing", 1, "A thing"), requirement=policy.required(Tier.LOW, terms=terms.in_force()),
        fingerprint="f" * 64, proposed_by=None, facts={}, expires_at=now() + dt.timedelta(hours=1),
    )  # fmt: skip
    outcomes: list[str] = []

    def change() -> None:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = '200ms'")
                terms.change()
            outcomes.append("changed")
        except OperationalError:
            outcomes.append("waited")
        finally:
            connection.close()

    def changed_meanwhile() -> str:
        other = threading.Thread(target=change)
        other.start()
        other.join()
        return outcomes.pop()

    with transaction.atomic():
        assert requests.standing(request, "f" * 64).satisfied
        assert changed_meanwhile() == "waited"
    assert changed_meanwhile() == "changed"


def test_is_found_by_the_tick_when_who_signed_last_was_cut_off(bob: User, carol: User, dave: User) -> None:
    _, request = proposed(bob)
    sign(request, dave, carol)
    assert terms.in_force().number == 0
    tasks.expire()
    assert terms.in_force().number == 1
    assert policies.put_signed_in_force() == 0


# Who signs (proposed by the CTO "dave" or the lead "bob") → who is refused. Each row is one rule.
@pytest.mark.parametrize(
    ("proposer", "signers", "refused"),
    [
        ("bob", ["bob"], "bob"),
        ("dave", ["dave"], "dave"),
        ("bob", ["carol", "ann"], "ann"),
        ("bob", ["dave", "dave"], "dave"),
        ("bob", ["erin"], "erin"),
        ("bob", ["mallory"], "mallory"),
        ("mallory", ["mallory"], "mallory"),
    ],
)
def test_takes_nobody_else(
    proposer: str, signers: list[str], refused: str, bob: User, carol: User, dave: User, erin: User, mallory: User
) -> None:
    person("ann", Role.LEAD)
    version, request = proposed(User.objects.get(username=proposer))
    with pytest.raises(requests.Refused, match=refused):
        sign(request, *(User.objects.get(username=name) for name in signers))
    policies.decided(version.number)
    assert terms.in_force().number == 0


def test_looks_again_at_the_signers_when_it_is_put_in_force(bob: User, carol: User, dave: User) -> None:
    version, request = proposed(bob)
    sign(request, dave, carol)
    roles.revoke(dave, Role.CTO)
    assert policies.put_in_force(version.number) is None
    assert terms.in_force().number == 0
    request.refresh_from_db()
    assert request.state == "open"


def test_voids_every_question_that_was_asked_under_another_policy(bob: User, carol: User, dave: User) -> None:
    asked = requests.open_request(
        SubjectRef("thing", 1, "Prefetch guilds"),
        requirement=policy.required(Tier.HIGH, terms=terms.in_force()),
        fingerprint="f" * 64,
        proposed_by=None,
        facts={},
        expires_at=now() + dt.timedelta(hours=1),
    )
    put(bob, dave, carol)
    with pytest.raises(requests.Refused, match="policy has changed"):
        sign(asked, carol)
    assert requests.standing(asked, "f" * 64).state == "void"


def test_lets_one_of_two_proposals_win(bob: User, carol: User, dave: User) -> None:
    first, _ = proposed(bob, expire_after_hours=30)
    second, request = proposed(bob, expire_after_hours=20)
    sign(request, dave, carol)
    policies.decided(second.number)
    assert terms.in_force().number == 2
    late = ApprovalRequest.objects.get(subject_kind="policy", subject_id=first.number)
    with pytest.raises(requests.Refused, match="is void"):
        sign(late, dave)
    assert policies.put_in_force(first.number) is None
    assert policies.state_of(first, terms.in_force()) == "overtaken by another"


def told(words: str) -> list[str]:
    return sorted(Letter.objects.filter(subject__startswith=words).values_list("person__username", flat=True))


@pytest.mark.parametrize("what", ["another policy", "a setting"])
def test_voids_a_proposal_when_what_it_was_compared_with_changes(
    what: str, bob: User, carol: User, dave: User, settings: Any, client: Client
) -> None:
    for one in (bob, carol, dave):
        User.objects.filter(pk=one.pk).update(email=f"{one}@example.org")
    version, request = proposed(bob)
    sign(request, carol)
    if what == "another policy":
        put(carol, dave, bob, expire_after_hours=20)
        because = "in place of the policy as shipped, and policy 2 has come into force since"
    else:
        settings.SELF_BUILD_APPROVAL_REQUIRED = "low"
        with pytest.raises(requests.Refused, match="a policy has to be proposed again"):
            sign(request, dave)
        tasks.expire()
        because = "The settings beside the policy have changed since it was proposed"
    assert policies.void_overtaken() == 0
    request.refresh_from_db()
    assert request.state == "void"
    assert because in request.because
    assert not request.signatures.standing().exists()
    assert (told("Your signature is void"), told("Your proposal is void")) == (["carol"], ["bob"])
    assert ApprovalRequest.objects.filter(state="approved").count() == (what == "another policy"), "what is in force"

    client.force_login(bob)
    page = client.get(policies.page_of(version.number)).content.decode()
    assert because in page
    assert f"{PROPOSE}?again=1" in page
    again = client.get(f"{PROPOSE}?again=1").content.decode()
    assert "Policy 1 once more" in again
    sent = {"document": document().as_text(), "because": version.because, "propose": "1"}
    assert client.post(f"{PROPOSE}?again=1", sent).status_code == 302
    assert ApprovalRequest.objects.get(subject_kind="policy", state="open").proposed_by == bob
    assert f"{PROPOSE}?again" in client.get(policies.page_of(version.number)).content.decode()


def test_offers_nothing_again_that_waits_or_is_in_force(bob: User, carol: User, dave: User, client: Client) -> None:
    client.force_login(bob)
    version, request = proposed(bob)
    assert "Propose it again" not in client.get(policies.page_of(version.number)).content.decode()
    sign(request, carol, dave)
    policies.decided(version.number)
    assert "Propose it again" not in client.get(policies.page_of(version.number)).content.decode()
    put(bob, dave, carol, expire_after_hours=20)
    assert "Propose it again" in client.get(policies.page_of(version.number)).content.decode()


def test_goes_back_the_same_way(bob: User, carol: User, dave: User) -> None:
    put(bob, dave, carol)
    back = policies.propose(DEFAULT, actor=carol, because="it was better before")
    sign(ApprovalRequest.objects.get(subject_kind="policy", subject_id=back.number), dave, bob)
    policies.decided(back.number)
    held = terms.in_force()
    assert (held.number, held.document.digest) == (2, DEFAULT.digest)
    assert policies.changes(policies.predecessor_of(back), DEFAULT)
    assert held.version != policy.Terms().version


@pytest.mark.parametrize("name", ["alice", "erin", "robot", "gone"])
def test_is_proposed_by_those_who_could_sign_and_superusers(name: str, alice: User, erin: User, mallory: User) -> None:
    robot = person("robot", Role.LEAD)
    PersonSettings.objects.create(user=robot, is_service_account=True)
    person("gone", Role.LEAD, is_active=False)
    with pytest.raises(NotProposed, match="Only lead developers"):
        proposed(User.objects.get(username=name))
    assert policies.may_propose(mallory)


def test_wants_a_reason_and_a_change(bob: User) -> None:
    with pytest.raises(NotProposed, match="Say why"):
        policies.propose(document(), actor=bob, because=" ")
    with pytest.raises(NotProposed, match="nothing would change"):
        policies.propose(DEFAULT, actor=bob, because="for fun")
    assert not PolicyVersion.objects.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"document": {}},
        {"digest": "0" * 64},
        {"because": "another"},
        {"in_force_since": None},
        {"in_force_since": dt.datetime(2030, 1, 1, tzinfo=dt.UTC)},
    ],
)
def test_is_never_changed_afterwards(change: dict[str, Any], bob: User, carol: User, dave: User) -> None:
    version = put(bob, dave, carol)
    with pytest.raises((IntegrityError, InternalError), match="append-only"), transaction.atomic():
        PolicyVersion.objects.filter(pk=version.pk).update(**change)
    with pytest.raises((IntegrityError, InternalError), match="append-only"), transaction.atomic():
        PolicyVersion.objects.filter(pk=version.pk).delete()


def tampered(version: PolicyVersion) -> None:
    """As somebody who owns the tables could."""
    weak = copy.deepcopy(DEFAULT.as_json())
    weak["tiers"]["critical"]["people"] = []
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")  # a table with checks to come can't be altered
        cursor.execute("ALTER TABLE approvals_policyversion DISABLE TRIGGER policy_guard")
        PolicyVersion.objects.filter(pk=version.pk).update(document=weak)
        cursor.execute("ALTER TABLE approvals_policyversion ENABLE ALWAYS TRIGGER policy_guard")


def test_follows_no_document_below_the_floor_wherever_it_comes_from(bob: User, carol: User, dave: User) -> None:
    version = put(bob, dave, carol)
    tampered(version)
    assert (terms.in_force().document, terms.in_force().number) == (DEFAULT, 0)


def test_puts_nothing_in_force_but_what_was_signed(bob: User, carol: User, dave: User) -> None:
    version, request = proposed(bob)
    sign(request, dave, carol)
    tampered(version)
    with pytest.raises(PolicyError):
        policies.put_in_force(version.number)
    assert terms.in_force().number == 0


def test_tells_what_became_of_it(bob: User, carol: User, dave: User) -> None:
    version, request = proposed(bob)
    assert subjects.describe("policy", version.number).state == "waiting for signatures"  # type: ignore[union-attr]
    requests.reject(request, person=dave, how=FRESH, reason="too fast")
    assert subjects.describe("policy", version.number).state == "rejected"  # type: ignore[union-attr]
    assert subjects.describe("policy", 99) is None
