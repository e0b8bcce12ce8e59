"""Authors turn a finding into a patch. Each is an object with a name and two methods; third parties add theirs through
the entry point group "runerogue.authors" (an entry is a callable that returns an Author)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

ENTRY_POINTS = "runerogue.authors"


class CannotWrite(Exception):
    """The author is not sure, and says what stops it. Nothing was changed."""


@dataclass(frozen=True)
class Patch:
    """Files to write, relative to the repository's root, with their whole new text; and what a reviewer should know."""

    files: Mapping[str, str]
    summary: str
    explanation: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """What is known before the patch is: how many lines it usually changes, how many hours its review takes, and what
    it promises, as a sentence for whoever reads the suggestion."""

    lines: int
    review_hours: float
    promise: str


class Finding(Protocol):
    """The little an author needs to know of a finding."""

    @property
    def kind(self) -> str: ...

    @property
    def evidence(self) -> Any: ...


@runtime_checkable
class Author(Protocol):
    """Code that turns one kind of finding into a patch."""

    @property
    def name(self) -> str: ...

    @property
    def estimate(self) -> Estimate: ...

    def can_write(self, finding: Finding) -> bool:
        """Whether this author knows this kind of finding; cheap, reads no repository."""
        ...

    def write(self, checkout: Path, evidence: Mapping[str, Any]) -> Patch:
        """The patch for `evidence` against the files in `checkout`, which it only reads. Raises CannotWrite."""
        ...


class _Known(Mapping[str, Author]):
    """Every author by name: our own, then those of installed packages, loaded when first asked for."""

    def __getitem__(self, name: str) -> Author:
        return _load()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_load())

    def __len__(self) -> int:
        return len(_load())


@cache
def _load() -> dict[str, Author]:
    from improvements.authors.n_plus_one import NPlusOneAuthor

    own: tuple[Author, ...] = (NPlusOneAuthor(),)
    authors = {author.name: author for author in own}
    for entry in entry_points(group=ENTRY_POINTS):
        author = entry.load()()
        if not isinstance(author, Author):
            raise TypeError(f"entry point {entry.name} of {ENTRY_POINTS} gives {author!r}, which is not an Author")
        authors.setdefault(author.name, author)  # a package can't replace one of ours
    return authors


AUTHORS: Mapping[str, Author] = _Known()


def author_for(finding: Finding) -> Author | None:
    """The first author that can write a patch for this finding, or None."""
    return next((author for author in AUTHORS.values() if author.can_write(finding)), None)
