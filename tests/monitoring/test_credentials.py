"""Who asks: credentials for a Prometheus or for metrics, told to those alone."""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import httpx
import pytest
from django.contrib.auth.models import User
from django.test import Client

from approvals.models import AuditEntry
from monitoring import backfilling, reading, registry
from monitoring.collecting import collect
from monitoring.manifest import parse
from monitoring.models import Backfill, Service, Target
from tests.monitoring.factories import MANIFEST, T0, ServiceFactory, TargetFactory, approve_loopback
from tests.monitoring.prometheus import UNTIL, Twin, moment, watched

TOKEN, PASSWORD, TENANT = "tok-9f3a7c51e2", "pass:9f3a7c51e2", "team-shop"
LOGIN = base64.b64encode(f"shop:{PASSWORD}".encode()).decode()


class Guard(BaseHTTPRequestHandler):
    """A proxy before Prometheus that wants `wanted` and, where it is refused, repeats what it was sent.

    At /metrics it is a service of its own, and everything below /moved/ is elsewhere.
    """

    client: ClassVar[httpx.Client]  # one: each would read the machine's certificates
    behind: ClassVar[str] = ""
    elsewhere: ClassVar[str] = ""
    wanted: ClassVar[dict[str, str]] = {}
    refuses_with: ClassVar[tuple[int, str]] = (401, "who is {sent}?")
    seen: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        if self.path.startswith("/moved/"):
            self.answer(302, b"", location=f"{self.elsewhere}{self.path}")
        elif any(self.headers.get(name) != value for name, value in self.wanted.items()):
            status, words = self.refuses_with
            self.answer(status, words.format(sent=self.headers.get("Authorization", "this")).encode())
        elif self.path == "/metrics":
            self.answer(200, b"http_requests_inprogress 7\n")
        else:
            said = self.client.get(f"{self.behind}{self.path}")
            self.answer(said.status_code, said.content)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Guard)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setattr(Guard, "seen", [])
    with httpx.Client(trust_env=False) as client:
        monkeypatch.setattr(Guard, "client", client, raising=False)
        yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


WAYS: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "bearer": ('bearer_token_env = "T"', {"METRICS__T": TOKEN}, {"Authorization": f"Bearer {TOKEN}"}),
    "basic": ('username = "shop"\npassword_env = "T"', {"T": PASSWORD}, {"Authorization": f"Basic {LOGIN}"}),
    "tenant": (f'headers = {{X-Scope-OrgID = "{TENANT}"}}', {}, {"X-Scope-OrgID": TENANT}),
    "key": ('headers_env = {X-Api-Key = "T"}', {"T": TOKEN}, {"X-Api-Key": TOKEN}),
}


@pytest.mark.django_db
@pytest.mark.parametrize("way", WAYS)
def test_a_prometheus_that_wants_to_know_who_asks_is_told(
    way: str, guard: str, prometheus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more, environment, wanted = WAYS[way]
    monkeypatch.setattr(Guard, "behind", prometheus)
    monkeypatch.setattr(Guard, "wanted", wanted)
    target = watched(guard, f"history_days = 1\n{more}", **environment)
    other = TargetFactory(service=target.service, url=f"{guard}/metrics")
    done = collect(moment(UNTIL), spread_seconds=0.0)
    assert done is not None
    # It is told to that Prometheus and to no other target of the service.
    assert list(done.failed) == [other.pk]
    assert "wants credentials (status 401)" in done.failed[other.pk]
    Backfill.objects.create(
        target=target, is_first=True, since=moment(UNTIL - 600), until=moment(UNTIL), asked_at=moment(UNTIL)
    )
    filled = backfilling.run(moment(UNTIL + 1), seconds=60.0)
    assert filled is not None
    assert filled.samples > 0


@pytest.mark.django_db
@pytest.mark.parametrize("way", WAYS)
def test_so_is_a_service_that_is_scraped(way: str, guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    more, environment, wanted = WAYS[way]
    monkeypatch.setattr(Guard, "wanted", wanted)
    approve_loopback()
    manifest = parse(f"{MANIFEST}[metrics]\n{more}\n").model_dump(mode="json")
    service = ServiceFactory(manifest=manifest, environment=environment)
    TargetFactory(service=service, url=f"{guard}/metrics")
    done = collect(T0, spread_seconds=0.0)
    assert done is not None
    assert done.failed == {}
    assert reading.latest(service, "requests_in_flight") == 7


@pytest.mark.django_db
@pytest.mark.parametrize("at", ["promql", "metrics"])
@pytest.mark.parametrize("refuses_with", [(401, "who is {sent}?"), (500, '{{"status":"error","error":"{sent}"}}')])
@pytest.mark.parametrize("way", ["bearer", "basic"])
def test_secrets_are_nowhere_to_be_seen(
    way: str,
    refuses_with: tuple[int, str],
    at: str,
    guard: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    client: Client,
) -> None:
    more, environment, _ = WAYS[way]
    monkeypatch.setattr(Guard, "wanted", {"Authorization": "another"})
    monkeypatch.setattr(Guard, "refuses_with", refuses_with)
    caplog.set_level(logging.DEBUG)
    target = watched(guard if at == "promql" else "http://127.0.0.1:9", more, **environment)
    if at == "metrics":
        manifest = parse(f"{MANIFEST}[metrics]\n{more}\n").model_dump(mode="json")
        Service.objects.filter(pk=target.service.pk).update(manifest=manifest)
        Target.objects.filter(pk=target.pk).update(url=f"{guard}/metrics")
    done = collect(T0, spread_seconds=0.0)
    assert done is not None
    assert list(done.failed) == [target.pk]
    Target.objects.update(last_scraped_at=T0)
    backfilling.run(T0, seconds=60.0)
    assert any("authorization" in headers for headers in Guard.seen)

    client.force_login(User.objects.create_superuser("alice", password="a long one for alice"))
    pages = [
        client.get(path, {"service": target.service.name}).content.decode()
        for path in (
            f"/admin/monitoring/service/{target.service.pk}/change/",
            "/admin/monitoring/service/",
            "/health/detailed",
            "/api/v1/services/",
            "/metrics",
        )
    ]
    assert "environment" in pages[0].lower()
    rows = json.dumps([list(model.objects.values()) for model in (Target, Backfill, AuditEntry)], default=str)
    for secret in (TOKEN, PASSWORD, LOGIN):
        for text in (*pages, rows, *caplog.messages, *done.failed.values()):
            assert secret not in text


@pytest.mark.django_db
def test_a_variable_that_is_missing_is_said_so_and_nothing_is_asked(guard: str) -> None:
    target = watched(guard, 'bearer_token_env = "PROM_TOKEN"')
    done = collect(T0, spread_seconds=0.0)
    assert done is not None
    assert "metrics.bearer_token_env names the variable PROM_TOKEN" in done.failed[target.pk]
    assert Guard.seen == []


@pytest.mark.django_db
def test_a_redirect_takes_no_credentials_along(guard: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guard, "elsewhere", address)
    monkeypatch.setattr(Twin, "asked", [])
    more, environment, _ = WAYS["bearer"]
    target = watched(f"{guard}/moved", more, **environment)
    done = collect(T0, spread_seconds=0.0)
    assert done is not None
    assert "status 302" in done.failed[target.pk]
    assert len(Guard.seen) == 1
    assert Twin.asked == []


def test_what_is_for_measuring_never_reaches_the_services_own_code() -> None:
    service = ServiceFactory.build(environment={"METRICS__T": TOKEN, "DEBUG": "0"})
    assert registry.running_environment(service) == {"DEBUG": "0"}
    assert registry.environment_for_tests(service) == {"DEBUG": "0"}
