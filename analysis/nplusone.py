"""Find N+1 queries in a Django service by running its own tests with eyes open.

The service needs no preparation: the probe and django-zeal are copied into a scratch folder and loaded into its pytest.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import zeal

from monitoring import sandbox

PROBE = Path(__file__).with_name("nplusone_probe.py")
MOST_FRAMES = 10  # of each stack: evidence is stored, hashed and read by people


class CannotLook(Exception):
    """The service's tests could not be watched, so nothing is known either way. `output` is what they printed last.

    `found` holds what was seen nevertheless; a suite that fails has not shown everything.
    """

    def __init__(self, reason: str, output: str = "", found: tuple["NPlusOne", ...] = ()) -> None:
        self.reason, self.output, self.found = reason, output, found
        super().__init__(reason)


@dataclass(frozen=True)
class Frame:
    """One of the service's own frames: file relative to its root, lines from 1, columns from 0 where Python knows
    them.
    """

    file: str
    line: int
    function: str
    end_line: int | None = None
    column: int | None = None
    end_column: int | None = None
    manager: bool = False


@dataclass(frozen=True)
class Source:
    """The queryset of several rows at the root: where it was begun, and the relations from its model to what is
    read.
    """

    model: str
    path: tuple[str, ...]
    kinds: tuple[str, ...]
    rows: int
    built: tuple[Frame, ...]
    evaluated: tuple[Frame, ...]


@dataclass(frozen=True)
class NPlusOne:
    """One relation read row by row in one route.

    `model` is "app.Model", `relation` the attribute read on it, `relation_kind` forward (foreign key, one-to-one) |
    many (reverse or many-to-many) | generic | deferred | get. `location` is "file:line" of the innermost own frame.
    `repeats` is how often one request read it, `queries_per_request` all queries of that request. `plain` is False
    when the related rows are filtered or ordered anew for each row. `source` is None when the rows could not be
    followed to a queryset.
    """

    model: str
    relation: str
    relation_kind: str
    route: str
    route_template: str
    method: str
    location: str
    frames: tuple[Frame, ...]
    repeats: int
    queries_per_request: int
    plain: bool
    source: Source | None
    view: Frame | None
    test: str

    def as_evidence(self) -> dict[str, Any]:
        """The same as JSON, for a finding's evidence."""
        return asdict(self)


def from_evidence(content: Mapping[str, Any]) -> NPlusOne:
    """The reverse of `as_evidence`."""
    source, view = content.get("source"), content.get("view")
    known = {name: content[name] for name in NPlusOne.__dataclass_fields__ if name in content}
    return NPlusOne(
        **{
            **known,
            "frames": tuple(Frame(**frame) for frame in content["frames"]),
            "view": Frame(**view) if view else None,
            "source": _source(source) if source else None,
        }
    )


def find(
    checkout: Path,
    command: str,
    environment: Mapping[str, str],
    *,
    run: Callable[..., sandbox.Finished] = sandbox.run,
    timeout_seconds: float = 900.0,
    scratch: Path | None = None,
) -> list[NPlusOne]:
    """Run the service's tests (`command`, the manifest's, may hold {report}) in `checkout`; every N+1, worst first.

    Raises CannotLook when the tests fail, don't end in time, or don't run under pytest with Django.
    """
    with tempfile.TemporaryDirectory(prefix="nplusone-", dir=scratch) as folder:
        work = Path(folder)
        work.chmod(0o711)  # the service may run as a user of its own, which has to pass through
        tools, output = work / "tools", work / "output"
        tools.mkdir()
        output.mkdir()
        shutil.copy(PROBE, tools / "nplusone_probe.py")
        # zeal is pure Python and needs only Django, so the service's own interpreter can use our copy.
        shutil.copytree(
            Path(zeal.__file__).parent, tools / "zeal", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
        report = output / "nplusone.json"
        own = dict(environment)
        own["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tools), own.get("PYTHONPATH", "")]))
        own["PYTEST_ADDOPTS"] = f"{own.get('PYTEST_ADDOPTS', '')} -p nplusone_probe".strip()
        own["PYTHONDONTWRITEBYTECODE"] = "1"
        own["RUNEROGUE_NPLUSONE_REPORT"] = str(report)
        own["RUNEROGUE_NPLUSONE_ROOT"] = str(checkout.resolve())
        needs = sandbox.reach(own)
        try:
            done = run(
                command.replace("{report}", str(output / "junit.xml")),
                cwd=checkout,
                environment=own,
                timeout_seconds=timeout_seconds,
                readable=(tools, *needs.socket_folders),
                writable=(output,),
                network=needs.network,
            )
        except sandbox.SandboxError as error:
            raise CannotLook(f"the tests could not be started: {error}") from error
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("nplusone.json*"))]
    return _read(reports, done, timeout_seconds)


def _read(reports: list[dict[str, Any]], done: sandbox.Finished, timeout_seconds: float) -> list[NPlusOne]:
    found = grouped([_found(one) for report in reports for one in report["found"]])
    if done.timed_out:
        raise CannotLook(f"the tests did not end within {timeout_seconds:.0f} s", done.tail(), tuple(found))
    if done.exit_code != 0:
        raise CannotLook(f"the service's own tests fail (exit code {done.exit_code})", done.tail(), tuple(found))
    if not reports:
        raise CannotLook(
            "the tests passed but the probe was not loaded; only pytest is understood, does [test] command call it?",
            done.tail(),
        )
    problems = [report["problem"] for report in reports if report["problem"] and report["tests"]]
    if problems:
        raise CannotLook(problems[0], done.tail(), tuple(found))
    if not any(report["requests"] for report in reports):
        raise CannotLook(
            "no test made a request through Django's test client, so no route could be watched", done.tail()
        )
    return found


def grouped(found: list[NPlusOne]) -> list[NPlusOne]:
    """One per route, method, relation and place, with the largest numbers seen; most repeated first."""
    best: dict[tuple[str, ...], NPlusOne] = {}
    for one in found:
        key = (one.route, one.method, one.model, one.relation, one.location)
        known = best.get(key)
        if known is None:
            best[key] = one
            continue
        kept = one if _followed(one) > _followed(known) else known
        best[key] = replace(
            kept,
            repeats=max(one.repeats, known.repeats),
            queries_per_request=max(one.queries_per_request, known.queries_per_request),
        )
    return sorted(best.values(), key=lambda one: (-one.repeats, one.route, one.method, one.location, one.relation))


def _followed(one: NPlusOne) -> int:
    return len(one.source.path) if one.source else 0


def _frame(raw: Mapping[str, Any]) -> Frame:
    return Frame(**{name: raw[name] for name in Frame.__dataclass_fields__ if name in raw})


def _source(raw: Mapping[str, Any]) -> Source:
    return Source(
        model=raw["model"],
        path=tuple(raw["path"]),
        kinds=tuple(raw["kinds"]),
        rows=raw["rows"],
        built=tuple(_frame(frame) for frame in raw["built"][:MOST_FRAMES]),
        evaluated=tuple(_frame(frame) for frame in raw["evaluated"][:MOST_FRAMES]),
    )


def _found(raw: Mapping[str, Any]) -> NPlusOne:
    frames = tuple(_frame(frame) for frame in raw["frames"][:MOST_FRAMES])
    view = raw["view"]
    place = Frame(file=view["file"], line=view["line"], function=view["name"]) if view else None
    at = frames[0] if frames else place
    return NPlusOne(
        model=raw["model"],
        relation=raw["relation"],
        relation_kind=raw["relation_kind"],
        route=raw["route"],
        route_template=raw["route_template"],
        method=raw["method"],
        location=f"{at.file}:{at.line}" if at else "",
        frames=frames,
        repeats=raw["repeats"],
        queries_per_request=raw["queries_per_request"],
        plain=raw["plain"],
        source=_source(raw["source"]) if raw["source"] else None,
        view=place,
        test=raw["test"],
    )
