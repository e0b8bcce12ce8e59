from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.core.management import CommandError, call_command
from django.utils.timezone import now

from approvals import roles, second_factor
from approvals.models import AuditEntry, RoleGroup
from approvals.policy import Role
from tests.authenticators import code_of
from tests.people import person

pytestmark = pytest.mark.django_db


def test_has_a_group_for_every_role_that_may_read_and_some_that_may_operate() -> None:
    assert dict(RoleGroup.objects.values_list("role", "group__name")) == {
        str(k): v for k, v in roles.GROUP_NAMES.items()
    }
    for group in Group.objects.all():
        granted = set(group.permissions.values_list("codename", flat=True))
        assert {"view_approvalrequest", "view_auditentry"} <= granted
        beside_reading = {codename for codename in granted if not codename.startswith("view_")}
        operate = {codename for _, codename in roles.TO_OPERATE}
        naming = {"add_teammember", "delete_teammember"} if group.name == "CTO" else set()
        assert beside_reading == (set() if group.name == "Viewers" else operate | naming)
        assert {"change_improvement", "change_alert", "add_silence"} <= operate
        assert "view_user" not in granted


def test_repairs_groups_and_permissions_when_migrating_again() -> None:
    Group.objects.filter(name="CTO").update(name="Chief")
    Permission.objects.filter(codename="view_auditentry").delete()
    call_command("migrate", verbosity=0)
    assert RoleGroup.objects.get(role="cto").group.name == "Chief"
    assert not Group.objects.filter(name="CTO").exists()
    assert Group.objects.get(name="Chief").permissions.filter(codename="view_auditentry").exists()


def test_grants_and_revokes_once_and_writes_it_down(alice: User, mallory: User) -> None:
    for _ in range(2):
        roles.grant(mallory, Role.LEAD, actor=alice, because="new lead")
    assert roles.facts_of(mallory).roles == {Role.LEAD}
    for _ in range(2):
        roles.revoke(mallory, Role.LEAD, actor=alice)
    assert roles.facts_of(mallory).roles == frozenset()
    assert [(one.action, one.actor, one.data["role"]) for one in AuditEntry.objects.about(mallory)] == [
        ("role.granted", "alice", "lead"),
        ("role.revoked", "alice", "lead"),
    ]


def test_counts_a_superuser_for_nothing(mallory: User) -> None:
    assert mallory.is_superuser
    assert roles.facts_of(mallory).roles == frozenset()


def test_names_the_active_holders(bob: User, dave: User) -> None:
    person("ann", Role.LEAD, Role.CTO)
    person("zoe", Role.LEAD, is_active=False)
    assert roles.holders([Role.LEAD, Role.CTO]) == ["ann", "bob", "dave"]


def test_makes_the_people_of_the_demonstration_once(settings: Any) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # the real one takes a second each
    out = io.StringIO()
    call_command("ensure_people", "--demo", "--json", stdout=out)
    people = json.loads(out.getvalue())
    assert {name: facts["role"] for name, facts in people.items()} == {
        "alice": "viewer",
        "bob": "lead",
        "carol": "architecture",
        "dave": "cto",
        "erin": "on-call",
    }
    for name, facts in people.items():
        user = User.objects.get(username=name)
        assert user.is_staff
        assert not user.is_superuser
        assert user.check_password(facts["password"])
        assert second_factor.verify(user, code_of(facts["key"]), now())
        assert {str(role) for role in roles.facts_of(user).roles} == {facts["role"]}
    again = io.StringIO()
    call_command("ensure_people", "--demo", "--json", stdout=again)
    assert all((facts["password"], facts["key"]) == (None, None) for facts in json.loads(again.getvalue()).values())
    with pytest.raises(CommandError, match="--demo"):
        call_command("ensure_people")
