"""The names of the services, from whoever knows them: approvals are below what is watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable

_KNOWN: list[Callable[[], Iterable[str]]] = []


def register(names_of: Callable[[], Iterable[str]]) -> None:
    """Let `names_of()` be asked for names of services whenever somebody chooses one."""
    if names_of not in _KNOWN:
        _KNOWN.append(names_of)


def names() -> list[str]:
    """All of them, in alphabetical order."""
    return sorted({name for names_of in _KNOWN for name in names_of()})
