"""The coverage of the monitoring: routes from code and documents, what was seen of them, and where it is shown."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client

from monitoring import blindspots, pushing, reading, registry, storing
from monitoring.covering import State
from monitoring.derive import Reading
from monitoring.models import RouteMap, Service
from tests.monitoring.factories import (
    MANIFEST,
    T0,
    ServiceFactory,
    TargetFactory,
    approve_loopback,
    commit,
    git,
    repository,
)

pytestmark = pytest.mark.django_db
REALM = settings.BASE_DIR / "deploy/realm"
ENVIRONMENT = {
    "DATABASE_URL": "postgresql://realm:hunter2@127.0.0.1:1/realm",
    "SECRET_KEY": "not-a-secret",
    "TELEMETRY": "off",
}
USED = ("player-list", "player-detail", "item-search", "leaderboard", "trades")


def measured(service: Service, *endpoints: str, at: Any, **more: float) -> None:
    """As a round that scraped the service would store."""
    rows = [Reading("up", (), 1.0)]
    rows += [Reading("requests_per_second", (("endpoint", e), ("method", "GET")), 1.0) for e in endpoints]
    rows += [Reading(signal, (), value) for signal, value in more.items()]
    storing.store([(service, row) for row in rows], at=at)


def states(service: Service, at: Any) -> dict[str, str]:
    return {part.name: str(part.state) for part in blindspots.coverage(service, at).parts}


def test_sees_all_of_realm(tmp_path: Path) -> None:
    """The real service: its URL configuration is loaded by its own code, in the sandbox."""
    folder = tmp_path / "realm"
    shutil.copytree(REALM, folder, ignore=shutil.ignore_patterns("__pycache__", ".venv", "*.log"))
    git(folder, "init", "--quiet", "--initial-branch", "main")
    commit(folder, "first")
    tmp_path.chmod(0o711)
    realm = registry.register(None, str(folder), environment=ENVIRONMENT, actor=None)
    found = blindspots.map_routes(realm, at=T0)
    assert found.problem == ""
    assert set(USED) < set(found.names)
    assert found.measures_all

    measured(realm, *USED, at=T0, queries_per_request=2.0)
    blindspots.write_round(T0)
    assert states(realm, T0) == {
        **dict.fromkeys(USED, "live"),
        "trade-references": "ready",
        "postgresql": "live",
    }
    assert reading.latest(realm, "monitoring_coverage_ratio") == 1.0

    def never(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("nothing changed")

    assert blindspots.map_routes(realm, at=T0, run=never).commit == found.commit


def test_sees_all_of_itself() -> None:
    own = ServiceFactory(name="runerogue", is_self=True)
    found = blindspots.map_routes(own, at=T0)
    assert found.measures_all
    assert {"admin:index", "admin:monitoring_service_change", "api-feedback"} < set(found.names)
    measured(own, "admin:index", at=T0)
    blindspots.write_round(T0)
    known = states(own, T0)
    assert (known["admin:index"], known["database"], known["queue"]) == ("live", "live", "live")
    assert "health-live" not in known
    ratio = reading.latest(own, "monitoring_coverage_ratio")
    assert ratio is not None
    assert ratio >= 0.95
    assert reading.latest(own, "dependency_error_ratio", dependency="database") == 0.0
    assert reading.latest(own, "dependency_latency_mean_ms", dependency="queue") is not None


def test_a_service_that_is_not_scraped_is_a_blind_spot() -> None:
    service = ServiceFactory(environment={"CACHE_URL": "redis://cache:6379/0"})
    RouteMap.objects.create(service=service, names=["a", "b"], source="its URL configuration", measures_all=True)
    measured(service, "a", at=T0)
    blindspots.write_round(T0)
    assert states(service, T0) == {"a": "live", "b": "ready", "redis": "blind"}
    later = T0 + timedelta(minutes=10)
    blindspots.write_round(later)
    found = blindspots.coverage(service, later)
    assert {part.state for part in found.parts} == {State.BLIND}
    assert reading.latest(service, "monitoring_coverage_ratio") == 0.0
    measured(service, at=later + timedelta(minutes=1))
    blindspots.write_round(later + timedelta(minutes=1))
    assert states(service, later + timedelta(minutes=1)) == {"a": "quiet", "b": "ready", "redis": "blind"}


def test_reads_the_document_that_the_manifest_names(tmp_path: Path) -> None:
    manifest = MANIFEST + '[coverage]\nopenapi = "docs/openapi.json"\ndependencies = ["payments"]\n'
    folder = repository(tmp_path / "shop", manifest)
    (folder / "docs").mkdir()
    (folder / "docs/openapi.json").write_text(
        json.dumps({"openapi": "3.1.0", "paths": {"/items/{id}": {}, "/pay": {}}})
    )
    commit(folder, "document")
    shop = registry.register("shop", str(folder), environment={}, actor=None)
    assert blindspots.map_routes(shop, at=T0).source == "its OpenAPI document"
    measured(shop, "/items/{item_id}", at=T0)
    labels = (("dependency", "payments.example.org"), ("kind", "http"))
    storing.store([(shop, Reading("dependency_calls_per_second", labels, 1.0))], at=T0)
    blindspots.write_round(T0)
    assert states(shop, T0) == {"/items/{id}": "live", "/pay": "blind", "payments.example.org": "live"}
    assert reading.latest(shop, "monitoring_coverage_ratio") == pytest.approx(2 / 3)


@pytest.mark.parametrize("printed", ["", "no json", "[]", '{"names": 5}', "null"])
def test_what_a_service_prints_breaks_nothing(tmp_path: Path, printed: str) -> None:
    from monitoring.sandbox import Finished

    folder = repository(tmp_path / "shop")
    (folder / "manage.py").write_text('os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")\n')
    commit(folder, "django")
    shop = registry.register("shop", str(folder), environment={}, actor=None)
    found = blindspots.map_routes(shop, at=T0, run=lambda *a, **k: Finished(0, printed, "", 0.1, False, "none"))
    assert found.problem
    measured(shop, "items", at=T0)
    blindspots.write_round(T0)
    assert states(shop, T0) == {"items": "live"}, "what was observed is still known"


def test_is_shown_on_the_page_of_the_service_and_in_the_api(client: Client, mallory: User) -> None:
    service = ServiceFactory(name="realm", environment={"CACHE_URL": "redis://:hunter2@cache:6379/0"})
    RouteMap.objects.create(service=service, names=["a"], source="its URL configuration", measures_all=True)
    told = client.get("/health/detailed", {"service": "realm"}).json()["monitoring_coverage"]
    assert (told["ratio"], told["parts"]) == (0.0, 2)
    assert {spot["name"] for spot in told["blind_spots"]} == {"a", "redis"}
    client.force_login(mallory)
    page = client.get(f"/admin/monitoring/service/{service.pk}/change/").content.decode()
    assert "Blind spots (2)" in page
    assert "metrics are not being read" in page
    assert "hunter2" not in page


class Shop(BaseHTTPRequestHandler):
    """A service that gives its own document."""

    answer: ClassVar[tuple[int, bytes]] = (200, b"")
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        status, body = self.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setattr(Shop, "asked", [])
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_asks_the_running_service_for_its_document_now_and_then(
    tmp_path: Path, shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = MANIFEST + '[metrics]\nbearer_token_env = "T"\n[coverage]\nopenapi = "/v1/openapi.yaml"\n'
    folder = repository(tmp_path / "shop", manifest)
    service = registry.register("shop", str(folder), environment={"T": "t0p"}, actor=None)
    found = blindspots.map_routes(service, at=T0)
    assert "No target of the service runs" in found.problem

    pushing.watch(service)
    assert "No target of the service runs" in blindspots.map_routes(service, at=T0).problem

    TargetFactory(service=service, url=f"{shop}/metrics")
    assert "not an approved host" in blindspots.map_routes(service, at=T0).problem
    assert Shop.asked == []

    approve_loopback()
    monkeypatch.setattr(Shop, "answer", (200, b"openapi: 3.1.0\npaths:\n  /items/{id}: {}\n  /pay: {}\n"))
    found = blindspots.map_routes(service, at=T0)
    assert (found.names, found.source, found.problem) == (["/items/{id}", "/pay"], "its OpenAPI document", "")
    assert Shop.asked == [("/v1/openapi.yaml", None)]

    blindspots.map_routes(service, at=T0 + timedelta(hours=5))
    assert len(Shop.asked) == 1
    for answer, says in (
        ((404, b"no"), "status 404"),
        ((200, b"<html>"), "It has no object `paths`"),
        ((200, b" " * (blindspots.LARGEST_DOCUMENT_BYTES + 1)), "larger than"),
    ):
        monkeypatch.setattr(Shop, "answer", answer)
        found = blindspots.map_routes(service, at=T0 + timedelta(hours=7))
        assert says in found.problem
        assert found.names == ["/items/{id}", "/pay"]
