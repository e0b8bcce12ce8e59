"""Authors turn a finding into a patch. Each is an object with a name and two methods; third parties add theirs through
the entry point group "runerogue.authors" (an entry is a callable that returns an Author)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from monitoring.plugins import Plugins


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


def _own() -> Iterable[Author]:
    from improvements.authors.n_plus_one import NPlusOneAuthor

    return (NPlusOneAuthor(),)


AUTHORS = Plugins("runerogue.authors", Author, _own)


def author_for(finding: Finding) -> Author | None:
    """The first author that can write a patch for this finding, or None."""
    return next((author for author in AUTHORS.values() if author.can_write(finding)), None)
