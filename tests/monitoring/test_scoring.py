"""Health scores from stored samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

import numpy as np
import pytest

from monitoring import baselines, reporting
from monitoring.derive import Reading
from monitoring.models import Baseline, BaselineSeries, HealthScore, Service
from monitoring.scoring import HOST_SIGNALS, score_all
from monitoring.storing import store
from tests.monitoring.factories import INTERVAL, T0, ServiceFactory, TargetFactory, samples

pytestmark = pytest.mark.django_db
WHOLE = {"endpoint": "*", "method": "*"}
AT = T0 - INTERVAL  # the round of the newest sample


@pytest.fixture
def own() -> Service:
    service = ServiceFactory(is_self=True)
    for signal in ("host_cpu_percent", "host_memory_percent", "disk_used_percent"):
        samples(service, signal, [30.0] * 3, until=T0)
    return service


def scored(service: Service) -> HealthScore:
    score_all(AT)
    return HealthScore.objects.get(service=service, at=AT)


def write(service: Service, series: Iterable[tuple[str, Mapping[str, str], list[float]]]) -> None:
    """These series, one interval apart, the last values in the round AT: together, because a store costs time."""
    rounds: dict[datetime, list[tuple[Service, Reading]]] = defaultdict(list)
    for signal, labels, values in series:
        for number, value in enumerate(reversed(values)):
            rounds[AT - number * INTERVAL].append((service, Reading(signal, tuple(sorted(labels.items())), value)))
    for at, rows in rounds.items():
        store(rows, at=at)


def well(service: Service, p95_ms: float = 40.0, error_ratio: float = 0.0, up: float = 1.0) -> None:
    write(
        service,
        [
            ("latency_p95_ms", WHOLE, [40.0] * 27 + [p95_ms] * 3),
            ("error_ratio", WHOLE, [error_ratio] * 3),
            ("up", {}, [up] * 3),
        ],
    )


def everything(service: Service, **now: float) -> None:
    """All that can be known of a service that does well, but for what is `now` otherwise."""
    write(
        service,
        [
            (signal, labels, [value] * (before - 3) + [now.get(signal, value)] * 3)
            for before, labels, signals in ALL
            for signal, value in signals.items()
        ],
    )


# How many samples, with which labels, of which signals.
ALL: list[tuple[int, dict[str, str], dict[str, float]]] = [
    (30, WHOLE, {"latency_p95_ms": 40.0}),
    (3, WHOLE, {"error_ratio": 0.0, "slow_ratio": 0.0, "apdex": 0.98}),
    (30, {}, {"cpu_percent": 20.0, "memory_bytes": 1e8, "lint_violations": 40.0}),
    (3, {}, {"up": 1.0, "open_fds": 30.0, "max_fds": 1024.0}),
    (3, {}, {"test_coverage_percent": 91.0, "test_success_ratio": 1.0, "vulnerabilities": 0.0, "debt_ratio": 0.01}),
    (3, {"endpoint": "/players"}, {"lcp_p75_ms": 1500.0, "inp_p75_ms": 90.0, "cls_p75": 0.01}),
]


def test_a_service_of_which_all_is_known_and_well_scores_a_hundred(own: Service) -> None:
    service = TargetFactory().service
    everything(service)
    found = scored(service)
    assert (found.score, found.status, found.confidence) == (100.0, "healthy", pytest.approx(1.0))
    assert list(HealthScore.objects.get(service=service).parts) == [
        "performance",
        "system",
        "availability",
        "quality",
        "experience",
    ]
    assert {part["message"] for part in found.components.values()} == {"All well."}


def test_a_service_that_does_well_is_healthy_with_what_a_scrape_tells(own: Service) -> None:
    service = TargetFactory().service
    well(service)
    found = scored(service)
    assert found.status == "healthy"
    assert 95 < (found.score or 0) < 100
    assert found.confidence < 0.75
    assert (found.components["experience"]["score"], found.components["quality"]["score"]) == (None, None)


@pytest.mark.parametrize(
    ("signal", "value", "component", "says"),
    [
        ("slow_ratio", 0.4, "performance", "40% of the requests are slower than the objective, 5% may be"),
        ("apdex", 0.5, "experience", "Apdex is 0.50"),
        ("lcp_p75_ms", 6000.0, "experience", "largest content of a page is 6,000 ms at p75"),
        ("cls_p75", 0.3, "experience", "the shift of the layout is 0.30 at p75, good is up to 0.1"),
        ("open_fds", 1000.0, "system", "98% of the files that it may open are open"),
        ("memory_bytes", 9e8, "system", "its memory grew to 858 MB, 9.0 times the usual"),
        ("cpu_percent", 400.0, "system", "its processes use 4.0 cores, usual are 0.2"),
        ("vulnerabilities", 3.0, "quality", "its dependencies have 3 known vulnerabilities"),
        ("test_success_ratio", 0.9, "quality", "10.0% of the tests fail"),
        ("test_coverage_percent", 40.0, "quality", "tests cover 40 % of the code"),
        ("lint_violations", 100.0, "quality", "there are 100 lint violations, usual are 40"),
        ("debt_ratio", 0.3, "quality", "the technical debt is 30%"),
    ],
)
def test_every_source_can_cost_points(own: Service, signal: str, value: float, component: str, says: str) -> None:
    service = TargetFactory().service
    everything(service, **{signal: value})
    found = scored(service)
    assert (found.score or 0) < 99.5
    assert says in "; ".join(driver["what"] for driver in found.components[component]["drivers"])
    assert {n for n, part in found.components.items() if part["drivers"]} == {component}


def test_the_hosts_own_numbers_count_only_for_who_has_no_own_host() -> None:
    busy = ServiceFactory(is_self=True)
    write(busy, [(signal, {}, [98.0] * 3) for signal in HOST_SIGNALS])
    shared, elsewhere = TargetFactory().service, TargetFactory().service
    for service in (shared, elsewhere):
        well(service)
    write(elsewhere, [("host_cpu_percent", {}, [10.0] * 3)])
    score_all(AT)
    cpu = {
        service: "CPU is" in HealthScore.objects.get(service=service, at=AT).components["system"]["message"]
        for service in (shared, elsewhere)
    }
    assert cpu == {shared: True, elsewhere: False}


def test_the_last_report_of_quality_holds_until_the_next(own: Service) -> None:
    service = TargetFactory().service
    well(service)
    samples(service, "test_coverage_percent", [20.0], until=T0 - timedelta(days=5))
    (driver,) = scored(service).components["quality"]["drivers"]
    assert driver["what"] == "tests cover 20 % of the code"


def test_the_objective_is_that_of_the_manifest(own: Service) -> None:
    strict, lax = TargetFactory().service, TargetFactory().service
    for service, slo in ((strict, {"availability": 0.9999}), (lax, {"availability": 0.9})):
        service.manifest = {**service.manifest, "slo": slo}
        service.save()
        well(service, error_ratio=0.03)
    assert (scored(strict).score or 0) < 70
    score_all(AT)
    assert (HealthScore.objects.get(service=lax, at=AT).score or 0) > 95


def test_the_baseline_says_what_is_usual(own: Service) -> None:
    service = TargetFactory().service
    well(service, p95_ms=400.0)
    baseline = Baseline.objects.create(service=service, version=1, since=T0 - timedelta(days=1), until=T0)
    made = baselines.profile(np.arange(60.0) * 60, np.full(60, 390.0))
    assert made is not None
    BaselineSeries.of(baseline, "latency_p95_ms", WHOLE, made).save()
    assert scored(service).components["performance"]["drivers"] == []


def test_processes_of_two_releases_are_added_up(own: Service) -> None:
    service = TargetFactory(release="a").service
    TargetFactory(service=service, release="b")
    well(service)
    write(service, [("memory_bytes", {"release": release}, [1e8] * 27 + [4e8] * 3) for release in ("a", "b")])
    (driver,) = scored(service).components["system"]["drivers"]
    assert driver["what"] == "its memory grew to 763 MB, 4.0 times the usual"


def test_reasons_are_kept_with_the_score(own: Service) -> None:
    service = TargetFactory().service
    well(service, p95_ms=400.0)
    found = scored(service)
    assert found.score is not None
    assert found.score < 75
    (driver,) = found.components["performance"]["drivers"]
    assert driver["what"] == "p95 latency is 10.0 times its usual 40 ms"
    assert 20 < driver["points"] < 100 - found.score


def test_one_slow_round_of_three_costs_less_than_three(own: Service) -> None:
    once, always = TargetFactory().service, TargetFactory().service
    well(once)
    well(always, error_ratio=0.2)
    samples(once, "error_ratio", [0.2], until=T0, endpoint="*", method="*", extra="not the whole service")
    assert (scored(once).score or 0) > (scored(always).score or 0)


def test_a_service_without_targets_or_samples_is_unknown(own: Service) -> None:
    empty, untargeted = TargetFactory().service, ServiceFactory()
    well(untargeted)
    for service in (empty, untargeted):
        found = scored(service)
        assert (found.score, found.status, found.trend) == (None, "unknown", "unknown")


def test_a_service_that_cannot_be_measured_is_unhealthy(own: Service) -> None:
    service = TargetFactory().service
    samples(service, "up", [0.0] * 3, until=T0)
    assert scored(service).status == "unhealthy"


def test_samples_of_long_ago_are_not_todays_health(own: Service) -> None:
    service = TargetFactory().service
    well(service)
    score_all(T0 + 10 * INTERVAL)
    assert HealthScore.objects.get(service=service).status == "unknown"


def test_scoring_a_round_twice_changes_nothing(own: Service) -> None:
    service = TargetFactory().service
    well(service)
    score_all(AT)
    score_all(AT)
    assert HealthScore.objects.filter(service=service).count() == 1


def test_the_trend_comes_from_the_last_hour(own: Service) -> None:
    service = TargetFactory().service
    well(service, error_ratio=0.5)
    for number in range(20):
        HealthScore.objects.create(
            service=service, at=AT - (20 - number) * INTERVAL, score=100 - 3 * number, status="x"
        )
    assert scored(service).trend == "degrading"


def test_a_release_that_serves_nobody_costs_the_service_nothing(own: Service) -> None:
    service = TargetFactory(release="live").service
    TargetFactory(service=service, release="tried", serving=False)
    well(service)
    samples(service, "up", [1.0] * 3, until=T0, release="live")
    samples(service, "up", [0.0] * 3, until=T0, release="tried")
    assert (scored(service).score or 0) > 95
    service.targets.update(serving=True)
    HealthScore.objects.all().delete()
    assert (scored(service).score or 0) < 90


def test_a_service_that_is_only_tried_in_private_is_unknown(own: Service) -> None:
    service = TargetFactory(release="tried", serving=False).service
    samples(service, "up", [1.0] * 3, until=T0, release="tried")
    assert scored(service).status == "unknown"


@pytest.mark.parametrize(("value", "said"), [(79.96, 79.9), (80.0, 80.0), (57.3, 57.3), (0.0, 0.0), (None, None)])
def test_a_score_is_never_said_higher_than_its_status(value: float | None, said: float | None) -> None:
    assert reporting.rounded(value) == said
