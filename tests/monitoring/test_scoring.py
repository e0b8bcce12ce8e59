"""Health scores from stored samples."""

from __future__ import annotations

import pytest

from monitoring.models import HealthScore, Service
from monitoring.scoring import score_all
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


def well(service: Service, p95_ms: float = 40.0, error_ratio: float = 0.0, up: float = 1.0) -> None:
    samples(service, "latency_p95_ms", [40.0] * 30 + [p95_ms] * 3, until=T0, **WHOLE)
    samples(service, "error_ratio", [error_ratio] * 3, until=T0, **WHOLE)
    samples(service, "up", [up] * 3, until=T0)


def test_a_service_that_does_well_scores_a_hundred(own: Service) -> None:
    service = TargetFactory().service
    well(service)
    found = scored(service)
    assert (found.score, found.status, found.confidence) == (100.0, "healthy", pytest.approx(1.0))
    assert set(found.components) == {"performance", "system", "availability"}


def test_reasons_are_kept_with_the_score(own: Service) -> None:
    service = TargetFactory().service
    well(service, p95_ms=400.0)
    found = scored(service)
    assert found.score is not None
    assert found.score < 60
    (driver,) = found.components["performance"]["drivers"]
    assert driver["what"] == "p95 latency is 10.0 times its usual 40 ms"
    assert driver["points"] == pytest.approx(100 - found.score, abs=0.2)


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
    assert scored(service).score == 100.0
    service.targets.update(serving=True)
    HealthScore.objects.all().delete()
    assert (scored(service).score or 0) < 90


def test_a_service_that_is_only_tried_in_private_is_unknown(own: Service) -> None:
    service = TargetFactory(release="tried", serving=False).service
    samples(service, "up", [1.0] * 3, until=T0, release="tried")
    assert scored(service).status == "unknown"
