"""What a change is about, from what it touches and what led to it. One change may be about several things."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from approvals.policy import Category


@dataclass(frozen=True)
class ChangeFacts:
    """What is known of a change. Before its patch is written, `paths` is empty and the finding alone speaks.

    `paths` are relative to the repository's root. `is_vulnerable` is true where a scan or the finding names a known
    weakness.
    """

    finding_kind: str = ""
    author: str = ""
    paths: Sequence[str] = ()
    is_vulnerable: bool = False

    @property
    def words(self) -> frozenset[str]:
        """What the finding and the author are called, word by word."""
        return frozenset(f"{self.finding_kind} {self.author}".lower().replace("_", " ").replace("-", " ").split())

    def touches(self, *patterns: str) -> bool:
        """Whether a path, or any of its ends, has one of these shapes; letters' case does not matter."""
        return any(fnmatch(f"/{path.lower()}", f"*/{pattern}") for path in self.paths for pattern in patterns)


SCHEMA = ("migrations/*", "migrate/*", "alembic/*", "*.sql", "schema.prisma", "schema.rb")
INFRASTRUCTURE = (
    "settings*.py", "settings/*", "deploy/*", "dockerfile*", "*compose*.y*ml", "*.tf", "helm/*", "kubernetes/*",
    "k8s/*", "procfile", "gunicorn*.py", "runerogue.toml", ".env*", "nginx*", "haproxy*", "systemd/*", "*.service",
)  # fmt: skip
SECURITY = (
    "auth/*", "auth.py", "*authentication*", "*authorization*", "*permission*", "*login*", "*password*", "*token*",
    "*session*", "*crypto*", "*security*", "*secret*", "middleware/auth*", "*csrf*", "*cors*",
)  # fmt: skip

# Any sign is enough: nothing here takes a category away again.
SIGNS: Mapping[Category, tuple[Callable[[ChangeFacts], bool], ...]] = {
    Category.DATA: (
        lambda change: change.touches(*SCHEMA),
        lambda change: bool(change.words & {"migration", "schema"}),
    ),
    Category.INFRASTRUCTURE: (
        lambda change: change.touches(*INFRASTRUCTURE),
        lambda change: bool(change.words & {"tuning", "deploy", "configuration", "settings"}),
    ),
    Category.SECURITY: (
        lambda change: change.touches(*SECURITY),
        lambda change: change.is_vulnerable,
        lambda change: bool(change.words & {"security", "vulnerability", "vulnerable", "secret", "cve"}),
    ),
    Category.PERFORMANCE: (
        lambda change: bool(
            change.words & {"index", "performance", "tuning", "slow", "latency", "cache", "bottleneck", "regression"}
        ),
        lambda change: {"n", "plus", "one"} <= change.words,
    ),
}


def of(change: ChangeFacts) -> frozenset[Category]:
    """The categories of a change: every one of which there is a sign, and "application" when there is none at all."""
    found = {category for category, signs in SIGNS.items() if any(sign(change) for sign in signs)}
    return frozenset(found or {Category.APPLICATION})
