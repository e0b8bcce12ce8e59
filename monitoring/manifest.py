"""What a service says about itself: `runerogue.toml` at the root of its repository.

The models are the format. `parse` turns every mistake into one sentence that names the file, the line and the fix.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from monitoring.derive import DIALECTS

FILE = "runerogue.toml"
LARGEST_CHARACTERS = 100_000


class ManifestError(ValueError):
    """A manifest that cannot be used. `file`, `line` (from 1), `problem` and `fix` say where, what and what to do."""

    def __init__(self, problem: str, *, line: int, fix: str, file: str = FILE) -> None:
        self.file, self.line, self.problem, self.fix = file, line, problem, fix
        super().__init__(f"{file}, line {line}: {problem} Fix: {fix}")


def _no_control_characters(text: str) -> str:
    if any(ord(character) < 32 and character not in "\n\t" for character in text):
        raise PydanticCustomError("control", "it contains a control character", {"fix": "remove it"})
    return text


def _takes_a_port(command: str) -> str:
    if "{port}" not in command:
        raise PydanticCustomError(
            "port",
            "the command has no {{port}}, so RuneRogue cannot tell it where to listen",
            {"fix": 'add it, such as "gunicorn app.wsgi --bind 127.0.0.1:{port}"'},
        )
    return command


def _is_a_url_path(path: str) -> str:
    if not path.startswith("/") or path.startswith("//") or re.search(r"\s", path):
        raise PydanticCustomError(
            "path",
            "{given} is not a path on the service",
            {"given": repr(path), "fix": 'start it with one "/", such as "/up"'},
        )
    return path


def _is_a_repository_pattern(pattern: str) -> str:
    if pattern.startswith("/") or ".." in pattern.split("/"):
        raise PydanticCustomError(
            "pattern",
            "{given} points outside the repository",
            {"given": repr(pattern), "fix": 'write it from the root of the repository, such as "app/auth/**"'},
        )
    return pattern


def _is_a_known_dialect(name: str) -> str:
    known = [dialect.name for dialect in DIALECTS]
    if name not in known:
        raise PydanticCustomError(
            "dialect",
            "{given} is not a dialect that RuneRogue knows",
            {"given": repr(name), "fix": f"leave it out, or use one of: {', '.join(known)}"},
        )
    return name


def _is_an_origin(origin: str) -> str:
    if not re.fullmatch(r"https?://[a-z0-9.-]+(?::\d{1,5})?|https?://\[[0-9a-f:]+\](?::\d{1,5})?", origin):
        raise PydanticCustomError(
            "origin",
            "{given} is not the origin of a page",
            {
                "given": repr(origin),
                "fix": 'write scheme, host in small letters and port as browsers do, such as "https://shop.example.org"',
            },
        )
    return origin


Command = Annotated[
    str, StringConstraints(min_length=1, max_length=2000, strip_whitespace=True), AfterValidator(_no_control_characters)
]
RunCommand = Annotated[Command, AfterValidator(_takes_a_port)]
UrlPath = Annotated[str, StringConstraints(max_length=500), AfterValidator(_is_a_url_path)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=500), AfterValidator(_is_a_repository_pattern)]
ServiceName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
Origin = Annotated[str, StringConstraints(max_length=200), AfterValidator(_is_an_origin)]
EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,99}$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class About(_Table):
    name: ServiceName


class Run(_Table):
    command: RunCommand
    health: UrlPath


class Setup(_Table):
    command: Command | None = None


class Test(_Table):
    command: Command


class Benchmark(_Table):
    command: Command | None = None
    higher_is_better: tuple[str, ...] = ()


class Metrics(_Table):
    path: UrlPath = "/metrics"
    dialect: Annotated[str, AfterValidator(_is_a_known_dialect)] | None = (
        None  # None: found from the names of the metrics
    )


class Tuning(_Table):
    values: tuple[int | float | str, ...] = Field(min_length=2)


class Protected(_Table):
    paths: tuple[Pattern, ...] = ()


class Smoke(_Table):
    paths: tuple[UrlPath, ...] = ()


class Experience(_Table):
    """Which pages may tell how they felt: their origins, such as https://shop.example.org."""

    origins: tuple[Origin, ...] = ()


class Coverage(_Table):
    """What should be seen beside what is found out: the repository's OpenAPI document (JSON), names of dependencies."""

    openapi: Pattern | None = None
    dependencies: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9._-]{1,60}$")], ...] = ()


class Manifest(_Table):
    """A whole `runerogue.toml`. Optional tables are there with their defaults, so readers need no None checks."""

    service: About
    run: Run
    test: Test
    setup: Setup = Setup()
    benchmark: Benchmark = Benchmark()
    metrics: Metrics = Metrics()
    tuning: dict[EnvironmentName, Tuning] = {}
    protected: Protected = Protected()
    smoke: Smoke = Smoke()
    experience: Experience = Experience()
    coverage: Coverage = Coverage()


EXAMPLES = {
    "service": '[service]\nname = "realm"',
    "run": '[run]\ncommand = "gunicorn app.wsgi --bind 127.0.0.1:{port}"\nhealth = "/up"',
    "test": '[test]\ncommand = "pytest -q --junitxml={report}"',
    "service.name": 'name = "realm"',
    "run.command": 'command = "gunicorn app.wsgi --bind 127.0.0.1:{port}"',
    "run.health": 'health = "/up"',
    "test.command": 'command = "pytest -q --junitxml={report}"',
    "tuning.*.values": "values = [1, 2, 4, 8]",
}


def parse(text: str, *, file: str = FILE) -> Manifest:
    """The manifest in `text`. Raises ManifestError for the first mistake: unknown names, then in order of lines."""
    if len(text) > LARGEST_CHARACTERS:
        raise ManifestError(
            f"the file has {len(text):,} characters.", line=1, file=file, fix=f"keep it under {LARGEST_CHARACTERS:,}."
        )
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(str(error), text, file) from error
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # A misspelt name is also a missing one; the misspelling is the mistake a person made.
        unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
        mistakes = [_explained(detail, text, file) for detail in unknown or details]
        raise min(mistakes, key=lambda mistake: mistake.line) from error


def _syntax_error(message: str, text: str, file: str) -> ManifestError:
    found = re.search(r"\(at line (\d+), column (\d+)\)", message)
    line = int(found[1]) if found else max(1, text.count("\n") + 1)
    what = re.sub(r" \(at .*\)$", "", message)
    column = f" near column {found[2]}" if found else " before the end of the file"
    return ManifestError(
        f"this is not valid TOML: {what}.",
        line=line,
        file=file,
        fix=f'look{column}; a value is written as name = "text".',
    )


def _explained(detail: ErrorDetails, text: str, file: str) -> ManifestError:
    keys = tuple(str(part) for part in detail["loc"] if not isinstance(part, int) and part not in ("[key]",))
    dotted = ".".join(keys)
    line = _line_of(keys, text)
    match detail["type"]:
        case "extra_forbidden":
            known = sorted(_known_names(keys[:-1]))
            near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
            fix = f"did you mean {near[0]!r}?" if near else f"remove it; known here: {', '.join(known)}."
            return ManifestError(f"{dotted!r} is not known.", line=line, file=file, fix=fix)
        case "missing":
            example = EXAMPLES.get(dotted) or EXAMPLES.get(f"{keys[0]}.*.{keys[-1]}", f"{keys[-1]} = …")
            return ManifestError(
                f"{dotted!r} is missing.", line=line, file=file, fix=f"add {' ⏎ '.join(example.splitlines())}"
            )
        case "string_pattern_mismatch" if keys[0] == "tuning":
            problem, fix = f"{dotted!r} is not the name of an environment variable", "use capitals, digits and _."
        case "string_pattern_mismatch":
            problem = f"{dotted} = {detail['input']!r} is not a usable name"
            fix = "use small letters, digits and hyphens, starting with a letter, at most 40."
        case "port" | "path" | "pattern" | "control" | "dialect" | "origin":
            problem = f"{dotted}: {detail['msg'].replace('{{', '{').replace('}}', '}')}"
            fix = str(detail["ctx"]["fix"]) + "."
        case _:
            message = (
                detail["msg"].replace("valid tuple", "list").replace("tuple", "list").replace("valid dict", "table")
            )
            problem, fix = f"{dotted}: {message[0].lower()}{message[1:]}", "change the value."
            if written := EXAMPLES.get(dotted) or EXAMPLES.get(f"{keys[0]}.*.{keys[-1]}"):
                fix = f"write something like {written}."
    return ManifestError(problem + ".", line=line, file=file, fix=fix)


def _known_names(tables: tuple[str, ...]) -> set[str]:
    model: Any = Manifest
    for name in tables:
        if model is Manifest and name == "tuning":
            return set(Tuning.model_fields)
        model = model.model_fields[name].annotation
    return set(model.model_fields)


def _line_of(keys: tuple[str, ...], text: str) -> int:
    """The line where `keys` is written; for what is missing, the line of the nearest table around it, else 1."""
    best_line, best_depth = 1, 0
    table: tuple[str, ...] = ()
    inside_text: str | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if inside_text:
            if inside_text in line:
                inside_text = None
            continue
        if header := re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]", line):
            table = _split(header[1])
            here = table
        elif key := re.match(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""", line):
            here = (*table, *_split(key[1]))
            for quotes in ('"""', "'''"):
                if line.count(quotes) == 1:
                    inside_text = quotes
        else:
            continue
        depth = 0
        while depth < min(len(here), len(keys)) and here[depth] == keys[depth]:
            depth += 1
        # A header or key that goes deeper than what is sought and agrees with all of it is the place too.
        if depth > best_depth and (depth == len(here) or depth == len(keys)):
            best_line, best_depth = number, depth
    return best_line


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
