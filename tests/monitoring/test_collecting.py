"""A collection round on a real database, with the numbers of services that live in memory."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, connections

from monitoring import collecting, prometheus, reading, rounds
from monitoring.claiming import claim
from monitoring.collecting import collect
from monitoring.derive import Reading
from monitoring.manifest import parse
from monitoring.models import HealthScore, Round, Sample, Series, Snapshot, Target
from monitoring.prometheus import Keep
from monitoring.scraping import MemorySource, understand
from monitoring.storing import store
from tests.monitoring.factories import (
    INTERVAL,
    MANIFEST,
    T0,
    ServiceFactory,
    TargetFactory,
    approve_loopback,
    exposition,
)

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


def test_users_of_all_releases_are_those_of_the_service() -> None:
    service = ServiceFactory()
    texts = {
        TargetFactory(service=service, release=release, url=f"http://{release}.test/metrics").url: f"{name} {users}\n"
        for release, name, users in (("old", "active_sessions", 3), ("new", "concurrent_users", 4))
    }
    collect(T0, source=MemorySource(texts))
    assert reading.latest(service, "concurrent_users") == 7.0
    assert reading.latest(service, "concurrent_users", release="old") == 3.0


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


# --- Bad days ----------------------------------------------------------------------------------------------------


class Ticking:
    """The twin with a clock that nobody sets: it shows what `seconds` says, whatever the round's date is."""

    def __init__(self, *, boot: str = "boot") -> None:
        self.boot, self.seconds, self.text = boot, 0.0, ""

    def read(
        self, url: str, *, at: float, timeout_seconds: float | None = None, keep: Keep | None = None
    ) -> prometheus.Snapshot:
        return replace(understand(self.text, at=at, keep=keep), clock=prometheus.Clock(self.boot, self.seconds))


@pytest.mark.parametrize(
    ("jump", "boot", "rate"),
    [
        (timedelta(), "boot", 1.0),
        (timedelta(minutes=3), "boot", 1.0),
        (timedelta(seconds=-115), "boot", 1.0),
        (timedelta(hours=2), "boot", 1.0),
        (timedelta(days=-1), "boot", 1.0),
        # After a boot only the date is left; without a usable one there is a gap, never a wrong rate.
        (timedelta(hours=2), "another", None),
        (timedelta(days=-1), "another", None),
    ],
)
def test_a_clock_that_jumps_gives_no_wrong_rate(jump: timedelta, boot: str, rate: float | None) -> None:
    target = TargetFactory()
    source = Ticking()
    source.text = exposition(requests=0)
    collect(T0, source=source)
    source.seconds, source.boot, source.text = 60.0, boot, exposition(requests=60)
    assert collect(T0 + INTERVAL + jump, source=source) is not None
    found = latest(target, "requests_per_second", endpoint="*")
    assert found == (None if rate is None else pytest.approx(rate))


def test_the_rate_is_over_the_time_between_the_answers_and_not_between_the_rounds() -> None:
    target = TargetFactory()
    source = Ticking()
    source.text = exposition(requests=0)
    collect(T0, source=source)
    source.seconds, source.text = 75.0, exposition(requests=150)
    collect(T0 + INTERVAL, source=source)
    assert latest(target, "requests_per_second", endpoint="*") == pytest.approx(2.0)


def test_a_round_that_is_overtaken_counts_nothing_twice() -> None:
    overtaken, other = TargetFactory(), TargetFactory()
    source = MemorySource({overtaken.url: exposition(), other.url: exposition()})
    collect(T0, source=source)

    slow = MemorySource({overtaken.url: exposition(requests=60), other.url: exposition(requests=60)})
    # Between what this round read and what it writes, another one has written.
    writing = collecting._remember

    def late(*arguments: Any) -> set[int]:
        Snapshot.objects.filter(target=overtaken).update(at=T0 + 2 * INTERVAL)
        return writing(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "_remember", late)
        collect(T0 + INTERVAL, source=slow)
    assert latest(overtaken, "requests_per_second", endpoint="*") is None
    assert latest(other, "requests_per_second", endpoint="*") == pytest.approx(1.0)
    assert Snapshot.objects.get(target=overtaken).at == T0 + 2 * INTERVAL, "the newer one stays"


def test_a_series_that_comes_and_goes_is_never_counted_twice() -> None:
    target = TargetFactory()
    gone = exposition(requests=0).replace("players", "other")
    total = 0.0
    for number, text in enumerate((exposition(requests=30), gone, exposition(requests=40), exposition(requests=100))):
        collect(T0 + number * INTERVAL, source=MemorySource({target.url: text}))
        total += 60 * (reading.latest(target.service, "requests_per_second", endpoint="players") or 0) if number else 0
    # It is there again after a round without it: then it is new, and its value is all that is known of it.
    assert total == pytest.approx(40 + 60)


def test_a_manifest_of_another_version_fails_its_own_target_only() -> None:
    good, bad = TargetFactory(), TargetFactory(service=ServiceFactory(manifest={"service": 5}))
    done = collect(T0, source=MemorySource({good.url: exposition(), bad.url: exposition()}))
    assert done is not None
    assert set(done.failed) == {bad.pk}
    assert "Refresh" in done.failed[bad.pk]
    assert (latest(good, "up"), latest(bad, "up")) == (1.0, 0.0)


def test_what_a_scrape_took_and_whether_it_came_late_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    quick, slow, dead = TargetFactory(), TargetFactory(), TargetFactory()
    took = {quick.pk: 0.2, slow.pk: 6.5, dead.pk: 9.0}
    real = collecting._ask

    def timed(*arguments: Any) -> dict[int, Any]:
        return {pk: replace(answer, seconds=took[pk]) for pk, answer in real(*arguments).items()}

    monkeypatch.setattr(collecting, "_ask", timed)
    collect(T0, source=MemorySource({quick.url: exposition(), slow.url: exposition()}))
    assert (latest(quick, "scrape_seconds"), latest(quick, "scrape_late")) == (0.2, 0.0)
    assert (latest(slow, "scrape_seconds"), latest(slow, "scrape_late")) == (6.5, 1.0)
    assert (latest(dead, "scrape_seconds"), latest(dead, "scrape_late")) == (None, 1.0)


@pytest.mark.django_db(transaction=True)
def test_a_bug_in_reading_one_answer_costs_that_target_alone(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = TargetFactory(), TargetFactory()

    class Broken(MemorySource):
        def read(self, url: str, **more: Any) -> Any:
            if url == bad.url:
                raise ZeroDivisionError
            return super().read(url, **more)

    collected = collect(T0, source=Broken({good.url: exposition(requests=1), bad.url: ""}))
    assert collected is not None
    assert list(collected.failed) == [bad.pk]
    assert "ZeroDivisionError" in collected.failed[bad.pk]
    assert "could not be read" in caplog.text
    good.refresh_from_db()
    assert good.last_scraped_at == T0


def test_a_target_that_hangs_costs_its_own_timeout_and_nobody_elses() -> None:
    """A real one: it takes the connection and says nothing. Twenty of them, and one that answers."""
    manifest = parse(MANIFEST + "[metrics]\ntimeout_seconds = 0.3\n").model_dump(mode="json")
    text = exposition(requests=5).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n".encode()
    approve_loopback()
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as talking:

        def answer() -> None:
            connected, _ = talking.accept()
            with connected:
                connected.recv(65536)
                connected.sendall(head + text)

        server = threading.Thread(target=answer, daemon=True)
        server.start()
        good = TargetFactory(url=f"http://127.0.0.1:{talking.getsockname()[1]}/metrics")
        hanging = [
            TargetFactory(
                service=ServiceFactory(manifest=manifest), url=f"http://127.0.0.1:{silent.getsockname()[1]}/{number}"
            )
            for number in range(20)
        ]
        done = collect(T0, spread_seconds=0.0)
        server.join()
    assert done is not None
    assert set(done.failed) == {target.pk for target in hanging}
    assert set(done.failed.values()) == {"It did not answer within 0.3 s."}
    assert latest(good, "up") == 1.0
    # Together, not one after the other: each took about its own timeout.
    assert latest(good, "threads") is not None
    assert latest(good, "open_fds") is not None


def test_targets_have_a_moment_of_their_own_that_stays() -> None:
    moments = [collecting._moment(f"http://service-{number}.test/metrics") for number in range(200)]
    assert moments == [collecting._moment(f"http://service-{number}.test/metrics") for number in range(200)]
    assert all(0 <= moment < 1 for moment in moments)
    assert all(any(tenth <= 10 * moment < tenth + 1 for moment in moments) for tenth in range(10))


def test_no_personal_data_is_kept_between_rounds() -> None:
    target = TargetFactory()
    text = exposition(view="/players/4711?mail=alice@example.org").replace(
        'method="GET"', 'method="GET",client="10.1.2.3",session="s3cret"'
    )
    collect(T0, source=MemorySource({target.url: text}))
    kept = repr(prometheus.unpack(bytes(Snapshot.objects.get().body)).layout.series)
    assert "/players/{id}" in kept
    assert not any(word in kept for word in ("4711", "alice", "10.1.2.3", "s3cret", "client"))


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
