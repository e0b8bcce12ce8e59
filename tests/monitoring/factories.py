"""Rows of monitoring for tests, and a service whose numbers a test can write."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import factory

from monitoring import storing
from monitoring.derive import Reading
from monitoring.manifest import parse
from monitoring.models import ExternalService, Service, Target

T0 = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
INTERVAL = timedelta(seconds=60)

MANIFEST = """[service]
name = "realm"
[run]
command = "gunicorn realm.wsgi --bind 127.0.0.1:{port}"
health = "/up"
[test]
command = "pytest -q --junitxml={report}"
"""


class ServiceFactory(factory.django.DjangoModelFactory[Service]):
    class Meta:
        model = Service

    name = factory.Sequence(lambda number: f"service-{number}")
    repository = factory.LazyAttribute(lambda service: f"/srv/{service.name}")
    manifest = factory.LazyFunction(lambda: parse(MANIFEST).model_dump(mode="json"))


def approve_loopback() -> None:
    """Servers that a test starts on 127.0.0.1 may be reached, at any port."""
    ExternalService.objects.create(
        host="127.0.0.1", allows_private=True, purpose="a test", approved_at=T0, approve_reason="It is ours."
    )


class TargetFactory(factory.django.DjangoModelFactory[Target]):
    class Meta:
        model = Target

    service = factory.SubFactory(ServiceFactory)
    # A name, not a loopback address: nothing on this machine is measured for it.
    url = factory.LazyAttribute(lambda target: f"http://{target.service.name}.test/metrics")


def exposition(
    *, requests: int = 0, failed: int = 0, fast: int | None = None, view: str = "players", queries: int = 0
) -> str:
    """What a django-prometheus service shows after so many requests; `fast` of them within 0.1 s, others within 1."""
    fast = requests if fast is None else fast
    name = "django_http_requests_latency_seconds_by_view_method"
    labels = f'view="{view}",method="GET"'
    answers = "django_http_responses_total_by_status_view_method_total"
    return (
        f'{name}_bucket{{{labels},le="0.1"}} {fast}\n'
        f'{name}_bucket{{{labels},le="1.0"}} {requests}\n'
        f'{name}_bucket{{{labels},le="+Inf"}} {requests}\n'
        f"{name}_sum{{{labels}}} {fast * 0.05 + (requests - fast) * 0.5}\n"
        f"{name}_count{{{labels}}} {requests}\n"
        f'{answers}{{status="200",{labels}}} {requests - failed}\n'
        f'{answers}{{status="500",{labels}}} {failed}\n'
        f'django_db_execute_total{{alias="default",vendor="postgresql"}} {queries}\n'
        "process_resident_memory_bytes 5e7\n"
        "process_start_time_seconds 1.7e9\n"
    )


def samples(service: Service, signal: str, values: Iterable[float], *, until: datetime, **labels: str) -> None:
    """A series of `values`, one interval apart, the last one just before `until`."""
    values = list(values)
    for number, value in enumerate(reversed(values), start=1):
        reading = Reading(signal, tuple(sorted(labels.items())), value)
        storing.store([(service, reading)], at=until - number * INTERVAL)


def repository(folder: Path, manifest: str = MANIFEST, branch: str = "main") -> Path:
    """A git repository with one commit that holds `manifest`."""
    folder.mkdir(parents=True)
    (folder / "runerogue.toml").write_text(manifest)
    git(folder, "init", "--quiet", "--initial-branch", branch)
    commit(folder, "first")
    return folder


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=alice", "-c", "user.email=alice@example.org", "commit", "--quiet", "-m", message)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)
