"""Spans that wait in Valkey, and profiles in PostgreSQL: both are the real ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import redis
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from monitoring import profiling, reading
from monitoring.models import Profile, Service, SpanIntake, Statement
from monitoring.otlp import folding
from monitoring.otlp.folding import Kind, Role, Span, What
from tests.monitoring.factories import ServiceFactory

pytestmark = pytest.mark.django_db
LIST = What(Role.ENTRY, Kind.HTTP, "api/players", "GET")
PLAYER = What(Role.CALL, Kind.DB, "postgresql", "", "SELECT a FROM guild WHERE id = ?", "game/views.py:30 players")
BILLING = What(Role.CALL, Kind.HTTP, "billing")
T0 = datetime(2026, 3, 2, 12, 0, 20, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _empty_valkey() -> Iterator[None]:
    # Keys are those of a service's primary key, and rolled back databases give them again.
    client = redis.Redis.from_url(settings.REDIS_URL)
    for key in client.scan_iter("runerogue:otlp:*"):
        client.delete(key)
    yield
    client.close()


@pytest.fixture
def realm() -> Service:
    service = ServiceFactory(name="realm")
    service.manifest["otlp"] = {"names": ["game-api"], "endpoints": {"api/players": "player-list"}}
    service.save()
    return service


def request(number: int, *, queries: int = 10, ms: float = 100.0) -> list[Span]:
    trace, base = number.to_bytes(16, "big"), 10**18

    def span(own: int, parent: int, what: What, start: float, end: float) -> Span:
        return Span(
            trace,
            own.to_bytes(8, "big"),
            parent.to_bytes(8, "big") if parent else b"",
            what,
            base + int(start * 1e6),
            base + int(end * 1e6),
            False,
        )

    calls = [span(2 + n, 1, PLAYER, n, n + 1) for n in range(queries)]
    return [*calls, span(900, 1, BILLING, 50, 70), span(1, 0, LIST, 0, ms)]


def arrive(service: Service, *requests: list[Span], at: datetime = T0, export: bytes = b"") -> bool:
    spans = [span for one in requests for span in one]
    return profiling.receive(service, spans, at=at, export=export or repr(spans).encode())


def later(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def profile_of(service: Service) -> Any:
    return {(one.endpoint, one.method): one for one in profiling.profile(service, later(-7200), later(7200))}


def test_what_arrived_becomes_a_profile_and_signals(realm: Service) -> None:
    arrive(realm, request(1), request(2, queries=20, ms=300.0))
    assert profiling.fold_all(later(10)) == 12 + 22
    (found,) = profiling.profile(realm, later(-60), later(60))
    assert (found.endpoint, found.method, found.requests) == ("player-list", "GET", 2)
    assert (found.queries_per_request, found.repeats_per_request) == (15.0, 15.0)
    assert found.latency_mean_ms == pytest.approx(200.0)
    assert found.database_share == pytest.approx(30 / 400)
    assert found.self_ms == pytest.approx((400 - 30 - 40) / 2)
    assert [(one.kind, one.name, one.calls_per_request) for one in found.dependencies] == [
        ("http", "billing", 1.0),
        ("db", "postgresql", 15.0),
    ]
    (statement,) = found.statements
    assert (statement.text, statement.most, statement.calls, statement.place) == (
        PLAYER.statement,
        20,
        30,
        PLAYER.place,
    )
    assert [one.milliseconds for one in found.exemplars] == pytest.approx([300.0, 100.0])
    assert [(line.depth, line.what, line.calls) for line in found.exemplars[0].lines] == [
        (1, f"db: {PLAYER.statement}", 20),
        (1, "http: billing", 1),
    ]

    def latest(signal: str, **labels: str) -> float | None:
        return reading.latest(realm, signal, **labels)

    assert latest("queries_per_request", endpoint="player-list", method="GET") == 15.0
    assert latest("repeats_per_request", endpoint="*") == 15.0
    assert latest("database_share", endpoint="player-list") == pytest.approx(0.075)
    assert latest("dependency_calls_per_second", dependency="postgresql", kind="db") == pytest.approx(30 / 60)
    assert latest("dependency_latency_mean_ms", dependency="billing", kind="http") == pytest.approx(20.0)
    assert latest("dependency_latency_p95_ms", dependency="billing") == pytest.approx(20.0, rel=0.1)
    assert latest("dependency_error_ratio", dependency="billing") == 0.0


def test_repeated_statements_are_those_of_an_n_plus_one(realm: Service) -> None:
    arrive(realm, request(1, queries=20))
    profiling.fold_all(later(10))
    (found,) = profiling.repeated_statements(realm, later(-60), later(60))
    assert (found.endpoint, found.method, found.statement.text) == ("player-list", "GET", PLAYER.statement)
    assert profiling.repeated_statements(realm, later(-60), later(60), at_least=21.0) == []


def test_exports_in_pieces_and_rounds_are_one_request(realm: Service) -> None:
    spans = request(1)
    arrive(realm, spans[:4])
    assert profiling.fold_all(later(2)) == 0
    arrive(realm, spans[4:8], at=later(3))
    assert profiling.fold_all(later(4)) == 0
    assert SpanIntake.objects.get().waiting == 8
    arrive(realm, spans[8:], at=later(5))
    assert profiling.fold_all(later(20)) == 12
    assert profile_of(realm)["player-list", "GET"].queries_per_request == 10.0
    assert SpanIntake.objects.get().waiting == 0


def test_rounds_of_one_minute_add_up(realm: Service) -> None:
    arrive(realm, request(1))
    profiling.fold_all(later(10))
    arrive(realm, request(2), at=later(11))
    profiling.fold_all(later(20))
    assert Profile.objects.count() == 1
    assert profile_of(realm)["player-list", "GET"].requests == 2
    # Ten seconds passed between the two, so the rate is that of the newer one alone.
    assert reading.latest(realm, "dependency_calls_per_second", dependency="billing") == pytest.approx(1 / 10)


def test_the_same_export_counts_once(realm: Service) -> None:
    assert arrive(realm, request(1), export=b"the body") is True
    assert arrive(realm, request(1), export=b"the body") is False
    profiling.fold_all(later(10))
    assert profile_of(realm)["player-list", "GET"].requests == 1


def test_an_interrupted_fold_is_done_again_and_counted_once(realm: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = request(2)
    arrive(realm, request(1), waiting[:3])

    real = profiling._run

    def dies_after_the_commit(script: str, *arguments: Any) -> Any:
        if script is profiling._FINISH:
            raise redis.ConnectionError("gone")
        return real(script, *arguments)

    monkeypatch.setattr(profiling, "_run", dies_after_the_commit)
    profiling.fold_all(later(10))
    assert profile_of(realm)["player-list", "GET"].requests == 1
    monkeypatch.undo()
    arrive(realm, waiting[3:], at=later(11))
    assert profiling.fold_all(later(12)) == 0  # the interrupted batch, finished
    profiling.fold_all(later(30))
    found = profile_of(realm)["player-list", "GET"]
    assert (found.requests, found.queries_per_request) == (2, 10.0)
    assert SpanIntake.objects.get().requests == 2


def test_a_fold_that_fails_before_the_commit_loses_nothing(realm: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    arrive(realm, request(1))
    with monkeypatch.context() as patch:
        patch.setattr(profiling, "store", _fails)
        with pytest.raises(psycopg.OperationalError), transaction.atomic():
            profiling.fold_all(later(10))
    assert Profile.objects.count() == 0
    assert profiling.fold_all(later(20)) == 12
    assert profile_of(realm)["player-list", "GET"].requests == 1


def _fails(*arguments: Any, **named: Any) -> int:
    raise psycopg.OperationalError("the server went away")


def test_an_emptied_valkey_is_a_gap_and_no_error(realm: Service) -> None:
    arrive(realm, request(1))
    client = redis.Redis.from_url(settings.REDIS_URL)
    for key in client.scan_iter("runerogue:otlp:*"):
        client.delete(key)
    client.close()
    assert profiling.fold_all(later(10)) == 0
    arrive(realm, request(2), at=later(11))
    assert profiling.fold_all(later(30)) == 12


def test_a_queue_that_is_not_there_stops_no_round(realm: Service, settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    assert profiling.fold_all(later(10)) == 0
    with pytest.raises(profiling.Overloaded, match="does not answer"):
        arrive(realm, request(1))


def test_a_round_costs_nothing_for_services_that_send_none(realm: Service) -> None:
    profiling.compact(later(10))
    for _ in range(20):
        ServiceFactory()
    with CaptureQueriesContext(connection) as queries:
        profiling.fold_all(later(11))
    assert len(queries) <= 8


def test_too_much_is_told_to_come_later(realm: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "LARGEST_WAITING_BYTES", 3000)
    other = ServiceFactory()
    taken = 0
    with contextlib.suppress(profiling.Overloaded):
        for number in range(1, 50):
            arrive(realm, request(number))
            taken += 1
    assert 0 < taken < 49
    with pytest.raises(profiling.Overloaded, match="Too many spans of realm"):
        arrive(realm, request(60))
    arrive(other, request(99))  # one service's flood is not another's
    profiling.fold_all(later(10))
    assert profile_of(realm)["player-list", "GET"].requests == taken
    arrive(realm, request(100), at=later(11))  # there is room again


def test_two_workers_never_fold_one_service_at_once(realm: Service, transactional_db: None) -> None:
    arrive(realm, request(1))
    parameters = connection.get_connection_params()
    wanted = {k: v for k, v in parameters.items() if k in {"dbname", "user", "password", "host", "port"}}
    with psycopg.connect(**wanted) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s, %s)", [profiling.LOCK, realm.pk])
        assert profiling.fold_all(later(10)) == 0
    assert profiling.fold_all(later(11)) == 12


def test_late_and_lost_requests_are_numbers(realm: Service) -> None:
    spans = request(1)
    arrive(realm, spans[:-1])
    profiling.fold_all(later(10))
    profiling.fold_all(later(10 + profiling.PATIENCE_SECONDS))
    intake = SpanIntake.objects.get()
    assert (intake.without_request, intake.requests, intake.waiting) == (11, 0, 0)
    assert reading.latest(realm, "dependency_error_ratio", dependency="billing") == 0.0
    arrive(realm, spans[-1:], at=later(150))
    profiling.fold_all(later(160))
    intake.refresh_from_db()
    assert (intake.late_requests, intake.requests) == (1, 0)
    assert Profile.objects.count() == 0


def test_minutes_become_hours_and_hours_end(realm: Service) -> None:
    for minute in range(5):
        arrive(realm, request(minute + 1), at=later(60 * minute))
        profiling.fold(realm, at=later(60 * minute + 10))
    before = profile_of(realm)["player-list", "GET"]
    assert (Profile.objects.count(), before.requests) == (5, 5)
    assert profiling.compact(later(4 * 3600)) == 5
    row = Profile.objects.get()
    assert (row.seconds, row.at) == (3600, T0.replace(minute=0, second=0))
    after = profile_of(realm)["player-list", "GET"]
    assert (after.requests, after.queries_per_request, after.statements[0].calls) == (5, 10.0, 50)
    assert profiling.profile(realm, later(3600), later(7200)) == []
    assert profiling.compact(later(4 * 3600 + 60)) == 0  # once an hour
    profiling.compact(T0 + timedelta(days=31))
    assert (Profile.objects.count(), Statement.objects.count()) == (0, 0)


def test_statements_are_bounded(realm: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "MOST_STATEMENTS", 2)
    spans = request(1)
    invented = [s._replace(what=s.what._replace(statement=f"SELECT x{s.id.hex()[-2:]}")) for s in spans[:5]]
    arrive(realm, [*invented, *spans[5:]])
    profiling.fold_all(later(10))
    assert Statement.objects.count() == 2
    texts = {one.text for one in profile_of(realm)["player-list", "GET"].statements}
    assert "(other statements)" in texts


@pytest.mark.parametrize(("name", "found"), [("realm", True), ("game-api", True), ("game", False), ("", False)])
def test_spans_belong_to_the_service_they_name(realm: Service, name: str, found: bool) -> None:
    ServiceFactory(name="gone", archived_at=now())
    assert (profiling.service_of(name) == realm) is found
    assert profiling.service_of("gone") is None


def test_what_waits_in_valkey_is_no_more_than_what_was_read(realm: Service) -> None:
    arrive(realm, request(1))
    client = redis.Redis.from_url(settings.REDIS_URL)
    (chunk,) = client.lrange(profiling._key(realm.pk, "spans"), 0, -1)
    assert client.ttl(profiling._key(realm.pk, "spans")) > 0
    client.close()
    assert [one.span for one in folding.unpack(chunk)] == request(1)


def test_the_page_shows_where_the_time_goes(realm: Service, client: Client) -> None:
    client.force_login(User.objects.create(username="root", is_staff=True, is_superuser=True))
    assert "No spans yet" in client.get("/admin/monitoring/spanintake/").content.decode()
    moment = now()
    arrive(realm, request(1), request(2, queries=25), at=moment - timedelta(seconds=10))
    profiling.fold_all(moment)
    listed = client.get("/admin/monitoring/spanintake/", {"service__id__exact": realm.pk})
    assert "realm" in listed.content.decode()
    with CaptureQueriesContext(connection) as queries:
        page = client.get(f"/admin/monitoring/spanintake/{realm.pk}/change/").content.decode()
    assert len(queries) <= 10
    for words in (
        "GET player-list",
        "postgresql",
        "billing",
        "SELECT a FROM guild WHERE id = ?",
        "at most 25",
        "A slow one",
    ):
        assert words in page, words
    assert 'style="' not in page  # the policy for content would leave it out
    for hours in ("24", "672", "nonsense"):
        assert client.get(f"/admin/monitoring/spanintake/{realm.pk}/change/", {"hours": hours}).status_code == 200
