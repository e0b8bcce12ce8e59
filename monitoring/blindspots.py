"""What the monitoring does not see: the routes and dependencies that a service has, against those that gave values."""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urljoin

from django.conf import settings

from monitoring import covering, outbound, reading, registry, reporting, routes_probe, sandbox, storing
from monitoring.covering import KEEP_DAYS, Coverage, Routes
from monitoring.derive import ALL, Reading
from monitoring.models import RouteMap, Service, Target
from monitoring.repository import GitError, Repository
from monitoring.scraping import ScrapeFailed, fetch
from monitoring.workspace import worktree_folder

log = logging.getLogger(__name__)

FRESH_ROUNDS = 5
MOST_SEEN = 2000
ASKED_AGAIN = timedelta(hours=6)  # for a document that the service itself gives
DOCUMENT_SECONDS = 10.0
LARGEST_DOCUMENT_BYTES = 4 * 1024 * 1024
PROBE = Path(routes_probe.__file__)
PROBE_TIMEOUT_SECONDS = 120.0
ROUTE_SIGNALS = frozenset({"requests_per_second", "latency_mean_ms", "latency_p95_ms"})
# What an address in a service's environment leads to. The address itself is not looked at further.
KINDS = {
    "postgres": "postgresql", "postgresql": "postgresql", "mysql": "mysql", "redis": "redis", "rediss": "redis",
    "unix+redis": "redis", "redis+socket": "redis", "amqp": "rabbitmq", "amqps": "rabbitmq", "mongodb": "mongodb",
}  # fmt: skip
DATABASES = frozenset({"postgresql", "mysql"})


# --- What there is -----------------------------------------------------------------------------------------------


def map_routes(service: Service, *, at: datetime, run: Callable[..., sandbox.Finished] = sandbox.run) -> RouteMap:
    """Read the routes of `service` again if its branch has a new commit.

    From the OpenAPI document that the manifest names (one that the service itself gives is asked for again after
    ASKED_AGAIN), else from the URL configuration of a Django service, asked in the
    sandbox without network or database; else only what was observed is known. Takes seconds.
    """
    kept, _ = RouteMap.objects.get_or_create(service=service)
    if service.is_self:
        # Of the code that runs here; no other process knows it better.
        found = routes_probe.routes()
        return _keep(kept, Routes(tuple(found["names"]), "its URL configuration", found["measures_all"]), "", "", at)
    where = Repository(service.checkout, service.branch)
    try:
        commit = where.git("rev-parse", f"refs/heads/{service.branch}").strip()
    except GitError as error:
        return _keep(kept, None, "", str(error), at)
    is_served = (service.parsed.coverage.openapi or "").startswith("/")
    is_fresh = not is_served or (kept.mapped_at is not None and at - kept.mapped_at < ASKED_AGAIN)
    if commit == kept.commit and not kept.problem and is_fresh:
        return kept
    try:
        return _keep(kept, _routes(service, where, commit, run), commit, "", at)
    except (GitError, sandbox.SandboxError, ScrapeFailed, ValueError, LookupError, TypeError) as error:
        # What the service's own code printed may be anything.
        log.warning("The routes of %s can't be read: %s", service, error)
        return _keep(kept, None, commit, f"{type(error).__name__}: {error}", at)


def _keep(kept: RouteMap, found: Routes | None, commit: str, problem: str, at: datetime) -> RouteMap:
    kept.commit, kept.problem, kept.mapped_at = commit, problem[:500], at
    if found is not None:
        kept.names, kept.source, kept.measures_all = list(found.names), found.source, found.measures_all
    # `seen` belongs to the rounds, which may write it meanwhile.
    kept.save(update_fields=["commit", "problem", "mapped_at", "names", "source", "measures_all"])
    return kept


def _routes(service: Service, where: Repository, commit: str, run: Callable[..., sandbox.Finished]) -> Routes:
    if document := service.parsed.coverage.openapi:
        is_served = document.startswith("/")
        return covering.of_document(
            _served(service, document) if is_served else where.git("show", f"{commit}:{document}")
        )
    try:
        started = where.git("show", f"{commit}:manage.py")
    except GitError:
        return Routes((), "what was observed")
    module = re.search(r"""DJANGO_SETTINGS_MODULE["'],\s*["']([\w.]+)["']""", started)
    if module is None:
        return Routes((), "what was observed")
    environment = {**registry.environment_for_tests(service), "PYTHONDONTWRITEBYTECODE": "1"}
    with where.worktree(worktree_folder(service.name, "routes"), commit) as folder:
        done = run(
            f"python {PROBE} {module[1]}",
            cwd=folder,
            environment=environment,
            timeout_seconds=PROBE_TIMEOUT_SECONDS,
            readable=(PROBE,),
            writable=(),
            network=False,
        )
    if not done.succeeded:
        raise ValueError(f"its URL configuration could not be loaded: {done.tail(300)}")
    told = json.loads(done.stdout.strip().splitlines()[-1])
    names = [str(name)[:200] for name in told["names"]][:MOST_SEEN]
    return Routes(tuple(names), "its URL configuration", told["measures_all"] is True)


def _served(service: Service, path: str) -> str:
    """What a target that users get answers from gives at `path`. Raises ScrapeFailed.

    It is asked without credentials: those of the manifest are for its numbers.
    """
    metrics = service.parsed.metrics
    targets = Target.objects.serving().asked().filter(service=service).order_by("-release", "pk")
    found = [target.url for target in targets if not metrics.asks(target.url)]
    if not found:
        raise ScrapeFailed("No target of the service runs, so nobody can be asked for its OpenAPI document.")
    with outbound.open_client(timeout_seconds=DOCUMENT_SECONDS, largest_bytes=LARGEST_DOCUMENT_BYTES) as client:
        response, body, _ = fetch(client, urljoin(found[0], path), timeout_seconds=DOCUMENT_SECONDS)
    if response.status_code != 200:
        raise ScrapeFailed(f"Asked for {path} it answered with status {response.status_code}.")
    return body.decode(errors="replace")


def dependencies_of(service: Service, seen: Mapping[str, float]) -> dict[str, list[str]]:
    """What `service` needs, by its manifest, its environment and what was observed, each with what would show it."""
    found: dict[str, list[str]] = {
        key.removeprefix("dependency:"): [key] for key in seen if key.startswith("dependency:")
    }
    if service.is_self:
        expected = set(reporting.CHECKS)
    else:
        schemes = (str(value).partition("://")[0].lower() for value in service.environment.values() if "://" in value)
        expected = {KINDS[scheme] for scheme in schemes if scheme in KINDS}
    for name in expected | set(service.parsed.coverage.dependencies):
        keys = [key for key in found if name in key.lower()]
        if not keys:
            found[name] = ["queries_per_request"] if name in DATABASES else []
    return found


# --- What was seen -----------------------------------------------------------------------------------------------


def own_dependencies(at: datetime) -> int:
    """Ask what RuneRogue itself needs, and write how long it took and whether it answered. Returns how many values."""
    own = Service.objects.active().filter(is_self=True).first()
    if own is None:
        return 0
    rows = []
    for check in reporting.readiness():
        labels = (("dependency", check.name), ("kind", check.name))
        rows.append((own, Reading("dependency_error_ratio", labels, 0.0 if check.ok else 1.0)))
        if check.ok:
            rows.append((own, Reading("dependency_latency_mean_ms", labels, check.milliseconds)))
    return storing.store(rows, at=at)


def write_round(at: datetime) -> int:
    """Note what gave values in the round `at`, and write `monitoring_coverage_ratio` of every service."""
    own_dependencies(at)
    moment = at.timestamp()
    news: dict[int, dict[str, float]] = defaultdict(dict)
    for value in reading.round_values(at):
        endpoint = value.labels.get("endpoint", ALL)
        if value.signal in ROUTE_SIGNALS and endpoint != ALL:
            news[value.service_id][f"route:{endpoint}"] = moment
        elif value.signal.startswith("dependency_") and "dependency" in value.labels:
            news[value.service_id][f"dependency:{value.labels['dependency']}"] = moment
        elif value.signal == "queries_per_request" or (value.signal == "up" and value.value > 0):
            news[value.service_id][value.signal] = moment
    rows, maps = [], []
    for service in Service.objects.active().select_related("route_map"):
        kept = getattr(service, "route_map", None) or RouteMap.objects.get_or_create(service=service)[0]
        kept.seen = _remembered({**kept.seen, **news[service.pk]}, moment)
        maps.append(kept)
        ratio = _assessed(service, kept, moment).ratio
        if ratio is not None:
            rows.append((service, Reading("monitoring_coverage_ratio", (), ratio)))
    RouteMap.objects.bulk_update(maps, ["seen"])
    return storing.store(rows, at=at) if rows else 0


def _remembered(seen: Mapping[str, float], moment: float) -> dict[str, float]:
    recent = {key: when for key, when in seen.items() if moment - when <= KEEP_DAYS * 86_400}
    return dict(sorted(recent.items(), key=lambda pair: -pair[1])[:MOST_SEEN])


def coverage(service: Service, at: datetime) -> Coverage:
    """How much of `service` is seen at `at`, with every part and why."""
    kept = RouteMap.objects.filter(service=service).first() or RouteMap(service=service)
    return _assessed(service, kept, at.timestamp())


def _assessed(service: Service, kept: RouteMap, moment: float) -> Coverage:
    observed = [key.removeprefix("route:") for key in kept.seen if key.startswith("route:")]
    routes = Routes(tuple(kept.names or observed), kept.source or "what was observed", kept.measures_all)
    fresh_seconds = FRESH_ROUNDS * float(settings.METRICS_COLLECTION_INTERVAL)
    needs = dependencies_of(service, kept.seen)
    return covering.assess(routes, needs, kept.seen, at=moment, fresh_seconds=fresh_seconds)


def told(service: Service, at: datetime) -> dict[str, object]:
    """The coverage for `/health/detailed`."""
    found = coverage(service, at)
    return {
        "ratio": None if found.ratio is None else round(found.ratio, 3),
        "source": found.source,
        "parts": len(found.parts),
        "live": sum(part.state is covering.State.LIVE for part in found.parts),
        "blind_spots": [{"kind": part.kind, "name": part.name, "why": part.why} for part in found.blind_spots[:200]],
    }
