"""The time before a target was watched, and pauses of RuneRogue: asked for where the series are."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError

from monitoring import backfilling, baselining, dialects, storing
from monitoring.collecting import collect
from monitoring.derive import Reading, compare, readings
from monitoring.models import Backfill, ExternalService, HealthScore, Round, Service, Status, Target, labels_key
from monitoring.promql import PromQL
from monitoring.scraping import ScrapeFailed, open_client
from tests.monitoring.factories import T0, ServiceFactory, TargetFactory, approve_loopback
from tests.monitoring.prometheus import DOWN, LOOPBACK, UNTIL, all_rows, moment, watched


@pytest.mark.django_db
def test_the_time_before_is_what_rounds_would_have_stored(prometheus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfilling, "FINE", timedelta(hours=6))
    target = watched(prometheus, "history_days = 1")
    collect(moment(UNTIL + 7), spread_seconds=0.0)
    done = backfilling.run(moment(UNTIL + 20), seconds=60.0)
    assert done is not None
    assert done.finished == (target.service,)
    row = Backfill.objects.get()
    assert row.is_done
    assert row.samples == done.samples > 5000
    assert row.oldest == backfilling.known_since(target.service) == moment(UNTIL - 24 * 3600 + 300)

    found = all_rows(target.service, since=UNTIL - 26 * 3600, until=UNTIL + 3600)
    at = [when for when, _ in found["up", "{}"]]
    # A minute apart where rules look, five before; nothing beside the round that was there.
    assert at == [
        *range(UNTIL - 24 * 3600 + 300, UNTIL - 6 * 3600 + 1, 300), *range(UNTIL - 6 * 3600 + 60, UNTIL, 60), UNTIL + 7
    ]  # fmt: skip
    restart, (down, up) = UNTIL - 5 * 3600, DOWN
    for when in (UNTIL - 60, restart, restart + 60, down, down + 60, down + 600, up, up + 60, UNTIL - 20 * 3600):
        given = {
            key: value for key, rows in all_rows(target.service, since=when, until=when).items() for _, value in rows
        }
        # Prometheus sums floats in an order of its own.
        assert given == pytest.approx(a_round(prometheus, when), rel=1e-9)
    rate = given["requests_per_second", '{"endpoint":"*","method":"*"}']
    assert rate in (pytest.approx(0.6, rel=0.02), pytest.approx(1.2, rel=0.02))  # by night, by day
    assert dict(found["up", "{}"])[down + 600] == 0.0
    assert down + 600 not in dict(found["open_fds", "{}"])


def a_round(address: str, at: float) -> dict[tuple[str, str], float]:
    """(signal, labels) → what a round that asks at exactly `at` would store."""
    with open_client(10.0, LOOPBACK) as client:
        try:
            api = PromQL(client, address, 'job="shop"', 120.0, 10.0)
            found = api.read(at=at, dialect=None, keep=dialects.allowlist(None))
        except ScrapeFailed:
            return {("up", "{}"): 0.0}
    rows = [Reading("up", (), found.up or 0.0), *readings(compare(found.before, found.after))]
    return {(row.signal, labels_key(dict(row.labels))): row.value for row in rows}


def watched_twin(target: Target) -> Target:
    """The same target of another service; the first one is measured no longer."""
    Target.objects.filter(pk=target.pk).update(active=False)
    service = ServiceFactory(manifest=target.service.manifest)
    return TargetFactory(service=service, url=target.url)


@pytest.mark.django_db
def test_a_pause_is_filled_where_the_series_are_and_stays_a_gap_elsewhere(prometheus: str) -> None:
    target = watched(prometheus, "history_days = 1")
    scraped = TargetFactory(service=ServiceFactory(), url="http://127.0.0.1:9/metrics")
    begin, end = UNTIL - 7200 + 20, UNTIL - 3600 + 20
    Backfill.objects.create(
        target=target, is_first=True, since=moment(begin), until=moment(begin), asked_at=moment(begin)
    )
    for when in (begin - 120, begin - 60, begin, end):
        Round.objects.all().delete()
        collect(moment(when), spread_seconds=0.0)
        Target.objects.filter(pk=scraped.pk).update(last_scraped_at=moment(when))  # as if it had answered
    row = Backfill.objects.get(is_first=False)
    assert (row.target, row.since, row.until) == (target, moment(begin), moment(end))

    done = backfilling.run(moment(end + 5), seconds=60.0)
    assert done is not None
    assert done.finished == ()
    assert not Backfill.objects.filter(is_first=False).exists()
    at = [when for when, _ in all_rows(target.service, since=begin - 200, until=end)["up", "{}"]]
    assert at == [begin - 120, begin - 60, begin, *range(begin + 40, end - 20, 60), end]
    counted = all_rows(target.service, since=begin, until=end)["requests_per_second", '{"endpoint":"*","method":"*"}']
    assert len(counted) == len(at) - 2
    assert [when for when, _ in all_rows(scraped.service, since=begin - 200, until=end)["up", "{}"]] == [
        begin - 120, begin - 60, begin, end
    ]  # fmt: skip


@pytest.mark.django_db
def test_a_target_that_is_removed_while_it_is_asked_has_no_pause() -> None:
    target = watched("http://127.0.0.1:9")
    target.last_scraped_at = moment(UNTIL)
    manifests = {target.service.pk: target.service.parsed}
    assert backfilling.note_pauses([target], manifests, moment(UNTIL + 600)) == 1
    Target.objects.all().delete()
    assert backfilling.note_pauses([target], manifests, moment(UNTIL + 600)) == 0


@pytest.mark.django_db
def test_what_was_asked_for_already_is_told_apart_from_nothing(prometheus: str) -> None:
    target = watched(prometheus, "history_days = 1")
    collect(moment(UNTIL), spread_seconds=0.0)
    # A round that was refused said so; what it would have measured is added, its 0 stays.
    storing.store([(target.service, Reading("up", (), 0.0))], at=moment(UNTIL - 597))
    since = moment(UNTIL - 900)
    row = Backfill.objects.create(
        target=target, is_first=True, since=since, until=moment(UNTIL), asked_at=moment(UNTIL)
    )
    first = backfilling.run(moment(UNTIL + 10), seconds=60.0)
    assert first is not None
    found = all_rows(target.service, since=UNTIL - 900, until=UNTIL - 1)
    assert len(found["open_fds", "{}"]) == 15
    assert len(found["up", "{}"]) == 15
    assert dict(found["up", "{}"])[UNTIL - 597] == 0.0
    Backfill.objects.filter(pk=row.pk).update(until=moment(UNTIL))
    again = backfilling.run(moment(UNTIL + 70), seconds=60.0)
    assert again is not None
    assert again.samples == 0
    assert all_rows(target.service, since=UNTIL - 900, until=UNTIL - 1) == found
    assert backfilling.run(moment(UNTIL + 71)) is None


@pytest.mark.django_db
def test_a_piece_that_fails_is_tried_again_and_smaller(prometheus: str, caplog: pytest.LogCaptureFixture) -> None:
    target = watched(prometheus, "history_days = 1")
    Target.objects.update(last_scraped_at=moment(UNTIL))
    ExternalService.objects.all().delete()
    caplog.clear()
    for minute in range(2):
        done = backfilling.run(moment(UNTIL + 60 * minute), seconds=60.0)
        assert done == backfilling.Run(0, ())
    row = Backfill.objects.get()
    assert (row.points, row.until) == (60, moment(UNTIL))
    assert "not an approved host" in row.problem
    assert "not an approved host" in backfilling.told(target.service)
    assert len(caplog.records) == 1
    approve_loopback()
    Backfill.objects.update(since=moment(UNTIL - 3 * 3600))
    done = backfilling.run(moment(UNTIL + 120), seconds=60.0)
    assert done is not None
    assert done.finished == (target.service,)
    row.refresh_from_db()
    assert (row.points, row.problem) == (240, "")
    assert f"known back to {moment(UNTIL - 3 * 3600):%Y-%m-%d %H:%M} UTC" in backfilling.told(target.service)


@pytest.mark.django_db
def test_a_past_that_breaks_a_run_keeps_no_other_waiting(prometheus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = watched(prometheus, "history_days = 1")
    other = TargetFactory(service=ServiceFactory(manifest=broken.service.manifest), url=prometheus)
    Target.objects.update(last_scraped_at=moment(UNTIL))
    store_past = storing.store_past

    def breaks(service: Service, found: Any) -> int:
        if service == broken.service:
            raise DatabaseError("it can't be stored")
        return store_past(service, found)

    monkeypatch.setattr(storing, "store_past", breaks)
    with pytest.raises(DatabaseError):
        backfilling.run(moment(UNTIL), seconds=60.0)
    with contextlib.suppress(DatabaseError):
        backfilling.run(moment(UNTIL + 60), seconds=60.0)
    assert Backfill.objects.get(target=other).is_done


@pytest.mark.django_db
def test_a_time_limit_ends_a_run_and_the_next_goes_on(prometheus: str) -> None:
    watched(prometheus, "history_days = 1")
    Target.objects.update(last_scraped_at=moment(UNTIL))
    assert backfilling.run(moment(UNTIL), seconds=0.0) == backfilling.Run(0, ())
    Backfill.objects.update(since=moment(UNTIL - 600))
    done = backfilling.run(moment(UNTIL + 60), seconds=60.0)
    assert done is not None
    assert done.samples > 0


@pytest.mark.django_db
def test_a_baseline_comes_with_the_time_before(prometheus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfilling, "FINE", timedelta())
    target = watched(prometheus, "history_days = 1")
    collect(moment(UNTIL), spread_seconds=0.0)
    HealthScore.objects.create(
        service=target.service, at=moment(UNTIL), score=95.0, status=Status.HEALTHY, components={}, confidence=1.0
    )
    assert baselining.refresh(moment(UNTIL + 60)) == []
    backfilling.run(moment(UNTIL + 60), seconds=60.0)
    (made,) = baselining.refresh(moment(UNTIL + 120))
    assert made.service == target.service
    assert made.since == moment(UNTIL - 24 * 3600)
    assert made.series.filter(signal="latency_p95_ms").exists()


@pytest.mark.django_db
def test_nothing_is_asked_of_others() -> None:
    TargetFactory(last_scraped_at=T0)  # scraped
    watched("http://127.0.0.1:9", "history_days = 0")  # turned off
    Target.objects.update(last_scraped_at=T0)
    moved = watched_twin(Target.objects.latest("pk"))  # asked elsewhere by now
    Backfill.objects.create(target=moved, is_first=True, since=T0, until=T0 + timedelta(hours=1))
    Target.objects.filter(pk=moved.pk).update(url="http://127.0.0.1:10")
    assert backfilling.run(T0, seconds=60.0) == backfilling.Run(0, ())
    assert not Backfill.objects.exists()
