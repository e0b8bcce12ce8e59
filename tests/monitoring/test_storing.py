"""Writing samples: once each, whatever happens around it."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.db import DatabaseError, connection, connections, transaction

from monitoring import collecting, partitions, reading, sealing, storing
from monitoring.derive import Reading
from monitoring.models import HealthScore, Sample, Series, Service, Snapshot, Target
from monitoring.scraping import MemorySource
from monitoring.storing import forget_old, store
from tests.monitoring.factories import INTERVAL, T0, ServiceFactory, TargetFactory, exposition, samples

pytestmark = pytest.mark.django_db


def readings(service: Service, *values: float) -> list[tuple[Service, Reading]]:
    return [(service, Reading("x", (("endpoint", f"/{place}"),), value)) for place, value in enumerate(values)]


def stored(service: Service) -> dict[str, list[float]]:
    found = reading.arrays(service, "x", since=T0 - timedelta(days=400), until=T0 + timedelta(days=400))
    return {one.labels["endpoint"]: one.value.tolist() for one in found}


def test_a_round_that_is_repeated_adds_what_was_missing_and_nothing_else() -> None:
    service = ServiceFactory()
    assert store(readings(service, 1.0, 2.0), at=T0) == 2
    assert store(readings(service, 7.0, 8.0, 9.0), at=T0) == 1
    assert store(readings(service, 7.0, 8.0, 9.0), at=T0) == 0
    assert store(readings(service, 5.0), at=T0 + timedelta(microseconds=1)) == 1
    assert stored(service) == {"/0": [1.0, 5.0], "/1": [2.0], "/2": [9.0]}


def test_the_first_of_two_values_stays_and_what_is_not_finite_is_left_out() -> None:
    service = ServiceFactory()
    assert store([], at=T0) == 0
    given = [*readings(service, 1.0, math.nan, math.inf), *readings(service, 2.0)]
    assert store(given, at=T0) == 1
    assert stored(service) == {"/0": [1.0]}
    assert Series.objects.count() == 1


def test_each_day_has_a_partition_whenever_it_is_written() -> None:
    service = ServiceFactory()
    moments = [T0, T0 - timedelta(days=300), T0 + timedelta(days=300), T0.replace(hour=0), T0.replace(hour=23)]
    for at in moments:
        store(readings(service, 1.0), at=at)
    assert partitions.days() == sorted({partitions.day_of(at) for at in moments})
    assert stored(service) == {"/0": [1.0] * 5}
    assert reading.arrays(service, "x", since=T0, until=T0 + INTERVAL)[0].at.tolist() == [T0.timestamp()]


def test_a_day_is_that_of_utc() -> None:
    in_tokyo = T0.replace(hour=20).astimezone(ZoneInfo("Asia/Tokyo"))
    assert in_tokyo.date() != T0.date()
    assert partitions.day_of(in_tokyo) == T0.date()


@pytest.mark.django_db(transaction=True)
def test_a_series_that_was_forgotten_elsewhere_is_made_again() -> None:
    service = ServiceFactory()
    store(readings(service, 1.0, 2.0), at=T0)
    assert storing._known, "the ids are remembered once they are committed"
    Series.objects.filter(labels__endpoint="/0").delete()
    assert store(readings(service, 3.0, 4.0), at=T0 + INTERVAL) == 2
    assert stored(service) == {"/0": [3.0], "/1": [2.0, 4.0]}


@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_is_rolled_back_leaves_nothing_behind() -> None:
    service = ServiceFactory()
    with transaction.atomic():
        store(readings(service, 1.0), at=T0)
        transaction.set_rollback(True)
    assert not Series.objects.exists()
    assert store(readings(service, 2.0), at=T0) == 1
    assert stored(service) == {"/0": [2.0]}


@pytest.mark.django_db(transaction=True)
def test_a_database_that_goes_away_in_the_middle_costs_one_attempt() -> None:
    service = ServiceFactory()
    store(readings(service, 1.0), at=T0)

    def interrupted() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            store(readings(service, 2.0), at=T0 + INTERVAL)
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(DatabaseError):
        interrupted()
    connections.close_all()  # as Celery does after every task
    assert stored(service) == {"/0": [1.0]}
    assert store(readings(service, 2.0), at=T0 + INTERVAL) == 1
    assert store(readings(service, 3.0), at=T0 + 2 * INTERVAL) == 1
    assert stored(service) == {"/0": [1.0, 2.0, 3.0]}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "trouble",
    [
        "SELECT pg_terminate_backend(pg_backend_pid())",  # what a restart does to a connection
        "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'disk_full'; END $$",  # what a full disk is answered with
    ],
)
def test_the_next_round_covers_the_one_that_failed_and_counts_nothing_twice(
    trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TargetFactory()
    real = collecting.store

    def fails(rows: Sequence[tuple[Service, Reading]], *, at: datetime) -> int:
        stored = real(rows, at=at)
        with connection.cursor() as cursor:
            cursor.execute(trouble)
        return stored

    for number, requests in enumerate([100, 160, 220]):
        source = MemorySource({target.url: exposition(requests=requests)})
        if number == 1:
            monkeypatch.setattr(collecting, "store", fails)
            with pytest.raises(DatabaseError):
                collecting.collect(T0 + INTERVAL, source=source)
            monkeypatch.setattr(collecting, "store", real)
            connections.close_all()
        else:
            collecting.collect(T0 + number * INTERVAL, source=source)
    whole = {"endpoint": "*", "method": "*"}
    found = reading.arrays(target.service, "requests_per_second", since=T0, until=T0 + timedelta(hours=1), labels=whole)
    assert [one.value.tolist() for one in found] == [[1.0]]
    assert found[0].at.tolist() == [(T0 + 2 * INTERVAL).timestamp()]


@pytest.mark.django_db(transaction=True)
def test_of_racing_workers_each_sample_is_stored_once() -> None:
    service = ServiceFactory()
    given = readings(service, *map(float, range(40)))
    start = threading.Barrier(4)

    def race(number: int) -> int:
        try:
            start.wait(10)
            return store(given[::-1] if number % 2 else given, at=T0)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(race, range(4))) == 40
    assert len(stored(service)) == Sample.objects.count() == 40


@pytest.mark.django_db(transaction=True)
def test_who_waited_for_another_to_make_a_day_sees_that_it_is_made() -> None:
    day = T0.date() + timedelta(days=400)

    def make() -> None:
        try:
            partitions.ensure(day)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('monitoring.partitions'))")
            second = pool.submit(make)
            for _ in range(200):
                cursor.execute(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                )
                if cursor.fetchone()[0]:
                    break
                threading.Event().wait(0.05)
            else:
                raise AssertionError("the second one never waited")
            partitions.ensure(day)
        second.result(30)
    assert partitions.days().count(day) == 1
    assert partitions.drop_if_it_has(day, 0)


# --- Forgetting ---------------------------------------------------------------------------------------------------


def test_health_scores_older_than_a_month_go_once_an_hour() -> None:
    service = ServiceFactory()

    def score(days: int) -> None:
        HealthScore.objects.create(service=service, at=T0 - timedelta(days=days), score=90.0, status="healthy")

    score(storing.KEEP_SCORES_DAYS + 1)
    score(storing.KEEP_SCORES_DAYS - 1)
    forget_old(T0)
    assert HealthScore.objects.get().at == T0 - timedelta(days=storing.KEEP_SCORES_DAYS - 1)
    score(storing.KEEP_SCORES_DAYS + 2)
    forget_old(T0 + INTERVAL)
    assert HealthScore.objects.count() == 2
    forget_old(T0 + timedelta(hours=1))
    assert HealthScore.objects.count() == 1


def test_series_without_samples_in_any_tier_and_targets_of_long_ago_go() -> None:
    service = ServiceFactory()
    for release, days in (("sealed", 10), ("kept", 0)):
        samples(service, "x", [2.0], until=T0 - timedelta(days=days), release=release)
    sealing.run(T0)
    Series.objects.create(service=service, signal="x", labels={"release": "gone"})
    long_ago = T0 - timedelta(days=storing.KEEP_TARGETS_DAYS + 1)
    kept = [
        TargetFactory(service=service, release="down", last_scraped_at=long_ago),
        TargetFactory(service=service, release="recent", last_scraped_at=T0, active=False),
    ]
    gone = TargetFactory(service=service, release="old", last_scraped_at=long_ago, active=False)
    Snapshot.objects.create(target=gone, at=long_ago, body=b"")
    TargetFactory(service=service, release="never", active=False)
    assert forget_old(T0) == 1
    assert {series.labels["release"] for series in Series.objects.all()} == {"kept", "sealed"}
    assert set(Target.objects.all()) == set(kept)
    assert not Snapshot.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_forgetting_loses_no_sample_that_is_just_being_stored() -> None:
    service = ServiceFactory()
    Series.objects.create(service=service, signal="x", labels={"endpoint": "/0"})

    def forget() -> int:
        try:
            return forget_old(T0)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            store(readings(service, 2.0), at=T0)
            forgetting = pool.submit(forget)
            with pytest.raises(TimeoutError):
                forgetting.result(0.5)
        assert forgetting.result(10) == 0
    assert stored(service) == {"/0": [2.0]}
