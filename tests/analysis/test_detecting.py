"""From stored samples to costs and live queries, and what is kept when the code can't be looked at."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.db import connections

from analysis import detecting, tasks
from analysis.models import CodeProbe
from monitoring.models import Service
from monitoring.workspace import exclusive
from tests.monitoring.factories import INTERVAL, MANIFEST, T0, ServiceFactory, repository, samples

pytestmark = pytest.mark.django_db
ROUTE = {"endpoint": "player-list", "method": "GET"}


def served(service: Service, release: str, rates: list[float], mean_ms: float, *, rounds_ago: int = 0) -> None:
    until = T0 - rounds_ago * INTERVAL
    samples(service, "requests_per_second", rates, until=until, **ROUTE, release=release)
    samples(service, "latency_mean_ms", [mean_ms] * len(rates), until=until, **ROUTE, release=release)


def test_two_releases_that_took_turns_count_once() -> None:
    service = ServiceFactory()
    served(service, "old", [10.0, 10.0], 100.0, rounds_ago=2)
    served(service, "new", [10.0, 10.0], 20.0)
    [cost] = detecting.costs_of(service, until=T0)
    assert cost.requests_per_second == pytest.approx(10.0)
    assert cost.mean_ms == pytest.approx(60.0)
    assert cost.waiting_per_second == pytest.approx(0.6)


def test_a_quiet_round_does_not_speak_for_a_busy_one() -> None:
    service = ServiceFactory()
    samples(service, "requests_per_second", [9.0, 1.0, 0.0], until=T0, **ROUTE)
    samples(service, "latency_mean_ms", [10.0, 110.0], until=T0 - INTERVAL, **ROUTE)
    [cost] = detecting.costs_of(service, until=T0)
    assert cost.mean_ms == pytest.approx(20.0)
    assert cost.requests_per_second == pytest.approx(10 / 3)
    assert cost.p95_ms is None


def test_live_queries_are_those_of_the_whole_service() -> None:
    service = ServiceFactory()
    samples(service, "queries_per_request", [2.0], until=T0, release="tried")
    assert detecting.live_queries_of(service, until=T0) is None
    samples(service, "queries_per_request", [20.0, 30.0], until=T0)
    assert detecting.live_queries_of(service, until=T0) == pytest.approx(25.0)
    assert detecting.live_queries_of(service, until=T0 + 60 * INTERVAL) is None


def test_code_that_cannot_be_read_leaves_the_reason_and_looks_again(tmp_path: Path) -> None:
    service = ServiceFactory(repository=str(tmp_path / "gone"))
    probe = detecting.probe_code(service)
    assert (probe.commit, probe.found) == ("", [])
    assert "could not be looked at" in probe.error
    repository(tmp_path / "gone")
    Service.objects.filter(pk=service.pk).update(manifest=failing_tests())
    service.refresh_from_db()
    again = detecting.probe_code(service)
    assert again.commit
    assert "the service's own tests fail" in again.error


def test_the_tests_of_a_service_run_where_tests_may(tmp_path: Path) -> None:
    service = ServiceFactory(
        repository=str(repository(tmp_path / "code", failing_tests())),
        environment={"STORE": "the-live-one", "TESTING__STORE": "one-for-tests"},
    )
    assert "broken on one-for-tests" in detecting.probe_code(service).error


def failing_tests() -> str:
    """A manifest whose tests say where they ran, and fail."""
    return MANIFEST.replace("pytest -q --junitxml={report}", "sh -c 'echo broken on $STORE; exit 3'")


def test_one_service_that_fails_keeps_no_other_from_being_analysed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository(tmp_path / "good", failing_tests())
    broken = ServiceFactory(name="a-broken", repository=str(tmp_path / "nowhere"))
    good = ServiceFactory(name="b-good", repository=str(folder))
    monkeypatch.setitem(tasks.analyse.app.conf, "task_always_eager", True)
    monkeypatch.setattr(detecting.timezone, "now", lambda: T0)
    for service in (broken, good):
        served(service, "", [1.0], 100.0)
    tasks.analyse()
    problems = dict(CodeProbe.objects.values_list("service__name", "error"))
    assert "could not be looked at" in problems["a-broken"]
    assert "exit code 3" in problems["b-good"]


@pytest.mark.django_db(transaction=True)
def test_a_long_look_is_not_overtaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = ServiceFactory(repository=str(tmp_path / "nowhere"))
    served(service, "", [1.0], 100.0)
    monkeypatch.setattr(detecting.timezone, "now", lambda: T0)

    def look() -> None:
        try:
            tasks.analyse_service(service.pk)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with exclusive(f"analysis:{service.pk}", wait=False):
            pool.submit(look).result(30)
            assert not CodeProbe.objects.exists()
        pool.submit(look).result(30)
    assert CodeProbe.objects.exists()
