"""How much of a service the monitoring can see: each route and each dependency, and why some are blind spots."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

KEEP_DAYS = 28
MOST_NESTED = 100  # collections of a YAML document; its parser's time grows with the square
# Routes that machines ask about the service, by the names and paths that frameworks usually give them. They are not
# measured on purpose: they would drown what people do.
MACHINES = frozenset(
    {"metrics", "up", "health", "healthz", "livez", "readyz", "prometheus-django-metrics", "monitoring-alerts"}
    | {"health-live", "health-ready", "health-detailed", "health-score", "health-trends", "performance-baseline"}
)


class State(StrEnum):
    LIVE = "live"  # a value in one of the last rounds
    QUIET = "quiet"  # not now, but in the last KEEP_DAYS: it is measured as soon as somebody asks
    READY = "ready"  # never asked, and everything that is asked is measured
    BLIND = "blind"


@dataclass(frozen=True)
class Routes:
    """What should be seen. `measures_all` is evidence: the instrumentation stands in the way of every request."""

    names: tuple[str, ...]
    source: str
    measures_all: bool = False


@dataclass(frozen=True)
class Part:
    kind: str  # route or dependency
    name: str
    state: State
    why: str


@dataclass(frozen=True)
class Coverage:
    """`ratio` is the share of the parts that are not blind spots; None when no part is known."""

    ratio: float | None
    source: str
    parts: tuple[Part, ...]

    @property
    def blind_spots(self) -> tuple[Part, ...]:
        return tuple(part for part in self.parts if part.state is State.BLIND)


def assess(
    routes: Routes,
    dependencies: Mapping[str, Iterable[str]],
    seen: Mapping[str, float],
    *,
    at: float,
    fresh_seconds: float,
) -> Coverage:
    """The coverage at `at` (unix seconds).

    `dependencies` maps each name to the keys in `seen` of which any shows it. `seen` maps "route:NAME",
    "dependency:NAME" and "up" to the unix seconds of their newest value; a value is live for `fresh_seconds`.
    """
    is_up = at - seen.get("up", 0.0) <= fresh_seconds
    routes_seen: dict[str, float] = {}
    for key, moment in seen.items():
        if key.startswith("route:"):
            name = spelled(key.removeprefix("route:"))
            routes_seen[name] = max(moment, routes_seen.get(name, 0.0))
    parts = [
        _part("route", name, routes_seen.get(spelled(name)), is_up, routes.measures_all, at, fresh_seconds)
        for name in sorted(set(routes.names))
        if name.strip("/") not in MACHINES
    ]
    for name, keys in sorted(dependencies.items()):
        moments = [seen[key] for key in keys if key in seen]
        parts.append(_part("dependency", name, max(moments, default=None), is_up, False, at, fresh_seconds))
    covered = sum(part.state is not State.BLIND for part in parts)
    return Coverage(covered / len(parts) if parts else None, routes.source, tuple(parts))


def _part(
    kind: str, name: str, moment: float | None, is_up: bool, measures_all: bool, at: float, fresh_seconds: float
) -> Part:
    if moment is not None and at - moment <= fresh_seconds:
        return Part(kind, name, State.LIVE, "It was measured just now.")
    if not is_up:
        return Part(kind, name, State.BLIND, "The service's metrics are not being read at the moment.")
    if moment is not None and at - moment <= KEEP_DAYS * 86_400:
        days = (at - moment) / 86_400
        return Part(kind, name, State.QUIET, f"It was last measured {_ago(days)} ago.")
    if measures_all:
        return Part(kind, name, State.READY, "Nobody asked it yet; the instrumentation measures every request.")
    why = f"It was never measured in {KEEP_DAYS} days, and nothing shows that it would be."
    return Part(kind, name, State.BLIND, why)


def _ago(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else f"{24 * days:.0f} hours" if days * 24 >= 2 else "less than 2 hours"


def spelled(route: str) -> str:
    """One spelling for the same route in different frameworks: `/items/<int:pk>/`, `GET /items/{id}` → `items/{}`."""
    route = re.sub(r"^[A-Z]{3,7} (?=/)", "", route)
    route = re.sub(r"<[^>]*>|\{[^}]*\}|(?<=/):\w+|\(\?P<[^)]*\)", "{}", route)
    return route.strip("^$").strip("/")


def of_openapi(document: Mapping[str, object]) -> Routes:
    """The routes of an OpenAPI document. Raises ValueError for what is none."""
    paths = document.get("paths")
    if not isinstance(paths, Mapping):
        raise ValueError("It has no object `paths`.")  # noqa: TRY004 (a wrong document, not a wrong call)
    return Routes(tuple(str(path) for path in paths), "its OpenAPI document")


def of_document(text: str) -> Routes:
    """The routes of an OpenAPI document in JSON or YAML. Raises ValueError for what is none."""
    try:
        try:
            document = json.loads(text)
        except json.JSONDecodeError:
            document = {"paths": dict.fromkeys(_paths_of_yaml(text))}
    except RecursionError as error:
        raise ValueError("It is nested too deeply.") from error
    if not isinstance(document, Mapping):
        raise ValueError("It has no object `paths`.")  # noqa: TRY004 (a wrong document, not a wrong call)
    return of_openapi(document)


def _paths_of_yaml(text: str) -> list[str]:
    """The keys below `paths`, from the events of the parser.

    Loading a document would follow its nesting and merges, by which a small one can end the process or fill memory.
    """
    import yaml  # only where somebody has such a document

    found: list[str] = []
    # Of each open collection: whether it is a mapping, whether a key comes next, and the last key.
    inside: list[tuple[bool, bool, str]] = []
    has_paths = False
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader)):
            if isinstance(event, yaml.CollectionEndEvent):
                inside.pop()
            elif isinstance(event, yaml.NodeEvent):
                if inside and inside[-1][0]:
                    _, is_key, last = inside[-1]
                    name = event.value if isinstance(event, yaml.ScalarEvent) else ""
                    if is_key and len(inside) == 2 and inside[0] == (True, True, "paths"):
                        found.append(name)
                    inside[-1] = True, not is_key, name if is_key else last
                if isinstance(event, yaml.CollectionStartEvent):
                    is_mapping = isinstance(event, yaml.MappingStartEvent)
                    has_paths |= is_mapping and len(inside) == 1 and inside[0] == (True, True, "paths")
                    inside.append((is_mapping, True, ""))
                    if len(inside) > MOST_NESTED:
                        raise ValueError("It is nested too deeply.")
    except yaml.YAMLError as error:
        raise ValueError("It is neither JSON nor YAML.") from error
    if not has_paths:
        raise ValueError("It has no object `paths`.")
    return found
