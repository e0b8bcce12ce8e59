"""Which of a person's roles count for one service: a service may name its own people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from approvals.tiers import Role

# The roles for which a service may name its own people. The CTO is of all services.
TEAM_ROLES = (Role.LEAD, Role.ARCHITECTURE, Role.ON_CALL)
IN_PLURAL: Mapping[Role, str] = {
    Role.LEAD: "lead developers",
    Role.ARCHITECTURE: "architects",
    Role.ON_CALL: "on-call engineers",
}


@dataclass(frozen=True)
class Member:
    """`person_id` is one of the people whom the service `scope` names for `role`."""

    scope: str
    role: Role
    person_id: int


class Teams:
    """Everybody whom services name, asked by role."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._people: dict[tuple[str, Role], set[int]] = {}
        self._scopes: dict[tuple[int, Role], set[str]] = {}
        for member in members:
            self._people.setdefault((member.scope, member.role), set()).add(member.person_id)
            self._scopes.setdefault((member.person_id, member.role), set()).add(member.scope)

    def held(
        self, person_id: int, name: str, in_groups: frozenset[Role], scope: str | None
    ) -> tuple[frozenset[Role], tuple[str, ...]]:
        """The roles of `in_groups` that the person holds for `scope`, and why the others do not count there.

        Where a service names people for a role, they alone hold it there; where it names nobody, those hold it who are
        named by no other. `scope` "" is the whole installation, None any place at all.
        """
        if scope is None:
            return in_groups, ()
        lost = {
            role: why for role in TEAM_ROLES if role in in_groups and (why := self._why(person_id, name, role, scope))
        }
        return in_groups - lost.keys(), tuple(lost.values())

    def _why(self, person_id: int, name: str, role: Role, scope: str) -> str:
        named = self._people.get((scope, role))
        if named:
            if person_id in named:
                return ""
            return f"{scope} names its own {IN_PLURAL[role]}, and {name} is not one of them."
        others = sorted(self._scopes.get((person_id, role), ()))
        if not others:
            return ""
        where = scope or "the whole installation"
        return f"{name} is one of the {IN_PLURAL[role]} of {', '.join(others)}, which gives no say in {where}."
