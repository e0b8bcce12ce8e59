"""Named parts that installed packages may add to: ours first, then those of an entry point group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeVar


class Named(Protocol):
    @property
    def name(self) -> str: ...


Part = TypeVar("Part", bound=Named)


class Plugins(Mapping[str, Part]):
    """Every part by name, loaded when first asked for. An entry of `group` is a callable that returns a part.

    A package can't replace one of ours. Raises TypeError for an entry whose part is no `kind`.
    """

    def __init__(self, group: str, kind: Any, own: Callable[[], Iterable[Part]]) -> None:
        self.group, self.kind, self.own = group, kind, own  # a Protocol is no type[Part] to mypy

    @cached_property
    def parts(self) -> dict[str, Part]:
        parts = {part.name: part for part in self.own()}
        for entry in entry_points(group=self.group):
            part = entry.load()()
            if not isinstance(part, self.kind):
                kind = self.kind.__name__
                raise TypeError(f"entry point {entry.name} of {self.group} gives {part!r}, which is not a {kind}")
            parts.setdefault(part.name, part)
        return parts

    def __getitem__(self, name: str) -> Part:
        return self.parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)
