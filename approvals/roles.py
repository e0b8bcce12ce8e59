"""Who is what: people's roles, read from groups by their id, and the groups themselves.

Superuser is not a role: who may change everything in the admin still signs nothing without being in a group.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from django.apps import AppConfig, apps
from django.contrib.auth.management import create_permissions
from django.contrib.auth.models import Group, Permission, User
from django.db import connection, connections, transaction
from django.db.models import Q
from django.utils.timezone import now

from approvals import audit, settling
from approvals.models.deputy import Deputy
from approvals.models.role import RoleGroup
from approvals.models.team import TeamMember
from approvals.policy import ANYBODY_SENIOR, PersonFacts, Principal, Reset, Role
from approvals.teams import Member, Teams

GROUP_NAMES: Mapping[Role, str] = {
    Role.LEAD: "Lead developers",
    Role.ARCHITECTURE: "Architecture team",
    Role.CTO: "CTO",
    Role.ON_CALL: "On-call engineers",
    Role.VIEWER: "Viewers",
}
# Least privilege: every group reads these apps, and who is called when something goes wrong may start and stop
# improvements, freeze rollouts, answer alerts, and say who is told, what is kept quiet and what is normal. Nothing else
# is granted; who may sign, and who may loosen a freeze, follows from the role, in the domain code.
READABLE_APPS = ("approvals", "monitoring", "analysis", "improvements")
OPERATING_ROLES = (Role.LEAD, Role.ARCHITECTURE, Role.CTO, Role.ON_CALL)
TO_OPERATE = (
    ("improvements", "change_improvement"),
    ("improvements", "add_rollbackdrill"),
    *(("monitoring", f"change_{model}") for model in ("alert", "notice")),
    *(
        ("monitoring", f"{verb}_{model}")
        for model in ("contact", "escalationstep", "silence", "maintenancewindow")
        for verb in ("add", "change")
    ),
    *(("approvals", f"{verb}_freezewindow") for verb in ("add", "change")),
    ("monitoring", "delete_escalationstep"),
    ("monitoring", "add_baseline"),
    *(("approvals", f"{verb}_workinghours") for verb in ("add", "change", "delete")),
)
# Who the people of a service are, the CTO says.
TO_NAME = (("approvals", "add_teammember"), ("approvals", "delete_teammember"))


def granted_to(role: Role) -> tuple[tuple[str, str], ...]:
    """(app, codename) of what a role's group may do beside reading."""
    return (*(TO_OPERATE if role in OPERATING_ROLES else ()), *(TO_NAME if role is Role.CTO else ()))


# What `scope` may be beside the name of a service or "", which is the whole installation.
ANYWHERE = None  # any place at all: what the groups say


@dataclass(frozen=True)
class Account:
    """What one row of a user says, and the roles whose groups it is in."""

    id: int
    name: str
    active: bool
    is_service_account: bool
    in_groups: frozenset[Role]
    reset: Reset | None


@dataclass(frozen=True)
class Snapshot:
    """People with their rights as they are at one time, for every service."""

    accounts: Mapping[int, Account]
    teams: Teams
    lent: Mapping[int, tuple[Lent, ...]]  # deputy → by whom, in which role

    def people(self, scope: str | None = "") -> dict[int, PersonFacts]:
        """Everybody in here as the policy sees them, asked about the service of that name."""
        own = {
            one.id: self.teams.held(one.id, one.name, one.in_groups, scope) if one.in_groups else (frozenset(), ())
            for one in self.accounts.values()
        }
        return {
            one.id: PersonFacts(
                one.id,
                one.name,
                own[one.id][0],
                one.active,
                is_service_account=one.is_service_account,
                stands_in_for=self._principals(one.id, {pk: roles for pk, (roles, _) in own.items()}),
                elsewhere=own[one.id][1],
                reset=one.reset,
            )
            for one in self.accounts.values()
        }

    def _principals(self, deputy_id: int, own: Mapping[int, frozenset[Role]]) -> tuple[Principal, ...]:
        """Whose right a deputy may use: of people who could still sign themselves, and what they hold themselves."""
        lent: dict[int, set[Role]] = {}
        for one in self.lent.get(deputy_id, ()):
            principal = self.accounts.get(one.principal_id)
            if principal and principal.active and not principal.is_service_account:
                held = own[principal.id] & (frozenset({one.role}) if one.role else ANYBODY_SENIOR)
                lent.setdefault(principal.id, set()).update(held)
        known = [(self.accounts[pk], frozenset(roles)) for pk, roles in lent.items() if roles]
        found = [Principal(one.id, one.name, roles, one.reset) for one, roles in known]
        return tuple(sorted(found, key=lambda principal: principal.name))


@dataclass(frozen=True)
class Lent:
    """A principal's right that somebody may use now; in every role when `role` is None."""

    principal_id: int
    role: Role | None


COLUMNS = (
    "pk",
    "username",
    "is_active",
    "person_settings__is_service_account",
    "groups__role__role",
    *(f"credentials_reset__{name}" for name in ("what", "by", "at")),
)


def snapshot(
    ids: Iterable[int] = (), *, at: dt.datetime | None = None, lock: bool = False, everyone: bool = False
) -> Snapshot:
    """The rights of the people with these ids, or of `everyone` who has any, at a time (now). Three queries.

    With `lock`, nobody of them can be deactivated or lose a group, and nobody become or cease to be a deputy, a team's
    member or a program, until the transaction ends: taking a right away and using it then have an order.
    """
    if lock:
        rights_stay()
    wanted, at = set(ids), at or now()
    standing = Deputy.objects.in_force(at).order_by("pk")
    rows = standing if everyone else standing.filter(deputy_id__in=wanted)
    lent: dict[int, list[Lent]] = {}
    for deputy_id, principal_id, role in rows.values_list("deputy_id", "principal_id", "role"):
        lent.setdefault(deputy_id, []).append(Lent(principal_id, Role(role) if role else None))
        wanted |= {deputy_id, principal_id}
    if lock:
        hold_rows(wanted)
    concerned = Q(pk__in=wanted) | Q(groups__role__isnull=False) if everyone else Q(pk__in=wanted)
    accounts: dict[int, Account] = {}
    for row in User.objects.filter(concerned).values_list(*COLUMNS):
        pk, name, active, is_program, group, what, by, reset_at = row
        groups = accounts[pk].in_groups if pk in accounts else frozenset[Role]()
        groups |= {Role(group)} if group else set()
        reset = settling.unsettled(what, by, reset_at, at)
        accounts[pk] = Account(pk, name, active, bool(is_program), groups, reset)
    members = TeamMember.objects.exclude(person__person_settings__is_service_account=True)
    return Snapshot(
        accounts,
        Teams(Member(scope, Role(role), pk) for scope, role, pk in members.values_list("scope", "role", "person_id")),
        {pk: tuple(many) for pk, many in lent.items()},
    )


def people(
    ids: Iterable[int], *, scope: str | None = "", at: dt.datetime | None = None, lock: bool = False
) -> dict[int, PersonFacts]:
    """The people with these ids as the policy sees them now, asked about the service `scope`. See `snapshot`."""
    wanted = set(ids)
    found = snapshot(wanted, at=at, lock=lock).people(scope)
    return {pk: facts for pk, facts in found.items() if pk in wanted}


def everybody(
    *, scope: str | None = "", at: dt.datetime | None = None, also: Iterable[int] = ()
) -> dict[int, PersonFacts]:
    """Everybody who holds a role or stands in for somebody, and those with the ids `also`."""
    return snapshot(also, at=at, everyone=True).people(scope)


def facts_of(user: User, *, scope: str | None = "", at: dt.datetime | None = None, lock: bool = False) -> PersonFacts:
    """One person as the policy sees them now, whatever the given object remembers."""
    return people([user.pk], scope=scope, at=at, lock=lock)[user.pk]


def holders(roles: Iterable[Role], *, scope: str | None = "", without: Iterable[int] = ()) -> list[str]:
    """The names of the people who have one of these roles for `scope` and can use it, without those with these ids.

    Deputies are not among them: what a deputy may do depends on what is to be signed.
    """
    wanted, left_out = set(roles), set(without)
    return sorted(
        one.name
        for one in everybody(scope=scope).values()
        if one.may_count and one.roles & wanted and one.id not in left_out
    )


def names_of_groups() -> dict[Role, str]:
    """What the roles' groups are called, in the order of the roles."""
    known = dict(RoleGroup.objects.values_list("role", "group__name"))
    return {role: known[role] for role in Role if role in known}


def administrators() -> str:
    """'mallory (administrator)': who puts people into groups, in words; 'an administrator' where there is none."""
    names = (
        User.objects.filter(is_superuser=True, is_active=True).order_by("username").values_list("username", flat=True)
    )
    return f"{' or '.join(names[:5])} (administrator)" if names else "an administrator"


def hold_rows(ids: Iterable[int]) -> None:
    """Lock the accounts and the memberships of these people, everybody in the same order."""
    list(User.objects.filter(pk__in=ids).order_by("pk").select_for_update(no_key=True).values_list("pk"))
    memberships = User.groups.through.objects.filter(user_id__in=ids).order_by("pk")
    list(memberships.select_for_update(no_key=True).values_list("pk"))


RIGHTS = "rights of people"


def rights_stay() -> None:
    """From here to the end of the transaction no deputy, team or program's account changes. Many may ask at once."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 0))", [RIGHTS])


def rights_change() -> None:
    """Wait until nobody relies on the rights as they are; call it before rows that give or take one are written.

    Locks on rows cannot do this: a new row of a team takes a right away from those who are not named.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [RIGHTS])


def grant(user: User, role: Role, *, actor: User | None = None, because: str = "") -> None:
    """Put `user` into the group of `role` and record it."""
    group = RoleGroup.objects.select_related("group").get(role=role).group
    with transaction.atomic():
        if not user.groups.filter(pk=group.pk).exists():
            user.groups.add(group)
            audit.record("role.granted", user, actor=actor, because=because, data={"role": role})


def revoke(user: User, role: Role, *, actor: User | None = None, because: str = "") -> None:
    """Take `user` out of the group of `role` and record it. Their signatures on pending requests no longer count."""
    group = RoleGroup.objects.select_related("group").get(role=role).group
    with transaction.atomic():
        if user.groups.filter(pk=group.pk).exists():
            user.groups.remove(group)
            audit.record("role.revoked", user, actor=actor, because=because, data={"role": role})


def changed(user: User, was: frozenset[Role], *, actor: User | None, because: str) -> None:
    """Record which roles `user` has gained and lost since they had `was`; for who writes the groups themselves."""
    became = facts_of(user, scope=ANYWHERE).roles
    for role in Role:
        if role in was ^ became:
            action = "role.granted" if role in became else "role.revoked"
            audit.record(action, user, actor=actor, because=because, data={"role": role})


def prepare(sender: AppConfig, using: str, **kwargs: object) -> None:
    """After migrate (or flush): the log's head, the five groups, and their rights. Repeats harmlessly.

    A handler and not a data migration, because Django makes permissions only after all migrations have run.
    """
    with connections[using].cursor() as cursor:
        if RoleGroup._meta.db_table not in connections[using].introspection.table_names(cursor):
            return  # somebody migrated only a part
    audit.ensure_head()
    readable = [config for config in apps.get_app_configs() if config.label in READABLE_APPS]
    for config in readable:
        create_permissions(config, verbosity=0, using=using)
    view = list(
        Permission.objects.filter(
            content_type__app_label__in=[config.label for config in readable], codename__startswith="view_"
        )
    )
    for role, group in ensure_groups().items():
        wanted = Q(pk__in=[])
        for app, codename in granted_to(role):
            wanted |= Q(content_type__app_label=app, codename=codename)
        group.permissions.add(*view, *Permission.objects.filter(wanted))


def ensure_groups() -> dict[Role, Group]:
    """Every role's group. A role that has one keeps it under whatever name; the others get one of their usual name."""
    known = {Role(row.role): row.group for row in RoleGroup.objects.select_related("group")}
    for role, name in GROUP_NAMES.items():
        if role not in known:
            group, _ = Group.objects.get_or_create(name=name)
            known[role] = RoleGroup.objects.get_or_create(role=role, defaults={"group": group})[0].group
    return known
