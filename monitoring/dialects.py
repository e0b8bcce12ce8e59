"""The names that libraries give their metrics, one row each, and which of their labels are kept.

A label that no row names is never stored, and a path that holds ids is stored as its template: who asked for what is
nobody's business here.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from monitoring.privacy import safe_label
from monitoring.prometheus import Labels, Layout

LONGEST_LABEL = 200
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
# Not a legal name of a label. It tells series apart whose other labels are not kept: a keyed hash of those.
APART = "#"

CPU_SECONDS = "process_cpu_seconds_total"
# Of a process, by the conventions of different libraries; the first that is there counts.
CPU_COUNTERS = (
    CPU_SECONDS,
    "process_cpu_time_seconds_total",
    "process_runtime_cpython_cpu_time_seconds_total",
    "jvm_cpu_time_seconds_total",
)
MEMORY_BYTES = "process_resident_memory_bytes"
OPEN_FDS, MAX_FDS, THREADS = "process_open_fds", "process_max_fds", "process_threads"
STARTED_AT = "process_start_time_seconds"
# Measured from outside, one series per process with labels pid and created (unix seconds): better than what one of
# several workers tells about itself.
CPU_SECONDS_BY_PROCESS = "runerogue_observed_cpu_seconds"

# What machines ask, not users, whatever the library.
UNWATCHED_PATHS = frozenset(
    [
        "/metrics",
        "/metrics/",
        "/up",
        "/health",
        "/health/",
        "/healthz",
        "/health/live",
        "/health/ready",
        "/livez",
        "/live",
        "/readyz",
        "/ready",
        "/ping",
        "/actuator",
        "/actuator/prometheus",
        "/actuator/health",
        "/actuator/health/**",
        "/q/metrics",
        "/q/health",
    ]
)


@dataclass(frozen=True)
class Dialect:
    """The names one instrumentation library uses, as in the exposition; of several labels the first counts.

    `latency` is a histogram or summary without `_bucket`, in units of `unit_seconds`; `responses` a counter per status.
    Where answers are not counted, a status label of the latency serves. `marks` are labels that tell it from others
    with the same names.
    """

    name: str
    latency: str = ""
    endpoint: tuple[str, ...] = ()
    method: tuple[str, ...] = ("method",)
    status: tuple[str, ...] = ("status",)
    responses: str = ""
    unit_seconds: float = 1.0
    marks: frozenset[str] = frozenset()
    queries: str = ""  # a counter of statements sent to the database
    unwatched: frozenset[str] = frozenset()  # endpoints that machines ask, not users
    gauges: tuple[tuple[str, str], ...] = ()  # (signal, metric), before those of GAUGES
    is_host: bool = False  # its process is an exporter of the host, not the service


@dataclass(frozen=True)
class Client:
    """Calls to other services, as the caller measures them."""

    latency: str
    dependency: tuple[str, ...]
    kind: str
    status: tuple[str, ...] = ()
    error: tuple[str, ...] = ("error_type",)  # a label that is there, and not empty, when the call failed
    unit_seconds: float = 1.0


_HTTP = "http_request_duration_seconds"
DIALECTS = (
    Dialect(
        name="django-prometheus",
        latency="django_http_requests_latency_seconds_by_view_method",
        endpoint=("view",),
        responses="django_http_responses_total_by_status_view_method_total",
        queries="django_db_execute_total",
        unwatched=frozenset(
            [
                "prometheus-django-metrics",
                "metrics",
                "up",
                "health",
                "health-live",
                "health-ready",
                "health-detailed",
                "health-score",
                "health-trends",
                "monitoring-alerts",
                "performance-baseline",
                "otlp-traces",
                "otlp-metrics",
            ]
        ),
    ),
    Dialect(
        name="opentelemetry",
        latency="http_server_request_duration_seconds",
        endpoint=("http_route",),
        method=("http_request_method",),
        status=("http_response_status_code",),
    ),
    Dialect(
        name="opentelemetry-1.20",  # before the HTTP conventions were declared stable
        latency="http_server_duration_milliseconds",
        endpoint=("http_route", "http_target"),
        method=("http_method",),
        status=("http_status_code",),
        unit_seconds=0.001,
    ),
    Dialect(name="micrometer", latency="http_server_requests_seconds", endpoint=("uri",)),
    Dialect(
        name="flask-exporter", latency="flask_http_request_duration_seconds", endpoint=("url_rule", "endpoint", "path")
    ),
    Dialect(
        name="starlette-exporter",
        latency="starlette_request_duration_seconds",
        endpoint=("path",),
        status=("status_code",),
        responses="starlette_requests_total",
    ),
    Dialect(
        name="starlette-prometheus",
        latency="starlette_requests_processing_time_seconds",
        endpoint=("path_template",),
        status=("status_code",),
        responses="starlette_responses_total",
    ),
    Dialect(
        name="prom-client",
        latency=_HTTP,
        endpoint=("route", "path"),
        status=("status_code",),
        responses="http_requests_total",
        marks=frozenset({"status_code"}),
    ),
    Dialect(
        name="prom-client-ms",
        latency="http_request_duration_ms",
        endpoint=("route", "path"),
        status=("status_code", "code"),
        unit_seconds=0.001,
    ),
    Dialect(
        name="promhttp",
        latency=_HTTP,
        endpoint=("handler", "route", "path", "endpoint"),
        status=("code",),
        responses="http_requests_total",
        marks=frozenset({"code"}),
    ),
    Dialect(
        name="prometheus-fastapi-instrumentator",
        latency=_HTTP,
        endpoint=("handler",),
        responses="http_requests_total",
        marks=frozenset({"handler"}),
    ),
    Dialect(
        name="http",  # the plain names with whatever labels are usual
        latency=_HTTP,
        endpoint=("route", "handler", "path", "endpoint", "uri"),
        status=("status", "status_code", "code"),
        responses="http_requests_total",
    ),
    Dialect(name="node-exporter", latency="", is_host=True),
)
CLIENTS = (
    Client("http_client_request_duration_seconds", ("server_address",), "http", ("http_response_status_code",)),
    Client(
        "http_client_duration_milliseconds",
        ("server_address", "net_peer_name"),
        "http",
        ("http_status_code",),
        unit_seconds=0.001,
    ),
    Client("http_client_requests_seconds", ("client_name", "clientName"), "http", ("status",)),
    Client("db_client_operation_duration_seconds", ("server_address", "db_system_name", "db_system"), "database"),
)
# Signal → the gauges that tell it; the first that is there counts, summed over its series.
GAUGES = {
    "memory_bytes": (MEMORY_BYTES, "process_memory_usage_bytes", "process_working_set_bytes"),
    "open_fds": (
        OPEN_FDS,
        "process_unix_file_descriptor_count",
        "process_open_file_descriptor_count",
        "process_open_file_descriptors",
        "process_files_open_files",
    ),
    "max_fds": (MAX_FDS, "process_files_max_files"),
    "threads": (
        THREADS,
        "process_thread_count",
        "process_num_threads",
        "jvm_thread_count",
        "jvm_threads_live_threads",
        "go_threads",
    ),
    "requests_in_flight": (
        "http_server_active_requests",
        "http_requests_inprogress",
        "http_requests_in_progress",
        "starlette_requests_in_progress",
        "http_requests_in_flight",
        "http_server_requests_active_seconds_gcount",
        "http_server_requests_active_seconds_active_count",
    ),
    # Sessions, as the service itself counts them: nobody else knows which of its cookies is one.
    "concurrent_users": ("concurrent_users", "active_sessions", "tomcat_sessions_active_current_sessions"),
}
HOST_CPU = "node_cpu_seconds_total"
HOST_MEMORY, HOST_MEMORY_AVAILABLE = "node_memory_MemTotal_bytes", "node_memory_MemAvailable_bytes"
DISK_SIZE, DISK_FREE, DISK_AVAILABLE = (
    "node_filesystem_size_bytes",
    "node_filesystem_free_bytes",
    "node_filesystem_avail_bytes",
)
DISK_BUSY = "node_disk_io_time_seconds_total"
# Metric → the labels that are needed of it.
HOST = {
    HOST_CPU: ("mode",),
    HOST_MEMORY: (),
    HOST_MEMORY_AVAILABLE: (),
    DISK_SIZE: ("device", "fstype", "mountpoint"),
    DISK_FREE: ("device", "fstype", "mountpoint"),
    DISK_AVAILABLE: ("device", "fstype", "mountpoint"),
    DISK_BUSY: ("device",),
}
HOST_COUNTERS = frozenset({HOST_CPU, DISK_BUSY})


@dataclass(frozen=True)
class Needed:
    """What is needed of one metric: its labels, and whether it counts or shows a level."""

    metric: str
    labels: tuple[str, ...]
    counts: bool


def needed(dialect: Dialect) -> list[Needed]:
    """All that is made into signals when a target speaks `dialect`."""
    route = (*dialect.endpoint, *dialect.method)
    found = _of_latency(dialect.latency, (*route, *dialect.status)) if dialect.latency else []
    if dialect.responses:
        found.append(Needed(dialect.responses, (*route, *dialect.status), counts=True))
    if dialect.queries:
        found.append(Needed(dialect.queries, (), counts=True))
    for client in CLIENTS:
        found += _of_latency(client.latency, (*client.dependency, *client.status, *client.error))
    found += [Needed(metric, (), counts=True) for metric in CPU_COUNTERS]
    found.append(Needed(STARTED_AT, (), counts=False))
    found += [Needed(metric, (), counts=False) for _, metric in dialect.gauges]
    found += [Needed(metric, (), counts=False) for metrics in GAUGES.values() for metric in metrics]
    found += [Needed(metric, labels, counts=metric in HOST_COUNTERS) for metric, labels in HOST.items()]
    return found


def _of_latency(metric: str, labels: tuple[str, ...]) -> list[Needed]:
    return [
        Needed(f"{metric}_bucket", ("le", *labels), counts=True),
        Needed(f"{metric}_sum", labels, counts=True),
        Needed(f"{metric}_count", labels, counts=True),
    ]


def named(name: str | None) -> Dialect | None:
    """The dialect called `name`; None when none is."""
    return next((dialect for dialect in DIALECTS if dialect.name == name), None)


def recognise(layout: Layout) -> Dialect | None:
    """The dialect of a target that shows these series, None when no known one has served a request yet."""
    for dialect in DIALECTS:
        for metric in (f"{dialect.latency}_count", dialect.responses):
            places = layout.places.get(metric, ())
            if places and dialect.marks <= {label for label, _ in layout.series[places[0]][1]}:
                return dialect
    return named("node-exporter") if HOST_CPU in layout.places else None


# --- Labels ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Allowlist:
    """Which metrics are kept, and which of their labels; see `prometheus.Keep`. `salt` keys the hash of the others."""

    labels: frozenset[tuple[str, frozenset[str]]]
    endpoints: frozenset[str]
    methods: frozenset[str]
    salt: bytes

    @functools.cached_property
    def _by_metric(self) -> dict[str, frozenset[str]]:
        return dict(self.labels)

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.labels, self.endpoints, self.methods, self.salt))

    def __call__(self, name: str, labels: Labels) -> Labels | None:
        allowed = self._by_metric.get(name)
        if allowed is None:
            return None
        kept = [(label, self._tidy(label, value)) for label, value in labels if label in allowed]
        if kept != list(labels):
            # Without the bound: all parts of one histogram are set apart alike.
            known = "\0".join(part for pair in labels if pair[0] != "le" for part in pair).encode()
            kept.append((APART, hashlib.blake2b(known, digest_size=8, key=self.salt).hexdigest()))
        return tuple(sorted(kept))

    def _tidy(self, label: str, value: str) -> str:
        if label in self.endpoints:
            return template(value)
        if label in self.methods:
            return method(value)
        return _printable(value)[:LONGEST_LABEL]


def salt_of(secret: str) -> bytes:
    """What keys the hashes of labels, from the installation's secret."""
    return hashlib.sha256(b"series:" + secret.encode()).digest()


@functools.lru_cache(maxsize=256)
def allowlist(only: Dialect | None, salt: bytes = b"") -> Allowlist:
    """What is kept of a target that speaks `only`; when that is not known yet, what any dialect needs."""
    spoken = DIALECTS if only is None else (only,)
    labels: dict[str, set[str]] = {}
    for dialect in spoken:
        for need in needed(dialect):
            labels.setdefault(need.metric, set()).update(need.labels)
    return Allowlist(
        labels=frozenset((metric, frozenset(names)) for metric, names in labels.items()),
        endpoints=frozenset(label for dialect in spoken for label in dialect.endpoint),
        methods=frozenset(label for dialect in spoken for label in dialect.method),
        salt=salt[:64],
    )


def first(labels: Iterable[str], found: dict[str, str]) -> str | None:
    """The value of the first of `labels` that is there."""
    return next((found[label] for label in labels if label in found), None)


def method(value: str) -> str:
    """An HTTP method, or "other": clients can invent methods."""
    value = value.upper()
    return value if value in METHODS else "other"


_PLACEHOLDER = re.compile(r"[{<:*(\[].*")
_MAIL = re.compile(r"[^\s/]+(?:@|%40)[^\s/]+", re.IGNORECASE)
# A segment that no programmer wrote: ids, hashes, tokens, dates.
_IS_ID = re.compile(r"(?=.*\d.*\d.*\d).*|\d+|[0-9a-f]*\d[0-9a-f]*-[0-9a-f-]+|.{41,}|.*[@=%&;,].*", re.IGNORECASE)


@functools.lru_cache(maxsize=20_000)  # a histogram has the same path once per bucket
def template(endpoint: str) -> str:
    """The route behind `endpoint`: a path loses host, query and ids (`/players/8123?x=1` → `/players/{id}`)."""
    endpoint = _printable(endpoint).strip()
    verb, space, rest = endpoint.partition(" ")
    if space and verb in METHODS:
        endpoint = rest.strip()
    endpoint = re.sub(r"^[a-z][a-z0-9+.-]*://[^/]*", "", endpoint, flags=re.IGNORECASE)
    if endpoint.startswith("/"):
        # A regular expression of Django or a template may hold a question mark; a query never follows one of these.
        endpoint = re.split(r"(?<![(\[{])[?#]", endpoint, maxsplit=1)[0]
        parts = endpoint.split("/")
        endpoint = "/".join(
            part if _PLACEHOLDER.fullmatch(part) or not _IS_ID.fullmatch(part) else "{id}" for part in parts
        )
    return safe_label(_MAIL.sub("{id}", endpoint))[:LONGEST_LABEL]


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "_" for c in text)
