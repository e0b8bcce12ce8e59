"""Who is asked when: one table, and who that is now."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from django.contrib.auth.models import User
from django.urls import reverse

from approvals import roles, terms
from approvals.policy import PersonFacts, Role, Tier
from approvals.rulebook import Document
from improvements.cadence import CHAIN
from monitoring.models import EscalationStep


@dataclass(frozen=True)
class Path:
    """`occasion` goes to `role`; `without` is what that means while nobody has the role. `tier`: of which requests."""

    occasion: str
    role: Role
    without: str
    tier: Tier | None = None


PATHS: tuple[Path, ...] = (
    Path("an alert fires", Role.ON_CALL, "alerts are nobody's duty"),
    Path(
        "a medium-risk change must be signed",
        Role.LEAD,
        "a medium-risk change with an inconclusive check cannot be approved",
        Tier.MEDIUM,
    ),
    Path("a high-risk change must be signed", Role.ARCHITECTURE, "no high-risk change can be approved", Tier.HIGH),
    Path("a critical change must be signed", Role.CTO, "no critical change can be approved", Tier.CRITICAL),
)


@dataclass(frozen=True)
class Standing:
    """A path with the names of those who have its role now, and what happens when they do nothing."""

    path: Path
    people: tuple[str, ...]
    then: str


@dataclass(frozen=True)
class Paths:
    """`review_chain` is who a review goes to when it is overdue; `holes` are sentences, none when all is well."""

    standing: tuple[Standing, ...]
    review_chain: tuple[tuple[str, tuple[str, ...]], ...]
    alert_steps: tuple[str, ...]
    holes: tuple[str, ...]


def paths() -> Paths:
    """Who is asked now, and where nobody is."""
    rights, policy = roles.snapshot(everyone=True), terms.in_force().document.of("")
    # Whoever is named by some service is asked there; reviews are of the whole installation.
    anywhere, everywhere = (_names(rights.people(scope)) for scope in (roles.ANYWHERE, ""))
    steps = tuple(
        f"{step}{'' if step.service is None else f' for {step.service}'}"
        for step in EscalationStep.objects.filter(contact__enabled=True).select_related("contact", "service")
    )
    return Paths(
        standing=tuple(Standing(path, anywhere[path.role], _then(path, policy)) for path in PATHS),
        review_chain=tuple((role.title, everywhere[role]) for role in CHAIN),
        alert_steps=steps,
        holes=_holes(anywhere, bool(steps)),
    )


def _names(people: Mapping[int, PersonFacts]) -> dict[Role, tuple[str, ...]]:
    known = [one for one in people.values() if one.may_count]
    return {role: tuple(sorted(one.name for one in known if role in one.roles)) for role in Role}


def _then(path: Path, policy: Document) -> str:
    """What the policy in force has happen when nobody decides."""
    if path.tier is None:
        return "the next escalation step, until somebody acknowledges it"
    row = policy.tiers[path.tier]
    return (
        f"after {row.escalate_after_hours:g} working hours {row.escalate_to.title} is told, "
        f"and after {row.expire_after_hours:g} it expires; nothing is approved by silence"
    )


def members() -> dict[Role, set[int]]:
    """The ids of the active people in each role's group, in one query: for the front page, which asks for much."""
    found: dict[Role, set[int]] = {role: set() for role in Role}
    held = User.objects.filter(is_active=True, groups__role__isnull=False)
    for pk, role in held.values_list("pk", "groups__role__role"):
        found[Role(role)].add(pk)
    return found


def unmanned(people: Mapping[Role, Collection[object]]) -> list[str]:
    """What is nobody's duty while nobody has its role, in words."""
    return [
        f"The group {roles.GROUP_NAMES[path.role]} has no active member: {path.without}."
        for path in PATHS
        if not people[path.role]
    ]


def _holes(people: Mapping[Role, tuple[str, ...]], has_steps: bool) -> tuple[str, ...]:
    holes = unmanned(people)
    senior = {name for role in (Role.CTO, Role.ARCHITECTURE, Role.LEAD) for name in people[role]}
    if people[Role.CTO] and len(senior) < 2:
        holes.append(f"A critical change needs two people, and {senior.pop()} alone could sign one.")
    if not has_steps:
        holes.append("No escalation step names a contact that is switched on: nobody is told of alerts.")
    return tuple(holes)


def groups_page() -> str:
    """Where an administrator puts people into groups."""
    return reverse("admin:auth_group_changelist")
