"""Who stands in for whom, whom services name, and what becomes of signatures when that ends."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils.timezone import now

from approvals import deputies, forecasting, policy, requests, roles, terms, tokens
from approvals.deputies import NotNamed
from approvals.models import ApprovalRequest, AuditEntry, Deputy, PersonSettings, Scope, TeamMember
from approvals.policy import Category, Role, Tier
from approvals.requests import Refused
from approvals.subjects import Forecast, SubjectRef
from tests.people import FRESH, person

pytestmark = pytest.mark.django_db
PRINT = "f" * 64
DAY = dt.timedelta(days=1)


def ask(tier: Tier = Tier.HIGH, *, scope: str = "realm", **more: Any) -> ApprovalRequest:
    return requests.open_request(
        SubjectRef("thing", more.pop("number", 1), "Prefetch guilds", scope=scope),
        requirement=policy.required(tier, policy.Subject(service=scope), terms=terms.in_force()),
        fingerprint=PRINT,
        proposed_by=more.pop("proposed_by", None),
        facts={},
        expires_at=now() + DAY,
        **more,
    )


def name(principal: User, deputy: User, **more: Any) -> Deputy:
    since = more.pop("since", now() - DAY)
    until = more.pop("until", now() + DAY)
    actor = more.pop("actor", principal)
    because = more.pop("because", "on holiday")
    return deputies.name_deputy(principal, deputy, since=since, until=until, actor=actor, because=because, **more)


def program(username: str, *held: Role) -> User:
    made = person(username, *held)
    PersonSettings.objects.create(user=made, is_service_account=True)
    return made


def test_signs_as_a_deputy_and_both_are_named(carol: User, alice: User) -> None:
    name(carol, alice)
    request = requests.approve(ask(), person=alice, how=FRESH, reason="sound")
    assert (request.state, request.because) == ("approved", "Signed by alice on behalf of carol.")
    signature = request.signatures.get()
    assert (signature.person, signature.on_behalf_of, signature.role) == (alice, carol, "architecture")
    entry = AuditEntry.objects.get(action="approval.signed")
    assert (entry.actor, entry.on_behalf_of, entry.data["on_behalf_of"]) == ("alice", "carol", "carol")
    assert requests.standing(request, PRINT).satisfied


# What happens between the signature and its use → why it no longer counts.
LOST = {
    "the deputy's time is up": lambda row: Deputy.objects.update(until=now(), since=now() - DAY),
    "it was ended": lambda row: deputies.end_deputy(row, actor=row.principal, because="back again"),
    "the principal lost the role": lambda row: roles.revoke(row.principal, Role.ARCHITECTURE),
    "the principal was deactivated": lambda row: User.objects.filter(pk=row.principal_id).update(is_active=False),
    "the principal is a program": lambda row: PersonSettings.objects.create(
        user=row.principal, is_service_account=True
    ),
    "the deputy was deactivated": lambda row: User.objects.filter(pk=row.deputy_id).update(is_active=False),
    "the deputy is a program": lambda row: PersonSettings.objects.create(user=row.deputy, is_service_account=True),
    "the service names others": lambda row: deputies.name_member(
        "realm", Role.ARCHITECTURE, person("ann", Role.ARCHITECTURE), actor=None
    ),
}


@pytest.mark.parametrize("what", LOST)
def test_counts_a_deputys_signature_only_while_every_right_is_in_force(what: str, carol: User, alice: User) -> None:
    row = name(carol, alice)
    request = requests.approve(ask(), person=alice, how=FRESH, reason="sound")
    LOST[what](row)
    assert not requests.standing(request, PRINT).satisfied
    assert request.signatures.get().voided_because.startswith("alice ")
    assert AuditEntry.objects.filter(action="approval.signature_voided").exists()


@pytest.mark.parametrize(("since", "until"), [(DAY, 2 * DAY), (-2 * DAY, -DAY)])
def test_is_a_deputy_between_the_dates_alone(
    since: dt.timedelta, until: dt.timedelta, carol: User, alice: User
) -> None:
    Deputy.objects.create(
        principal=carol, deputy=alice, since=now() + since, until=now() + until, because="x", made_by=carol
    )
    with pytest.raises(Refused, match="no such role"):
        requests.approve(ask(), person=alice, how=FRESH, reason="sound")
    assert requests.awaiting(alice, now()) == []
    inside = now() + since + dt.timedelta(hours=1)
    assert roles.facts_of(alice, at=inside).stands_in_for[0].name == "carol"


def test_hands_nothing_on(carol: User, alice: User, erin: User) -> None:
    name(carol, alice)
    with pytest.raises(NotNamed, match="by a group of their own"):
        name(alice, erin)
    Deputy.objects.create(principal=alice, deputy=erin, until=now() + DAY, because="x", made_by=alice)
    assert roles.facts_of(erin).stands_in_for == ()


def test_lends_one_role_or_all(dave: User, alice: User, erin: User) -> None:
    person("dave", Role.LEAD)
    name(dave, alice, role=Role.LEAD)
    name(dave, erin)
    assert roles.facts_of(alice).stands_in_for[0].roles == {Role.LEAD}
    assert roles.facts_of(erin).stands_in_for[0].roles == {Role.LEAD, Role.CTO}


# Who names whom, and how → the refusal. Each row is one rule.
REFUSED: list[tuple[str, str, str, dict[str, Any], str]] = [
    ("carol", "carol", "carol", {}, "cannot stand in for themself"),
    ("carol", "alice", "bob", {}, "names their deputy"),
    ("carol", "alice", "alice", {}, "names their deputy"),
    ("carol", "mallory", "mallory", {}, "Nobody makes themself a deputy"),
    ("erin", "alice", "erin", {}, "nothing to lend"),
    ("mallory", "alice", "mallory", {}, "nothing to lend"),
    ("carol", "alice", "carol", {"role": Role.CTO}, "does not hold the role cto"),
    ("carol", "robot", "carol", {}, "programs never sign"),
    ("robot", "alice", "mallory", {}, "no right to lend"),
    ("carol", "gone", "carol", {}, "not active"),
    ("carol", "alice", "carol", {"because": " "}, "Say why"),
    ("carol", "alice", "carol", {"since": now() + DAY, "until": now()}, "ends before it begins"),
    ("carol", "alice", "carol", {"since": now() - 2 * DAY, "until": now() - DAY}, "over already"),
    ("carol", "alice", "carol", {"until": now() + 200 * DAY}, "183 days"),
]


@pytest.mark.parametrize(("principal", "deputy", "actor", "more", "why"), REFUSED)
def test_refuses_a_deputy(
    principal: str, deputy: str, actor: str, more: dict[str, Any], why: str,
    alice: User, bob: User, carol: User, erin: User, mallory: User,
) -> None:  # fmt: skip
    program("robot", Role.LEAD)
    person("gone", is_active=False)
    found = {user.username: user for user in User.objects.all()}
    with pytest.raises(NotNamed, match=why):
        name(found[principal], found[deputy], actor=found[actor], **more)
    assert not Deputy.objects.exists()


def test_lets_a_superuser_name_one_for_somebody_who_cannot(carol: User, alice: User, mallory: User) -> None:
    row = name(carol, alice, actor=mallory)
    with pytest.raises(NotNamed, match="may end"):
        deputies.end_deputy(row, actor=person("ann"), because="no")
    for actor in (alice, alice):
        deputies.end_deputy(row, actor=actor, because="not needed")
    told = [(one.action, one.actor) for one in AuditEntry.objects.about(row).order_by("sequence")]
    assert told == [("deputy.named", "mallory"), ("deputy.ended", "alice")]


def test_signs_nothing_that_the_principal_proposed(carol: User, alice: User) -> None:
    name(carol, alice)
    with pytest.raises(Refused, match="carol proposed this"):
        requests.approve(ask(proposed_by=carol), person=alice, how=FRESH, reason="sound")
    with pytest.raises(Refused, match="carol edited this"):
        requests.approve(ask(number=2, edited_by=[carol]), person=alice, how=FRESH, reason="sound")


def test_counts_the_cto_and_the_ctos_deputy_once(dave: User, alice: User, bob: User) -> None:
    name(dave, alice)
    request = requests.approve(ask(Tier.CRITICAL), person=alice, how=FRESH, reason="sound")
    assert request.state == "open"
    with pytest.raises(Refused, match="alice has signed on behalf of dave"):
        requests.approve(request, person=dave, how=FRESH, reason="sound")
    assert requests.approve(request, person=bob, how=FRESH, reason="sound").state == "approved"


def test_lets_a_deputy_with_a_role_choose_whose_right_it_is(dave: User, bob: User, carol: User) -> None:
    name(dave, bob)
    request = requests.approve(ask(Tier.CRITICAL), person=bob, how=FRESH, reason="sound", on_behalf_of=dave.pk)
    assert request.signatures.get().on_behalf_of == dave
    assert requests.approve(request, person=carol, how=FRESH, reason="sound").state == "approved"


def test_lets_a_service_name_its_own_people(carol: User) -> None:
    ann = person("ann", Role.ARCHITECTURE)
    deputies.name_member("realm", Role.ARCHITECTURE, ann, actor=carol)
    with pytest.raises(Refused, match="realm names its own architects, and carol is not one of them"):
        requests.approve(ask(), person=carol, how=FRESH, reason="sound")
    with pytest.raises(Refused, match="ann is one of the architects of realm, which gives no say in shop"):
        requests.approve(ask(number=2, scope="shop"), person=ann, how=FRESH, reason="sound")
    assert [one.id for one in requests.awaiting(ann, now())] == [ApprovalRequest.objects.get(scope="realm").pk]
    assert requests.approve(ask(), person=ann, how=FRESH, reason="sound").state == "approved"
    assert requests.approve(ask(number=2, scope="shop"), person=carol, how=FRESH, reason="x").state == "approved"
    assert roles.holders([Role.ARCHITECTURE], scope="realm") == ["ann"]
    assert roles.holders([Role.ARCHITECTURE], scope="shop") == ["carol"]
    assert roles.holders([Role.ARCHITECTURE]) == ["carol"]
    assert roles.holders([Role.ARCHITECTURE], scope=roles.ANYWHERE) == ["ann", "carol"]


def test_gives_the_role_back_to_the_group_when_nobody_is_named(carol: User) -> None:
    row = deputies.name_member("realm", Role.ARCHITECTURE, person("ann", Role.ARCHITECTURE), actor=carol)
    assert not roles.facts_of(carol, scope="realm").roles
    assert deputies.name_member("realm", Role.ARCHITECTURE, row.person, actor=carol) == row
    deputies.drop_member(row, actor=carol)
    assert roles.facts_of(carol, scope="realm").roles == {Role.ARCHITECTURE}
    named = AuditEntry.objects.filter(action__startswith="team.").order_by("sequence")
    assert [(one.action, one.actor) for one in named] == [("team.named", "carol"), ("team.dropped", "carol")]


@pytest.mark.parametrize(
    ("scope", "role", "who", "why"),
    [
        ("realm", Role.CTO, "bob", "of all services"),
        ("realm", Role.VIEWER, "bob", "of all services"),
        (" ", Role.LEAD, "bob", "belongs to a service"),
        ("realm", Role.LEAD, "robot", "programs never sign"),
    ],
)
def test_refuses_a_member(scope: str, role: Role, who: str, why: str, bob: User) -> None:
    program("robot", Role.LEAD)
    with pytest.raises(NotNamed, match=why):
        deputies.name_member(scope, role, User.objects.get(username=who), actor=bob)


def test_lets_no_program_sign_hold_a_place_in_a_team_or_a_token_to_approve(carol: User) -> None:
    robot = person("robot", Role.ARCHITECTURE)
    TeamMember.objects.create(scope="realm", role=Role.ARCHITECTURE, person=robot)
    assert tokens.may_hold(robot, Scope.APPROVE)
    PersonSettings.objects.create(user=robot, is_service_account=True)
    with pytest.raises(Refused, match="programs never sign"):
        requests.approve(ask(), person=robot, how=FRESH, reason="sound")
    assert roles.facts_of(carol, scope="realm").roles == {Role.ARCHITECTURE}
    assert requests.awaiting(robot, now()) == []
    assert not tokens.may_hold(robot, Scope.APPROVE)
    assert tokens.may_hold(robot, Scope.OPERATE)
    assert "robot" not in roles.holders([Role.ARCHITECTURE])


def test_answers_who_must_sign_and_why_at_a_time(bob: User, carol: User, dave: User, alice: User) -> None:
    Deputy.objects.create(
        principal=carol, deputy=alice, since=now() + DAY, until=now() + 3 * DAY, because="x", made_by=carol
    )
    asked = Forecast(Tier.LOW, policy.Subject(frozenset({Category.DATA}), "realm"))
    today = forecasting.who_must_sign(asked, now())
    assert [(need.of, need.people) for need in today.needs] == [("the architecture team", ["carol"])]
    assert "about data counts as high risk" in today.requirement.reason
    assert (today.escalates_to, today.kept_out) == ("the architecture team", [])
    later = forecasting.who_must_sign(asked, now() + 2 * DAY)
    assert later.needs[0].people == ["alice on behalf of carol", "carol"]
    deputies.name_member("realm", Role.ARCHITECTURE, person("ann", Role.ARCHITECTURE), actor=None)
    named = forecasting.who_must_sign(asked, now() + 2 * DAY)
    assert named.needs[0].people == ["ann"]
    assert "realm names its own architects, and carol is not one of them." in " ".join(named.kept_out)
    own = Forecast(Tier.CRITICAL, policy.Subject(), proposed_by=dave.pk)
    answer = forecasting.who_must_sign(own, now())
    assert answer.needs[0].people == []
    assert "Nobody signs what they proposed, and dave proposed this." in answer.kept_out


def test_takes_the_same_queries_however_many_people(django_assert_num_queries: Any, carol: User) -> None:
    for number in range(20):
        ann = person(f"ann{number}", Role.ARCHITECTURE)
        Deputy.objects.create(principal=carol, deputy=ann, until=now() + DAY, because="x", made_by=carol)
        TeamMember.objects.create(scope=f"shop{number}", role=Role.ARCHITECTURE, person=ann)
    with django_assert_num_queries(3):
        roles.everybody(scope="realm")
    with django_assert_num_queries(3):
        roles.people([carol.pk], scope="realm")
