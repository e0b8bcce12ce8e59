"""From measurements and code to findings: the endpoint that costs users most, and why it does.

The measurements say where it hurts; the service's own tests, run under an N+1 detector, say which line does it; the
queries per request of the live service confirm it.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from analysis import costs, nplusone
from analysis.models import CodeProbe, Finding
from approvals import audit
from monitoring import reading
from monitoring.models import Service, labels_key
from monitoring.registry import CannotRegister, environment_for_tests, read_manifest
from monitoring.repository import GitError, repository_of
from monitoring.workspace import scratch_folder, worktree_folder

log = logging.getLogger(__name__)

# An endpoint that costs users less than this share of all their waiting is not worth a change.
WORTH_SHARE = 0.05
# Live confirmation: a service without N+1s rarely needs more queries than this for an average request.
MANY_QUERIES = 5.0


def analyse(service: Service) -> list[Finding]:
    """Look at the last minutes and at the code, open what is found, close what is gone. Returns the open findings."""
    now = timezone.now()
    ranked = costs_of(service, until=now)
    if not ranked:
        log.info("%s: no traffic measured yet, nothing to analyse", service.name)
        return []
    probe = probe_code(service)
    if probe.error:
        log.warning("%s: the code could not be probed: %s", service.name, probe.error)
        return list(Finding.objects.open().filter(service=service))
    live_queries = live_queries_of(service, until=now)
    found = [nplusone.from_evidence(item) for item in probe.found]
    keys = set()
    for cost in ranked:
        here = [one for one in found if one.route == cost.endpoint]
        if not here:
            continue
        key = f"n-plus-one:{cost.endpoint}"
        keys.add(key)
        if cost.waiting_share >= WORTH_SHARE:
            open_finding(service, key=key, cost=cost, found=here, live_queries=live_queries, commit=probe.commit)
    close_gone(service, keys, commit=probe.commit)
    return list(Finding.objects.open().filter(service=service))


def costs_of(service: Service, *, until: dt.datetime) -> list[costs.EndpointCost]:
    """The endpoints of a service by what they cost users, over five collection intervals (at least 2 minutes)."""

    def by_round(signal: str) -> dict[str, tuple[str, dict[float, float]]]:
        """Labels → the endpoint and, by the round's time, the value."""
        return {
            labels_key(one.labels): (
                one.labels["endpoint"],
                dict(zip(one.at.tolist(), one.value.tolist(), strict=True)),
            )
            for one in reading.arrays(service, signal, since=_since(until), until=until)
        }

    nothing: tuple[str, dict[float, float]] = ("", {})
    rates, means, tails = by_round("requests_per_second"), by_round("latency_mean_ms"), by_round("latency_p95_ms")
    rounds = len({at for _, values in rates.values() for at in values})
    found = (
        costs.averaged(
            endpoint,
            rounds=rounds,
            rates=values,
            means_ms=means.get(key, nothing)[1],
            p95s_ms=tails.get(key, nothing)[1],
        )
        for key, (endpoint, values) in rates.items()
        if endpoint != "*"
    )
    return costs.rank(one for one in found if one)


def live_queries_of(service: Service, *, until: dt.datetime) -> float | None:
    """Database queries per request of the whole service over the same time; None when they were not measured."""
    found = reading.arrays(service, "queries_per_request", since=_since(until), until=until)
    return next((float(np.mean(one.value)) for one in found if not one.labels), None)


def _since(until: dt.datetime) -> dt.datetime:
    return until - dt.timedelta(seconds=max(120, 5 * settings.METRICS_COLLECTION_INTERVAL))


def probe_code(service: Service) -> CodeProbe:
    """The N+1s in the head of the service's branch. One run per commit; a failed run is tried again after an hour.

    Without a head that can be read the probe holds why, and no commit.
    """
    repository = repository_of(service)
    began = time.monotonic()
    commit, error, found = "", "", list[nplusone.NPlusOne]()
    folder = worktree_folder(service.name, "probe")
    try:
        commit = repository.head()
        known = CodeProbe.objects.filter(service=service, commit=commit).first()
        if known and not (known.error and timezone.now() - known.ran_at > dt.timedelta(hours=1)):
            return known
        with repository.worktree(folder, commit), scratch_folder(f"probe-{service.name}") as scratch:
            environment = {**environment_for_tests(service), "TEST_DATABASE_SUFFIX": "probe"}
            found = nplusone.find(folder, read_manifest(repository, commit).test.command, environment, scratch=scratch)
    except nplusone.CannotLook as failure:
        error = f"{failure} {failure.output[-2000:]}".strip()
    except (CannotRegister, GitError, OSError) as failure:
        error = f"the code could not be looked at: {failure}"[:2000]
    probe, _ = CodeProbe.objects.update_or_create(
        service=service,
        commit=commit,
        defaults={
            "ran_at": timezone.now(),
            "seconds": time.monotonic() - began,
            "error": error.replace("\0", ""),  # PostgreSQL's text holds no NUL
            "found": [one.as_evidence() for one in found],
        },
    )
    return probe


def open_finding(
    service: Service,
    *,
    key: str,
    cost: costs.EndpointCost,
    found: Sequence[nplusone.NPlusOne],
    live_queries: float | None,
    commit: str,
) -> Finding:
    """The finding for one endpoint with N+1s: opened, or brought up to date when it is open already."""
    worst = max(found, key=lambda one: one.repeats)
    impact: dict[str, Any] = {
        "waiting_seconds_per_hour": round(cost.waiting_per_second * 3600, 1),
        "waiting_share": round(cost.waiting_share, 4),
        "traffic_share": round(cost.traffic_share, 4),
        "requests_per_second": round(cost.requests_per_second, 3),
        "mean_ms": round(cost.mean_ms, 2),
        "p95_ms": None if cost.p95_ms is None else round(cost.p95_ms, 2),
        "queries_per_request_live": None if live_queries is None else round(live_queries, 2),
        "queries_per_request_in_tests": max(one.queries_per_request for one in found),
    }
    confirmed = live_queries is not None and live_queries > MANY_QUERIES
    relations = ", ".join(sorted({f"{one.model}.{one.relation}" for one in found}))
    values: dict[str, Any] = {
        "title": f"N+1 queries on {cost.endpoint}: {relations}"[:200],
        "endpoint": cost.endpoint,
        "location": worst.location,
        "confidence": 0.95 if confirmed else 0.7,
        "impact": impact,
        "evidence": {"found": [one.as_evidence() for one in found], "confirmed_by_live_queries": confirmed},
        "commit": commit,
        "last_seen_at": timezone.now(),
    }
    known = Finding.objects.open().filter(service=service, key=key)
    if known.update(**values):
        return known.get()
    try:
        with transaction.atomic():
            finding = Finding.objects.create(service=service, kind=Finding.Kind.N_PLUS_ONE, key=key, **values)
            audit.record(
                "finding.opened",
                finding,
                because=f"{finding.location}: {worst.repeats} like queries in one request; "
                f"users wait {impact['waiting_seconds_per_hour']} s an hour for {cost.endpoint}",
                data={"impact": impact, "confidence": finding.confidence},
            )
    except IntegrityError:
        return known.get()
    return finding


def close_gone(service: Service, keys: set[str], *, commit: str) -> int:
    """Close the findings that the newest code no longer shows. An endpoint without traffic now keeps its finding."""
    gone = Finding.objects.open().filter(service=service, kind=Finding.Kind.N_PLUS_ONE).exclude(key__in=keys)
    probe = CodeProbe.objects.get(service=service, commit=commit)
    routes = {item["route"] for item in probe.found}
    closed = 0
    for finding in gone:
        if finding.endpoint in routes:
            continue
        with transaction.atomic():
            because = f"no longer found in {commit[:12]}"
            won = Finding.objects.open().filter(pk=finding.pk).update(closed_at=timezone.now(), closed_because=because)
            if won:
                audit.record("finding.closed", finding, because=because)
        closed += won
    return closed
