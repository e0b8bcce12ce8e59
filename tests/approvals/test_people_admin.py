"""Pages of the policy, deputies, teams and accounts: what they show, and that what they change is written down."""

from __future__ import annotations

import copy
import datetime as dt
import html
import json
import re
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import now

from approvals import deputies, forecasting, policies, requests, roles, rulebook, scopes
from approvals.models import (
    ApprovalRequest,
    AuditEntry,
    Deputy,
    PersonSettings,
    PolicyVersion,
    RoleGroup,
    TeamMember,
)
from approvals.policy import Role, Tier, required
from approvals.rulebook import DEFAULT
from approvals.subjects import SubjectRef
from tests.people import FRESH, person

pytestmark = pytest.mark.django_db

POLICIES = "/admin/approvals/policyversion/"
PROPOSE, WHO = f"{POLICIES}propose/", f"{POLICIES}who-must-sign/"
DAY = dt.timedelta(days=1)
LISTS = [POLICIES, *(f"/admin/approvals/{name}/" for name in ("deputy", "teammember", "personsettings"))]


@pytest.fixture(autouse=True)
def _two_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scopes, "_KNOWN", [lambda: ["shop", "realm"]])


def as_person(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def read(client: Client, address: str, **asked: Any) -> str:
    answer = client.get(address, asked)
    assert answer.status_code == 200, (address, answer.status_code)
    return answer.content.decode()


def text_of(expire_after_hours: float = 30) -> str:
    written = copy.deepcopy(DEFAULT.as_json())
    written["tiers"]["high"]["expire_after_hours"] = expire_after_hours
    return json.dumps(written)


def test_shows_what_is_in_force(alice: User) -> None:
    page = read(as_person(alice), POLICIES)
    assert "the policy as shipped" in page
    assert "two different people: the CTO, and one of the CTO" in page
    assert "Propose a policy" not in page
    assert "Propose a policy" in read(as_person(person("bob", Role.LEAD)), POLICIES)


def test_shows_the_change_before_it_is_proposed_and_then_asks_for_signatures(bob: User, dave: User) -> None:
    client = as_person(bob)
    assert "&quot;expire_after_hours&quot;: 40.0" in read(client, PROPOSE)
    looked = client.post(PROPOSE, {"document": text_of(), "because": "faster", "look": "1"}).content.decode()
    assert "<strong>tiers.high.expire_after_hours</strong>: 40 → 30" in looked
    assert '<tr class="diff-added">' in looked
    assert not PolicyVersion.objects.exists()
    page = client.post(PROPOSE, {"document": text_of(), "because": "faster", "propose": "1"}, follow=True)
    assert "Policy 1 is proposed" in page.content.decode()
    request = ApprovalRequest.objects.get(subject_kind="policy")
    assert f"/approvalrequest/{request.pk}/change/" in page.content.decode()
    assert "tiers.high.expire_after_hours" in read(
        as_person(dave), f"/admin/approvals/approvalrequest/{request.pk}/change/"
    )


@pytest.mark.parametrize(
    ("document", "because", "told"),
    [
        ("{", "faster", "this is no JSON"),
        (text_of(500), "faster", "500 is longer than 400"),
        (text_of(40), "for fun", "nothing would change"),
        (text_of(), " ", "Say why the policy is to change"),
    ],
)
def test_says_what_is_wrong_and_keeps_the_text(document: str, because: str, told: str, bob: User) -> None:
    page = as_person(bob).post(PROPOSE, {"document": document, "because": because, "propose": "1"}).content.decode()
    assert told in page
    assert document[:20].replace('"', "&quot;") in page
    assert not PolicyVersion.objects.exists()


def test_lets_nobody_propose_or_change_who_may_not(alice: User, mallory: User) -> None:
    assert as_person(alice).get(PROPOSE).status_code == 403
    assert as_person(alice).post(PROPOSE, {"document": text_of(), "because": "x", "propose": "1"}).status_code == 403
    assert as_person(mallory).get(f"{POLICIES}add/").status_code == 403
    version = policies.propose(rulebook.parse(text_of()), actor=mallory, because="x")
    for action in ("change", "delete"):
        as_person(mallory).post(f"{POLICIES}{version.pk}/{action}/", {"because": "another", "post": "yes"})
    assert PolicyVersion.objects.get().because == "x"
    lost = as_person(alice).get(f"{POLICIES}99/change/", follow=True).content.decode()
    assert "There is no policy 99" in lost


def test_answers_who_must_sign(carol: User, alice: User) -> None:
    client = as_person(alice)
    page = read(client, WHO, tier="low", category="data", service="realm")
    assert "A change about data counts as high risk at least" in page
    assert re.search(r"<strong>The architecture team</strong>: carol", page)
    Deputy.objects.create(
        principal=carol, deputy=alice, since=now() + DAY, until=now() + 3 * DAY, because="x", made_by=carol
    )
    at = (now() + 2 * DAY).strftime("%Y-%m-%dT%H:%M")
    assert "alice on behalf of carol" in read(client, WHO, tier="high", at=at)
    assert "alice on behalf of carol" not in read(client, WHO, tier="high")
    deputies.name_member("realm", Role.ARCHITECTURE, person("ann", Role.ARCHITECTURE), actor=None)
    page = read(client, WHO, tier="high", service="realm")
    assert "realm names its own architects, and carol is not one of them." in page
    assert "No person has to sign" in read(client, WHO, tier="low")


@pytest.mark.parametrize(
    "asked",
    [
        {"at": "soon"}, {"at": "2030-99-99T10:00"}, {"tier": "huge"}, {"category": "x"}, {"subject": "improvement:"},
        {"subject": "nothing:1"}, {"subject": "improvement:999999"}, {"subject": f"improvement:{'9' * 30}"},
        {"service": "x" * 1000}, {"at": "2030-01-01T10:00+05:00"}, {},
    ],
)  # fmt: skip
def test_answers_to_nonsense_too(asked: dict[str, str], alice: User) -> None:
    assert "Who must sign?" in read(as_person(alice), WHO, **asked)


def test_has_no_inline_style_or_script(bob: User) -> None:
    client = as_person(bob)
    version = policies.propose(rulebook.parse(text_of()), actor=bob, because="x")
    for address in (PROPOSE, WHO, f"{POLICIES}{version.pk}/change/", *LISTS[:3]):
        page = read(client, address)
        ours = page[page.index('id="content"') :]
        assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>(?!\s*</script>)", ours), address
        assert not re.search(r"\sstyle=|\son\w+=|<style", ours), address


def deputy_form(principal: User, deputy: User, **more: Any) -> dict[str, Any]:
    since, until = now(), now() + DAY
    return {
        "principal": principal.pk,
        "deputy": deputy.pk,
        "role": "",
        "since_0": since.strftime("%Y-%m-%d"),
        "since_1": since.strftime("%H:%M:%S"),
        "until_0": until.strftime("%Y-%m-%d"),
        "until_1": until.strftime("%H:%M:%S"),
        "because": "on holiday",
        **more,
    }


def test_lets_everybody_name_their_own_deputy_alone(alice: User, bob: User, carol: User) -> None:
    add = "/admin/approvals/deputy/add/"
    as_person(bob).post(add, deputy_form(carol, alice))
    assert not Deputy.objects.exists()
    page = as_person(alice).post(add, deputy_form(alice, bob)).content.decode()
    assert "there is nothing to lend" in page
    as_person(carol).post(add, deputy_form(carol, alice))
    row = Deputy.objects.get()
    assert (row.principal, row.deputy, row.made_by) == (carol, alice, carol)
    ending = {"action": "end", "_selected_action": [row.pk]}
    assert "may end this" in as_person(bob).post("/admin/approvals/deputy/", ending, follow=True).content.decode()
    as_person(alice).post("/admin/approvals/deputy/", ending)
    assert [one.action for one in AuditEntry.objects.about(row).order_by("sequence")] == [
        "deputy.named",
        "deputy.ended",
    ]


def test_lets_the_cto_and_superusers_name_teams(bob: User, carol: User, dave: User, mallory: User) -> None:
    add = "/admin/approvals/teammember/add/"
    sent = {"scope": "realm", "role": "architecture", "person": carol.pk}
    assert as_person(bob).post(add, sent).status_code == 403
    as_person(mallory).post(add, {**sent, "scope": "nothing"})
    assert not TeamMember.objects.exists()
    as_person(dave).post(add, sent)
    row = TeamMember.objects.get()
    assert as_person(bob).post(f"/admin/approvals/teammember/{row.pk}/delete/", {"post": "yes"}).status_code == 403
    as_person(mallory).post(
        "/admin/approvals/teammember/",
        {"action": "delete_selected", "_selected_action": [row.pk], "post": "yes"},
    )
    told = AuditEntry.objects.filter(action__startswith="team.").order_by("sequence")
    assert [(one.action, one.actor) for one in told] == [("team.named", "dave"), ("team.dropped", "mallory")]


def account_form(user: User, *groups: Group, **more: Any) -> dict[str, Any]:
    return {
        "username": user.username,
        "is_active": "on",
        "is_staff": "on",
        "groups": [group.pk for group in groups],
        "date_joined_0": "2026-01-01",
        "date_joined_1": "10:00:00",
        **more,
    }


def test_writes_down_rights_given_in_the_admin(bob: User, mallory: User) -> None:
    client = as_person(mallory)
    cto = RoleGroup.objects.get(role="cto").group
    extra = Permission.objects.get(codename="view_user")
    page = f"/admin/auth/user/{bob.pk}/change/"
    assert client.post(page, account_form(bob, cto, user_permissions=[extra.pk], first_name="Bob")).status_code == 302
    told = list(AuditEntry.objects.about(bob).order_by("sequence"))
    assert [(one.action, one.actor) for one in told] == [
        ("role.granted", "mallory"),
        ("role.revoked", "mallory"),
        ("person.changed", "mallory"),
    ]
    assert [one.data["role"] for one in told[:2]] == ["cto", "lead"]
    assert (told[2].was["groups"], told[2].became["groups"]) == (["Lead developers"], ["CTO"])
    assert (told[2].was["permissions"], told[2].became["permissions"]) == ([], ["view_user"])
    assert "Bob" not in told[2].payload
    assert bob.password not in told[2].payload
    client.post(
        page, {"username": "bob", "is_superuser": "on", "date_joined_0": "2026-01-01", "date_joined_1": "10:00"}
    )
    last = AuditEntry.objects.get(action="person.changed", sequence__gt=told[2].sequence)
    assert (last.became["active"], last.became["superuser"]) == (False, True)


def test_writes_down_accounts_made_deleted_and_given_a_password(mallory: User, settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    client = as_person(mallory)
    word = "correct horse battery staple"
    new = {"username": "ann", "usable_password": "true", "password1": word, "password2": word}
    assert client.post("/admin/auth/user/add/", new).status_code == 302
    ann = User.objects.get(username="ann")
    client.post(f"/admin/auth/user/{ann.pk}/password/", {**new, "password1": word * 2, "password2": word * 2})
    client.post(f"/admin/auth/user/{ann.pk}/password/", {**new, "password1": "a", "password2": "b"})
    client.post(
        "/admin/auth/user/", {"action": "delete_selected", "_selected_action": [ann.pk], "post": "yes"}, follow=True
    )
    told = AuditEntry.objects.filter(action__startswith="person.").order_by("sequence")
    actions = ["person.created", "person.deleted"]
    assert [(one.action, one.subject) for one in told] == [(action, "ann") for action in actions]
    passwords = AuditEntry.objects.about(ann).exclude(action__startswith="person.")
    assert [(one.action, one.actor) for one in passwords] == [("signin.password_changed", "mallory")] * 2
    assert word not in "".join(one.payload for one in told)


def test_writes_down_what_becomes_of_groups(mallory: User) -> None:
    client = as_person(mallory)
    extra = Permission.objects.get(codename="change_user")
    client.post("/admin/auth/group/add/", {"name": "Auditors"})
    group = Group.objects.get(name="Auditors")
    client.post(f"/admin/auth/group/{group.pk}/change/", {"name": "Readers", "permissions": [extra.pk]})
    client.post(f"/admin/auth/group/{group.pk}/delete/", {"post": "yes"})
    told = list(AuditEntry.objects.filter(action__startswith="group.").order_by("sequence"))
    assert [one.action for one in told] == ["group.created", "group.changed", "group.deleted"]
    assert told[1].was == {"name": "Auditors", "permissions": []}
    assert told[1].became == {"name": "Readers", "permissions": ["change_user"]}
    lead = RoleGroup.objects.get(role="lead").group
    assert client.post(f"/admin/auth/group/{lead.pk}/delete/", {"post": "yes"}).status_code == 403


def test_writes_down_who_is_a_program(bob: User, mallory: User) -> None:
    client = as_person(mallory)
    client.post(
        "/admin/approvals/personsettings/add/", {"user": bob.pk, "time_zone": "UTC", "is_service_account": "on"}
    )
    assert roles.facts_of(bob).is_service_account
    client.post(f"/admin/approvals/personsettings/{bob.pk}/change/", {"time_zone": "UTC"})
    client.post(f"/admin/approvals/personsettings/{bob.pk}/delete/", {"post": "yes"})
    told = list(AuditEntry.objects.filter(action="person.settings").order_by("sequence"))
    assert [one.subject for one in told] == ["bob"] * 3
    assert told[1].was["is_service_account"] is True
    assert told[1].became["is_service_account"] is False
    assert not PersonSettings.objects.exists()


@pytest.mark.parametrize("role", Role)
def test_gives_no_role_a_way_to_rights_of_others(role: Role) -> None:
    """Least privilege: what the groups grant touches no account, group, policy, deputy, team or person's settings."""
    client = as_person(person("somebody", role))
    for address in ("/admin/auth/user/", "/admin/auth/group/"):
        assert client.get(address).status_code == 403
        assert client.get(f"{address}add/").status_code == 403
    for name in ("policyversion", "personsettings", "rolegroup"):
        assert client.get(f"/admin/approvals/{name}/add/").status_code in (403, 404)
    granted = Permission.objects.filter(group__role__role=role)
    beyond = granted.filter(content_type__app_label__in=["approvals", "auth", "admin", "sessions", "contenttypes"])
    beyond = beyond.exclude(content_type__app_label="approvals", codename__startswith="view_")
    naming = {"add_teammember", "delete_teammember"} if role is Role.CTO else set()
    hours = {"add_workinghours", "change_workinghours", "delete_workinghours"}
    operating = hours | {"add_freezewindow", "change_freezewindow"} if role is not Role.VIEWER else set()
    assert set(beyond.values_list("codename", flat=True)) == naming | operating


def test_keeps_its_query_budget_however_much_there_is(mallory: User, bob: User, carol: User) -> None:
    client = as_person(mallory)

    def queries() -> dict[str, int]:
        found = {}
        for address in (*LISTS, "/admin/auth/user/", WHO + "?tier=critical"):
            with CaptureQueriesContext(connection) as made:
                assert client.get(address).status_code == 200
            found[address] = len(made)
        return found

    def fill(first: int, last: int) -> None:
        for number in range(first, last):
            ann = person(f"ann{number}", Role.LEAD)
            Deputy.objects.create(principal=carol, deputy=ann, until=now() + DAY, because="x", made_by=carol)
            TeamMember.objects.create(scope=f"shop{number}", role=Role.LEAD, person=ann)
            PersonSettings.objects.create(user=ann)
            policies.propose(rulebook.parse(text_of(20 + number / 10)), actor=bob, because="x")

    fill(0, 2)
    before = queries()
    fill(2, 8)
    assert queries() == before
    assert max(before.values()) <= 18


def test_says_in_words_where_there_is_nothing(mallory: User) -> None:
    client = as_person(mallory)
    for address, words in zip(
        LISTS, ["Nobody has changed", "Nobody stands in", "No service names", "Nobody has settings"], strict=True
    ):
        assert words in read(client, address)


def test_reaches_every_page_from_the_admin(mallory: User) -> None:
    assert reverse("admin:approvals_who_must_sign") in read(as_person(mallory), POLICIES)


def test_says_when_nobody_can_sign_and_whom_to_ask(bob: User, carol: User, mallory: User) -> None:
    ask = (
        "Nobody can sign this as things are: nobody is left for the signature of the architecture team. "
        "Ask mallory (administrator) to put somebody into the group “Architecture team”"
    )
    assert "Nobody can sign this" not in read(as_person(bob), WHO, tier="high")
    assert forecasting.gaps(now()) == [
        "Nobody could sign changes of critical risk: nobody is left for the signature of the CTO. "
        "Ask mallory (administrator) to put somebody into the group “CTO”."
    ]
    PersonSettings.objects.create(user=carol, is_service_account=True)
    assert f"{ask}." in html.unescape(read(as_person(bob), WHO, tier="high"))
    request = requests.open_request(
        SubjectRef("improvement", 1, "An index", "", scope="realm"), requirement=required(Tier.HIGH),
        fingerprint="f" * 64, proposed_by=None, facts={}, expires_at=now() + DAY,
    )  # fmt: skip
    page = html.unescape(read(as_person(bob), f"/admin/approvals/approvalrequest/{request.pk}/change/"))
    assert f"{ask}." in page
    assert "carol is the account of a program, and programs never sign." in page


def test_does_not_take_a_wish_for_changes_for_a_lack_of_people(bob: User, carol: User, dave: User) -> None:
    request = requests.open_request(
        SubjectRef("improvement", 1, "An index", ""), requirement=required(Tier.HIGH), fingerprint="f" * 64,
        proposed_by=None, facts={}, expires_at=now() + DAY,
    )  # fmt: skip
    requests.ask_for_changes(request, person=carol, how=FRESH, reason="Name it otherwise.")
    page = read(as_person(bob), f"/admin/approvals/approvalrequest/{request.pk}/change/")
    assert "Missing: the architecture team (carol)" in page
    assert "Nobody can sign" not in page


def test_names_the_service_whose_own_people_cannot_sign(bob: User, carol: User, dave: User, mallory: User) -> None:
    gone = person("gone", Role.ARCHITECTURE)
    deputies.name_member("realm", Role.ARCHITECTURE, gone, actor=None)
    assert forecasting.gaps(now()) == []
    User.objects.filter(pk=gone.pk).update(is_active=False)
    assert forecasting.gaps(now()) == [
        "Nobody could sign changes of high risk in realm: nobody is left for the signature of the architecture team. "
        "Ask mallory (administrator) to put somebody into the group “Architecture team”, or the CTO to name somebody "
        "under “Team members” for realm."
    ]
