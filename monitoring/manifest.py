"""What a service says about itself: `runerogue.toml` at the root of its repository.

The models are the format. `parse` turns every mistake into one sentence that names the file, the line and the fix.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import replace
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from monitoring.dialects import DIALECTS, Dialect, named

FILE = "runerogue.toml"
LARGEST_CHARACTERS = 100_000
PUSHED = "otlp:"  # the address of what is not asked for its metrics but sends them; see monitoring.pushing


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


def _is_a_document(place: str) -> str:
    return _is_a_url_path(place) if place.startswith("/") else _is_a_repository_pattern(place)


def _is_a_known_dialect(name: str) -> str:
    known = [dialect.name for dialect in DIALECTS]
    if name not in known:
        raise PydanticCustomError(
            "dialect",
            "{given} is not a dialect that RuneRogue knows",
            {"given": repr(name), "fix": f"leave it out, or use one of: {', '.join(known)}"},
        )
    return name


def _is_a_metric_name(name: str) -> str:
    if not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", name):
        raise PydanticCustomError(
            "name",
            "{given} is not the name of a metric or label",
            {"given": repr(name), "fix": "write it as the service's metrics page shows it, without labels and _bucket"},
        )
    return name


def _is_an_address(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        usable = usable and not (parts.username or parts.password or parts.query or parts.fragment)
    except ValueError:
        usable = False
    if not usable:
        raise PydanticCustomError(
            "address",
            "this is not the address of a Prometheus API",
            {"fix": 'write scheme and host, without a password or query, such as "http://prometheus:9090"'},
        )
    return url.rstrip("/")


_MATCHER = r'[a-zA-Z_][a-zA-Z0-9_]*\s*(?:=~|!~|!=|=)\s*"(?:[^"\\\n]|\\.)*"'


def _is_a_selector(selector: str) -> str:
    inside = selector.removeprefix("{").removesuffix("}").strip().rstrip(",")
    if not re.fullmatch(rf"(?:{_MATCHER}\s*(?:,\s*{_MATCHER}\s*)*)?", inside):
        raise PydanticCustomError(
            "selector", "this does not select series", {"fix": """write it as in PromQL, such as '{job="realm"}'"""}
        )
    return inside


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


# Names of headers that say who asks or where to; the first kind has settings of its own, the second is ours to say.
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie"})
_OWN_HEADERS = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "te", "upgrade"}
)


def _is_a_header(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]{1,100}", name) or name.lower() in _SECRET_HEADERS | _OWN_HEADERS:
        raise PydanticCustomError(
            "header",
            "{given} is not a header that can be given here",
            {"given": repr(name), "fix": "credentials have bearer_token_env, username and password_env"},
        )
    return name


def can_be_sent(value: str) -> bool:
    """Whether a header can hold it. With spaces around it the client refuses, and quotes it where it says so."""
    return value.isascii() and value.isprintable() and value == value.strip()


def _is_a_header_value(value: str) -> str:
    if not can_be_sent(value):
        raise PydanticCustomError(
            "header",
            "a header can't hold this value",
            {"fix": "use printable ASCII without spaces around it"},
        )
    return value


Command = Annotated[
    str, StringConstraints(min_length=1, max_length=2000, strip_whitespace=True), AfterValidator(_no_control_characters)
]
RunCommand = Annotated[Command, AfterValidator(_takes_a_port)]
UrlPath = Annotated[str, StringConstraints(max_length=500), AfterValidator(_is_a_url_path)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=500), AfterValidator(_is_a_repository_pattern)]
MetricName = Annotated[str, StringConstraints(max_length=200), AfterValidator(_is_a_metric_name)]
ServiceName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
Origin = Annotated[str, StringConstraints(max_length=200), AfterValidator(_is_an_origin)]
EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,99}$")]
# A variable in the environment that is registered for the service, which may be of any spelling.
SecretName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")]
HeaderName = Annotated[str, AfterValidator(_is_a_header)]
HeaderValue = Annotated[str, StringConstraints(max_length=500), AfterValidator(_is_a_header_value)]


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


class Mapped(_Table):
    """Names that no dialect knows, as the service's metrics page shows them. What is left out is as in the dialect."""

    latency: MetricName | None = None  # a histogram or summary, without _bucket
    unit: Literal["seconds", "milliseconds", "microseconds"] = "seconds"  # of the latency
    endpoint: MetricName | None = None  # labels
    method: MetricName | None = None
    status: MetricName | None = None
    responses: MetricName | None = None  # a counter with the labels above
    queries: MetricName | None = None  # a counter
    requests_in_flight: MetricName | None = None  # gauges
    concurrent_users: MetricName | None = None
    memory_bytes: MetricName | None = None
    open_fds: MetricName | None = None
    max_fds: MetricName | None = None
    threads: MetricName | None = None


SHORTEST_WINDOW_SECONDS = 60.0  # unless it is named
UNIT_SECONDS = {"seconds": 1.0, "milliseconds": 1e-3, "microseconds": 1e-6}


class Metrics(_Table):
    """Where the numbers are, and what they are called."""

    path: UrlPath = "/metrics"
    push: bool = False  # it sends them to /v1/metrics and is not asked
    dialect: Annotated[str, AfterValidator(_is_a_known_dialect)] | None = (
        None  # None: found from the names of the metrics
    )
    timeout_seconds: float | None = Field(default=None, gt=0, le=60)  # None: most of the interval, at most 10 s
    map: Mapped = Mapped()
    promql: Annotated[str, StringConstraints(max_length=500), AfterValidator(_is_an_address)] | None = None
    selector: Annotated[str, StringConstraints(max_length=1000), AfterValidator(_is_a_selector)] = ""
    window_seconds: float | None = Field(default=None, ge=10, le=3600)  # None: the interval, at least a minute
    history_days: int = Field(default=28, ge=0, le=28)  # how far back a PromQL API is asked for what was missed
    # Who asks. The file is in a repository, so of secrets it holds the names of variables and never a value.
    bearer_token_env: SecretName | None = None
    username: HeaderValue | None = None
    password_env: SecretName | None = None
    headers: dict[HeaderName, HeaderValue] = {}  # such as X-Scope-OrgID, the tenant of Mimir
    headers_env: dict[HeaderName, SecretName] = {}

    @model_validator(mode="after")
    def _asks_in_one_way(self) -> Self:
        if (self.username is None) != (self.password_env is None) or (self.username and self.bearer_token_env):
            raise PydanticCustomError(
                "access",
                "it says in two ways, or by half, who asks",
                {"fix": "name bearer_token_env alone, or username together with password_env"},
            )
        if self.push and self.promql:
            raise PydanticCustomError(
                "access",
                "it says both that the service sends its metrics and that a PromQL API has them",
                {"fix": "keep push or promql, not both: everything would be counted twice"},
            )
        if self.username and ":" in self.username:
            raise PydanticCustomError("access", "a username can't hold a colon", {"fix": "choose another one"})
        return self

    def asks(self, url: str) -> bool:
        """Whether a target at `url` is the PromQL API that is asked for the numbers, and not scraped."""
        return self.promql is not None and url.rstrip("/") == self.promql

    def window(self, interval_seconds: float) -> float:
        """The seconds over which a PromQL API is asked how much counters grew."""
        return self.window_seconds or max(interval_seconds, SHORTEST_WINDOW_SECONDS)

    def url_at(self, address: str) -> str:
        """Where a release that runs at `address` is measured."""
        return PUSHED if self.push else f"{address}{self.path}"

    @property
    def spoken(self) -> Dialect | None:
        """The dialect that is named, with the names that are mapped; None when it is to be found."""
        base = named(self.dialect)
        if self.map == Mapped():
            return base
        base = base or Dialect(name="mapped", method=(), status=())
        mapped = self.map
        gauges = ("requests_in_flight", "concurrent_users", "memory_bytes", "open_fds", "max_fds", "threads")
        given = [(signal, name) for signal in gauges if (name := getattr(mapped, signal))]
        return replace(
            base,
            latency=mapped.latency or base.latency,
            unit_seconds=UNIT_SECONDS[mapped.unit] if mapped.latency else base.unit_seconds,
            endpoint=(mapped.endpoint,) if mapped.endpoint else base.endpoint,
            method=(mapped.method,) if mapped.method else base.method,
            status=(mapped.status,) if mapped.status else base.status,
            responses=mapped.responses or base.responses,
            queries=mapped.queries or base.queries,
            gauges=tuple(given),
        )


class Objectives(_Table):
    """What the service promises its users."""

    availability: float = Field(default=0.999, gt=0.0, lt=1.0)  # share of the requests that must not fail
    latency_ms: float = Field(default=500.0, gt=0.0, allow_inf_nan=False)
    latency_ratio: float = Field(default=0.95, gt=0.0, lt=1.0)  # share of the requests that must be that quick
    period_days: int = Field(default=28, ge=1, le=366)


class Tuning(_Table):
    values: tuple[int | float | str, ...] = Field(min_length=2)


class Protected(_Table):
    paths: tuple[Pattern, ...] = ()


class Smoke(_Table):
    paths: tuple[UrlPath, ...] = ()


class Quality(_Table):
    """How the quality of the code is measured beside its tests; a command that writes a report names {report}."""

    measure: bool = True
    every_hours: int = Field(default=24, ge=1, le=24 * 28)
    coverage: Command | None = None  # writes Cobertura XML
    paths: tuple[Pattern, ...] = ()  # what counts as the service's code for lint and debt; empty: everything


class Otlp(_Table):
    """What its spans call it, beside its own name, and which endpoints of theirs the scrape knows by another name."""

    names: tuple[Annotated[str, StringConstraints(min_length=1, max_length=200)], ...] = ()
    endpoints: dict[
        Annotated[str, StringConstraints(min_length=1, max_length=200)],
        Annotated[str, StringConstraints(min_length=1, max_length=200)],
    ] = {}


class Experience(_Table):
    """Which pages may tell how they felt: their origins, such as https://shop.example.org."""

    origins: tuple[Origin, ...] = ()


class Coverage(_Table):
    """What should be seen beside what is found out: an OpenAPI document (JSON or YAML), names of dependencies.

    The document is a file of the repository, or with a first slash a path that the running service answers.
    """

    openapi: Annotated[str, StringConstraints(min_length=1, max_length=500), AfterValidator(_is_a_document)] | None = (
        None
    )
    dependencies: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9._-]{1,60}$")], ...] = ()


class Manifest(_Table):
    """A whole `runerogue.toml`. Optional tables are there with their defaults, so readers need no None checks."""

    service: About
    run: Run
    test: Test
    setup: Setup = Setup()
    benchmark: Benchmark = Benchmark()
    metrics: Metrics = Metrics()
    slo: Objectives = Objectives()
    tuning: dict[EnvironmentName, Tuning] = {}
    protected: Protected = Protected()
    smoke: Smoke = Smoke()
    quality: Quality = Quality()
    otlp: Otlp = Otlp()
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
    "metrics.timeout_seconds": "timeout_seconds = 5",
    "metrics.window_seconds": "window_seconds = 120",
    "metrics.history_days": "history_days = 28",
    "metrics.bearer_token_env": 'bearer_token_env = "PROM_TOKEN"',
    "metrics.password_env": 'password_env = "PROM_PASSWORD"',
    "metrics.map.unit": 'unit = "milliseconds"',
    "slo.availability": "availability = 0.999",
    "slo.latency_ms": "latency_ms = 500",
    "slo.latency_ratio": "latency_ratio = 0.95",
    "slo.period_days": "period_days = 28",
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
        case "string_pattern_mismatch" if dotted.startswith("metrics."):
            # What is written may be the secret itself: it is not repeated.
            problem = f"{dotted} is not the name of an environment variable"
            fix = "write the name, and register its value with `manage.py register … --env NAME=VALUE`."
        case "string_pattern_mismatch":
            problem = f"{dotted} = {detail['input']!r} is not a usable name"
            fix = "use small letters, digits and hyphens, starting with a letter, at most 40."
        case (
            "port"
            | "path"
            | "pattern"
            | "control"
            | "dialect"
            | "name"
            | "address"
            | "selector"
            | "origin"
            | "header"
            | "access"
        ):
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
