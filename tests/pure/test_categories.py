"""What a change is about: every sign a row, and no category without one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from approvals.policy import Category
from improvements.categories import SIGNS, ChangeFacts, of

APPLICATION, DATA, INFRASTRUCTURE = Category.APPLICATION, Category.DATA, Category.INFRASTRUCTURE
PERFORMANCE, SECURITY = Category.PERFORMANCE, Category.SECURITY

ROWS = [
    (ChangeFacts(paths=["shop/migrations/0002_prices.py"]), {DATA}),
    (ChangeFacts(paths=["migrations/0001_initial.py"]), {DATA}),
    (ChangeFacts(paths=["db/alembic/versions/1.py"]), {DATA}),
    (ChangeFacts(paths=["db/structure.SQL"]), {DATA}),
    (ChangeFacts(paths=["prisma/schema.prisma"]), {DATA}),
    (ChangeFacts(finding_kind="schema-drift"), {DATA}),
    (ChangeFacts(paths=["shop/settings.py"]), {INFRASTRUCTURE}),
    (ChangeFacts(paths=["shop/settings/production.py"]), {INFRASTRUCTURE}),
    (ChangeFacts(paths=["deploy/haproxy.cfg"]), {INFRASTRUCTURE}),
    (ChangeFacts(paths=["Dockerfile"]), {INFRASTRUCTURE}),
    (ChangeFacts(paths=["compose.yaml"]), {INFRASTRUCTURE}),
    (ChangeFacts(author="tuning"), {INFRASTRUCTURE, PERFORMANCE}),
    (ChangeFacts(paths=["shop/auth/views.py"]), {SECURITY}),
    (ChangeFacts(paths=["shop/login.py"]), {SECURITY}),
    (ChangeFacts(paths=["shop/Permissions.py"]), {SECURITY}),
    (ChangeFacts(paths=["pyproject.toml"], is_vulnerable=True), {SECURITY}),
    (ChangeFacts(finding_kind="vulnerable_dependency", author="dependency"), {SECURITY}),
    (ChangeFacts(finding_kind="security"), {SECURITY}),
    (ChangeFacts(finding_kind="n_plus_one", author="n-plus-one"), {PERFORMANCE}),
    (ChangeFacts(author="index"), {PERFORMANCE}),
    (ChangeFacts(author="index", paths=["game/migrations/0009_index.py"]), {DATA, PERFORMANCE}),
    (ChangeFacts(paths=["shop/auth/migrations/0002.py"]), {DATA, SECURITY}),
    (ChangeFacts(paths=["shop/views.py", "README.md"]), {APPLICATION}),
    (ChangeFacts(paths=["pyproject.toml"], author="dependency"), {APPLICATION}),
    (ChangeFacts(finding_kind="lint"), {APPLICATION}),
    (ChangeFacts(), {APPLICATION}),
]


@pytest.mark.parametrize(("change", "expected"), ROWS)
def test_knows_what_a_change_is_about(change: ChangeFacts, expected: set[Category]) -> None:
    assert of(change) == expected


def test_has_a_row_for_every_category_and_every_sign() -> None:
    assert set(SIGNS) | {APPLICATION} == set(Category)
    for signs in SIGNS.values():
        for sign in signs:
            assert any(sign(change) for change, _ in ROWS)
            assert not all(sign(change) for change, _ in ROWS)


def test_loses_no_category_by_touching_more() -> None:
    for change, expected in ROWS:
        more = replace(change, paths=[*change.paths, "shop/migrations/0003.py"])
        assert of(more) == (expected - {APPLICATION}) | {DATA}
