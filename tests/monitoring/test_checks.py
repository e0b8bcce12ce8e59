"""Wrong configuration is found before it hurts."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from django.core.checks import WARNING
from pytest_django.fixtures import Settings

from monitoring import sandbox
from monitoring.checks import AFTER, BEFORE, check_monitoring, check_sandbox


@pytest.fixture(autouse=True)
def _right(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MIDDLEWARE = [BEFORE, AFTER]
    settings.ALLOWED_HOSTS = ["127.0.0.1"]
    settings.RUNEROGUE_HOST = "127.0.0.1"
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


def found() -> list[str | None]:
    messages = check_monitoring(None)
    assert all(message.hint for message in messages)
    return [message.id for message in messages]


def test_the_right_configuration_is_silent() -> None:
    assert found() == []


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_a_network_that_is_everybody(settings: Settings, network: str) -> None:
    settings.MONITORING_ALLOWED_NETWORKS = (ip_network(network),)
    assert found() == ["monitoring.W001"]


def test_a_host_that_refuses_its_own_scrapes(settings: Settings) -> None:
    settings.ALLOWED_HOSTS = ["runerogue.example.org"]
    assert found() == ["monitoring.W002"]


def test_middleware_that_lets_clients_invent_labels(settings: Settings) -> None:
    settings.MIDDLEWARE = [BEFORE, "django_prometheus.middleware.PrometheusAfterMiddleware"]
    assert found() == ["monitoring.W003"]


def test_a_metrics_folder_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere/at/all")
    assert found() == ["monitoring.E001"]


@pytest.mark.parametrize(("why", "ids"), [("", []), ("bubblewrap is not installed, and …", ["monitoring.W004"])])
def test_code_of_services_that_would_run_as_root(why: str, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "weakness", lambda: why)
    messages = check_sandbox(None)
    assert [message.id for message in messages] == ids
    assert all("apt-get install bubblewrap" in str(message.hint) and message.level < WARNING for message in messages)
