"""Whose role counts where: every (role, who is named where, service) as a table."""

from __future__ import annotations

import itertools

import pytest

from approvals.policy import Role
from approvals.teams import TEAM_ROLES, Member, Teams

PAT, QUINN = 1, 2
# Who is named where for the role → where pat, who is in the role's group, holds it: realm, shop, everywhere else.
ROWS: dict[str, tuple[tuple[tuple[str, int], ...], bool, bool, bool]] = {
    "nobody is named": ((), True, True, True),
    "pat is named": ((("realm", PAT),), True, False, False),
    "pat is named twice": ((("realm", PAT), ("shop", PAT)), True, True, False),
    "another is named": ((("realm", QUINN),), False, True, True),
    "both are named": ((("realm", PAT), ("realm", QUINN)), True, False, False),
    "each is named elsewhere": ((("realm", QUINN), ("shop", PAT)), False, True, False),
}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("named", ROWS)
def test_counts_a_role_where_the_service_says_so(role: Role, named: str) -> None:
    members, *expected = ROWS[named]
    teams = Teams(Member(scope, role, person) for scope, person in members if role in TEAM_ROLES)
    for scope, holds in zip(["realm", "shop", ""], expected, strict=True):
        held, elsewhere = teams.held(PAT, "pat", frozenset({role}), scope)
        assert (role in held) == (holds or role not in TEAM_ROLES)
        assert bool(elsewhere) == (role not in held)
        assert all("pat" in why and why.endswith(".") for why in elsewhere)
    assert teams.held(PAT, "pat", frozenset({role}), None) == (frozenset({role}), ())


def test_gives_nobody_a_role_by_naming_them() -> None:
    teams = Teams([Member("realm", Role.LEAD, PAT)])
    for scope, held in itertools.product(["realm", "shop", "", None], [frozenset(), frozenset({Role.VIEWER})]):
        assert teams.held(PAT, "pat", held, scope)[0] == held


def test_leaves_the_cto_everywhere() -> None:
    assert Role.CTO not in TEAM_ROLES
    teams = Teams([Member("realm", Role.LEAD, QUINN)])
    assert teams.held(PAT, "pat", frozenset({Role.CTO, Role.LEAD}), "realm")[0] == {Role.CTO}


def test_says_why() -> None:
    teams = Teams([Member("realm", Role.LEAD, QUINN), Member("shop", Role.ARCHITECTURE, PAT)])
    held = frozenset({Role.LEAD, Role.ARCHITECTURE})
    assert teams.held(PAT, "pat", held, "realm")[1] == (
        "realm names its own lead developers, and pat is not one of them.",
        "pat is one of the architects of shop, which gives no say in realm.",
    )
