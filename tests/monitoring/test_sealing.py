"""Sealed days: readers notice nothing, and nothing is lost or doubled whatever happens on the way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from django.db import connection, connections, transaction

from monitoring import blocks, copybinary, partitions, reading, sealing
from monitoring.derive import Reading
from monitoring.models import Rollup, Sample, SealedAxis, SealedBlock, SealedDay, Series, Service
from monitoring.storing import store
from tests.monitoring.factories import INTERVAL, T0, ServiceFactory

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)
MIDNIGHT = T0.replace(hour=0)
EVER = {"since": T0 - 500 * DAY, "until": T0 + 500 * DAY}


def write(service: Service, start: datetime, values: np.ndarray, *, missing: float = 0.0) -> None:
    """values[series, minute] from `start` on, without a share of them, as many rounds would have left them."""
    for place in range(len(values)):
        Series.objects.get_or_create(
            service=service, signal="x", labels_key=f'{{"e":"{place}"}}', defaults={"labels": {"e": str(place)}}
        )
    pks = list(Series.objects.filter(service=service, signal="x").order_by("labels_key").values_list("pk", flat=True))
    times = copybinary.microseconds(start) + np.arange(values.shape[1]) * 60_000_000 + 1234
    kept = np.random.default_rng(5).random(values.shape) >= missing
    for day in {partitions.day_of(copybinary.moment(at)) for at in [*times[::720].tolist(), int(times[-1])]}:
        partitions.ensure(day)
    rows = copybinary.pack(
        np.broadcast_to(np.array(pks)[:, None], values.shape)[kept],
        np.broadcast_to(times, values.shape)[kept],
        values[kept],
    )
    with connection.cursor() as cursor:
        with cursor.copy("COPY monitoring_sample (series_id, at, value) FROM STDIN (FORMAT BINARY)") as copy:
            copy.write(rows)


def everything(service: Service, **more: Any) -> dict[str, tuple[list[float], list[float]]]:
    found = reading.arrays(service, "x", **{**EVER, **more})
    return {one.labels["e"]: (one.at.tolist(), one.value.tolist()) for one in found}


def noise(series: int, minutes: int, seed: int = 1) -> np.ndarray:
    """Eighths, which sealing keeps exactly."""
    return np.rint(8 * np.random.default_rng(seed).lognormal(3, 1, (series, minutes))) / 8


def test_readers_notice_nothing_and_gaps_stay_gaps() -> None:
    service = ServiceFactory()
    write(service, MIDNIGHT - 3 * DAY, noise(5, 4 * 1440 + 700), missing=0.2)
    before = everything(service)
    part = {"since": T0 - 2.5 * DAY, "until": T0 - 0.3 * DAY}
    in_part = everything(service, **part)
    done = sealing.run(T0)
    assert done is not None
    assert done.days == [(T0 - n * DAY).date() for n in (3, 2)]
    # The last whole day is not a day old yet.
    assert partitions.days() == [(T0 + n * DAY).date() for n in (-1, 0, 1, 2)]
    assert everything(service) == before
    assert everything(service, **part) == in_part
    assert done.samples == sum(block.count for block in SealedBlock.objects.all())
    assert 0 < done.samples < 5 * 2 * 1440 * 0.85


def test_is_done_once_an_hour() -> None:
    assert sealing.run(T0) is not None
    assert sealing.run(T0 + INTERVAL) is None
    assert sealing.run(T0 + timedelta(hours=1)) is not None


def test_a_run_that_dies_costs_nothing_but_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    service = ServiceFactory()
    write(service, MIDNIGHT - 3 * DAY, noise(5, 300), missing=0.1)
    before = everything(service)
    monkeypatch.setattr(sealing, "CHUNK", 2)
    real = sealing._write
    written: list[date] = []

    def dies(day: date, samples: Any) -> None:
        if len(written) == 1:
            raise MemoryError
        written.append(day)
        real(day, samples)

    monkeypatch.setattr(sealing, "_write", dies)
    day = (T0 - 3 * DAY).date()
    with pytest.raises(MemoryError):
        sealing.seal_day(day)
    assert SealedBlock.objects.count() == 2
    assert everything(service) == before
    (first, *_) = reading.steps(service, "x", **EVER, step_seconds=3600)
    assert first.count.sum() == len(before["0"][0])
    monkeypatch.setattr(sealing, "_write", real)
    assert sealing.seal_day(day) == (True, sum(len(at) for at, _ in before.values()))
    assert not Sample.objects.exists()
    assert everything(service) == before


def test_a_late_sample_is_neither_lost_nor_doubled() -> None:
    service = ServiceFactory()
    write(service, MIDNIGHT - 3 * DAY, noise(3, 1440))
    before = everything(service)
    assert sealing.seal_day((T0 - 3 * DAY).date())[0]
    known = MIDNIGHT - 3 * DAY + timedelta(microseconds=1234)
    late = [(service, Reading("x", (("e", place),), 7.0)) for place in ("0", "9")]
    store(late, at=known)  # the first is there already, with another value
    store(late, at=known + timedelta(seconds=1))

    def holds() -> None:
        after = everything(service)
        at, value = before["0"]
        assert after["0"] == ([at[0], at[0] + 1, *at[1:]], [value[0], 7.0, *value[1:]])
        assert after["1"] == before["1"]
        assert after["9"] == ([at[0], at[0] + 1], [7.0, 7.0])
        (first, *_) = reading.steps(service, "x", **EVER, step_seconds=86400, labels={"e": "0"})
        assert first.count.tolist() == [1441]

    holds()
    assert [partitions.day_of(known)] == partitions.days()
    assert sealing.seal_day((T0 - 3 * DAY).date()) == (True, 4)
    assert not partitions.days()
    holds()


def test_rows_that_come_while_a_day_is_sealed_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    service = ServiceFactory()
    day = (T0 - 3 * DAY).date()
    write(service, MIDNIGHT - 3 * DAY, noise(2, 10))
    real = sealing._seal_chunk

    def with_company(*arguments: Any) -> int:
        sealed = real(*arguments)
        store([(service, Reading("x", (("e", "0"),), 5.0))], at=MIDNIGHT - 3 * DAY + timedelta(hours=9))
        return sealed

    monkeypatch.setattr(sealing, "_seal_chunk", with_company)
    assert sealing.seal_day(day) == (False, 20)
    monkeypatch.setattr(sealing, "_seal_chunk", real)
    assert everything(service)["0"][1][-1] == 5.0
    assert sealing.seal_day(day) == (True, 21)
    assert everything(service)["0"][1][-1] == 5.0


@pytest.mark.django_db(transaction=True)
def test_a_busy_table_is_dropped_from_later_and_writers_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    service = ServiceFactory()
    day = (T0 - 3 * DAY).date()
    write(service, MIDNIGHT - 3 * DAY, noise(2, 10))
    before = everything(service)
    monkeypatch.setattr(sealing, "TRIES", 1)

    def seal() -> tuple[bool, int]:
        try:
            return sealing.seal_day(day)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            everything(service)  # a reader in a long transaction
            assert pool.submit(seal).result(20) == (False, 20)
            assert everything(service) == before
            assert store([(service, Reading("y", (), 1.0))], at=T0) == 1
        assert pool.submit(seal).result(20) == (True, 20)
    assert everything(service) == before


def test_whole_days_go_by_how_many_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "KEEP_SAMPLES_DAYS", 2)
    monkeypatch.setattr(sealing, "KEEP_ROLLUPS_DAYS", {300: 3, 3600: 4})
    service = ServiceFactory()
    write(service, MIDNIGHT - 7 * DAY, noise(2, 1440))
    for back in range(6, 1, -1):
        write(service, MIDNIGHT - back * DAY, noise(2, 60, seed=back))
    done = sealing.run(T0)
    assert done is not None
    assert done.forgotten == 4

    def days(found: list[Any]) -> list[int]:
        return sorted({(T0.date() - datetime.fromtimestamp(at, T0.tzinfo).date()).days for at in found[0].at})

    assert days(reading.arrays(service, "x", **EVER)) == [2, 3]
    assert days(reading.arrays(service, "x", **EVER, step_seconds=300)) == [2, 3, 4]
    assert days(reading.arrays(service, "x", **EVER, step_seconds=3600)) == [2, 3, 4, 5]
    assert SealedDay.objects.count() == 4
    assert {(T0.date() - axis.day).days for axis in SealedAxis.objects.all()} == {2, 3, 4}


def test_a_clock_that_jumps_a_year_ahead_and_back_costs_no_history() -> None:
    service = ServiceFactory()
    write(service, MIDNIGHT - 3 * DAY, noise(2, 2 * 1440))
    write(service, MIDNIGHT, noise(2, 700, seed=2))
    before = everything(service)
    assert sealing.run(T0) is not None
    later = sealing.run(T0 + 365 * DAY)
    assert later is not None
    assert later.forgotten == 0
    assert everything(service) == before
    # Today was sealed too early, and goes on.
    store([(service, Reading("x", (("e", "0"),), 3.0))], at=T0)
    assert everything(service)["0"][1][-1] == 3.0
    assert sealing.run(T0 + DAY + timedelta(hours=12)) is not None
    assert everything(service)["0"] == (before["0"][0] + [T0.timestamp()], before["0"][1] + [3.0])


@pytest.mark.parametrize("step_seconds", [60, 90, 300, 3600, 7200, 86400])
def test_steps_are_those_of_the_samples(step_seconds: int) -> None:
    service = ServiceFactory()
    write(service, MIDNIGHT - 2 * DAY, noise(2, 3 * 1440), missing=0.5)
    samples, close = reading.arrays(service, "x", **EVER), 2.0**-blocks.ROLLUP_BITS
    assert sealing.seal_day((T0 - 2 * DAY).date())[0]
    since, until = T0 - 2 * DAY + timedelta(seconds=7), T0 - 0.2 * DAY
    found = reading.steps(service, "x", since=since, until=until, step_seconds=step_seconds)
    for one, whole in zip(found, samples, strict=True):
        start = whole.at // step_seconds * step_seconds
        first, end = since.timestamp() // step_seconds * step_seconds, until.timestamp()
        expected = np.unique(start[(start >= first) & (start < end)])
        np.testing.assert_array_equal(one.at, expected)
        groups = [whole.value[start == at] for at in expected]
        np.testing.assert_allclose(one.mean, [group.mean() for group in groups], rtol=close)
        np.testing.assert_allclose(one.maximum, [group.max() for group in groups], rtol=close)
        assert one.count.tolist() == [len(group) for group in groups]
        if step_seconds <= 3600:
            np.testing.assert_allclose(
                one.p95, [np.percentile(group, 95) for group in groups], rtol=2.0**-blocks.ROLLUP_BITS
            )


def test_refuses_steps_of_nothing() -> None:
    with pytest.raises(ValueError, match="step_seconds=0"):
        reading.steps(ServiceFactory(), "x", **EVER, step_seconds=0)


def test_other_readers_see_sealed_days_too() -> None:
    service = ServiceFactory()
    start = MIDNIGHT - 3 * DAY
    write(service, start, np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]))
    other = ServiceFactory()
    store([(other, Reading("y", (), 8.0))], at=start + timedelta(microseconds=1234))

    def asked() -> list[Any]:
        at = start + INTERVAL + timedelta(microseconds=1234)
        window = {"since": start, "until": start + timedelta(seconds=61), "labels_key": '{"e":"1"}'}
        return [
            reading.latest(service, "x"),
            reading.latest(service, "x", e="1"),
            reading.latest(other, "y"),
            reading.usual(service, "x", **window, at_least=2),
            reading.usual(service, "x", **window, at_least=3),
            sorted((one.labels["e"], one.value, one.at) for one in reading.round_values(at)),
            [(one.service_id, one.value) for one in reading.recent(start, at, ["y"])],
            len(reading.recent(start, at, ["x", "y"])),
            len(reading.recent(start, at, None)),
            reading.recent(start, at, []),
        ]

    before = asked()
    assert before[:5] == [3.0, 30.0, 8.0, 15.0, None]
    assert [value for _, value, _ in before[5]] == [2.0, 20.0]
    assert before[6] == [(other.pk, 8.0)]
    assert before[7:] == [5, 5, []]
    assert sealing.seal_day(start.date())[0]
    assert not Sample.objects.exists()
    assert asked() == before
    # Both tiers at once: the newest wins, wherever it is.
    store([(service, Reading("x", (("e", "1"),), 99.0))], at=start - DAY)
    assert reading.latest(service, "x", e="1") == 30.0
    store([(service, Reading("x", (("e", "1"),), 98.0))], at=T0)
    assert reading.latest(service, "x", e="1") == 98.0


def test_a_sealed_sample_takes_few_bytes() -> None:
    write(ServiceFactory(), MIDNIGHT - 3 * DAY, 50 * np.exp(np.random.default_rng(1).normal(0, 0.15, (30, 1440))))
    assert sealing.seal_day((T0 - 3 * DAY).date())[0]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT sum(pg_column_size(block)) FROM monitoring_sealedblock block UNION ALL "
            "SELECT sum(pg_column_size(rollup)) FROM monitoring_rollup rollup"
        )
        sealed, rolled_up = (row[0] for row in cursor.fetchall())
    assert sealed < 2.9 * 30 * 1440
    assert rolled_up < 2.2 * 30 * 1440
    assert Rollup.objects.count() == 2 * SealedBlock.objects.count() == 60


def test_an_upgrade_keeps_the_samples_and_so_does_the_way_back() -> None:
    storage = import_module("monitoring.migrations.0003_storage")
    service = ServiceFactory()
    write(service, MIDNIGHT - 3 * DAY, noise(3, 4000), missing=0.3)
    before = everything(service)
    with connection.cursor() as cursor:
        for statement in (storage.PLAIN, storage.PARTITIONED):
            cursor.execute(statement)
            cursor.execute("SELECT count(*) FROM monitoring_sample")
            assert cursor.fetchone()[0] == sum(len(at) for at, _ in before.values())
    assert everything(service) == before
    assert partitions.days() == [(T0 - n * DAY).date() for n in (3, 2, 1)]
    sealing.run(T0)
    assert everything(service) == before


def test_blocks_of_other_widths_are_read_together() -> None:
    service = ServiceFactory()
    for back, value in ((4, 2.0**40 + 1), (3, 0.1), (2, 1e300)):
        write(service, MIDNIGHT - back * DAY, np.full((1, 3), value))
    sealing.run(T0)
    (found,) = reading.arrays(service, "x", **EVER)
    np.testing.assert_allclose(found.value, np.repeat([2.0**40 + 1, 0.1, 1e300], 3), rtol=1e-6)
    assert found.value[0] == 2.0**40 + 1
    assert DAY / timedelta(microseconds=1) == blocks.DAY_US
