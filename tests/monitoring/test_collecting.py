"""A collection round on a real database, with the numbers of services that live in memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, connections

from monitoring import reading, rounds
from monitoring.claiming import claim
from monitoring.collecting import collect
from monitoring.derive import Reading
from monitoring.models import HealthScore, Round, Sample, Series, Snapshot, Target
from monitoring.scraping import MemorySource
from monitoring.storing import store
from tests.monitoring.factories import INTERVAL, T0, ServiceFactory, TargetFactory, exposition

pytestmark = pytest.mark.django_db


def latest(target: Target, signal: str, **labels: str) -> float | None:
    return reading.latest(target.service, signal, **labels)


def test_derives_signals_from_two_rounds() -> None:
    target = TargetFactory(release="abc123def456")
    source = MemorySource({target.url: exposition(requests=100, queries=100)})
    collect(T0, source=source)
    source.texts = {target.url: exposition(requests=160, failed=6, fast=130, queries=700)}
    done = collect(T0 + INTERVAL, source=source)
    assert done is not None
    assert (done.targets, done.failed) == (1, {})
    release = {"release": "abc123def456"}
    assert latest(target, "requests_per_second", endpoint="players", method="GET", **release) == pytest.approx(1.0)
    assert latest(target, "error_ratio", endpoint="players", **release) == pytest.approx(0.1)
    assert latest(target, "latency_p95_ms", endpoint="*", **release) == pytest.approx(1000 * (0.1 + 0.9 * 27 / 30))
    assert latest(target, "queries_per_request", **release) == pytest.approx(10.0)
    assert latest(target, "memory_bytes", **release) == 5e7
    assert latest(target, "up", **release) == 1.0


def test_the_whole_service_is_all_its_releases_together() -> None:
    service = ServiceFactory()
    old, new = (
        TargetFactory(service=service, release=name, url=f"http://{name}.test/metrics") for name in ("old", "new")
    )
    source = MemorySource({old.url: exposition(), new.url: exposition()})
    collect(T0, source=source)
    source.texts = {old.url: exposition(requests=90), new.url: exposition(requests=30, failed=30)}
    collect(T0 + INTERVAL, source=source)
    whole = Series.objects.get(signal="error_ratio", labels={"endpoint": "*", "method": "*"})
    assert whole.samples.get().value == pytest.approx(0.25)
    assert latest(old, "error_ratio", endpoint="*") == pytest.approx(0.25), "the whole comes before its parts"
    assert latest(old, "error_ratio", endpoint="*", release="new") == 1.0


def test_the_whole_service_has_its_queries_per_request() -> None:
    service = ServiceFactory()
    old, new = (
        TargetFactory(service=service, release=name, url=f"http://{name}.test/metrics") for name in ("old", "new")
    )
    source = MemorySource({old.url: exposition(), new.url: exposition()})
    collect(T0, source=source)
    source.texts = {old.url: exposition(requests=90, queries=1800), new.url: exposition(requests=10, queries=20)}
    collect(T0 + INTERVAL, source=source)
    whole = Series.objects.get(signal="queries_per_request", labels={})
    assert whole.samples.get().value == pytest.approx(18.2)
    assert latest(old, "queries_per_request", release="new") == pytest.approx(2.0)


def test_a_release_that_serves_nobody_is_measured_but_no_part_of_the_whole() -> None:
    service = ServiceFactory()
    live = TargetFactory(service=service, release="live", url="http://live.test/metrics")
    tried = TargetFactory(service=service, release="tried", url="http://tried.test/metrics", serving=False)
    source = MemorySource({live.url: exposition(), tried.url: exposition()})
    collect(T0, source=source)
    source.texts = {
        live.url: exposition(requests=60, queries=60),
        tried.url: exposition(requests=600, failed=600, queries=60000),
    }
    collect(T0 + INTERVAL, source=source)
    whole = {row.signal: row.samples.get().value for row in Series.objects.exclude(labels__has_key="release")}
    assert (whole["requests_per_second"], whole["error_ratio"], whole["queries_per_request"]) == (1.0, 0.0, 1.0)
    assert latest(tried, "error_ratio", endpoint="*", release="tried") == 1.0
    assert latest(tried, "up", release="tried") == 1.0


def test_a_target_without_a_release_always_serves() -> None:
    with pytest.raises(IntegrityError, match="private_target_has_a_release"):
        TargetFactory(release="", serving=False)


def test_a_failing_target_says_why_and_keeps_nobody_from_being_stored() -> None:
    good, bad, garbage = TargetFactory(), TargetFactory(), TargetFactory()
    source = MemorySource({good.url: exposition(), garbage.url: "<html>"})
    done = collect(T0, source=source)
    assert done is not None
    assert set(done.failed) == {bad.pk, garbage.pk}
    for target in (good, bad, garbage):
        target.refresh_from_db()
    assert (good.last_error, good.last_scraped_at) == ("", T0)
    assert "can't be reached" in bad.last_error
    assert "web page" in garbage.last_error
    assert latest(good, "up") == 1.0
    assert latest(bad, "up") == 0.0


def test_recovery_covers_the_gap_and_clears_the_error() -> None:
    target = TargetFactory()
    source = MemorySource({target.url: exposition(requests=0)})
    collect(T0, source=source)
    collect(T0 + INTERVAL, source=MemorySource())
    source.texts = {target.url: exposition(requests=240)}
    collect(T0 + 2 * INTERVAL, source=source)
    target.refresh_from_db()
    assert target.last_error == ""
    assert latest(target, "requests_per_second", endpoint="*") == pytest.approx(2.0)


def test_a_gap_that_is_too_long_stays_a_gap() -> None:
    target = TargetFactory()
    collect(T0, source=MemorySource({target.url: exposition(requests=0)}))
    collect(T0 + timedelta(hours=3), source=MemorySource({target.url: exposition(requests=240)}))
    assert latest(target, "requests_per_second", endpoint="*") is None


def test_a_damaged_snapshot_is_replaced() -> None:
    target = TargetFactory()
    source = MemorySource({target.url: exposition()})
    collect(T0, source=source)
    Snapshot.objects.update(body=b"not zlib")
    assert collect(T0 + INTERVAL, source=source) is not None
    source.texts = {target.url: exposition(requests=60)}
    collect(T0 + 2 * INTERVAL, source=source)
    assert latest(target, "requests_per_second", endpoint="*") == pytest.approx(1.0)


def test_inactive_targets_and_archived_services_are_left_alone() -> None:
    TargetFactory(active=False)
    TargetFactory(service=ServiceFactory(archived_at=T0))
    done = collect(T0, source=MemorySource())
    assert done is not None
    assert done.targets == 0


def test_the_host_belongs_to_runerogue_itself() -> None:
    own = ServiceFactory(is_self=True)
    collect(T0, source=MemorySource())
    for signal in ("disk_used_percent", "host_memory_percent"):
        value = reading.latest(own, signal)
        assert value is not None
        assert 0 < value <= 100


def test_labels_with_quotes_and_control_characters_are_stored() -> None:
    target = TargetFactory()
    hostile = "a\\\"b'; DROP TABLE \\\\é"
    source = MemorySource({target.url: exposition(view=hostile)})
    collect(T0, source=source)
    source.texts = {target.url: exposition(view=hostile, requests=60)}
    collect(T0 + INTERVAL, source=source)
    assert latest(target, "requests_per_second", endpoint="a\"b'; DROP TABLE \\é") == pytest.approx(1.0)


def test_values_that_are_no_numbers_are_not_stored() -> None:
    service = ServiceFactory()
    rows = [(service, Reading("x", (), value)) for value in (float("nan"), float("inf"))]
    assert store(rows, at=T0) == 0


def test_a_round_costs_few_queries_however_many_targets(django_assert_max_num_queries: object) -> None:
    from django.test.utils import CaptureQueriesContext

    def cost(at: object) -> int:
        source = MemorySource({t.url: exposition(requests=5) for t in Target.objects.all()})
        with CaptureQueriesContext(connection) as queries:
            collect(at, source=source)  # type: ignore[arg-type]
        return len(queries)

    TargetFactory()
    few = cost(T0)
    TargetFactory.create_batch(20)
    assert cost(T0 + INTERVAL) <= few + 2


# --- Claims ------------------------------------------------------------------------------------------------------


def test_a_doubled_beat_does_nothing() -> None:
    target = TargetFactory()
    source = MemorySource({target.url: exposition()})
    assert collect(T0, source=source) is not None
    before = Sample.objects.count()
    assert collect(T0, source=source) is None
    assert collect(T0 + timedelta(seconds=3), source=source) is None
    assert Sample.objects.count() == before


@pytest.mark.parametrize("offset", range(0, 60, 7))
def test_a_beat_that_jitters_loses_no_round(offset: int) -> None:
    jitter = [0.0, 2.0, -2.0, 1.5, -1.0, 0.0, 2.0, -2.0]
    start = T0 + timedelta(seconds=offset)
    taken = [
        claim("collect", at=start + n * INTERVAL + timedelta(seconds=late), interval_seconds=60)
        for n, late in enumerate(jitter)
    ]
    assert all(taken)


def test_a_clock_that_was_set_back_does_not_stop_collection() -> None:
    assert claim("collect", at=T0, interval_seconds=60)
    assert claim("collect", at=T0 - timedelta(hours=1), interval_seconds=60)
    assert claim("collect", at=T0 - timedelta(hours=1) + INTERVAL, interval_seconds=60)


def test_old_claims_are_forgotten() -> None:
    for minute in range(100):
        claim("collect", at=T0 + minute * INTERVAL, interval_seconds=60)
    assert Round.objects.count() <= 12


@pytest.mark.django_db(transaction=True)
def test_of_racing_workers_exactly_one_wins() -> None:
    start = threading.Barrier(6)

    def race(_: int) -> bool:
        try:
            start.wait(10)
            return claim("collect", at=T0, interval_seconds=60)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(race, range(6))) == 1


def test_a_whole_round_scores_every_service() -> None:
    target = TargetFactory()
    source = MemorySource({target.url: exposition()})
    for number in range(3):
        source.texts = {target.url: exposition(requests=100 * number)}
        rounds.run(T0 + number * INTERVAL, source=source)
    assert rounds.run(T0 + 2 * INTERVAL, source=source) is None
    scores = HealthScore.objects.filter(service=target.service)
    assert scores.count() == 3
    newest = scores.latest()
    assert newest.status == "healthy"
    assert newest.score is not None
    assert newest.score < 100, "the host was not measured, so not all is known"
