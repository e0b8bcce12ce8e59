"""Who is what: people's roles, read from groups by their id, and the groups themselves.

Superuser is not a role: who may change everything in the admin still signs nothing without being in a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from django.apps import AppConfig, apps
from django.contrib.auth.management import create_permissions
from django.contrib.auth.models import Group, Permission, User
from django.db import connections, transaction
from django.db.models import Q

from approvals import audit
from approvals.models.role import RoleGroup
from approvals.policy import PersonFacts, Role

GROUP_NAMES: Mapping[Role, str] = {
    Role.LEAD: "Lead developers",
    Role.ARCHITECTURE: "Architecture team",
    Role.CTO: "CTO",
    Role.ON_CALL: "On-call engineers",
    Role.VIEWER: "Viewers",
}
# Least privilege: every group reads these apps, and who is called when something goes wrong may start and stop
# improvements, answer alerts, and say who is told, what is kept quiet and what is normal. Nothing else is granted; who
# may sign follows from the role, in the domain code.
READABLE_APPS = ("approvals", "monitoring", "analysis", "improvements")
OPERATING_ROLES = (Role.LEAD, Role.ARCHITECTURE, Role.CTO, Role.ON_CALL)
TO_OPERATE = (
    ("improvements", "change_improvement"),
    *(("monitoring", f"change_{model}") for model in ("alert", "notice")),
    *(
        ("monitoring", f"{verb}_{model}")
        for model in ("contact", "escalationstep", "silence", "maintenancewindow")
        for verb in ("add", "change")
    ),
    ("monitoring", "delete_escalationstep"),
    ("monitoring", "add_baseline"),
    *(("approvals", f"{verb}_workinghours") for verb in ("add", "change", "delete")),
)


def people(ids: Iterable[int], *, lock: bool = False) -> dict[int, PersonFacts]:
    """The people with these ids as the policy sees them now.

    With `lock`, nobody can be deactivated or lose a group until the transaction ends: taking a right away and using
    it then have an order.
    """
    wanted = sorted(set(ids))
    users = User.objects.filter(pk__in=wanted).order_by("pk")
    memberships = User.groups.through.objects.filter(user_id__in=wanted).order_by("pk")
    if lock:
        users = users.select_for_update(no_key=True)
        memberships = memberships.select_for_update(no_key=True)
    found = list(users.only("pk", "username", "is_active"))
    role_of = dict(RoleGroup.objects.values_list("group_id", "role"))
    roles: dict[int, set[Role]] = {}
    for membership in memberships:
        if role := role_of.get(membership.group_id):
            roles.setdefault(membership.user_id, set()).add(Role(role))
    return {
        user.pk: PersonFacts(user.pk, user.username, frozenset(roles.get(user.pk, ())), user.is_active)
        for user in found
    }


def facts_of(user: User, *, lock: bool = False) -> PersonFacts:
    """One person as the policy sees them now, whatever the given object remembers."""
    return people([user.pk], lock=lock)[user.pk]


def holders(roles: Iterable[Role], *, without: Iterable[int] = ()) -> list[str]:
    """The names of the active people who have one of these roles, leaving out those with the ids `without`."""
    wanted = [str(role) for role in roles]
    users = User.objects.filter(is_active=True, groups__role__role__in=wanted).exclude(pk__in=list(without))
    return list(users.distinct().order_by("username").values_list("username", flat=True))


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
    wanted = Q()
    for app, codename in TO_OPERATE:
        wanted |= Q(content_type__app_label=app, codename=codename)
    operate = list(Permission.objects.filter(wanted))
    for role, group in ensure_groups().items():
        group.permissions.add(*view, *(operate if role in OPERATING_ROLES else ()))


def ensure_groups() -> dict[Role, Group]:
    """Every role's group. A role that has one keeps it under whatever name; the others get one of their usual name."""
    known = {Role(row.role): row.group for row in RoleGroup.objects.select_related("group")}
    for role, name in GROUP_NAMES.items():
        if role not in known:
            group, _ = Group.objects.get_or_create(name=name)
            known[role] = RoleGroup.objects.get_or_create(role=role, defaults={"group": group})[0].group
    return known
