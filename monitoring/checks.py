"""System checks: what is configured so that monitoring could not work or would tell too much."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error, register
from django.http.request import validate_host

from monitoring import sandbox
from monitoring.registry import own_metrics_url

BEFORE = "django_prometheus.middleware.PrometheusBeforeMiddleware"
AFTER = "monitoring.instrumentation.BoundedPrometheusMiddleware"


@register("sandbox")
def check_sandbox(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Said, and no more: on a fresh machine root must be able to run the demonstration all the same."""
    if not (why := sandbox.weakness()):
        return []
    return [
        checks.Info(
            f"Code of services runs as root, with files and network open: {why}.",
            hint="Install bubblewrap (apt-get install bubblewrap), or run RuneRogue as a user of its own.",
            id="monitoring.W004",
        )
    ]


@register()
def check_monitoring(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for network in settings.MONITORING_ALLOWED_NETWORKS:
        if network.prefixlen == 0:
            found.append(
                checks.Warning(
                    f"MONITORING_ALLOWED_NETWORKS holds {network}: everybody may read metrics and health.",
                    hint="Name the networks of your monitoring, such as 10.1.0.0/16.",
                    id="monitoring.W001",
                )
            )
    host = urlsplit(own_metrics_url()).hostname or ""
    if not validate_host(f"[{host}]" if ":" in host else host, settings.ALLOWED_HOSTS):
        found.append(
            checks.Warning(
                f"RuneRogue scrapes itself at {host}, which ALLOWED_HOSTS refuses.",
                hint=f"Add {host} to ALLOWED_HOSTS.",
                id="monitoring.W002",
            )
        )
    if BEFORE not in settings.MIDDLEWARE or AFTER not in settings.MIDDLEWARE:
        found.append(
            checks.Warning(
                "RuneRogue does not measure its own requests, or lets clients invent labels.",
                hint=f"MIDDLEWARE begins with {BEFORE} and ends with {AFTER}.",
                id="monitoring.W003",
            )
        )
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder and not Path(folder).is_dir():
        found.append(
            Error(
                f"PROMETHEUS_MULTIPROC_DIR names {folder}, which is not a folder.",
                hint="Make the folder before the processes start, empty at each start, or unset it for one process.",
                id="monitoring.E001",
            )
        )
    return found
